package bridge

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
)

// errLost ends a replay during which the bus lost what it had stored.
var errLost = errors.New("the bus has lost events that it had stored meanwhile; replay again once serve has gone back to them")

// Replay publishes events again that a bus has had already. A replay is a message of its own: the id of this run stands in
// the place of the spool's and numbers from 1 on in the place of those in the spool, so that neither the duplicate window
// of the bus nor a look-up takes it for the first one. The event, its id, key and subject stay.
type Replay struct {
	// Immutable.
	id        string
	publisher Publisher
	refused   func(d *Delivery, sequence uint64, err error)
	ctx       context.Context // ends with Close, or when the bus has lost what it stored
	end       context.CancelCauseFunc

	mu      sync.Mutex
	room    sync.Cond           // signalled when something is done
	window  map[uint64]replayed // what was offered, by its number in this run, from first on
	first   uint64              // the number of the first that is not done
	noted   uint64              // what first was when the publisher was last asked for its note
	unacked int
	bytes   int // of what is unacked
	state   ReplayState
}

// noteEvery is after how many events the publisher is asked for its note, which nobody keeps.
const noteEvery = 1000

// replayed is one event that was offered.
type replayed struct {
	sequence uint64 // its number in the spool
	bytes    int
	done     bool
}

// ReplayState is how far a replay came.
type ReplayState struct {
	Offered, Stored, Refused uint64
	// Through is the number in the spool up to which all that was offered is done; 0 before the first, and when the bus has
	// lost what it stored.
	Through uint64
}

// NewReplay opens the bus. What keeps events from it is reported, and refused is told which event it can never take, in
// which number of the spool; neither may call back.
func NewReplay(bus Bus, report Report, refused func(d *Delivery, sequence uint64, err error)) (*Replay, error) {
	var id [4]byte
	_, _ = rand.Read(id[:]) // never fails
	r := &Replay{id: hex.EncodeToString(id[:]), refused: refused, window: make(map[uint64]replayed), first: 1}
	r.room.L = &r.mu
	r.ctx, r.end = context.WithCancelCause(context.Background())
	context.AfterFunc(r.ctx, r.wakeAll)
	var err error
	r.publisher, err = bus.Open(Opening{
		Report: report, Spool: r.id,
		KeepNote: func() error { return nil }, // the next run is another one
		TakeNote: func() {},
		Rewound:  func(_ uint64, why error) { r.end(fmt.Errorf("%w (%w)", errLost, why)) },
	})
	if err != nil {
		r.end(nil)
		return nil, fmt.Errorf("cannot open %s: %w", bus.Name, err)
	}
	return r, nil
}

// ID stands in the place of the spool's id: 8 hex digits.
func (r *Replay) ID() string { return r.id }

// Offer hands over an event from the spool, which belongs to the replay from here on, after those before it. It waits while
// as much is under way as a pump would have. An error says that the event was not taken: ctx ended, or the bus lost events.
func (r *Replay) Offer(ctx context.Context, d *Delivery) error {
	err := r.wait(ctx, func() bool {
		n := r.state.Offered + 1 - r.first
		return r.unacked < maxUnacked && r.bytes < maxUnackedBytes && n < maxWindow
	})
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.state.Offered++
	number, sequence := r.state.Offered, d.Sequence
	r.window[number] = replayed{sequence: sequence, bytes: len(d.Data)}
	r.unacked++
	r.bytes += len(d.Data)
	r.mu.Unlock()
	d.Spool, d.Sequence, d.Redelivered = r.id, number, false
	r.publisher.Publish(r.ctx, d, func(err error) {
		if err != nil {
			r.refused(d, sequence, err)
		}
		r.finish(number, err)
	})
	return nil
}

// Wait waits until all that was offered is done.
func (r *Replay) Wait(ctx context.Context) error {
	return r.wait(ctx, func() bool { return r.unacked == 0 })
}

// wait waits until it is so; the condition is called with mu held.
func (r *Replay) wait(ctx context.Context, until func() bool) error {
	stop := context.AfterFunc(ctx, r.wakeAll)
	defer stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	for !until() && ctx.Err() == nil && r.ctx.Err() == nil {
		r.room.Wait()
	}
	if r.ctx.Err() != nil {
		return context.Cause(r.ctx)
	}
	if !until() {
		return context.Cause(ctx)
	}
	return nil
}

func (r *Replay) wakeAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.room.Broadcast()
}

// finish marks one event as done.
func (r *Replay) finish(number uint64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	one := r.window[number]
	one.done = true
	r.window[number] = one
	r.unacked--
	r.bytes -= one.bytes
	if err == nil {
		r.state.Stored++
	} else {
		r.state.Refused++
	}
	for r.window[r.first].done {
		r.state.Through = r.window[r.first].sequence
		delete(r.window, r.first)
		r.first++
	}
	if r.first >= r.noted+noteEvery {
		r.noted = r.first
		_ = r.publisher.Note(r.first - 1) // so that the publisher remembers only what is under way
	}
	r.room.Broadcast()
}

// State is how far it came.
func (r *Replay) State() ReplayState {
	r.mu.Lock()
	defer r.mu.Unlock()
	st := r.state
	if errors.Is(context.Cause(r.ctx), errLost) {
		st.Through = 0
	}
	return st
}

// Close ends it. What is not done by then may or may not be stored.
func (r *Replay) Close() error {
	r.end(errors.New("the replay is closed"))
	return r.publisher.Close()
}
