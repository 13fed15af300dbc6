package bridge

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/postbridge/postbridge/bridge/spool"
)

// The look-ahead: how much a pump offers to its bus before what it offered first is done. All of it may have to be
// looked up again after a crash.
const (
	maxUnacked      = 8192     // events offered and not done
	maxUnackedBytes = 16 << 20 // their bytes
	maxWindow       = 1 << 16  // events offered, from the first that is not done on
)

// firstRetry is how long the disk is left alone after it refused, the first time.
const firstRetry = 100 * time.Millisecond

// stuckAfter is how long the look-ahead may be used up before the pump says what it waits for.
const stuckAfter = 5 * time.Second

// pump carries events from the spool to one bus: next, publish, commit.
type pump struct {
	// Immutable.
	bus        string
	spoolID    string
	cursor     *spool.Cursor
	conditions *conditions
	quarantine *quarantine
	log        *slog.Logger
	open       func(Opening) (Publisher, error)
	tracer     Tracer // nil if nobody traces

	// publisher is changed by run only, while it is closed, and with mu held.
	publisher Publisher

	mu           sync.Mutex
	lost         *loss              // what the bus has lost, until run has gone back
	stop         context.CancelFunc // ends what run does with this publisher; nil before
	rewinds      uint64             // how often run went back, since start
	again        uint64             // events that were stored and are not counted as that any more
	room         sync.Cond          // signalled when the look-ahead shrinks
	unwanted     sync.Cond          // signalled when quarantineRefused may have something to do
	refused      int                // slots with a refusal
	window       []slot             // a ring of what was offered, by offer number
	first        uint64             // the offer number of the first that is not done
	offered      uint64             // how many ever were: the next offer number
	unacked      int
	unackedBytes int
	committed    uint64              // the number of the last event that is
	fates        [numBusFates]uint64 // of all that is committed
	stuck        bool                // it was said what the look-ahead waits for
}

// loss is that the bus does not hold all that it stored of the events behind a number.
type loss struct {
	committed uint64
	why       error
}

// slot is one record that was offered to the bus.
type slot struct {
	record   spool.Record // without payload
	delivery *Delivery    // nil once done, and of a record that was lost
	offered  time.Time    // zero if nobody traces the event
	bytes    int
	fate     busFate
	done     bool
	refusal  error // why the bus can take the event nowhere; nil once it is in quarantine
}

func newPump(bus Bus, s *spool.Spool, c *conditions, q *quarantine, log *slog.Logger, tracer Tracer) (*pump, error) {
	p := &pump{
		bus: bus.Name, spoolID: s.ID(), cursor: s.Cursor(bus.Name), conditions: c, quarantine: q,
		log: log.With("bus", bus.Name), open: bus.Open, tracer: tracer,
	}
	p.room.L, p.unwanted.L = &p.mu, &p.mu
	committed, state := p.cursor.Committed()
	p.committed = committed
	var known []byte
	if state == nil {
		// New to this spool: it starts at the oldest that is kept and has nothing of what was before.
		p.fates[skipped] = committed
	} else {
		var err error
		if known, err = p.parseState(state); err != nil {
			return nil, fmt.Errorf("cannot read the publisher state in the cursor of %s: %w", bus.Name, err)
		}
	}
	if err := p.openPublisher(known); err != nil {
		return nil, err
	}
	p.cursor.SetSnapshot(p.snapshot)
	return p, nil
}

