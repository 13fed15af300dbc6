package kafka

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v4"
	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers"
)

// unsureFor is how long a broker may refuse our numbers without the partition showing why. What it stored shows once
// all replicas have it.
const unsureFor = 30 * time.Second

// linger is how long events wait for others to fill their batch, if they are late: that is, if they have waited for longer
// than that.
const (
	late   = time.Second
	linger = 3 * time.Millisecond
)

var errNoLeader = errors.New("has no leader")

// lane writes one partition: first in, first out, one batch at a time. Its fields belong to the goroutine that runs it,
// but for the queue.
type lane struct {
	p         *Publisher
	topic     *topic
	partition int
	poked     chan struct{} // tells the lane to look at what changed; holds one

	queue []*entry // guarded by Publisher.mu

	pending []*entry // taken off the queue and not settled
	at      position
	cluster string // that at is of
	fresh   bool   // the run before noted nothing
	placed  bool   // at is where to go on, but for what a look has to show
	before  bool   // a run before may have sent what is pending: look first
	opened  bool
	visit   visit                       // the last in which the checkpoints were checked
	stream  *publishers.Stream          // to check in this visit
	checked bool                        // the checkpoints were checked, in this visit
	due     *time.Ticker                // asks for another check
	limit   int                         // records in a batch
	invalid int                         // events refused as invalid since one was stored
	pace    *backoff.ExponentialBackOff // of retries of an event that is refused as invalid

	// doubted is set while something of ours may come into the partition that we know nothing of: a batch that the run
	// before had sent, or one of ours that the broker refused when it came again. Then an answer is not believed, but
	// looked after.
	doubted   bool
	index     *index    // the events that the partition is known to hold
	highest   uint64    // the greatest sequence of those ever found
	sent      bool      // something of what is pending is on its way, or may be stored: no other lane may send it
	resent    bool      // it was sent before
	throttled time.Time // until when the broker does not read what we send
	unsure    time.Time // since when the broker refuses our numbers; zero if it does not
	blocked   bool      // it is reported why the lane does not go on
	batch     batch
}

func newLane(t *topic, partition int) *lane {
	return &lane{
		p: t.p, topic: t, partition: partition, poked: make(chan struct{}, 1),
		limit: batchRecords, pace: bridge.RetryForever(firstRetry), index: newIndex(), batch: newBatch(),
	}
}

// push queues an event. Guarded by mu.
func (l *lane) push(e *entry) {
	l.queue = append(l.queue, e)
	if len(l.queue) == 1 {
		l.poke()
	}
}

func (l *lane) poke() {
	select {
	case l.poked <- struct{}{}:
	default:
	}
}

// run takes events and stores them until the publisher closes, or the topic gets other lanes.
func (l *lane) run() {
	l.due = time.NewTicker(checkInterval)
	defer l.due.Stop()
	for l.step() && l.take() {
	}
	l.unblock()
	l.p.mu.Lock()
	defer l.p.mu.Unlock()
	if l.p.ctx.Err() == nil {
		l.topic.end(append(l.pending, l.queue...))
	}
}

// take waits until something is pending. False is the end: what is pending then is for the lanes that come next.
func (l *lane) take() bool {
	lingered := false
	for {
		ending := l.dequeue()
		switch {
		case l.p.ctx.Err() != nil:
			return false
		case len(l.pending) > 0 && (ending || lingered || !l.canWait()):
			return true
		case len(l.pending) > 0:
			lingered = true
			l.p.pause(linger)
		case ending:
			return false
		default:
			l.unblock()
			select {
			case <-l.poked:
			case <-l.due.C:
				l.checked = false
				return true
			case <-l.p.ctx.Done():
			}
		}
	}
}

// dequeue makes pending what is queued, unless the topic gets other lanes.
func (l *lane) dequeue() (ending bool) {
	l.p.mu.Lock()
	defer l.p.mu.Unlock()
	if l.topic.wanted > 0 {
		return true
	}
	l.pending, l.queue = append(l.pending, l.queue...), nil
	return false
}

// drop takes the first n off what is pending, and lets go of them.
func (l *lane) drop(n int) {
	clear(l.pending[:n])
	if l.pending = l.pending[n:]; len(l.pending) == 0 {
		l.pending = nil
	}
}

// canWait reports whether a batch of what is pending would be a small one, of events that are late already. After an
// outage brokers have most to do, and what a batch costs them hardly depends on its size.
func (l *lane) canWait() bool {
	return l.fit() == len(l.pending) && time.Since(l.pending[0].delivery.ReceivedAt) > late
}

