package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers/nats"
)

// natsFollower brings the messages of a subject, through outages of the bus.
type natsFollower struct {
	follower
	stream, subject string
	root            string // of the subjects in the stream, before the key
	start           jetstream.OrderedConsumerConfig
}

func newNATSFollower(f follower, o *tailOptions, prefix string) *natsFollower {
	root := o.destination + "."
	if prefix != "" {
		root = prefix + "." + root
	}
	return &natsFollower{
		follower: f,
		stream:   streamName(prefix, o.destination),
		subject:  root + o.keys(),
		root:     root,
		start:    f.from.inStream(),
	}
}

// natsAddress is where NATS is for others than serve.
func (c *config) natsAddress() string {
	if c.embedded() {
		return "nats://" + onThisMachine(c.NATSListen)
	}
	return c.NATSURL
}

// streamName is the stream of a destination.
func streamName(prefix, destination string) string {
	if prefix != "" {
		prefix += "_"
	}
	return strings.ToUpper(prefix + destination)
}

// keys is the filter for all that the subject of an event can tell, after the destination.
func (o *tailOptions) keys() string {
	if o.destination == string(bridge.Deadletters) {
		return orAny(o.broker)
	}
	return orAny(o.broker) + "." + orAny(o.user) + "." + orAny(o.order)
}

func orAny(id string) string {
	if id == "" {
		return "*"
	}
	return bridge.EscapeToken(id)
}

// inStream is the beginning as a consumer has to be told.
func (b beginning) inStream() jetstream.OrderedConsumerConfig {
	switch {
	case b.now:
		return jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverNewPolicy}
	case !b.at.IsZero():
		return jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &b.at}
	default:
		return jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverAllPolicy}
	}
}

// follow connects, waits until the stream is there, and lets the messages come until end is called.
func (f *natsFollower) follow(ctx context.Context, address string, bus nats.Config) (end func(), err error) {
	options := append(nats.ConnectOptions(bus),
		natsgo.Name("postbridge tail"),
		natsgo.RetryOnFailedConnect(true), natsgo.MaxReconnects(-1), natsgo.ReconnectWait(retryInterval), natsgo.IgnoreAuthErrorAbort(),
		natsgo.ErrorHandler(func(_ *natsgo.Conn, _ *natsgo.Subscription, err error) { f.notes.say("%v", err) }),
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
		f.begun()
	}
	return end, nil
}

const (
	// lookTimeout is how long one look for the stream takes.
	lookTimeout = 2 * time.Second
	// forgetAfter is when the bus forgets a consumer that nobody asks for more: each canary leaves one.
	forgetAfter = time.Minute
)

// consume starts the consumer as soon as that is possible; false if ctx ended first.
func (f *natsFollower) consume(ctx context.Context, js jetstream.JetStream) bool {
	for {
		err := f.tryConsume(ctx, js)
		switch {
		case err == nil:
			return true
		case ctx.Err() != nil:
			return false
		case errors.Is(err, jetstream.ErrStreamNotFound):
			f.notes.say("waiting for stream %s, which is not there yet", f.stream)
			f.start = beginning{}.inStream() // all of it will be new
		default:
			f.notes.say("waiting for the bus: %v", err)
		}
		if !pause(ctx, retryInterval) {
			return false
		}
	}
}

func (f *natsFollower) tryConsume(ctx context.Context, js jetstream.JetStream) error {
	look, stop := context.WithTimeout(ctx, lookTimeout)
	defer stop()
	if !js.Conn().IsConnected() {
		if err := js.Conn().LastError(); err != nil {
			return err
		}
		return errors.New("not connected")
	}
	f.start.FilterSubjects, f.start.InactiveThreshold = []string{f.subject}, forgetAfter
	if err := f.pinNow(look, js); err != nil {
		return err
	}
	consumer, err := js.OrderedConsumer(look, f.stream, f.start)
	if err != nil {
		return err
	}
	_, err = consumer.Consume(
		func(m jetstream.Msg) { f.send(ctx, f.message(m)) },
		jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) { f.notes.say("waiting for the bus: %v", err) }),
	)
	return err
}

// pinNow turns "now" into a place in the stream: if the connection is lost before the first event, following goes on
// from there and not from a later now.
func (f *natsFollower) pinNow(ctx context.Context, js jetstream.JetStream) error {
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

// natsPlace is where a message is on NATS.
type natsPlace struct {
	Subject string `json:"subject"`
}

func (f *natsFollower) message(m jetstream.Msg) *message {
	headers := make(map[string]string)
	for name := range m.Headers() {
		headers[name] = m.Headers().Get(name)
	}
	return &message{
		place:   natsPlace{m.Subject()},
		key:     strings.TrimPrefix(m.Subject(), f.root),
		status:  headers["ce-orderstatus"],
		headers: headers,
		data:    m.Data(),
	}
}
