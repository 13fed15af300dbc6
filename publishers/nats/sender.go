package nats

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
)

// batch is what the sender takes to the bus at a time.
type batch struct {
	js     jetstream.JetStream
	epoch  int
	copies []outgoing
}

type outgoing struct {
	msg  *natsgo.Msg
	copy *eventCopy
}

// send is the only goroutine that publishes. It writes one message after the other; their acknowledgements come to
// acked and failed on other goroutines. When it waits, nothing is ready, or nothing may be sent: whatever changes that
// signals.
func (p *Publisher) send() {
	b := batch{copies: make([]outgoing, 0, sendBatch+1)}
	h := newHeaders()
	for p.ctx.Err() == nil {
		p.writing.Lock()
		p.take(&b)
		p.write(&b, h)
		p.writing.Unlock()
		if len(b.copies) > 0 {
			continue
		}
		select {
		case <-p.wake:
		case <-p.ctx.Done():
		}
	}
}

// take takes what there is to send.
func (p *Publisher) take(b *batch) {
	clear(b.copies)
	b.copies = b.copies[:0]
	p.mu.Lock()
	defer p.mu.Unlock()
	b.js, b.epoch = p.session.js, p.session.epoch
	now := time.Now()
	for p.session.up && p.ready.head != nil && p.away < maxInFlight && len(b.copies) < sendBatch {
		l := p.ready.pop()
		l.queued = false
		p.takeHead(l, now, b)
	}
}

func (p *Publisher) write(b *batch, h *headers) {
	// The library's own retry would send an event after its successors.
	once := jetstream.WithRetryAttempts(0)
	for _, o := range b.copies {
		d := o.copy.entry.delivery
		o.msg.Subject = o.copy.subject()
		o.msg.Header = h.of(d, o.copy.dest.stream)
		o.msg.Data = d.Data
		if _, err := b.js.PublishMsgAsync(o.msg, once); err != nil {
			p.notSent(o.msg, err, b.epoch)
		}
	}
}

// hold sends nothing more to a destination, until its stream is known to fit.
func (p *Publisher) hold(d *destination) {
	p.mu.Lock()
	d.ready = false
	p.mu.Unlock()
	p.writing.Lock() // what was taken before is written now
	defer p.writing.Unlock()
}

// takeHead takes what there is to send of the lane's first event. A copy whose stream does not fit stays; the check of
// the stream queues the lane again.
func (p *Publisher) takeHead(l *lane, now time.Time, b *batch) {
	if l.head == nil {
		return // a retry that was queued came through by another way
	}
	for i := range l.head.n {
		c := &l.head.copies[i]
		if c.settled || c.attempt != nil || !c.dest.ready {
			continue
		}
		if c.lookFirst(now) {
			p.begin(c)
			p.goLookUp(c)
			continue
		}
		if !c.dest.admit(c) {
			continue
		}
		if c.absentAt.IsZero() {
			c.absentAt = now
		}
		c.sent++
		p.begin(c)
		b.copies = append(b.copies, outgoing{c.attempt, c})
	}
}

// begin begins an attempt of the copy: to send it, or to ask the stream about it.
func (p *Publisher) begin(c *eventCopy) {
	c.attempt = new(natsgo.Msg)
	p.inFlight[c.attempt] = c
	p.away++
}

// enqueue tells the sender that the lane may have something to send. Guarded by mu, as everything below that is not
// said to take it.
func (p *Publisher) enqueue(l *lane) {
	if !l.queued {
		l.queued = true
		p.ready.push(l)
	}
	p.signal()
}

func (p *Publisher) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// wakeAll ends every wait for a retry, the oldest event first.
func (p *Publisher) wakeAll() {
	for _, l := range p.lanes {
		l.calm()
	}
	p.wakeIdle()
}

// wakeIdle has every event looked at that waits for no retry, the oldest first.
func (p *Publisher) wakeIdle() {
	var waiting []*lane
	for _, l := range p.lanes {
		if !l.queued && l.timer == nil {
			waiting = append(waiting, l)
		}
	}
	slices.SortFunc(waiting, func(a, b *lane) int {
		return cmp.Compare(a.head.delivery.Sequence, b.head.delivery.Sequence)
	})
	for _, l := range waiting {
		p.enqueue(l)
	}
	p.signal() // for those that were queued all the while
}

// acked takes an acknowledgement. It runs on the goroutine that reads them. It takes mu.
func (p *Publisher) acked(_ jetstream.JetStream, m *natsgo.Msg, ack *jetstream.PubAck) {
	p.resolve(m, func(c *eventCopy) {
		d := c.entry.delivery
		switch {
		case ack.Duplicate && c.sent == 1 && !d.Redelivered:
			// It was never sent before, so this is an event of another time, whose number is used again.
			p.settle(c, fmt.Errorf("%w: stream %s holds another event of the same spool and number, at %d: "+
				"the data directory is an older copy, or another process has a copy of it",
				bridge.ErrRejected, c.dest.stream, ack.Sequence))
		case !c.dest.lookUpDenied && (!c.dest.proven || ack.Duplicate || d.Redelivered):
			p.begin(c)
			p.goReadBack(c, ack)
		default:
			p.stored(c, ack)
		}
	})
}

// stored settles a copy that is stored under its subject, as far as anybody can tell.
func (p *Publisher) stored(c *eventCopy, ack *jetstream.PubAck) {
	if !c.dest.proven && (c.dest.sample == nil || c.dest.sample == c) {
		p.prove(c.dest)
	}
	c.misplaced = false
	number := c.entry.delivery.Sequence
	if ack.Duplicate {
		// An earlier attempt was stored: just as good.
		p.checkpoints.Found(c.dest.stream, c.dest.identity, ack.Sequence, number)
	} else if !p.checkpoints.Stored(c.dest.stream, c.dest.identity, ack.Sequence, number) && !c.entry.delivery.Redelivered {
		// What was stored there before is gone. (One that was read back may come behind its successors.)
		c.dest.wantCheck()
	}
	p.settle(c, nil)
}

