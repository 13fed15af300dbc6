package main

import (
	"cmp"
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

const (
	// lookupTimeout limits one attempt to look up the stream and to create the consumer.
	lookupTimeout = 2 * time.Second
	// inactiveThreshold is when the server deletes the consumer of a follower that is gone: each canary leaves one.
	inactiveThreshold = time.Minute
)

// natsFollower delivers the messages of a subject through outages of the bus.
type natsFollower struct {
	follower
	stream, subject string
	subjectPrefix   string // before the key
	start           jetstream.OrderedConsumerConfig
}

func newNATSFollower(f follower, o *tailOptions, prefix string) *natsFollower {
	subjectPrefix := o.destination + "."
	if prefix != "" {
		subjectPrefix = prefix + "." + subjectPrefix
	}
	return &natsFollower{
		follower:      f,
		stream:        streamName(prefix, o.destination),
		subject:       subjectPrefix + o.keyFilter(),
		subjectPrefix: subjectPrefix,
		start:         f.from.consumerConfig(),
	}
}

// streamName returns the stream of a destination.
func streamName(prefix, destination string) string {
	if prefix != "" {
		prefix += "_"
	}
	return strings.ToUpper(prefix + destination)
}

// keyFilter returns the subject filter after the destination.
func (o *tailOptions) keyFilter() string {
	token := func(id string) string {
		if id == "" {
			return "*"
		}
		return bridge.EscapeToken(id)
	}
	if o.destination == string(bridge.Deadletters) {
		return token(o.broker)
	}
	return token(o.broker) + "." + token(o.user) + "." + token(o.order)
}

// consumerConfig returns the deliver policy of the position.
func (s startPosition) consumerConfig() jetstream.OrderedConsumerConfig {
	switch {
	case s.now:
		return jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverNewPolicy}
	case !s.at.IsZero():
		return jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &s.at}
	default:
		return jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverAllPolicy}
	}
}

// follow connects, waits for the stream and delivers its messages until end is called.
func (f *natsFollower) follow(ctx context.Context, address string, bus nats.Config) (end func(), err error) {
	options := append(nats.ConnectOptions(bus),
		natsgo.Name("postbridge tail"),
		natsgo.RetryOnFailedConnect(true), natsgo.MaxReconnects(-1), natsgo.ReconnectWait(retryInterval),
		natsgo.IgnoreAuthErrorAbort(),
		natsgo.ErrorHandler(func(_ *natsgo.Conn, _ *natsgo.Subscription, err error) { f.status.set("%v", err) }),
		natsgo.DisconnectErrHandler(func(_ *natsgo.Conn, err error) { f.status.set("waiting for the bus: %v", err) }),
		natsgo.ReconnectHandler(func(*natsgo.Conn) { f.status.set("reconnected") }),
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
		f.status.close()
		nc.Close()
	}
	if f.consume(ctx, js) { // else ctx ended, which the reader of the messages sees, too
		f.status.set("following %s at %s", f.subject, nc.ConnectedUrlRedacted())
		f.onStart()
	}
	return end, nil
}

// consume starts the consumer, and retries until it succeeds; false if ctx ended first.
func (f *natsFollower) consume(ctx context.Context, js jetstream.JetStream) bool {
	for {
		err := f.tryConsume(ctx, js)
		switch {
		case err == nil:
			return true
		case ctx.Err() != nil:
			return false
		case errors.Is(err, jetstream.ErrStreamNotFound):
			f.status.set("waiting for stream %s, which does not exist yet", f.stream)
			f.start = startPosition{}.consumerConfig() // every event in it will be new
		default:
			f.status.set("waiting for the bus: %v", err)
		}
		if !pause(ctx, retryInterval) {
			return false
		}
	}
}

func (f *natsFollower) tryConsume(ctx context.Context, js jetstream.JetStream) error {
	lookup, stop := context.WithTimeout(ctx, lookupTimeout)
	defer stop()
	if !js.Conn().IsConnected() {
		return cmp.Or(js.Conn().LastError(), errors.New("not connected"))
	}
	f.start.FilterSubjects, f.start.InactiveThreshold = []string{f.subject}, inactiveThreshold
	if err := f.pinNow(lookup, js); err != nil {
		return err
	}
	consumer, err := js.OrderedConsumer(lookup, f.stream, f.start)
	if err != nil {
		return err
	}
	onError := func(_ jetstream.ConsumeContext, err error) { f.status.set("waiting for the bus: %v", err) }
	onMessage := func(m jetstream.Msg) { f.deliver(ctx, f.message(m)) }
	_, err = consumer.Consume(onMessage, jetstream.ConsumeErrHandler(onError))
	return err
}

// pinNow replaces "now" by a stream sequence, so that a connection lost before the first event does not move the start.
func (f *natsFollower) pinNow(ctx context.Context, js jetstream.JetStream) error {
	if f.start.DeliverPolicy != jetstream.DeliverNewPolicy {
		return nil
	}
	stream, err := js.Stream(ctx, f.stream)
	if err != nil {
		return err
	}
	f.start.DeliverPolicy = jetstream.DeliverByStartSequencePolicy
	f.start.OptStartSeq = stream.CachedInfo().State.LastSeq + 1
	return nil
}

// natsPosition is the position of a message on NATS.
type natsPosition struct {
	Subject string `json:"subject"`
}

func (f *natsFollower) message(m jetstream.Msg) *message {
	headers := make(map[string]string)
	for name := range m.Headers() {
		headers[name] = m.Headers().Get(name)
	}
	return &message{
		position: natsPosition{m.Subject()},
		key:      strings.TrimPrefix(m.Subject(), f.subjectPrefix),
		status:   headers["ce-orderstatus"],
		headers:  headers,
		data:     m.Data(),
	}
}