// openPublisher opens the publisher with the publisher state of the run before.
func (p *pump) openPublisher(state []byte) error {
	publisher, err := p.open(Opening{
		Report: p.conditions.forPublisher(), Spool: p.spoolID, State: state, SaveState: p.cursor.Save, Rewound: p.rewound,
	})
	if err != nil {
		return fmt.Errorf("cannot open %s: %w", p.bus, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.publisher = publisher
	return nil
}

// run carries events until ctx ends. Whenever the bus has lost some, it goes back to them.
func (p *pump) run(ctx context.Context) {
	var wentBack time.Time
	retry := RetryForever(firstRetry)
	for ctx.Err() == nil {
		session, stop := context.WithCancel(ctx)
		if p.begin(stop) {
			p.carry(session)
		}
		stop()
		if ctx.Err() != nil {
			return // close goes back
		}
		if time.Since(wentBack) > settled {
			retry.Reset()
		} else {
			pause(ctx, retry.NextBackOff()) // a bus that loses again what it just got
		}
		wentBack = time.Now()
		p.goBack(ctx)
	}
}

// settled is how long a bus has to hold what it stored for a loss not to be another of the same.
const settled = time.Minute

// begin notes what ends the session. False is that the bus has lost events already.
func (p *pump) begin(stop context.CancelFunc) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stop = stop
	return p.lost == nil
}

// rewound is the publisher's Rewound.
func (p *pump) rewound(committed uint64, why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lost == nil || committed < p.lost.committed {
		p.lost = &loss{committed, why}
	}
	if p.stop != nil {
		p.stop()
	}
}

// goBack closes the publisher, rewinds the cursor to what the bus still has, and opens another publisher.
func (p *pump) goBack(ctx context.Context) {
	if err := p.publisher.Close(); err != nil {
		p.log.Error("cannot close the publisher", "error", err)
	}
	p.conditions.forget()
	state := p.rewind()
	// Nothing is published before the rewound cursor is on disk. Otherwise a crash leaves a cursor that is ahead of the
	// bus, and a bus that holds other events at the checkpoints of the publisher state: no later run would find the loss.
	if p.retry(ctx, "cursor", p.saveRewound) {
		p.retry(ctx, "open", func() error { return p.openPublisher(state) })
	}
}

func (p *pump) saveRewound() error {
	if err := p.cursor.Save(); err != nil {
		return fmt.Errorf("cannot save the rewound cursor, and nothing is published before it is on disk: %w", err)
	}
	return nil
}

// retry calls f until it succeeds, and reports its error as a condition until then. False means that ctx ended first.
func (p *pump) retry(ctx context.Context, condition string, f func() error) bool {
	for pace := RetryForever(firstRetry); ; pause(ctx, pace.NextBackOff()) {
		if ctx.Err() != nil {
			return false
		}
		err := f()
		p.conditions.report(condition, err)
		if err == nil {
			return true
		}
	}
}

// rewind takes the cursor back behind what the bus lost, if it lost anything, and returns the publisher state
// as of there; the publisher is closed. Deliveries still in flight are abandoned.
func (p *pump) rewind() (state []byte) {
	p.mu.Lock()
	lost, before := p.lost, p.committed
	p.lost = nil
	if lost == nil {
		p.mu.Unlock()
		return nil
	}
	p.first, p.unacked, p.unackedBytes, p.refused = p.offered, 0, 0, 0
	p.rewinds++
	committed := p.cursor.Rewind(lost.committed)
	p.uncount(before - committed)
	p.committed = committed
	p.publisher.Rewind(committed)
	state = p.publisher.State(committed)
	p.mu.Unlock()
	p.log.Error("the bus has lost events that it had stored; what the spool still keeps of them is published again",
		"why", lost.why, "spool", p.spoolID, "from", committed+1, "to", before,
		"not_kept", committed-min(lost.committed, committed))
	return state
}

// uncount takes so many events out of what is counted as done. What became of each is not known: stored, most likely.
// Needs mu.
func (p *pump) uncount(n uint64) {
	for _, f := range []busFate{stored, deadlettered, quarantined, skipped} {
		less := min(n, p.fates[f])
		p.fates[f] -= less
		n -= less
		if f == stored {
			p.again += less
		}
	}
}

// carry offers events to the publisher until ctx ends.
func (p *pump) carry(ctx context.Context) {
	stop := context.AfterFunc(ctx, p.wakeAll)
	defer stop()
	var worker sync.WaitGroup
	worker.Go(func() { p.quarantineRefused(ctx) })
	defer worker.Wait()
	retry, unread := RetryForever(firstRetry), false
	for p.waitForRoom(ctx) {
		r, err := p.cursor.Next(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			unread = true
			p.conditions.report("spool", err)
			pause(ctx, retry.NextBackOff())
			continue
		case unread:
			unread = false
			p.conditions.report("spool", nil)
			retry.Reset()
		}
		p.offer(ctx, r)
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// waitForRoom waits until the look-ahead has room, and says what it waits for if that takes long. False is the end of
// ctx.
func (p *pump) waitForRoom(ctx context.Context) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.full() {
		return ctx.Err() == nil
	}
	stuck := time.AfterFunc(stuckAfter, p.reportStuck)
	defer func() {
		stuck.Stop()
		if p.stuck {
			p.stuck = false
			p.conditions.report("look-ahead", nil)
		}
	}()
	for p.full() && ctx.Err() == nil {
		p.room.Wait()
	}
	return ctx.Err() == nil
}

// full reports whether nothing more may be offered. Needs mu.
func (p *pump) full() bool {
	return p.unacked >= maxUnacked || p.unackedBytes >= maxUnackedBytes || p.offered-p.first >= maxWindow
}

func (p *pump) reportStuck() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.full() {
		return
	}
	p.stuck = true
	p.conditions.report("look-ahead", fmt.Errorf("used up: the bus does not take event %d of spool %s and what came with it",
		p.slot(p.first).record.Sequence, p.spoolID))
}

func (p *pump) wakeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.room.Broadcast()
	p.unwanted.Broadcast()
}

