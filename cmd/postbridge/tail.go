package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/brokers"
)

const tailHelp = `Follow the events on a bus of POSTBRIDGE_PUBLISH: Kafka at POSTBRIDGE_KAFKA_BROKERS, or NATS at
POSTBRIDGE_NATS_URL or embedded in a postbridge on this machine. A line for people on a terminal,
with [order_book] before the symbol if the event comes from the broker's order book; the event as
it is (JSON) in a pipe. Waits for a bus, a stream or a topic that is not there yet.

Usage: postbridge tail [flags]

  --bus NAME            nats or kafka (default the first of POSTBRIDGE_PUBLISH)
  --broker NAME         only of this broker: kite, dhan, upstox, fyers
  --user ID             only of this user
  --order ID            only of this order
  --status WORD,...     only with this status: open, filled, rejected, ...; may be repeated
  --destination NAME    orders, rejects or deadletters (default orders)
  --from WHEN           start, now, a time (RFC 3339) or how long ago: 10m (default now)
  --count N             end after N events (default never)
  --timeout TIME        end after this time; a failure if --count was not reached
  --headers             one object per line: "event", "headers", and "subject" or, of Kafka,
                        "topic", "partition", "offset", "key"
  --fills               what a consumer would count: a line per new fill, with quantity and price
  --late                say of each event whether it is late or a repeat, as a consumer would
  --json                JSON on a terminal, too

Example: postbridge tail --from start --status filled,rejected --count 10
`

// tailOptions holds the flags of tail.
type tailOptions struct {
	busFilter
	bus, from     string
	count         int
	timeout       time.Duration
	headers, json bool
	fills, late   bool
}

func tailFlags(o *tailOptions) *flag.FlagSet {
	fs := newFlags("tail")
	fs.StringVar(&o.bus, "bus", "", "")
	fs.StringVar(&o.broker, "broker", "", "")
	fs.StringVar(&o.user, "user", "", "")
	fs.StringVar(&o.order, "order", "", "")
	fs.Func("status", "", func(words string) error { return o.statuses.UnmarshalText([]byte(words)) })
	fs.StringVar(&o.destination, "destination", string(bridge.Orders), "")
	fs.StringVar(&o.from, "from", "now", "")
	fs.IntVar(&o.count, "count", 0, "")
	fs.DurationVar(&o.timeout, "timeout", 0, "")
	fs.BoolVar(&o.headers, "headers", false, "")
	fs.BoolVar(&o.fills, "fills", false, "")
	fs.BoolVar(&o.late, "late", false, "")
	fs.BoolVar(&o.json, "json", false, "")
	return fs
}

func (o *tailOptions) check() error {
	destinations := list{string(bridge.Orders), string(bridge.Rejects), string(bridge.Deadletters)}
	var statuses list
	for _, s := range event.Statuses() {
		statuses = append(statuses, string(s))
	}
	switch {
	case o.bus != "" && !slices.Contains(busNames(), o.bus):
		return misuse("--bus %q is not known; set it to %s", o.bus, strings.Join(busNames(), " or "))
	case o.broker != "" && !slices.Contains(brokers.Names(), o.broker):
		return unknownBroker(o.broker)
	case !slices.Contains(destinations, o.destination):
		return misuse("--destination %q is not known; set it to one of %s",
			o.destination, strings.Join(destinations, ", "))
	case o.destination == string(bridge.Deadletters) && o.user+o.order != "":
		return misuse("dead letters have no user and no order; leave out --user and --order")
	case o.fills && o.late, (o.fills || o.late) && (o.headers || o.statuses != nil):
		return misuse("--fills and --late need all events of an order; use one of them, without --status and --headers")
	case (o.fills || o.late) && o.destination != string(bridge.Orders):
		return misuse("--fills and --late are for orders; leave out --destination")
	case o.count < 0 || o.timeout < 0:
		return misuse("--count and --timeout must not be negative; 0 is no limit")
	}
	for _, s := range o.statuses {
		if !slices.Contains(statuses, s) {
			return misuse("--status %q is not known; set it to one of %s", s, strings.Join(statuses, ", "))
		}
	}
	return nil
}

// errTimeout is the cause of a context that --timeout ends.
var errTimeout = errors.New("timed out")

func (p *process) tail(ctx context.Context, args []string) error {
	o := new(tailOptions)
	fs := tailFlags(o)
	if err := parseOnlyFlags(fs, args); err != nil {
		return err
	}
	from, err := parseFrom(o.from, time.Now())
	if err := cmp.Or(o.check(), err); err != nil {
		return fmt.Errorf("tail: %w", err)
	}
	c, credentials, err := readBusConfig(p.env)
	if err != nil {
		return err
	}
	bus := cmp.Or(o.bus, c.Publish[0])
	if !c.publishes(bus) {
		return misuse("tail: --bus %s is not in POSTBRIDGE_PUBLISH; set that to %s or nats,kafka, too", bus, bus)
	}
	if o.timeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeoutCause(ctx, o.timeout, errTimeout)
		defer stop()
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	out := &printer{tailOptions: o, w: p.stdout, format: o.format(isTerminal(p.stdout), p.env["NO_COLOR"] == ""), stop: stop}
	f := &follower{o.busFilter, from, &statusLog{w: p.stderr}, out.print}
	if err := f.follow(ctx, bus, c, credentials); err != nil {
		return fmt.Errorf("tail: %w", err)
	}
	out.mu.Lock() // the NATS client may still deliver
	defer out.mu.Unlock()
	if out.n < o.count && errors.Is(context.Cause(ctx), errTimeout) { // an interrupt is not an error
		return fmt.Errorf("tail: timed out after %v with %d of %d events", o.timeout, out.n, o.count)
	}
	if out.err != nil {
		return fmt.Errorf("tail: %w", out.err)
	}
	return nil
}

// parseFrom parses --from.
func parseFrom(from string, now time.Time) (startPosition, error) {
	switch from {
	case "start":
		return startPosition{}, nil
	case "now":
		return startPosition{now: true}, nil
	}
	if at, ok := parseTime(from, now); ok {
		return startPosition{at: at}, nil
	}
	return startPosition{}, misuse("--from %q is not known; set it to start, now, "+
		"a time like 2026-01-05T09:15:00+05:30 or how long ago like 10m", from)
}
