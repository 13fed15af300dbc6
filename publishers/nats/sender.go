package nats

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
)

// send publishes batches until Close. It is the only goroutine that publishes, so messages are written in order. It
// waits while no copy is sendable: every change of that signals wake.
func (p *Publisher) send() {
	for p.ctx.Err() == nil {
		if p.sendBatch() {
			continue
		}
		select {
		case <-p.wake:
		case <-p.ctx.Done():
		}
	}
}

// sendBatch publishes sendable copies, and reports whether there were any. It locks mu.
func (p *Publisher) sendBatch() bool {
	p.writing.Lock()
	defer p.writing.Unlock()
	s, batch := p.nextBatch()
	for _, b := range batch {
		// The library would write the rest of the batch to the next connection, whose streams are not checked yet.
		err := error(natsgo.ErrDisconnected)
		if s.ctx.Err() == nil {
			m := b.copy.message(p.headers)
			m.Reply = s.answers + strconv.FormatUint(b.attempt, 10)
			err = s.conn.PublishMsg(m)
		}
		if err != nil {
			if disconnected(err) {
				s.end() // The disconnect callback will follow. Retrying before that would be a busy loop.
			}
			p.resolve(b.attempt, func(c *eventCopy) { p.handleError(c, err) })
		}
	}
	return len(batch) > 0
}

// publish is an attempt to publish a copy.
type publish struct {
	copy    *eventCopy
	attempt uint64
}

// nextBatch begins to send copies, up to the limits of the batch and of the in-flight window. It returns them and the
// session to send them in. It locks mu.
func (p *Publisher) nextBatch() (s session, batch []publish) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s = p.session
	if s.ctx.Err() != nil {
		return s, nil
	}
	now := time.Now()
	batch = make([]publish, 0, min(sendBatch, len(p.ready)))
	for len(p.ready) > 0 && len(p.inFlight) < maxInFlight && len(batch) < sendBatch {
		q := p.ready[0]
		p.ready = p.ready[1:]
		q.queued = false
		batch = p.addHead(q, now, batch)
	}
	return s, batch
}

// pause stops sending to a destination until a check finds that its stream fits, and waits for the batch being
// written. It locks mu.
func (p *Publisher) pause(d *destination) {
	p.mu.Lock()
	d.ready = false
	p.mu.Unlock()
	p.writing.Lock() // wait for a batch collected before
	defer p.writing.Unlock()
}

// addHead appends the sendable copies of the queue's head and starts the lookups that it needs. A copy whose stream is
// not ready stays; the check of the stream enqueues its queue again.
func (p *Publisher) addHead(q *keyQueue, now time.Time, batch []publish) []publish {
	if q.head == nil {
		return batch // finished after it was enqueued for a retry
	}
	for i := range q.head.copies {
		c := &q.head.copies[i]
		if c.finished || c.attempt != 0 || !c.dest.ready {
			continue
		}
		if c.needsLookup(now) {
			p.startLookup(c)
			continue
		}
		if !c.dest.admit(c) {
			continue
		}
		if c.absentAt.IsZero() {
			c.absentAt = now
		}
		c.sent++
		c.lookedUp = time.Time{}
		batch = append(batch, publish{c, p.beginAttempt(c, now.Add(ackTimeout))})
	}
	return batch
}

// beginAttempt registers an attempt of the copy and returns its number. The deadline is that of a publish; zero for a
// request, which its context ends.
func (p *Publisher) beginAttempt(c *eventCopy, deadline time.Time) uint64 {
	p.attempts++
	c.attempt, c.deadline = p.attempts, deadline
	p.inFlight[c.attempt] = c
	return c.attempt
}

// enqueue makes the queue ready and signals the sender. Needs mu, as do all functions below that do not lock it.
func (p *Publisher) enqueue(q *keyQueue) {
	if !q.queued {
		q.queued = true
		p.ready = append(p.ready, q)
	}
	p.signal()
}

func (p *Publisher) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// wakeIdle enqueues the queues whose head does not wait for a retry, the oldest event first.
func (p *Publisher) wakeIdle() {
	var waiting []*keyQueue
	for _, q := range p.queues {
		if !q.queued && q.timer == nil {
			waiting = append(waiting, q)
		}
	}
	slices.SortFunc(waiting, func(a, b *keyQueue) int {
		return cmp.Compare(a.head.delivery.Sequence, b.head.delivery.Sequence)
	})
	for _, q := range waiting {
		p.enqueue(q)
	}
	p.signal() // for queues that were ready before
}

// acknowledged handles an acknowledgement of the copy.
func (p *Publisher) acknowledged(c *eventCopy, ack *jetstream.PubAck) {
	d := c.entry.delivery
	switch {
	case ack.Domain != c.dest.domain:
		p.publishOnceMore(c, ack.Domain)
	case ack.Duplicate && c.sent == 1 && !d.Redelivered:
		// First publish of this event: the stream holds another with the same spool id and sequence.
		p.finish(c, fmt.Errorf("%w: stream %s holds another event of the same spool and number, at %d: "+
			"the data directory is an older copy, or another process has a copy of it",
			bridge.ErrRejected, c.dest.stream, ack.Sequence))
	case !c.dest.lookupDenied && (!c.dest.verified || ack.Duplicate || d.Redelivered):
		p.startReadBack(c, ack)
	default:
		p.stored(c, ack)
	}
}

