package nats

import (
	"time"

	"github.com/cenkalti/backoff/v4"
	natsgo "github.com/nats-io/nats.go"

	"github.com/postbridge/postbridge/bridge"
)

// lane holds the events of one key, first in, first out. Only its head is ever sent. All of it is guarded by
// Publisher.mu.
type lane struct {
	key        string
	head, tail *entry

	queued bool  // it is in Publisher.ready
	next   *lane // behind it there

	// found is where the last event that was looked up is stored, in each destination: the next is behind it.
	found map[*destination]uint64

	// While the head waits for a retry, timer runs. Both are nil as long as nothing went wrong.
	timer   *time.Timer
	backoff *backoff.ExponentialBackOff
}

// entry is one event until it is done.
type entry struct {
	delivery *bridge.Delivery
	done     func(error)
	lane     *lane
	next     *entry // behind it in the lane
	refused  error  // why the bus can never take one of the copies

	copies [2]eventCopy
	n      int // how many of copies are used
}

// eventCopy is what one destination has to store of an event.
type eventCopy struct {
	entry *entry
	dest  *destination

	settled bool        // stored or refused
	attempt *natsgo.Msg // identifies what is under way, nil if nothing is
	blocked *condition  // the condition that blocks it; nil if none does

	// absentAt is a time at which the stream did not hold the copy; zero if that is not known. The stream notices a
	// repeat only as long as its duplicate window reaches back to it. It is a time of this run, whose differences are
	// those of the monotonic clock: no step of the wall clock changes them.
	absentAt time.Time
	earlier  bool // a run before may have sent it, at a time that no clock tells
	sent     int  // how often, by this run
	lookUps  int  // that had no answer

	// misplaced is that the stream holds the copy, but under another subject.
	misplaced bool
}

func (p *Publisher) newEntry(d *bridge.Delivery, done func(error)) *entry {
	e := &entry{delivery: d, done: done}
	for _, name := range d.Destinations() {
		e.copies[e.n] = eventCopy{entry: e, dest: p.destinations[name], earlier: d.Redelivered}
		e.n++
	}
	return e
}

// settled reports whether every copy is stored or refused.
func (e *entry) settled() bool {
	for i := range e.n {
		if !e.copies[i].settled {
			return false
		}
	}
	return true
}

// lookFirst reports whether the copy may be stored already without the stream noticing a repeat: a run before may have
// sent it, or this one did so long ago. Half the window is left for the way there. Dead letters share their subject and
// are not looked up: there the window has to do.
func (c *eventCopy) lookFirst(now time.Time) bool {
	if c.dest.lookUpDenied || c.lookUps >= maxLookUps || c.dest.name == bridge.Deadletters {
		return false
	}
	return c.earlier || !c.absentAt.IsZero() && now.Sub(c.absentAt) > c.dest.window/2
}

// subject is where the copy is published to.
func (c *eventCopy) subject() string { return c.dest.prefix + c.entry.delivery.Subject(c.dest.name) }

func (l *lane) push(e *entry) {
	e.lane = l
	if l.tail == nil {
		l.head = e
	} else {
		l.tail.next = e
	}
	l.tail = e
}

// pop removes the head, and with it everything that was wrong with it.
func (l *lane) pop() {
	l.head = l.head.next
	if l.head == nil {
		l.tail = nil
	}
	l.calm()
	l.backoff = nil
}

// calm ends a wait for a retry.
func (l *lane) calm() {
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
}

// laneQueue is a queue of lanes, linked through them.
type laneQueue struct{ head, tail *lane }

func (q *laneQueue) push(l *lane) {
	if q.tail == nil {
		q.head = l
	} else {
		q.tail.next = l
	}
	q.tail = l
}

func (q *laneQueue) pop() *lane {
	l := q.head
	q.head, l.next = l.next, nil
	if q.head == nil {
		q.tail = nil
	}
	return l
}
