package nats

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
)

// requestTimeout limits one read or publish of Events.
const requestTimeout = 10 * time.Second

// Events reads the last events of orders, and appends an event only if the last one is still the same. Unlike a
// Publisher it does not retry. Its methods may be called from any goroutine.
type Events struct {
	conn    *natsgo.Conn
	js      jetstream.JetStream
	dests   map[bridge.Destination]*destination
	streams map[bridge.Destination]jetstream.Stream

	spool    string
	sequence atomic.Uint64 // of the last event that was published
}

// OpenEvents connects to the bus of a valid configuration, whose URL also names an embedded server. It returns an error
// if the bus cannot be reached, or if a stream does not exist. spool is the spool id of the events that are published: 8
// hex digits, different for each run, so that no spool takes them for its own.
func OpenEvents(ctx context.Context, cfg Config, spool string) (*Events, error) {
	options := append(ConnectOptions(cfg), natsgo.Name("postbridge reconcile"), natsgo.NoReconnect(),
		natsgo.ErrorHandler(func(*natsgo.Conn, *natsgo.Subscription, error) {})) // which would print
	conn, err := natsgo.Connect(cfg.URL, options...)
	if err != nil {
		return nil, fmt.Errorf("cannot connect to NATS: %w", cfg.connectError(err))
	}
	e := &Events{
		conn: conn, spool: spool,
		dests: make(map[bridge.Destination]*destination), streams: make(map[bridge.Destination]jetstream.Stream),
	}
	if e.js, err = NewJetStream(conn, cfg); err != nil {
		conn.Close()
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	for _, d := range newDestinations(&cfg) {
		e.dests[d.name] = d
		if e.streams[d.name], err = e.js.Stream(ctx, d.stream); err != nil {
			conn.Close()
			return nil, fmt.Errorf("cannot look up stream %s: %w", d.stream, cfg.lookupError(err))
		}
		if err := keepsADay(e.streams[d.name].CachedInfo().Config); err != nil && d.name != bridge.Deadletters {
			conn.Close()
			return nil, err
		}
	}
	return e, nil
}

// keepsADay returns an error if a stream removes events of the day: their orders would be published again and again.
func keepsADay(c jetstream.StreamConfig) error {
	if c.Retention == jetstream.LimitsPolicy && (c.MaxAge == 0 || c.MaxAge >= 24*time.Hour) {
		return nil
	}
	return fmt.Errorf("stream %s does not keep the events of a day (retention %s, max_age %v); "+
		"use limits retention with a max_age of 24h or more", c.Name, c.Retention, c.MaxAge)
}

// Close ends the connection.
func (e *Events) Close() { e.conn.Close() }

// Refresh returns the current time: the reads that follow find every event that is stored.
func (e *Events) Refresh(context.Context, time.Time) (asOf time.Time, err error) {
	return time.Now(), nil
}

// Last returns the last event of an order in a destination; the zero value if there is none.
func (e *Events) Last(ctx context.Context, dest bridge.Destination, order *bridge.Delivery) (bridge.Stored, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	d := e.dests[dest]
	m, err := e.streams[dest].GetLastMsgForSubject(ctx, d.prefix+order.Subject(dest))
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return bridge.Stored{}, nil
	case err != nil:
		return bridge.Stored{}, fmt.Errorf("cannot read the last event of an order from stream %s: %w", d.stream, err)
	}
	return bridge.Stored{Data: m.Data, Revision: m.Sequence, Time: m.Time}, nil
}

// Publish gives the event its spool id and sequence, and stores it in each destination whose last event of the order
// still has that revision, and else returns bridge.ErrMoved. The header Nats-Expected-Last-Subject-Sequence makes
// comparison and append one step. orders comes last: a publish that ends between the two leaves the event to be
// published again, and the copy in rejects has its revision.
func (e *Events) Publish(ctx context.Context, d *bridge.Delivery, revisions map[bridge.Destination]uint64) error {
	d.Spool, d.Sequence = e.spool, e.sequence.Add(1)
	for _, dest := range []bridge.Destination{bridge.Deadletters, bridge.Rejects, bridge.Orders} {
		revision, ok := revisions[dest]
		if !ok {
			continue
		}
		if err := e.publish(ctx, e.dests[dest], d, revision); err != nil {
			return err
		}
	}
	return nil
}

