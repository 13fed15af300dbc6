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

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers/nats"
)

const tailHelp = `Follow the events on the bus: NATS at POSTBRIDGE_NATS_URL, or the embedded server of a postbridge
on this machine. A line for people on a terminal, the event as it is (JSON) in a pipe. Waits for
a bus or a stream that is not there yet.

Usage: postbridge tail [flags]

  --broker NAME         only of this broker: kite, dhan
  --user ID             only of this user
  --order ID            only of this order
  --status WORD,...     only with this status: open, filled, rejected, ...; may be repeated
  --destination NAME    orders, rejects or deadletters (default orders)
  --from WHEN           start, now, a time (RFC 3339) or how long ago: 10m (default now)
  --count N             end after N events (default never)
  --timeout TIME        end after this time; a failure if --count was not reached
  --headers             one object {"subject", "headers", "event"} per line
  --json                JSON on a terminal, too

Example: postbridge tail --from start --status filled,rejected --count 10
`

// tailOptions are the flags of tail, checked.
type tailOptions struct {
	broker, user, order, destination, from string
	statuses                               list
	count                                  int
	timeout                                time.Duration
	headers, json                          bool
}

func tailFlags(o *tailOptions) *flag.FlagSet {
	fs := newFlags("tail")
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
	if err := checkBroker("tail", o.broker); o.broker != "" && err != nil {
		return err
	}
	destinations := []string{string(bridge.Orders), string(bridge.Rejects), string(bridge.Deadletters)}
	if !slices.Contains(destinations, o.destination) {
		return misuse("tail: --destination %q is not known; set it to one of %s", o.destination, strings.Join(destinations, ", "))
	}
	for _, s := range o.statuses {
		if !slices.Contains(bridge.Statuses(), bridge.Status(s)) {
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
	for _, s := range bridge.Statuses() {
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
	start, err := parseFrom(o.from, time.Now())
	if err != nil {
		return err
	}
	c, credentials, err := readBusConfig(p.env)
	if err != nil {
		return err
	}
	if o.timeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeoutCause(ctx, o.timeout, errTimeout)
		defer stop()
	}
	f := &follower{
		stream:   streamName(c.Prefix, o.destination),
		subject:  o.subject(c.Prefix),
		start:    start,
		notes:    &notes{w: p.stderr},
		messages: make(chan jetstream.Msg, 256),
	}
	end, err := f.follow(ctx, c.busAddress(), c.natsConfig(credentials))
	if err != nil {
		return err
	}
	defer end()
	return o.write(ctx, p.stdout, f.messages)
}

// busAddress is where the bus is for others than serve.
func (c *config) busAddress() string {
	if c.embedded() {
		return "nats://" + onThisMachine(c.NATSListen)
	}
	return c.NATSURL
}

// parseFrom reads --from into where the consumer starts.
func parseFrom(from string, now time.Time) (start jetstream.OrderedConsumerConfig, err error) {
	switch from {
	case "start":
		start.DeliverPolicy = jetstream.DeliverAllPolicy
		return start, nil
	case "now":
		start.DeliverPolicy = jetstream.DeliverNewPolicy
		return start, nil
	}
	start.DeliverPolicy = jetstream.DeliverByStartTimePolicy
	if ago, err := time.ParseDuration(from); err == nil && ago >= 0 {
		at := now.Add(-ago)
		start.OptStartTime = &at
		return start, nil
	}
	if at, err := time.Parse(time.RFC3339, from); err == nil {
		start.OptStartTime = &at
		return start, nil
	}
	return start, misuse("tail: --from %q is not known; set it to start, now, a time like 2026-01-05T09:15:00+05:30 or how long ago like 10m", from)
}

// streamName is the stream of a destination.
func streamName(prefix, destination string) string {
	if prefix != "" {
		prefix += "_"
	}
	return strings.ToUpper(prefix + destination)
}

// subject is the filter for all that the subject of an event can tell.
func (o *tailOptions) subject(prefix string) string {
	if prefix != "" {
		prefix += "."
	}
	subject := prefix + o.destination + "." + orAny(o.broker)
	if o.destination == string(bridge.Deadletters) {
		return subject
	}
	return subject + "." + orAny(o.user) + "." + orAny(o.order)
}

func orAny(id string) string {
	if id == "" {
		return "*"
	}
	return bridge.EscapeToken(id)
}

// write prints messages until there were enough, or ctx ends.
func (o *tailOptions) write(ctx context.Context, stdout io.Writer, messages <-chan jetstream.Msg) error {
	line := o.line(isTerminal(stdout))
	w := bufio.NewWriter(stdout)
	for n := 0; o.count == 0 || n < o.count; {
		select {
		case <-ctx.Done():
			return o.ended(ctx, n)
		case m := <-messages:
			if !o.wants(m) {
				continue
			}
			n++
			if _, err := w.Write(line(m)); err != nil {
				return err
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

// wants filters by what is not in the subject.
func (o *tailOptions) wants(m jetstream.Msg) bool {
	return o.statuses == nil || slices.Contains(o.statuses, m.Headers().Get("ce-orderstatus"))
}

// ended decides whether an end before --count is a failure. Being interrupted is not.
func (o *tailOptions) ended(ctx context.Context, n int) error {
	if o.count == 0 || !errors.Is(context.Cause(ctx), errTimeout) {
		return nil
	}
	return fmt.Errorf("tail: timed out after %v with %d of %d events", o.timeout, n, o.count)
}

// follower brings the messages of a subject, through outages of the bus.
type follower struct {
	stream, subject string
	start           jetstream.OrderedConsumerConfig
	notes           *notes
	messages        chan jetstream.Msg
}

// follow connects, waits until the stream is there, and lets the messages come until end is called.
func (f *follower) follow(ctx context.Context, address string, bus nats.Config) (end func(), err error) {
	options := append(nats.ConnectOptions(bus),
		natsgo.Name("postbridge tail"),
		natsgo.RetryOnFailedConnect(true), natsgo.MaxReconnects(-1), natsgo.ReconnectWait(retryInterval), natsgo.IgnoreAuthErrorAbort(),
		natsgo.DisconnectErrHandler(func(_ *natsgo.Conn, err error) { f.notes.say("waiting for the bus: %v", err) }),
		natsgo.ReconnectHandler(func(*natsgo.Conn) { f.notes.say("connected again") }),
	)
	nc, err := natsgo.Connect(address, options...)
	if err != nil {
		return nil, fmt.Errorf("tail: %w", err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("tail: %w", err)
	}
	end = func() {
		f.notes.end()
		nc.Close()
	}
	if f.consume(ctx, js) { // otherwise ctx ended, as whoever reads the messages sees
		f.notes.say("following %s at %s", f.subject, nc.ConnectedUrlRedacted())
	}
	return end, nil
}

const (
	// retryInterval is how often a bus or a stream that is not there is looked for, lookTimeout how long one look takes.
	retryInterval = 250 * time.Millisecond
	lookTimeout   = 2 * time.Second
)

// consume starts the consumer as soon as that is possible; false if ctx ended first.
func (f *follower) consume(ctx context.Context, js jetstream.JetStream) bool {
	for {
		err := f.tryConsume(ctx, js)
		switch {
		case err == nil:
			return true
		case ctx.Err() != nil:
			return false
		case errors.Is(err, jetstream.ErrStreamNotFound):
			f.notes.say("waiting for stream %s, which is not there yet", f.stream)
			f.start = jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverAllPolicy} // all of it will be new
		default:
			f.notes.say("waiting for the bus: %v", err)
		}
		if !pause(ctx, retryInterval) {
			return false
		}
	}
}

func (f *follower) tryConsume(ctx context.Context, js jetstream.JetStream) error {
	look, stop := context.WithTimeout(ctx, lookTimeout)
	defer stop()
	if !js.Conn().IsConnected() {
		if err := js.Conn().LastError(); err != nil {
			return err
		}
		return errors.New("not connected")
	}
	f.start.FilterSubjects = []string{f.subject}
	if err := f.pinNow(look, js); err != nil {
		return err
	}
	consumer, err := js.OrderedConsumer(look, f.stream, f.start)
	if err != nil {
		return err
	}
	_, err = consumer.Consume(
		func(m jetstream.Msg) {
			select {
			case f.messages <- m:
			case <-ctx.Done():
			}
		},
		jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) { f.notes.say("waiting for the bus: %v", err) }),
	)
	return err
}

// pinNow turns "now" into a place in the stream: if the connection is lost before the first event, following goes on
// from there and not from a later now.
func (f *follower) pinNow(ctx context.Context, js jetstream.JetStream) error {
	if f.start.DeliverPolicy != jetstream.DeliverNewPolicy {
		return nil
	}
	stream, err := js.Stream(ctx, f.stream)
	if err != nil {
		return err
	}
	f.start.DeliverPolicy, f.start.OptStartSeq = jetstream.DeliverByStartSequencePolicy, stream.CachedInfo().State.LastSeq+1
	return nil
}
