package bridge

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/postbridge/postbridge/bridge/spool"

	"github.com/postbridge/postbridge/bridge/event"
)

// The in-flight window: how much a pump publishes before the oldest of it is done. After a crash the bus may be asked
// for all of it.
const (
	maxInFlight      = 8192     // events published and not done
	maxInFlightBytes = 16 << 20 // their bytes
	maxWindow        = 1 << 16  // events published, from the oldest that is not done on
)

// firstRetry is the first backoff after an error of the disk.
const firstRetry = 100 * time.Millisecond

// conditionInFlight blocks publishing while the in-flight window is full.
const conditionInFlight = "window"

// stuckAfter is how long the in-flight window may be full before the pump reports the event that it waits for.
const stuckAfter = 5 * time.Second

// pump carries events from the spool to one bus: next, publish, commit.
type pump struct {
	// Immutable.
	bus        string
	spoolID    string
	cursor     *spool.Cursor
	conditions *conditions
	quarantine string // path of the file
	log        *slog.Logger
	open       func(Opening) (Publisher, error)
	tracer     Tracer // nil without tracing

	// publisher and its session are replaced by run only, while the publisher is closed and mu is held.
	publisher  Publisher
	session    context.Context
	endSession context.CancelFunc

	mu             sync.Mutex
	lost           *loss       // reported by the publisher and not rewound yet
	rewinds        uint64      // since start
	stuck          *time.Timer // reports the oldest event of the window; nil unless the pump waits for space
	spaceAvailable sync.Cond   // signalled when the window has space for a pump that waits
	refusedOrFull  sync.Cond   // signalled when quarantineRefused may have something to do
	refused        int         // slots with a refusal
	window         []*slot     // the published events, from the oldest that is not done on
	inFlight       int         // slots that are not done
	inFlightBytes  int
	committed      uint64      // sequence of the last committed event
	fates          cursorState // of all committed events
}

// slot is one record in the in-flight window.
type slot struct {
	record    spool.Record // without payload
	delivery  *Delivery    // nil once done, and of a record that is missing in the spool
	published time.Time    // zero if the event is not traced
	bytes     int
	fate      busFate
	done      bool  // or abandoned by a rewind
	refusal   error // why the bus can never accept the event; nil once it is quarantined
}

// newPump opens the publisher of a bus where its cursor stands.
func newPump(ctx context.Context, o Options, bus Bus, s *spool.Spool) (*pump, error) {
	log := o.Log.With("bus", bus.Name)
	p := &pump{
		bus: bus.Name, open: bus.Open, spoolID: s.ID(), cursor: s.Cursor(bus.Name),
		conditions: newConditions(log), log: log, tracer: o.Tracer,
		quarantine: filepath.Join(o.DataDir, "quarantine-"+bus.Name+".jsonl"),
	}
	p.spaceAvailable.L, p.refusedOrFull.L = &p.mu, &p.mu
	publisherState, err := p.load()
	if err != nil {
		return nil, err
	}
	if err := p.openPublisher(ctx, publisherState); err != nil {
		return nil, err
	}
	p.cursor.SetSnapshot(p.snapshot)
	return p, nil
}

