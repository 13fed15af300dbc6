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

// maxLookUps is how many look-ups of a copy may go without an answer before it is offered without: an event that is
// stored twice is better than one that is held because we cannot look.
const maxLookUps = 3

// goLookUp looks up a copy that may be stored already, longer ago than the stream would notice a repeat: by the run
// before, or in flight when an outage began. It is called with mu held.
func (p *Publisher) goLookUp(c *eventCopy) {
	stream, session := c.dest.handle, p.session.ctx
	p.inFlight[c.attempt] = c
	attempt := c.attempt
	p.running.Go(func() {
		ctx, cancel := context.WithTimeout(session, ackTimeout)
		defer cancel()
		asked := time.Now()
		at, err := where(ctx, stream, c.dest.prefix+c.entry.delivery.Subject(c.dest.name), c.entry.delivery)
		if err != nil && session.Err() != nil {
			err = natsgo.ErrDisconnected
		}
		p.resolve(attempt, func(c *eventCopy) { p.lookedUp(c, asked, at, err) })
	})
}

// lookedUp takes the answer of a look-up.
func (p *Publisher) lookedUp(c *eventCopy, asked time.Time, at uint64, err error) {
	switch {
	case at > 0:
		p.landmarks.Found(c.dest.stream, c.dest.identity, at, c.entry.delivery.Sequence)
		p.settle(c, nil)
	case err == nil:
		c.absentAt = asked
		p.enqueue(c.entry.lane)
	case disconnected(err):
		p.enqueue(c.entry.lane)
	default:
		c.lookUps++
		p.retry(c, &c.dest.failing, p.noAnswer(fmt.Errorf("cannot look up what stream %s holds: %w", c.dest.stream, err)))
	}
}

// where is where the stream holds the event on its subject; 0 if it does not.
func where(ctx context.Context, s jetstream.Stream, subject string, d *bridge.Delivery) (at uint64, err error) {
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
		// An order's events are stored in the order of their numbers. Where one came late because it was missing,
		// what is stored before it is stored again: rare enough, and at least once.
		return 0, nil
	}
	// What is stored last came later, or from another replica. That does not say that this one is stored before
	// it: it may have been refused. The events of one order are few.
	for seq := uint64(1); seq < last.Sequence; {
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
