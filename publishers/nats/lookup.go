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

// errMayNotLook ends a look-up that is not permitted.
var errMayNotLook = errors.New("no permission to look up what the stream holds")

// goAsk asks the stream something about a copy, and hands the answer over. It is called with mu held, after begin. ask
// must not touch the copy.
func (p *Publisher) goAsk(
	c *eventCopy, ask func(context.Context, jetstream.Stream) error, answered func(*eventCopy, error),
) {
	session, looks, stream, attempt := p.session.ctx, c.dest.looks, c.dest.handle, c.attempt
	p.running.Go(func() {
		ctx, cancel := context.WithTimeout(looks, ackTimeout)
		defer cancel()
		err := ask(ctx, stream)
		switch {
		case err == nil:
		case session.Err() != nil:
			err = natsgo.ErrDisconnected
		case looks.Err() != nil:
			err = errMayNotLook
		}
		p.resolve(attempt, func(c *eventCopy) { answered(c, err) })
	})
}

// goLookUp looks up a copy that may be stored already, longer ago than the stream would notice a repeat: by the run
// before, or in flight when an outage began. It is called with mu held.
func (p *Publisher) goLookUp(c *eventCopy) {
	var at uint64
	asked := time.Now()
	subject, d, from := c.subject(), c.entry.delivery, c.entry.lane.found[c.dest]
	p.goAsk(c, func(ctx context.Context, s jetstream.Stream) (err error) {
		at, err = where(ctx, s, subject, d, from)
		return err
	}, func(c *eventCopy, err error) { p.lookedUp(c, asked, at, err) })
}

// lookedUp takes the answer of a look-up.
func (p *Publisher) lookedUp(c *eventCopy, asked time.Time, at uint64, err error) {
	l := c.entry.lane
	switch {
	case at > 0:
		if l.found == nil {
			l.found = make(map[*destination]uint64)
		}
		l.found[c.dest] = at
		p.checkpoints.Found(c.dest.stream, c.dest.identity, at, c.entry.delivery.Sequence)
		p.settle(c, nil)
	case err == nil:
		c.absentAt, c.earlier = asked, false
		p.enqueue(l)
	case disconnected(err), errors.Is(err, errMayNotLook):
		p.enqueue(l)
	default:
		c.lookUps++
		p.retry(c, &c.dest.failing, p.noAnswer(fmt.Errorf("cannot look up what stream %s holds: %w", c.dest.stream, err)))
	}
}

// where is where the stream holds the event on its subject; 0 if it does not. from is where the event before it is, so
// that many events of one order are not all read for each of them.
func where(
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
		// An order's events are stored in the order of their numbers. Where one came late because it was missing,
		// what is stored before it is stored again: rare enough, and at least once.
		return 0, nil
	}
	// What is stored last came later, or from another replica. That does not say that this one is stored before
	// it: it may have been refused. The events of one order are few.
	if at, err = scan(ctx, s, subject, d, from+1, last.Sequence); at == 0 && err == nil && from > 0 {
		at, err = scan(ctx, s, subject, d, 1, from)
	}
	return at, err
}

// scan returns where between two sequences the stream holds the event, the second excluded; 0 if it does not.
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