// step brings some of what is pending to an end. False is the end of the lane.
func (l *lane) step() bool {
	if cluster := l.p.notes.clusterID(); l.cluster != cluster {
		l.cluster, l.placed, l.opened = cluster, false, false
		l.index = newIndex()
	}
	if !l.try(l.checkIfDue) {
		return false
	}
	if len(l.pending) == 0 {
		return true
	}
	if !l.opened && !l.try(l.open) {
		return false
	}
	if !l.index.covers(l.pending[0].delivery.Sequence) && !l.try(l.moveWindow) {
		return false
	}
	if l.skipFound() {
		return true
	}
	n := l.fit()
	set, err := l.batch.encode(l.pending[:n], l.at)
	if err != nil {
		l.p.settle(l.pending[:n], err) // nothing but a record that nobody can encode
		l.drop(n)
		return true
	}
	offset, err := l.offer(set)
	switch judge(err) {
	case stored:
		return l.stored(n, offset)
	case refused:
		return l.refused(n, err)
	case unsure:
		return l.settleDoubt(err)
	default:
		return false
	}
}

// skipFound settles the first pending events if they are stored, and reports whether there were any.
func (l *lane) skipFound() bool {
	n := 0
	for n < len(l.pending) && l.index.has(l.pending[n].delivery) {
		n++
	}
	if n > 0 {
		l.p.settle(l.pending[:n], nil)
		l.drop(n)
	}
	return n > 0
}

// fit returns how many of the pending events go into the next batch: those up to the first that is stored, or may be,
// within the limits, one at least.
func (l *lane) fit() int {
	bytes := 0
	for n, e := range l.pending {
		bytes += recordBytes(e.delivery)
		if n > 0 && (n == l.limit || bytes > batchBytes || !l.index.covers(e.delivery.Sequence) || l.index.has(e.delivery)) {
			return n
		}
	}
	return len(l.pending)
}

// offer sends a batch until the broker says what became of it. What the broker knows already it does not store again. An
// error that stands for no verdict is the end of the lane.
func (l *lane) offer(set []byte) (offset int64, err error) {
	l.p.pause(time.Until(l.throttled))
	ended := !l.try(func(ctx context.Context, leader string) error {
		l.topic.sending.RLock()
		defer l.topic.sending.RUnlock()
		if err := l.checkIfDue(ctx, leader); err != nil {
			return err
		}
		l.resent, l.sent = l.sent, true
		stamp(set, time.Now())
		var resp *kafkago.ProduceResponse
		resp, err = l.p.produce(ctx, leader, l.topic.name, l.partition, set)
		if err == nil {
			offset, l.throttled = resp.BaseOffset, time.Now().Add(resp.Throttle)
		}
		if judge(err) == again {
			l.checked = false // the leader may come back with an older copy
			return err
		}
		l.sent = l.doubted || l.resent && err != nil // until a look has shown
		return nil
	})
	if ended {
		return 0, context.Canceled
	}
	return offset, err
}

// produce sends a batch and returns the answer of the broker.
func (p *Publisher) produce(ctx context.Context, leader, topic string, partition int, set []byte) (*kafkago.ProduceResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, produceTimeout)
	defer cancel()
	resp, err := p.client.RawProduce(ctx, &kafkago.RawProduceRequest{
		Addr:         kafkago.TCP(leader),
		Topic:        topic,
		Partition:    partition,
		RequiredAcks: kafkago.RequireAll,
		RawRecords:   protocol.RawRecordSet{Reader: bytes.NewReader(set)},
	})
	if err != nil {
		return nil, err
	}
	return resp, resp.Error
}

// stored takes the answer that the first n pending events are stored from that offset on.
func (l *lane) stored(n int, offset int64) bool {
	if offset < l.at.offset {
		// All before that was looked at, so this is the place of something else, with the same numbers, that the broker
		// takes our batch for a repeat of; or the partition is a new one.
		l.sent, l.checked = true, false
		if !l.try(l.checkIfDue) {
			return false
		}
		l.at.offset = max(0, offset)
		return l.settleDoubt(kafkago.DuplicateSequenceNumber)
	}
	l.unsure, l.invalid = time.Time{}, 0
	l.pace.Reset()
	l.unblock()
	if l.limit < batchRecords {
		l.limit++
	}
	if l.doubted {
		// The broker knows these numbers; whether of these events, or of others in a batch that came late from the run
		// before, only the partition tells. After this nothing can come late any more.
		l.doubted = false
		return l.lookBack()
	}
	l.at.next = after(l.at.next, n)
	l.at.offset = offset + int64(n)
	l.note(l.pending[:n])
	if !l.p.checkpoints.Stored(l.name(), identity, uint64(l.at.offset), l.pending[n-1].delivery.Sequence) {
		l.checked = false
	}
	l.p.settle(l.pending[:n], nil)
	l.drop(n)
	return true
}