func (e *Events) publish(ctx context.Context, dest *destination, d *bridge.Delivery, revision uint64) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	m := &natsgo.Msg{
		Subject: dest.prefix + d.Subject(dest.name), Header: newHeaders().of(d, dest.stream), Data: d.Data,
	}
	var options []jetstream.PublishOpt
	if dest.name != bridge.Deadletters {
		options = append(options, jetstream.WithExpectLastSequencePerSubject(revision))
	}
	ack, err := e.js.PublishMsg(ctx, m, options...)
	refused, _ := errors.AsType[*jetstream.APIError](err)
	switch {
	case refused != nil && (refused.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence ||
		refused.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant): // of a replicated stream
		return bridge.ErrMoved
	case permanent(err):
		return fmt.Errorf("%w: stream %s: %w", bridge.ErrRejected, dest.stream, err)
	case err != nil:
		return fmt.Errorf("cannot publish to stream %s: %w", dest.stream, err)
	}
	if domain := e.streams[dest.name].CachedInfo().Domain; ack.Domain != domain {
		return fmt.Errorf("cannot tell whether stream %s has stored an event: %w", dest.stream,
			foreignError(ack.Domain, dest))
	}
	return nil
}

// Orders returns the ids of the orders of a user whose last event was stored between the times, as they are in the
// subjects.
func (e *Events) Orders(ctx context.Context, broker, user string, since, until time.Time) (ids []string, err error) {
	d := e.dests[bridge.Orders]
	start := d.root + broker + "." + event.EscapeToken(user) + "."
	last := make(map[string]time.Time)
	err = e.read(ctx, start+"*", since, func(m jetstream.Msg, meta *jetstream.MsgMetadata) {
		last[strings.TrimPrefix(m.Subject(), start)] = meta.Timestamp
	})
	if err != nil {
		return nil, fmt.Errorf("cannot read the orders of the day from stream %s: %w", d.stream, err)
	}
	maps.DeleteFunc(last, func(_ string, stored time.Time) bool { return stored.After(until) })
	return slices.Collect(maps.Keys(last)), nil
}

// read calls yield with each message of a subject in the stream of orders, without its data, from a time to the end of
// the stream at the time of the call. An ordered consumer would do, but can retry for ever if the server stops
// answering.
func (e *Events) read(
	ctx context.Context, subject string, since time.Time, yield func(jetstream.Msg, *jetstream.MsgMetadata),
) error {
	const batch = 1000
	create, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	consumer, err := e.streams[bridge.Orders].CreateConsumer(create, jetstream.ConsumerConfig{
		FilterSubject: subject, HeadersOnly: true, AckPolicy: jetstream.AckNonePolicy, MemoryStorage: true,
		InactiveThreshold: 3 * requestTimeout, // it may have no right to delete the consumer
		DeliverPolicy:     jetstream.DeliverByStartTimePolicy, OptStartTime: &since,
	})
	if err != nil {
		return err
	}
	for left := consumer.CachedInfo().NumPending; left > 0; {
		messages, err := consumer.Fetch(int(min(left, batch)), jetstream.FetchMaxWait(requestTimeout))
		if err != nil {
			return err
		}
		read := uint64(0)
		for m := range messages.Messages() {
			meta, err := m.Metadata()
			if err != nil {
				return err
			}
			yield(m, meta)
			read++
		}
		if err := cmp.Or(messages.Error(), ctx.Err()); err != nil {
			return err
		}
		if read == 0 {
			return errors.New("the consumer delivers nothing")
		}
		left -= min(read, left)
	}
	return nil
}
