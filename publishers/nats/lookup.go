package nats

import (
	"context"
	"errors"
	"fmt"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
)

const (
	// maxLookups limits the failed lookups of a copy. After that it is sent without a lookup: storing an event twice is
	// better than blocking it.
	maxLookups = 3
	// lookupValid is how long a copy may be sent after the answer to its lookup. It covers the way through the sender.
	lookupValid = time.Second
)

// errLookupDenied ends a lookup without permission.
var errLookupDenied = errors.New("no permission to look up what the stream holds")

// startRequest begins an attempt: it runs ask on a goroutine of its own and passes its error to answered, with mu held.
// ask must not access the copy. Needs mu.
func (p *Publisher) startRequest(
	c *eventCopy, ask func(context.Context, jetstream.Stream) error, answered func(*eventCopy, error),
) {
	session, lookups, stream := p.session.ctx, c.dest.lookups, c.dest.handle
	attempt := p.beginAttempt(c, time.Time{})
	p.running.Go(func() {
		ctx, cancel := context.WithTimeout(lookups, ackTimeout)
		defer cancel()
		err := ask(ctx, stream)
		switch {
		case err == nil:
		case session.Err() != nil:
			err = natsgo.ErrDisconnected
		case lookups.Err() != nil:
			err = errLookupDenied
		}
		p.resolve(attempt, func(c *eventCopy) { answered(c, err) })
	})
}

// startLookup looks up a copy for which needsLookup. Needs mu.
func (p *Publisher) startLookup(c *eventCopy) {
	var at uint64
	asked := time.Now()
	subject, d, from := c.subject(), c.entry.delivery, c.entry.queue.found[c.dest]
	p.startRequest(c, func(ctx context.Context, s jetstream.Stream) (err error) {
		at, err = findEvent(ctx, s, subject, d, from)
		return err
	}, func(c *eventCopy, err error) { p.finishLookup(c, asked, at, err) })
}

// finishLookup handles the result of a lookup. Needs mu.
func (p *Publisher) finishLookup(c *eventCopy, asked time.Time, at uint64, err error) {
	q := c.entry.queue
	switch {
	case at > 0:
		if q.found == nil {
			q.found = make(map[*destination]uint64)
		}
		q.found[c.dest] = at
		p.checkpoints.Found(c.dest.stream, c.dest.identity, at, c.entry.delivery.Sequence)
		p.finish(c, nil)
	case err == nil:
		c.absentAt, c.lookedUp, c.earlier, c.failedLookups = asked, time.Now(), false, 0
		p.enqueue(q)
	case disconnected(err), errors.Is(err, errLookupDenied):
		p.enqueue(q)
	default:
		c.failedLookups++
		err = fmt.Errorf("cannot look up an event in stream %s: %w", c.dest.stream, err)
		p.retry(c, &c.dest.failing, p.noAnswer(err))
	}
}

// findEvent returns the stream sequence of the event on its subject; 0 if the stream does not hold it. from is the
// sequence of the event before it, where the scan begins, so that it is not quadratic in the events of an order.
func findEvent(
	ctx context.Context, s jetstream.Stream, subject string, d *bridge.Delivery, from uint64,
) (at uint64, err error) {
	last, err := s.GetLastMsgForSubject(ctx, subject)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return 0, nil
	case err != nil:
		return 0, err
	case sameEvent(last, d):
		return last.Sequence, nil
	}
	if last.Header.Get(headerSpool) == d.Spool && last.Header.Get(headerSequence) < d.SequenceText() {
		// Events of an order are stored by ascending spool sequence. If one was stored late, because it was missing,
		// the events behind it may be stored again: rare, and at least once.
		return 0, nil
	}
	// The last message is a later event, or of another replica. The event may be before it, or was refused: scan. The
	// events of one order are few.
	if at, err = scan(ctx, s, subject, d, from+1, last.Sequence); at == 0 && err == nil && from > 0 {
		at, err = scan(ctx, s, subject, d, 1, from)
	}
	return at, err
}

// scan returns the stream sequence of the event in [from, to); 0 if it is not there.
func scan(
	ctx context.Context, s jetstream.Stream, subject string, d *bridge.Delivery, from, to uint64,
) (at uint64, err error) {
	for seq := from; seq < to; {
		m, err := s.GetMsg(ctx, seq, jetstream.WithGetMsgSubject(subject))
		switch {
		case errors.Is(err, jetstream.ErrMsgNotFound):
			return 0, nil
		case err != nil:
			return 0, err
		case sameEvent(m, d):
			return m.Sequence, nil
		}
		seq = m.Sequence + 1
	}
	return 0, nil
}

func sameEvent(m *jetstream.RawStreamMsg, d *bridge.Delivery) bool {
	return m.Header.Get(jetstream.MsgIDHeader) == d.MsgID()
}
