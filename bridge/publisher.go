package bridge

import (
	"context"
	"errors"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// ErrRejected is wrapped by the error of an event that the bus can never accept, however often it is published: one
// that is too large. Every other error is an outage.
var ErrRejected = errors.New("the bus can never accept this event")

// ErrMoved is the error of an event that is to follow a certain event of its order, after that has got another one.
var ErrMoved = errors.New("the order has got another event")

// Stored is an event as a bus has it.
type Stored struct {
	Data []byte
	// Revision is the position in the stream; 0 on Kafka.
	Revision uint64
	// Time is when the bus stored it, by its clock.
	Time time.Time
}

// Publisher carries events to one bus.
type Publisher interface {
	// Publish is called in spool order, and calls done exactly once for each delivery, from any goroutine, in any
	// order, but never from within Publish: with nil once the bus has stored it in all its destinations, or with an
	// error that wraps ErrRejected. The publisher retries every other error itself, for ever, publishing only the
	// copies that are not stored yet, in the order of each key.
	//
	// Publish does not wait for the bus; the caller limits the deliveries in flight. A delivery made by AsDeadletter
	// has no order among the others and may come from another goroutine at the same time. The delivery and its
	// bytes belong to the publisher until done. After ctx ends, deliveries not done stay undone, and done is not called
	// for them once Close has returned; the next start publishes them again with the same ids and sequences.
	Publish(ctx context.Context, d *Delivery, done func(error))

	// State returns the publisher state, with which the next start stores no event twice: text that is saved with the
	// cursor and passed to Open, or nil. It describes the moment when every event up to committed was done, or an
	// earlier one. It is called whenever the cursor is saved, a few times a second, with ascending sequences. It must
	// not call back, and works after Close.
	State(committed uint64) []byte

	// Rewind removes from State what the bus has lost. It is called after Close, in one step with the rewind of the
	// cursor: a cursor file with only one of the two would hide the loss from the next start.
	Rewind()

	// Close ends the connection. It waits neither for the bus nor for deliveries in flight.
	Close() error
}

// RetryForever returns the backoff of retries that never give up: the first after about first, each next one twice as
// long, with jitter, 30 s at most. It is for one goroutine.
func RetryForever(first time.Duration) *backoff.ExponentialBackOff {
	return backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(first),
		backoff.WithMultiplier(2),
		backoff.WithMaxInterval(20*time.Second), // 30 s with its jitter
		backoff.WithMaxElapsedTime(0),
	)
}

// Pacer limits the rate of attempts. It is for one goroutine.
type Pacer struct {
	backoff *backoff.ExponentialBackOff
	next    time.Time
}

// NewPacer returns a Pacer with the backoff of RetryForever.
func NewPacer(first time.Duration) *Pacer { return &Pacer{backoff: RetryForever(first)} }

// Due reports whether the next attempt is due, and counts it as made.
func (r *Pacer) Due(now time.Time) bool {
	if now.Before(r.next) {
		return false
	}
	r.next = now.Add(r.backoff.NextBackOff())
	return true
}

// Report sets a condition that blocks publishing, or ends it if err is nil. A bus is up once the condition "connection"
// has first ended, while no condition holds. Only changes are logged. A Report never blocks, so it may be called with
// locks held.
type Report func(condition string, err error)

// Opening holds what a publisher needs of the bridge.
type Opening struct {
	Report Report
	// Spool is the spool that all events come from.
	Spool string
	// State is the publisher state on disk, as an earlier Publisher.State returned it; nil if there is none.
	State []byte
	// SaveState writes the current Publisher.State to disk and returns once it is durable. It may be called after the
	// first call of Publish.
	SaveState func() error
	// Rewound reports that the bus no longer holds some event with a sequence above committed. It returns at once.
	// The publisher is then closed and rewound, and another is opened with its State as of there; the events after
	// committed that the spool still has are published again, as Redelivered.
	Rewound func(committed uint64, why error)
}

// Bus is one bus of POSTBRIDGE_PUBLISH.
type Bus struct {
	// Name names the bus in metrics, /status and its cursor file: nats or kafka.
	Name string
	// Delay is how long after its acknowledgement the bus may lose an event when this machine loses power. The cursor
	// file stays that far behind, so that the next start publishes the event again. 0 for a bus on other machines.
	Delay time.Duration
	// Open returns a publisher, once the spool is locked. It must not wait for the bus, which may be down. Its error is
	// permanent and ends the process.
	Open func(o Opening) (Publisher, error)
}