// stored finishes a copy that is stored under its subject, as far as could be verified.
func (p *Publisher) stored(c *eventCopy, ack *jetstream.PubAck) {
	if c.dest.sample == nil || c.dest.sample == c {
		c.dest.verified = true
	}
	c.misplaced = false
	d := c.entry.delivery
	if ack.Duplicate {
		// An earlier attempt stored it.
		p.checkpoints.Found(c.dest.stream, c.dest.identity, ack.Sequence, d.Sequence)
	} else if !p.checkpoints.Stored(c.dest.stream, c.dest.identity, ack.Sequence, d.Sequence) && !d.Redelivered {
		// A position is used again, so the stream lost events. (The result of a read-back may come out of order.)
		c.dest.requestCheck()
	}
	p.finish(c, nil)
}

// resolve ends an attempt with outcome, and calls done if that finished the event. Only the first result of an attempt
// counts. It locks mu.
func (p *Publisher) resolve(attempt uint64, outcome func(*eventCopy)) {
	p.life.RLock()
	defer p.life.RUnlock()
	if p.ctx.Err() != nil {
		return
	}
	p.mu.Lock()
	c := p.inFlight[attempt]
	if c == nil {
		p.mu.Unlock()
		return
	}
	done := p.endAttempt(c, outcome)
	p.mu.Unlock()
	if done != nil {
		done.done(done.refused)
	}
}

// endAttempt ends the attempt of the copy with outcome. It returns the event if that finished it, else nil.
func (p *Publisher) endAttempt(c *eventCopy, outcome func(*eventCopy)) *entry {
	delete(p.inFlight, c.attempt)
	c.attempt = 0
	outcome(c)
	if c.dest.sample == c && c.attempt == 0 && (c.finished || !c.misplaced) {
		c.dest.sample = nil
		p.wakeIdle() // the queues that waited for the sample
	}
	e := c.entry
	if e.finished() {
		p.advance(e.queue)
	} else {
		e = nil
	}
	if len(p.ready) > 0 {
		p.signal() // the in-flight window has space again
	}
	return e
}

// advance goes on to the next event of the queue.
func (p *Publisher) advance(q *keyQueue) {
	q.pop()
	if q.head != nil {
		p.enqueue(q)
		return
	}
	if p.queues[q.key] == q {
		delete(p.queues, q.key)
	}
}

// handleError finishes a copy that the bus can never store, and retries it after any other error.
func (p *Publisher) handleError(c *eventCopy, err error) {
	stream, failing := c.dest.stream, &c.dest.failing
	var code jetstream.ErrorCode
	if api := (*jetstream.APIError)(nil); errors.As(err, &api) {
		code = api.ErrorCode
	}
	switch {
	case disconnected(err):
		p.enqueue(c.entry.queue)
	case permanent(err):
		p.finish(c, fmt.Errorf("%w: %s: %w", bridge.ErrRejected, stream, err))
	case errors.Is(err, jetstream.ErrNoStreamResponse):
		c.dest.ready = false // a recreated stream must be checked for lost events first
		c.dest.requestCheck()
		p.retry(c, failing, fmt.Errorf("no stream is bound to %s: bind stream %s to it, "+
			"or remove the subject mapping of the account that leads elsewhere", c.dest.subjects, stream))
	case errors.Is(err, jetstream.ErrAsyncPublishTimeout):
		p.retry(c, failing, p.noAnswer(fmt.Errorf("stream %s does not answer", stream)))
	case code == errCodeOtherStream:
		c.dest.requestCheck()
		p.retry(c, failing, fmt.Errorf("messages to %s reach another stream than %s: %w",
			c.dest.subjects, stream, advised(err)))
	default:
		p.retry(c, failing, fmt.Errorf("stream %s: %w", stream, advised(err)))
	}
}

// disconnected reports whether err is that of a lost connection. The message may be stored or not; it is sent again
// on the next connection.
func disconnected(err error) bool {
	return errors.Is(err, natsgo.ErrDisconnected) || errors.Is(err, natsgo.ErrReconnectBufExceeded) ||
		errors.Is(err, natsgo.ErrConnectionClosed) || errors.Is(err, natsgo.ErrConnectionReconnecting)
}

// finish ends the copy: stored if refused is nil, else refused for good.
func (p *Publisher) finish(c *eventCopy, refused error) {
	c.finished = true
	if refused != nil {
		c.entry.refused = refused
	}
	c.blockedBy(nil)
}

// blockedBy replaces the condition that blocks the copy; nil clears it.
func (c *eventCopy) blockedBy(why *condition) {
	if c.blocked != nil && c.blocked != why {
		c.blocked.Clear(c)
	}
	c.blocked = why
}

// retry reports the condition and enqueues the copy again after a backoff.
func (p *Publisher) retry(c *eventCopy, why *condition, err error) {
	c.blockedBy(why)
	why.Block(c, err)
	q := c.entry.queue
	if q.timer != nil {
		return
	}
	if q.backoff == nil {
		q.backoff = bridge.RetryForever(firstRetry)
	}
	q.timer = time.AfterFunc(q.backoff.NextBackOff(), func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		q.timer = nil
		p.enqueue(q)
	})
}