// openPublisher opens a publisher with the publisher state of the one before it, and begins a session with it, which
// ends with ctx or when the bus has lost events.
func (p *pump) openPublisher(ctx context.Context, state []byte) error {
	session, end := context.WithCancel(ctx)
	p.mu.Lock()
	p.session, p.endSession = session, end
	p.mu.Unlock()
	publisher, err := p.open(Opening{
		Report: func(name string, err error) { p.conditions.report(session, name, err) },
		Spool:  p.spoolID, State: state, SaveState: p.cursor.Save, Rewound: p.rewound,
	})
	if err != nil {
		end()
		return fmt.Errorf("cannot open %s: %w", p.bus, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.publisher = publisher
	return nil
}

// run publishes events until ctx ends. After each loss it rewinds and starts a new session with another publisher.
func (p *pump) run(ctx context.Context) {
	var reopened time.Time
	retry := RetryForever(firstRetry)
	for ctx.Err() == nil {
		p.carry(p.session)
		p.endSession()
		if ctx.Err() != nil {
			return // close rewinds
		}
		if time.Since(reopened) > stableAfter {
			retry.Reset()
		} else {
			pause(ctx, retry.NextBackOff()) // the bus loses again the events that it just stored
		}
		reopened = time.Now()
		p.reopen(ctx)
	}
}

// retry calls f until it succeeds, and reports its error as a condition until then. False means that ctx ended first.
func (p *pump) retry(ctx context.Context, condition string, f func() error) bool {
	if ctx.Err() != nil {
		return false
	}
	err := f()
	if err == nil {
		return true
	}
	for pace := RetryForever(firstRetry); err != nil; err = f() {
		if ctx.Err() != nil {
			return false
		}
		p.conditions.report(ctx, condition, err)
		pause(ctx, pace.NextBackOff())
	}
	p.conditions.report(ctx, condition, nil)
	return true
}

// carry publishes events until ctx ends.
func (p *pump) carry(ctx context.Context) {
	stop := context.AfterFunc(ctx, p.wakeAll)
	defer stop()
	var worker sync.WaitGroup
	worker.Go(func() { p.quarantineRefused(ctx) })
	defer worker.Wait()
	var r spool.Record
	next := func() (err error) {
		r, err = p.cursor.Next(ctx)
		return err
	}
	for p.waitForSpace(ctx) && p.retry(ctx, "spool", next) {
		p.publish(ctx, r)
	}
}

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// waitForSpace waits until the in-flight window has space. It reports an event that holds it up for stuckAfter. False
// means that ctx ended.
func (p *pump) waitForSpace(ctx context.Context) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.full() {
		return ctx.Err() == nil
	}
	p.stuck = time.AfterFunc(stuckAfter, func() { p.reportStuck(ctx) })
	defer func() {
		p.stuck.Stop()
		p.stuck = nil
		p.conditions.report(ctx, conditionInFlight, nil)
	}()
	for p.full() && ctx.Err() == nil {
		p.spaceAvailable.Wait()
	}
	return ctx.Err() == nil
}

// full reports whether the in-flight window has no space. For a pump that waits it has none until a sixteenth is free:
// a goroutine that is woken for each event costs more than the event's own work. Needs mu.
func (p *pump) full() bool {
	parts := 16
	if p.stuck != nil {
		parts--
	}
	return p.inFlight >= maxInFlight/16*parts || p.inFlightBytes >= maxInFlightBytes/16*parts ||
		len(p.window) >= maxWindow/16*parts
}

// reportStuck reports the event that holds up the window. Unless waitForSpace waits, nothing would end the condition:
// the timer may fire at the moment when the wait ends.
func (p *pump) reportStuck(ctx context.Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stuck != nil && p.full() {
		p.conditions.report(ctx, conditionInFlight, fmt.Errorf(
			"the in-flight window is full: the bus does not accept event %d of spool %s and others after it: "+
				"run 'postbridge doctor', and 'postbridge spool dump --sequence %[1]d' to print the event",
			p.window[0].record.Sequence, p.spoolID))
	}
}

// wakeAll wakes the goroutines of carry, so that they see the end of their context.
func (p *pump) wakeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spaceAvailable.Broadcast()
	p.refusedOrFull.Broadcast()
}

