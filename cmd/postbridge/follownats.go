package main

import (
	"cmp"
	"context"
	"errors"
	"net"
	"strings"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/publishers/nats"
)

const (
	// lookupTimeout limits one attempt to look up the stream and to create the consumer.
	lookupTimeout = 2 * time.Second
	// inactiveThreshold is the time after which the server deletes the consumer of a follower that has ended: each
	// canary leaves one.
	inactiveThreshold = time.Minute
)

// natsFollower delivers the messages of a subject through outages of the bus.
type natsFollower struct {
	*follower
	bus           string // the address, without users and passwords, and what to check there
	stream        string
	subjectPrefix string // before the key
	consumer      jetstream.OrderedConsumerConfig
}

func newNATSFollower(f *follower, prefix string) *natsFollower {
	subjectPrefix := f.destination + "."
	if prefix != "" {
		subjectPrefix = prefix + "." + subjectPrefix
	}
	n := &natsFollower{follower: f, subjectPrefix: subjectPrefix}
	n.stream = nats.StreamName(prefix, bridge.Destination(f.destination))
	n.startAt(f.from)
	return n
}

// startAt sets where the consumer will start.
func (f *natsFollower) startAt(from startPosition) {
	f.consumer = jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{f.subjectPrefix + f.keyFilter()}, InactiveThreshold: inactiveThreshold,
	}
	switch {
	case from.now:
		f.consumer.DeliverPolicy = jetstream.DeliverNewPolicy
	case !from.at.IsZero():
		f.consumer.DeliverPolicy, f.consumer.OptStartTime = jetstream.DeliverByStartTimePolicy, &from.at
	}
}

// keyFilter returns the subject filter after the destination.
func (f *busFilter) keyFilter() string {
	token := func(id string) string {
		if id == "" {
			return "*"
		}
		return event.EscapeToken(id)
	}
	if f.destination == string(bridge.Deadletters) {
		return token(f.broker)
	}
	return token(f.broker) + "." + token(f.user) + "." + token(f.order)
}

// follow connects, waits for the stream and delivers its messages until ctx ends.
func (f *natsFollower) follow(ctx context.Context, address string, bus nats.Config) error {
	nc, err := natsgo.Connect(address, append(nats.ConnectOptions(bus),
		natsgo.Name("postbridge tail"), natsgo.NoCallbacksAfterClientClose(),
		natsgo.RetryOnFailedConnect(true), natsgo.MaxReconnects(-1), natsgo.ReconnectWait(retryInterval),
		natsgo.IgnoreAuthErrorAbort(),
		natsgo.ErrorHandler(func(_ *natsgo.Conn, _ *natsgo.Subscription, err error) { f.status.set("%v", err) }),
		natsgo.DisconnectErrHandler(func(_ *natsgo.Conn, err error) { f.waiting(err) }),
		natsgo.ReconnectErrHandler(func(_ *natsgo.Conn, err error) { f.waiting(err) }),
		natsgo.ReconnectHandler(func(*natsgo.Conn) { f.status.set("reconnected") }),
	)...)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := nats.NewJetStream(nc, bus)
	if err != nil {
		return err
	}
	for {
		consuming, err := f.consume(ctx, js)
		switch {
		case err == nil:
			f.status.start("following %s at %s", f.consumer.FilterSubjects[0], nc.ConnectedUrlRedacted())
			<-ctx.Done()
			consuming.Stop()
			return nil
		case errors.Is(err, jetstream.ErrStreamNotFound):
			f.status.set("waiting for stream %s, which does not exist yet", f.stream)
			f.startAt(startPosition{}) // every event in it will be new
		case ctx.Err() == nil && nc.IsConnected(): // else the handlers have the cause
			f.waiting(err)
		}
		if !pause(ctx, retryInterval) {
			return nil
		}
	}
}

var errDisconnected = errors.New("not connected")

// waiting sets the status of an outage: what failed and where.
func (f *natsFollower) waiting(err error) {
	if errors.Is(err, natsgo.ErrNoServers) {
		return // the cause of each server comes next
	}
	var dial *net.OpError
	if errors.As(err, &dial) {
		err = dial.Err // without the address, which follows
	}
	f.status.set(waitingForBus+"%v at %s", cmp.Or(err, errDisconnected), f.bus)
}

// consume looks up the stream and starts the consumer.
func (f *natsFollower) consume(ctx context.Context, js jetstream.JetStream) (jetstream.ConsumeContext, error) {
	ctx, stop := context.WithTimeout(ctx, lookupTimeout)
	defer stop()
	if !js.Conn().IsConnected() {
		return nil, cmp.Or(js.Conn().LastError(), errDisconnected)
	}
	stream, err := js.Stream(ctx, f.stream)
	if err != nil {
		return nil, err
	}
	if f.consumer.DeliverPolicy == jetstream.DeliverNewPolicy {
		// Now is a sequence, so that a connection lost before the first event does not move the start.
		f.consumer.DeliverPolicy = jetstream.DeliverByStartSequencePolicy
		f.consumer.OptStartSeq = stream.CachedInfo().State.LastSeq + 1
	}
	consumer, err := stream.OrderedConsumer(ctx, f.consumer)
	if err != nil {
		return nil, err
	}
	onError := func(_ jetstream.ConsumeContext, err error) { f.waiting(err) }
	onMessage := func(m jetstream.Msg) { f.received(f.message(m)) }
	return consumer.Consume(onMessage, jetstream.ConsumeErrHandler(onError))
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