// failed takes an error that came instead of an acknowledgement. It runs on goroutines of the library, once with its
// lock held, and takes mu.
func (p *Publisher) failed(_ jetstream.JetStream, m *natsgo.Msg, err error) {
	p.resolve(m, func(c *eventCopy) { p.judge(c, err) })
}

// notSent takes the error of a message that did not leave. It takes mu.
func (p *Publisher) notSent(m *natsgo.Msg, err error, epoch int) {
	if disconnected(err) {
		p.mu.Lock()
		if p.session.epoch == epoch {
			// The callback that says so is on its way. Until it comes, trying again would be a busy loop.
			p.session.up = false
		}
		p.mu.Unlock()
	}
	p.resolve(m, func(c *eventCopy) { p.judge(c, err) })
}

// resolve ends an attempt: the first result of each counts, and outcome says what it means. It takes mu, and calls
// done if that was the event's last copy.
func (p *Publisher) resolve(attempt *natsgo.Msg, outcome func(*eventCopy)) {
	p.life.RLock()
	defer p.life.RUnlock()
	if p.closed {
		return
	}
	p.mu.Lock()
	c := p.inFlight[attempt]
	if c == nil {
		p.mu.Unlock()
		return
	}
	done := p.conclude(c, outcome)
	p.mu.Unlock()
	if done != nil {
		done.done(done.refused)
	}
}

// conclude ends what is under way for the copy. It returns the event if that is now done.
func (p *Publisher) conclude(c *eventCopy, outcome func(*eventCopy)) *entry {
	delete(p.inFlight, c.attempt)
	c.attempt = nil
	p.away--
	outcome(c)
	if c.dest.sample == c && c.attempt == nil && (c.settled || !c.misplaced) {
		c.dest.sample = nil
	}
	p.nextSample(c.dest)
	e := c.entry
	if e.settled() {
		p.advance(e.lane)
	} else {
		e = nil
	}
	if p.ready.head != nil {
		p.signal() // there is room for one more
	}
	return e
}

// advance goes on to the lane's next event.
func (p *Publisher) advance(l *lane) {
	l.pop()
	if l.head != nil {
		p.enqueue(l)
		return
	}
	if p.lanes[l.key] == l {
		delete(p.lanes, l.key)
	}
}

// judge decides what an error means for a copy.
func (p *Publisher) judge(c *eventCopy, err error) {
	stream, failing := c.dest.stream, &c.dest.failing
	var code jetstream.ErrorCode
	if api := (*jetstream.APIError)(nil); errors.As(err, &api) {
		code = api.ErrorCode
	}
	switch {
	case disconnected(err):
		p.enqueue(c.entry.lane)
	case never(err):
		p.settle(c, fmt.Errorf("%w: %s: %w", bridge.ErrRejected, stream, err))
	case errors.Is(err, jetstream.ErrNoStreamResponse):
		c.dest.ready = false // one that is made anew gets nothing before it is known what this one held
		c.dest.wantCheck()
		p.retry(c, failing, fmt.Errorf("no stream takes what is published to %s: see that stream %s does, "+
			"and that no subject mapping of the account leads elsewhere", c.dest.subjects, stream))
	case errors.Is(err, jetstream.ErrAsyncPublishTimeout):
		p.retry(c, failing, p.noAnswer(fmt.Errorf("stream %s does not answer", stream)))
	case code == errCodeStoreFailed:
		p.retry(c, failing, fmt.Errorf("stream %s takes no more: %w", stream, advised(err)))
	case code == errCodeOtherStream:
		c.dest.wantCheck()
		p.retry(c, failing, fmt.Errorf("what is published to %s reaches another stream than %s: %w",
			c.dest.subjects, stream, advised(err)))
	default:
		if code == errCodeSealed || code == errCodeNotCounter {
			c.dest.wantCheck() // which refuses it
		}
		p.retry(c, failing, fmt.Errorf("stream %s: %w", stream, advised(err)))
	}
}

// disconnected reports whether the error is that of a connection that is not there. What it did to the message is not
// known; it is offered again as soon as there is one.
func disconnected(err error) bool {
	return errors.Is(err, natsgo.ErrDisconnected) || errors.Is(err, natsgo.ErrReconnectBufExceeded) ||
		errors.Is(err, natsgo.ErrConnectionClosed) || errors.Is(err, natsgo.ErrConnectionReconnecting)
}

// settle ends the copy: stored, or refused for good.
func (p *Publisher) settle(c *eventCopy, refused error) {
	c.settled = true
	if refused != nil {
		c.entry.refused = refused
	}
	c.blockedBy(nil)
}

// blockedBy ends another condition that blocks the copy.
func (c *eventCopy) blockedBy(why *condition) {
	if c.blocked != nil && c.blocked != why {
		c.blocked.Clear(c)
	}
	c.blocked = why
}

// retry offers the copy again after a while.
func (p *Publisher) retry(c *eventCopy, why *condition, err error) {
	c.blockedBy(why)
	why.Block(c, err)
	l := c.entry.lane
	if l.timer != nil {
		return
	}
	if l.backoff == nil {
		l.backoff = bridge.RetryForever(firstRetry)
	}
	l.timer = time.AfterFunc(l.backoff.NextBackOff(), func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		l.timer = nil
		p.enqueue(l)
	})
}