// note notes that these events are in the partition, before they are done.
func (l *lane) note(written []*entry) {
	highest := uint64(0)
	for _, e := range written {
		highest = max(highest, e.delivery.Sequence)
	}
	l.p.notes.stored(l.topic.name, l.partition, highest, l.at)
}

// maxInvalid is how many events in a row, with none stored in between, may be refused as invalid. What is invalid is
// for the broker to say: an event of ours never is for Kafka itself, but may be for a schema validation that somebody
// turned on.
const maxInvalid = 3

// refused takes the answer that the broker can never take a batch of n. Of several, one is to blame: they are offered
// in smaller batches. If it was sent before, it may be stored all the same, and its numbers be used up. Where each
// event is invalid it is the topic that is to blame: that is an outage, and a backlog is not to go to the dead letters
// for it.
func (l *lane) refused(n int, err error) bool {
	if l.resent {
		next := l.at.next
		if !l.lookBack() {
			return false
		}
		if l.at.next != next {
			return true
		}
		l.doubted = true // the first attempt may still be on its way
	}
	if n > 1 {
		l.limit = n / 2
		return true
	}
	if errors.Is(err, kafkago.InvalidRecord) {
		if l.invalid == maxInvalid {
			l.block(explain(err))
			l.p.pause(l.pace.NextBackOff())
			return l.p.ctx.Err() == nil
		}
		l.invalid++
	}
	l.p.settle(l.pending[:1], rejection(l.topic.name, err))
	l.drop(1)
	return true
}

// settleDoubt looks for the reason why the broker refuses our numbers. If it knows nothing of us any more, a new
// producer goes on; if it is just ahead, what it has will show.
func (l *lane) settleDoubt(why error) bool {
	if l.unsure.IsZero() {
		l.unsure = time.Now()
	}
	before, seen := l.at, l.index.seen
	if !l.lookBack() {
		return false
	}
	if l.at.next != before.next || l.at.producer != before.producer || l.index.seen != seen {
		l.unsure = time.Time{}
		return true
	}
	if errors.Is(why, kafkago.OutOfOrderSequenceNumber) && time.Since(l.unsure) < l.p.limits.unsureFor {
		l.block(explain(why))
		l.p.pause(10 * firstRetry)
		return l.p.ctx.Err() == nil
	}
	l.p.log.Warn("the broker no longer knows what this producer wrote; going on as a new one",
		"topic", l.topic.name, "partition", l.partition, "producer", l.at.producer.id, "why", Plain(why).Error())
	l.unsure = time.Time{}
	return l.try(l.renew)
}

// lookBack looks at what became of what was sent.
func (l *lane) lookBack() bool {
	if !l.try(l.look) {
		return false
	}
	l.sent = false
	return true
}

// try does something at the leader of the partition until it works. False is the end of the lane.
func (l *lane) try(do func(ctx context.Context, leader string) error) bool {
	pace := bridge.RetryForever(firstRetry)
	for failed := false; ; failed = true {
		leader, ending := l.leader()
		if l.p.ctx.Err() != nil || ending {
			return false
		}
		err := errNoLeader
		if leader != "" {
			err = do(l.p.ctx, leader)
		}
		if l.p.ctx.Err() != nil {
			return false
		}
		if err == nil {
			return true
		}
		if failed { // once is no news: leaders move
			l.block(explain(err))
		}
		l.p.wantMetadata()
		wait := pace.NextBackOff()
		if !fromBroker(err) {
			wait = min(wait, dialRetry)
		}
		if l.pause(wait) {
			pace.Reset() // there is something new, perhaps another leader
		}
	}
}

// leader is where the partition is written. The lane is ending if the topic has the partition no more, or if nothing is
// on its way while the topic gets other lanes.
func (l *lane) leader() (addr string, ending bool) {
	l.p.mu.Lock()
	defer l.p.mu.Unlock()
	t := l.topic
	if l.partition < len(t.leaders) {
		addr = t.leaders[l.partition]
	}
	return addr, t.wanted > 0 && (l.partition >= t.wanted || addr == "" && !l.sent)
}

// pause waits, and reports whether it was cut short because something changed.
func (l *lane) pause(d time.Duration) (poked bool) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return false
	case <-l.poked:
		return true
	case <-l.p.ctx.Done():
		return false
	}
}

// block reports what blocks the lane. That no broker can be reached is reported once, by Publisher.watch.
func (l *lane) block(err error) {
	l.p.mu.Lock()
	defer l.p.mu.Unlock()
	if l.p.up || fromBroker(err) {
		l.blocked = true
		l.topic.failing.Block(l, fmt.Errorf("partition %d: %w", l.partition, err))
	}
}

func (l *lane) unblock() {
	if l.blocked {
		l.blocked = false
		l.p.mu.Lock()
		defer l.p.mu.Unlock()
		l.topic.failing.Clear(l)
	}
}
