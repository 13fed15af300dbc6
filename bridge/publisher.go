package bridge

import (
	"context"
	"errors"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// ErrRejected is wrapped by the error of an event that the bus can never take, however often it is offered: one that
// is too large. Everything else is an outage.
var ErrRejected = errors.New("the bus can never take this event")

// Publisher carries events to one bus.
type Publisher interface {
	// Publish takes deliveries in spool order and calls done exactly once for each, from any goroutine, in any
	// order, but never from within Publish: nil once the bus stored it in all its destinations, or an error that
	// wraps ErrRejected. Anything else the publisher retries itself, for ever, offering only the copies that are
	// not stored yet, and keeping the order of each key.
	//
	// Publish does not wait for the bus; the caller bounds what is not done. A delivery made by AsDeadletter has
	// no order among the others and may come from another goroutine at the same time. The delivery and its bytes
	// belong to the publisher until done. After ctx ends, deliveries not done stay undone, and done is not called
	// for them once Close has returned; the next start offers them again with the same ids and numbers.
	Publish(ctx context.Context, d *Delivery, done func(error))

	// State returns the publisher state: what the next start needs so that it stores no event twice. It is text, saved with
	// the cursor and passed to Open; nil if there is none. It is as of the moment when every event up to committed was
	// done, or of an earlier one. It is called whenever the cursor is saved, a few times a second, with ascending
	// sequences; it must not call back, and works after Close.
	State(committed uint64) []byte

	// Rewind makes State forget what the bus has lost, and what was stored after that event. It is called after Close,
	// together with the rewind of the cursor: a file must not have the one without the other, or else the next start would
	// not find the loss.
	Rewind(committed uint64)

	// Close ends the connection. It waits neither for the bus nor for what is undone.
	Close() error
}

// RetryForever is the pace of retries that never give up: the first after about that long, then twice as long each time,
// with jitter, 30 s apart at most. It is for one goroutine.
func RetryForever(first time.Duration) *backoff.ExponentialBackOff {
	return backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(first),
		backoff.WithMultiplier(2),
		backoff.WithMaxInterval(20*time.Second), // 30 s with its jitter
		backoff.WithMaxElapsedTime(0),
	)
}

// Pacer spaces out something that is tried now and then. It is for one goroutine.
type Pacer struct {
	backoff *backoff.ExponentialBackOff
	next    time.Time
}

// NewPacer returns one of the pace of RetryForever.
func NewPacer(first time.Duration) *Pacer { return &Pacer{backoff: RetryForever(first)} }

// Due reports whether it is time to try, and counts that as tried.
func (r *Pacer) Due(now time.Time) bool {
	if now.Before(r.next) {
		return false
	}
	r.next = now.Add(r.backoff.NextBackOff())
	return true
}

// Report sets a condition that blocks publishing, or ends it if err is nil. A bus is up while no condition holds, and
// from when the condition "connection" has first ended. Only changes are logged. A Report returns at once, whatever becomes of the
// log, so it may be called with locks held.
type Report func(condition string, err error)

// Opening is what a publisher gets when it is opened.
type Opening struct {
	Report Report
	// Spool is the spool that all events come from.
	Spool string
	// State is the publisher state on disk, as an earlier Publisher.State returned it; nil if there is none.
	State []byte
	// SaveState writes the current Publisher.State to disk and returns once it is durable. It may be called after the
	// first call of Publish.
	SaveState func() error
	// Rewound says that the bus has lost what it had stored: of the events behind that number, it does not hold all. It
	// returns at once. The publisher is closed and rewound then, and another is opened with its State as of that number;
	// what the spool still keeps from there on is offered to that one, as Redelivered.
	Rewound func(committed uint64, why error)
}

// Bus is one bus of POSTBRIDGE_PUBLISH.
type Bus struct {
	// Name is the bus in metrics, in /status and in the name of its cursor: nats or kafka.
	Name string
	// Delay is how long after its acknowledgement the bus may lose an event when this machine loses power. The cursor's
	// file stays behind for so long, so that the next start offers the event again. 0 for a bus on other machines.
	Delay time.Duration
	// Open makes the publisher, once the spool is locked. It must not wait for the bus, which may be down; its
	// error is one that no waiting mends, and ends the process.
	Open func(o Opening) (Publisher, error)
}
