package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
)

const tailHelp = `Follow the events on a bus of POSTBRIDGE_PUBLISH: Kafka at POSTBRIDGE_KAFKA_BROKERS, or NATS at
POSTBRIDGE_NATS_URL or embedded in a postbridge on this machine. A line for people on a terminal,
the event as it is (JSON) in a pipe. Waits for a bus, a stream or a topic that is not there yet.

Usage: postbridge tail [flags]

  --bus NAME            nats or kafka (default the first of POSTBRIDGE_PUBLISH)
  --broker NAME         only of this broker: kite, dhan
  --user ID             only of this user
  --order ID            only of this order
  --status WORD,...     only with this status: open, filled, rejected, ...; may be repeated
  --destination NAME    orders, rejects or deadletters (default orders)
  --from WHEN           start, now, a time (RFC 3339) or how long ago: 10m (default now)
  --count N             end after N events (default never)
  --timeout TIME        end after this time; a failure if --count was not reached
  --headers             one object per line: "event", "headers", and "subject" or, of Kafka,
                        "topic", "partition", "offset", "key"
  --json                JSON on a terminal, too

Example: postbridge tail --from start --status filled,rejected --count 10
`

// tailOptions are the flags of tail, checked.
type tailOptions struct {
	bus, broker, user, order, destination, from string
	statuses                                    list
	count                                       int
	timeout                                     time.Duration
	headers, json                               bool
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
	fs.BoolVar(&o.json, "json", false, "")
	return fs
}

func (o *tailOptions) check() error {
	if o.bus != "" && !slices.Contains(busNames(), o.bus) {
		return misuse("tail: --bus %q is not known; set it to %s", o.bus, strings.Join(busNames(), " or "))
	}
	if err := checkBroker("tail", o.broker); o.broker != "" && err != nil {
		return err
	}
	destinations := []string{string(bridge.Orders), string(bridge.Rejects), string(bridge.Deadletters)}
	if !slices.Contains(destinations, o.destination) {
		return misuse("tail: --destination %q is not known; set it to one of %s", o.destination, strings.Join(destinations, ", "))
	}
	for _, s := range o.statuses {
		if !slices.Contains(event.Statuses(), event.Status(s)) {
			return misuse("tail: --status %q is not known; set it to one of %s", s, statusWords())
		}
	}
	if o.destination == string(bridge.Deadletters) && o.user+o.order != "" {
		return misuse("tail: dead letters have no user and no order; leave out --user and --order")
	}
	if o.count < 0 || o.timeout < 0 {
		return misuse("tail: --count and --timeout cannot be negative; leave out what is not to end it")
	}
	return nil
}

func statusWords() string {
	var words list
	for _, s := range event.Statuses() {
		words = append(words, string(s))
	}
	return strings.Join(words, ", ")
}

// errTimeout ends a tail whose --timeout is over.
var errTimeout = errors.New("timed out")

func (p *process) tail(ctx context.Context, args []string) error {
	o := new(tailOptions)
	fs := tailFlags(o)
	if err := parseFlags(fs, args); err != nil {
		return err
	}
	if err := errors.Join(noArguments(fs), o.check()); err != nil {
		return err
	}
	from, err := parseFrom(o.from, time.Now())
	if err != nil {
		return err
	}
	c, credentials, err := readBusConfig(p.env)
	if err != nil {
		return err
	}
	bus := orElse(o.bus, c.Publish[0])
	if !c.publishes(bus) {
		return misuse("tail: --bus %s is not in POSTBRIDGE_PUBLISH; set that to %s or nats,kafka, too", bus, bus)
	}
	if o.timeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeoutCause(ctx, o.timeout, errTimeout)
		defer stop()
	}
	f := newFollower(from, p.stderr)
	end, err := o.follow(ctx, f, bus, c, credentials)
	if err != nil {
		return err
	}
	defer end()
	return o.write(ctx, p.stdout, f.messages)
}

// follow lets the messages of a bus come until end is called.
func (o *tailOptions) follow(ctx context.Context, f follower, bus string, c *config, credentials *credentials) (end func(), err error) {
	if bus == "kafka" {
		return newKafkaFollower(f, o, c.Prefix).follow(ctx, c.kafkaConfig(credentials)), nil
	}
	return newNATSFollower(f, o, c.Prefix).follow(ctx, c.natsAddress(), c.natsConfig(credentials))
}

// beginning is where following begins. The zero value is the start: the first event that is still there.
type beginning struct {
	now bool
	at  time.Time
}

// parseFrom reads --from.
func parseFrom(from string, now time.Time) (beginning, error) {
	switch from {
	case "start":
		return beginning{}, nil
	case "now":
		return beginning{now: true}, nil
	}
	if at, ok := parseTime(from, now); ok {
		return beginning{at: at}, nil
	}
	return beginning{}, misuse("tail: --from %q is not known; set it to start, now, a time like 2026-01-05T09:15:00+05:30 or how long ago like 10m", from)
}

// parseTime reads a time, or how long ago it was.
func parseTime(text string, now time.Time) (at time.Time, ok bool) {
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return now.Add(-ago), true
	}
	at, err := time.Parse(time.RFC3339, text)
	return at, err == nil
}

// message is an event as a bus holds it.
type message struct {
	place   any    // where it is: an object for --headers
	key     string // <broker>.<user_id>.<order_id>; of a dead letter, which has neither, the broker comes first
	status  string // what a header says of it
	headers map[string]string
	data    []byte
}

// follower is what following has in common on all buses: from where on, what to say of it, and where messages go to.
type follower struct {
	from     beginning
	notes    *notes
	messages chan *message
	begun    func() // closes what says that all that is stored from now on comes
}

func newFollower(from beginning, notesTo io.Writer) follower {
	return follower{from: from, notes: &notes{w: notesTo}, messages: make(chan *message, 256), begun: func() {}}
}

// send hands a message over, unless ctx ends first.
func (f *follower) send(ctx context.Context, m *message) {
	select {
	case f.messages <- m:
	case <-ctx.Done():
	}
}

// retryInterval is how often something is looked for that is not there.
const retryInterval = 250 * time.Millisecond

// write prints messages until there were enough, or ctx ends.
func (o *tailOptions) write(ctx context.Context, stdout io.Writer, messages <-chan *message) error {
	line := o.line(isTerminal(stdout))
	w := bufio.NewWriter(stdout)
	for n := 0; o.count == 0 || n < o.count; {
		select {
		case <-ctx.Done():
			return errors.Join(w.Flush(), o.ended(ctx, n))
		case m := <-messages:
			if o.wants(m) {
				n++
				if _, err := w.Write(line(m)); err != nil {
					return err
				}
			}
			if len(messages) > 0 && n != o.count {
				continue
			}
			if err := w.Flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// wants reports whether a message is one of those that were asked for. NATS leaves out most of the others itself.
func (o *tailOptions) wants(m *message) bool {
	if o.statuses != nil && !slices.Contains(o.statuses, m.status) {
		return false
	}
	tokens := strings.Split(m.key, ".")
	for i, id := range []string{o.broker, o.user, o.order} {
		if id != "" && (i >= len(tokens) || tokens[i] != bridge.EscapeToken(id)) {
			return false
		}
	}
	return true
}

// ended decides whether an end before --count is a failure. Being interrupted is not.
func (o *tailOptions) ended(ctx context.Context, n int) error {
	if o.count == 0 || !errors.Is(context.Cause(ctx), errTimeout) {
		return nil
	}
	return fmt.Errorf("tail: timed out after %v with %d of %d events", o.timeout, n, o.count)
}