// offer hands one record to the publisher.
func (p *pump) offer(ctx context.Context, r spool.Record) {
	if r.Lost > 0 || r.Payload == nil {
		p.log.Error("events are missing in the spool and are skipped",
			"spool", p.spoolID, "from", r.Sequence-r.Lost, "to", r.Sequence)
	}
	payload := r.Payload
	r.Payload = nil
	if payload == nil {
		p.finish(p.add(r, nil, 0), skipped)
		return
	}
	d, err := ParseRecord(payload)
	if err != nil {
		d = &Delivery{Deadletter: true, Data: payload} // of a version that this one does not know
	}
	d.Spool, d.Sequence, d.Redelivered = p.spoolID, r.Sequence, r.Redelivered
	n := p.add(r, d, len(payload))
	if err != nil {
		p.refuse(n, err)
		return
	}
	p.publisher.Publish(ctx, d, func(err error) { p.answered(ctx, n, d, err) })
}

// add puts a record into the window and returns its offer number.
func (p *pump) add(r spool.Record, d *Delivery, bytes int) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.offered-p.first == uint64(len(p.window)) {
		p.grow()
	}
	n := p.offered
	p.offered++
	*p.slot(n) = slot{record: r, delivery: d, bytes: bytes}
	if p.tracer != nil && d != nil && sampled(d.TraceParent) {
		p.slot(n).offered = time.Now()
	}
	p.unacked++
	p.unackedBytes += bytes
	p.wakeQuarantine() // the window may be used up now
	return n
}

// slot is that of an offer from first on. Needs mu.
func (p *pump) slot(n uint64) *slot { return &p.window[n%uint64(len(p.window))] }

// grow makes the window twice as large. Needs mu.
func (p *pump) grow() {
	larger := make([]slot, max(64, 2*len(p.window)))
	for n := p.first; n < p.offered; n++ {
		larger[n%uint64(len(larger))] = *p.slot(n)
	}
	p.window = larger
}

// answered is what the bus says of an event: stored, or that it can never take it. What it refuses goes to the dead
// letters, and what it refuses there too, to the quarantine file; neither holds up what is behind it.
func (p *pump) answered(ctx context.Context, n uint64, d *Delivery, err error) {
	switch {
	case err == nil && d.Deadletter:
		p.finish(n, deadlettered)
	case err == nil:
		p.finish(n, stored)
	case d.Deadletter:
		p.refuse(n, err)
	default:
		p.log.Error("the bus refuses an event for good; it goes to the dead letters",
			"spool", d.Spool, "sequence", d.Sequence, "error", err)
		dead := d.AsDeadletter()
		p.publisher.Publish(ctx, dead, func(err error) { p.answered(ctx, n, dead, err) })
	}
}

// refuse leaves an event that the bus can take nowhere to quarantineRefused.
func (p *pump) refuse(n uint64, why error) {
	p.mu.Lock()
	if n < p.first {
		p.mu.Unlock()
		return // offered before the bus lost events
	}
	s := p.slot(n)
	s.refusal = why
	p.refused++
	p.wakeQuarantine()
	sequence := s.record.Sequence
	p.mu.Unlock()
	p.log.Error("an event can go nowhere on the bus and is put into quarantine",
		"spool", p.spoolID, "sequence", sequence, "file", p.quarantine.path, "error", why)
}

// wakeQuarantine needs mu.
func (p *pump) wakeQuarantine() {
	if p.refused > 0 {
		p.unwanted.Signal()
	}
}

// quarantineRefused puts what the bus can take nowhere into the quarantine file until ctx ends, however long the disk
// refuses that. What it did not come to by then the next start offers again.
func (p *pump) quarantineRefused(ctx context.Context) {
	for {
		n, d, why := p.nextRefused(ctx)
		if d == nil || !p.retry(ctx, "quarantine", func() error { return p.quarantine.put(d, why) }) {
			return
		}
		p.finish(n, quarantined)
	}
}

