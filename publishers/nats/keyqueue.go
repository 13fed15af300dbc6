package nats

import (
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/postbridge/postbridge/bridge"
)

// keyQueue holds the unfinished events of one key, first in, first out. Only its head is in flight. Guarded by
// Publisher.mu.
type keyQueue struct {
	key        string
	head, tail *entry

	queued bool // in Publisher.ready

	// found is the stream sequence of the last event found by a lookup, per destination: the next one is behind it.
	found map[*destination]uint64

	// timer runs while the head waits for a retry. Both are nil until the head fails.
	timer   *time.Timer
	backoff *backoff.ExponentialBackOff
}

// entry is an event in a key queue.
type entry struct {
	delivery *bridge.Delivery
	done     func(error)
	queue    *keyQueue
	next     *entry // in the key queue
	refused  error  // set once a copy was refused for good

	copies []eventCopy
	first  [1]eventCopy // the memory of copies, unless there are two: few events are rejects
}

// eventCopy is an event for one destination.
type eventCopy struct {
	entry *entry
	dest  *destination

	finished bool       // stored or refused for good
	attempt  uint64     // number of the publish or request in flight; 0 if none
	deadline time.Time  // of the answer to the publish in flight; zero for a request
	blocked  *condition // blocks the copy; nil if none

	// absentAt is the latest time at which the stream is known not to hold the copy; zero if unknown. A copy sent since
	// is deduplicated while the duplicate window reaches back to absentAt. Compared on the monotonic clock only.
	absentAt      time.Time
	lookedUp      time.Time // time of the answer that the stream does not hold it; zero once sent
	earlier       bool      // an earlier run may have sent it, at an unknown time
	sent          int       // publishes by this run
	failedLookups int       // since the last answer

	// misplaced means that the stream holds the copy under another subject.
	misplaced bool
}

func (p *Publisher) newEntry(d *bridge.Delivery, done func(error)) *entry {
	e := &entry{delivery: d, done: done}
	e.copies = e.first[:0]
	for _, name := range d.Destinations() {
		e.copies = append(e.copies, eventCopy{entry: e, dest: p.destinations[name], earlier: d.Redelivered})
	}
	return e
}

// finished reports whether every copy is.
func (e *entry) finished() bool {
	for i := range e.copies {
		if !e.copies[i].finished {
			return false
		}
	}
	return true
}

// needsLookup reports whether the copy may be stored, and a retry not be deduplicated by the stream: an earlier run
// may have sent it, or this run sent it more than half a duplicate window ago; the other half covers the delay of
// the retry. A copy that was just looked up is sent, even if the lookup took longer than that: else slow lookups would
// block it for ever. Dead letters share a subject, where a lookup is expensive: they rely on the duplicate window.
func (c *eventCopy) needsLookup(now time.Time) bool {
	if c.dest.lookupDenied || c.failedLookups >= maxLookups || c.dest.name == bridge.Deadletters ||
		now.Sub(c.lookedUp) < lookupValid {
		return false
	}
	return c.earlier || !c.absentAt.IsZero() && now.Sub(c.absentAt) > c.dest.window/2
}

// subject returns the subject to publish the copy to.
func (c *eventCopy) subject() string {
	if c.dest.name == bridge.Deadletters {
		return c.dest.root + c.entry.delivery.Broker
	}
	return c.dest.root + c.entry.queue.key // Delivery.Subject would escape the ids again
}

func (q *keyQueue) push(e *entry) {
	e.queue = q
	if q.tail == nil {
		q.head = e
	} else {
		q.tail.next = e
	}
	q.tail = e
}

// pop removes the head and its backoff.
func (q *keyQueue) pop() {
	q.head = q.head.next
	if q.head == nil {
		q.tail = nil
	}
	q.stopTimer()
	q.backoff = nil
}

// stopTimer cancels the wait for a retry.
func (q *keyQueue) stopTimer() {
	if q.timer != nil {
		q.timer.Stop()
		q.timer = nil
	}
}