// publish passes one record to the publisher.
func (p *pump) publish(ctx context.Context, r spool.Record) {
	if r.Lost > 0 || r.Payload == nil {
		to := r.Sequence
		if r.Payload != nil {
			to-- // this one is not missing
		}
		p.log.Error("events are missing in the spool and are skipped",
			"spool", p.spoolID, "from", r.Sequence-r.Lost, "to", to)
	}
	payload := r.Payload
	r.Payload = nil
	if payload == nil {
		p.finish(p.add(r, nil, 0), skipped)
		return
	}
	d, err := ParseRecord(payload)
	if err != nil {
		d = &Delivery{Deadletter: true, Data: payload} // of a version that this build does not know
	}
	d.Spool, d.Sequence, d.Redelivered = p.spoolID, r.Sequence, r.Redelivered
	s := p.add(r, d, len(payload))
	if err != nil {
		p.refuse(s, err)
		return
	}
	p.publisher.Publish(ctx, d, func(err error) { p.answered(ctx, s, d, err) })
}

// add puts a record into the in-flight window.
func (p *pump) add(r spool.Record, d *Delivery, bytes int) *slot {
	s := &slot{record: r, delivery: d, bytes: bytes}
	if p.tracer != nil && d != nil && sampled(d.TraceParent) {
		s.published = time.Now()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.window = append(p.window, s)
	p.inFlight++
	p.inFlightBytes += bytes
	p.wakeQuarantine() // the window may be full now
	return s
}

// answered handles the answer of the bus: the event is stored, or can never be. A refused event is published to the
// dead letters, and one that is refused there too is quarantined. Neither blocks the events behind it.
func (p *pump) answered(ctx context.Context, s *slot, d *Delivery, err error) {
	switch {
	case err == nil && d.Deadletter && d.Type != event.TypeOther:
		p.finish(s, deadlettered)
	case err == nil:
		p.finish(s, stored)
	case d.Deadletter:
		p.refuse(s, err)
	default:
		p.log.Error("the bus refuses an event for good; it is published to the dead letters",
			"spool", d.Spool, "sequence", d.Sequence, "error", err)
		dead := d.AsDeadletter()
		p.publisher.Publish(ctx, dead, func(err error) { p.answered(ctx, s, dead, err) })
	}
}

// finish marks an event as done, commits if it is the oldest, and reports it to the tracer and the debug log.
func (p *pump) finish(s *slot, f busFate) {
	d := p.markDone(s, f)
	if d == nil {
		return
	}
	if !s.published.IsZero() {
		p.tracer.Publish(Publication{Bus: p.bus, Fate: f.String(), Delivery: d, Offered: s.published, Done: time.Now()})
	}
	if p.log.Enabled(context.Background(), slog.LevelDebug) {
		p.log.Debug("event "+f.String(), "broker", d.Broker, "id", d.ID, "order_id", d.OrderID, "sequence", d.Sequence)
	}
}

// markDone marks an event as done and commits what it can. It returns the delivery; nil if the record is missing in the
// spool, and after a rewind.
func (p *pump) markDone(s *slot, f busFate) *Delivery {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.done {
		return nil
	}
	d := s.delivery
	if s.refusal != nil {
		p.refused--
	}
	s.done, s.fate, s.delivery, s.refusal = true, f, nil, nil
	p.inFlight--
	p.inFlightBytes -= s.bytes
	p.commitPrefix()
	if p.stuck != nil && !p.full() {
		p.spaceAvailable.Signal()
	}
	p.wakeQuarantine()
	return d
}

// commitPrefix commits the events at the start of the window that are done, up to the first that is not. Needs mu.
func (p *pump) commitPrefix() {
	n := 0
	for ; n < len(p.window) && p.window[n].done; n++ {
		s := p.window[n]
		*p.fates.of(s.fate)++
		p.fates.Skipped += s.record.Lost
	}
	if n == 0 {
		return
	}
	if p.stuck != nil {
		p.stuck.Reset(stuckAfter) // a slow bus is not stuck
	}
	last := p.window[n-1].record
	p.window = p.window[n:]
	p.committed = last.Sequence
	// Commit point: the bus holds these events; after a crash before this line they are only published again.
	p.cursor.Commit(last)
}

// close closes the publisher, rewinds if a loss was found since run ended, and has the cursor saved.
func (p *pump) close() error {
	err := p.publisher.Close()
	p.rewind()
	p.cursor.MarkDirty()
	return err
}