// nextRefused waits for an event to put into quarantine; nil is the end of ctx. It is the first of the window, so that
// it is committed as soon as it is in the file, and the next start does not quarantine it again. Only when the window
// is used up, one behind an event in flight goes first, since it must not block what is behind it.
func (p *pump) nextRefused(ctx context.Context) (n uint64, d *Delivery, why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for ctx.Err() == nil {
		for n := p.first; p.refused > 0 && n < p.offered && (n == p.first || p.full()); n++ {
			if s := p.slot(n); s.refusal != nil {
				return n, s.delivery, s.refusal
			}
		}
		p.unwanted.Wait()
	}
	return 0, nil, nil
}

// finish marks one offer as done, commits as far as all before it are done too, and tells of it those who look.
func (p *pump) finish(n uint64, f busFate) {
	d, offered := p.settle(n, f)
	if !offered.IsZero() {
		p.tracer.Publish(Publication{Bus: p.bus, Fate: f.String(), Delivery: d, Offered: offered, Done: time.Now()})
	}
	if d != nil && p.log.Enabled(context.Background(), slog.LevelDebug) {
		p.log.Debug("an event is "+f.String(), "broker", d.Broker, "id", d.ID, "order_id", d.OrderID, "sequence", d.Sequence)
	}
}

func (p *pump) settle(n uint64, f busFate) (d *Delivery, offered time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n < p.first {
		return // offered before the bus lost events
	}
	s := p.slot(n)
	d, offered = s.delivery, s.offered
	if s.refusal != nil {
		p.refused--
	}
	s.done, s.fate, s.delivery, s.refusal = true, f, nil, nil
	p.unacked--
	p.unackedBytes -= s.bytes
	p.commitPrefix()
	p.room.Signal()
	p.wakeQuarantine()
	return d, offered
}

// commitPrefix commits what is done without a gap. Needs mu.
func (p *pump) commitPrefix() {
	first, last := p.first, spool.Record{}
	for p.first < p.offered && p.slot(p.first).done {
		s := p.slot(p.first)
		p.fates[s.fate]++
		p.fates[skipped] += s.record.Lost
		last = s.record
		p.first++
	}
	if p.first == first {
		return
	}
	p.committed = last.Sequence
	// Commit point: the bus holds these; a crash before this line only offers them again.
	p.cursor.Commit(last)
}

// close closes the publisher, and has the cursor saved with its last publisher state: behind what was lost, if that was found out
// only now.
func (p *pump) close() error {
	err := p.publisher.Close()
	p.rewind()
	p.cursor.MarkDirty()
	p.conditions.flush()
	return err
}

// cursorState is the first line of the state in a cursor file: the fates of all committed events. The publisher state
// follows it.
type cursorState struct {
	Stored       uint64 `json:"stored"`
	Deadlettered uint64 `json:"deadlettered"`
	Quarantined  uint64 `json:"quarantined"`
	Skipped      uint64 `json:"skipped"`
	// Again is how many were counted as stored, too, and were found to be lost.
	Again uint64 `json:"again"`
}

// snapshot returns the committed sequence and the state to save with it, both as of one moment.
func (p *pump) snapshot() (committed uint64, state []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	state = fmt.Appendf(nil, "{\"stored\":%d,\"deadlettered\":%d,\"quarantined\":%d,\"skipped\":%d,\"again\":%d}\n",
		p.fates[stored], p.fates[deadlettered], p.fates[quarantined], p.fates[skipped], p.again)
	return p.committed, append(state, p.publisher.State(p.committed)...)
}

// parseState reads the state of a cursor file and returns the publisher state in it, nil if there is none.
func (p *pump) parseState(state []byte) (publisher []byte, err error) {
	fates, rest, _ := bytes.Cut(state, []byte("\n"))
	var n cursorState
	if err := json.Unmarshal(fates, &n); err != nil {
		return nil, err
	}
	p.fates, p.again = [numBusFates]uint64{n.Stored, n.Deadlettered, n.Quarantined, n.Skipped}, n.Again
	if len(rest) == 0 {
		return nil, nil
	}
	return rest, nil
}

// busState is what /status and the metrics say of a bus.
type busState struct {
	committed uint64
	fates     [numBusFates]uint64
	oldest    time.Time // arrival of the first event that is offered and not done; zero if none
	rewinds   uint64
	again     uint64
}

func (p *pump) state() busState {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := busState{fates: p.fates, rewinds: p.rewinds, again: p.again}
	for _, n := range p.fates {
		st.committed += n
	}
	if p.first < p.offered {
		if d := p.slot(p.first).delivery; d != nil {
			st.oldest = d.ReceivedAt
		}
	}
	return st
}
