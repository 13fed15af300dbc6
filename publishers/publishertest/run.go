package publishertest

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
)

// patience is the longest wait for a condition. Retries are up to 30 s apart, and a Kafka without the leader of a
// partition takes as long until another is, so that on a busy machine a minute is not enough.
const patience = 3 * time.Minute

// Trial is one run of a publisher, with the results of its deliveries.
type Trial struct {
	t         *testing.T
	bus       Bus
	publisher bridge.Publisher
	start     uint64 // the committed sequence at the start
	before    uint64 // the highest sequence offered in earlier runs
	offered   uint64 // the highest sequence offered so far

	mu sync.Mutex
	// All below are guarded by mu.
	results map[uint64]error // by sequence
	changed chan struct{}    // closed and replaced with each result
	prefix  uint64           // all events up to this sequence are done
	state   []byte           // publisher state as of prefix
	kept    cursor           // the saved cursor
	broken  error            // makes saves fail
	asked   int              // failed calls of SaveState
	open    map[string]error // current conditions by name
	closed  bool

	lossExpected bool
	lost         []Loss
}

// cursor is a committed sequence and the publisher state as of it.
type cursor struct {
	prefix uint64
	state  []byte
}

// keepEach is the number of events after which the cursor is saved without a call of SaveState.
const keepEach = 20

// Open opens a publisher without a saved state.
func Open(t *testing.T, bus Bus) *Trial {
	t.Helper()
	return open(t, bus, cursor{}, 0)
}

// openFrom opens a publisher of another spool.
func openFrom(t *testing.T, bus Bus, spool string) *Trial {
	t.Helper()
	return openSpool(t, bus, spool, cursor{}, 0)
}

// Reopen opens the next run after this one, which was closed in order.
func (r *Trial) Reopen() *Trial {
	r.t.Helper()
	return open(r.t, r.bus, cursor{r.prefix, r.state}, r.offered)
}

// ReopenWith opens the next run as Reopen does, with another publisher state.
func (r *Trial) ReopenWith(state string) *Trial {
	r.t.Helper()
	return open(r.t, r.bus, cursor{r.prefix, []byte(state)}, r.offered)
}

// Recover opens the next run after a crash of this one, which is closed: from its saved cursor. The caller publishes
// all events after Prefix again.
func (r *Trial) Recover() *Trial {
	r.t.Helper()
	return open(r.t, r.bus, r.kept, r.offered)
}

// Rewind waits until a loss of the bus is reported, rewinds, and opens the next run. The caller publishes all events
// after Prefix again.
func (r *Trial) Rewind() *Trial {
	r.t.Helper()
	r.Eventually("report of the loss", func() bool { return len(r.Lost()) > 0 })
	r.Close()
	committed := r.Prefix()
	for _, l := range r.Lost() {
		committed = min(committed, l.Committed)
	}
	r.publisher.Rewind()
	return open(r.t, r.bus, cursor{committed, r.publisher.State(committed)}, r.offered)
}

func open(t *testing.T, bus Bus, c cursor, before uint64) *Trial {
	t.Helper()
	return openSpool(t, bus, spoolID, c, before)
}

func openSpool(t *testing.T, bus Bus, spool string, c cursor, before uint64) *Trial {
	t.Helper()
	r := &Trial{
		t:       t,
		bus:     bus,
		start:   c.prefix,
		before:  before,
		offered: before,
		prefix:  c.prefix,
		state:   c.state,
		kept:    c,
		results: make(map[uint64]error),
		changed: make(chan struct{}),
		open:    make(map[string]error),
	}
	r.publisher = bus.Open(
		t,
		bridge.Opening{Report: r.report, Spool: spool, State: c.state, SaveState: r.saveState, Rewound: r.rewound},
	)
	t.Cleanup(r.Close)
	return r
}

// saveState saves the cursor for the publisher, as a pump does.
func (r *Trial) saveState() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.broken != nil {
		r.asked++
		return r.broken
	}
	r.state = r.publisher.State(r.prefix)
	r.kept = cursor{r.prefix, r.state}
	return nil
}

// rewound records a reported loss, which is an error unless it is expected.
func (r *Trial) rewound(committed uint64, why error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lossExpected {
		r.lost = append(r.lost, Loss{committed, why})
		return
	}
	r.t.Errorf("unexpected rewind to %d: %v", committed, why)
}

// Loss is a loss of stored events that the publisher reported.
type Loss struct {
	Committed uint64
	Why       error
}

// ExpectLoss allows reports of a loss from now on.
func (r *Trial) ExpectLoss() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lossExpected = true
}

// Lost returns the reported losses.
func (r *Trial) Lost() []Loss {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lost
}

// BreakDisk makes saves fail with an error, or with nil succeed again.
func (r *Trial) BreakDisk(why error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken = why
}

// DiskAsked returns the number of saves that BreakDisk made fail.
func (r *Trial) DiskAsked() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked
}

// Prefix returns the sequence up to which all events are done.
func (r *Trial) Prefix() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.prefix
}

// State returns the publisher state as of Prefix.
func (r *Trial) State() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return string(r.state)
}

// HasCheckpoint reports whether the state has a checkpoint of an event with that sequence or a later one, in the given
// stream or partition, or in any if it is empty.
func (r *Trial) HasCheckpoint(stream string, from uint64) bool {
	for line := range strings.Lines(r.State()) {
		var word, in, identity string
		var position, sequence uint64
		_, err := fmt.Sscan(line, &word, &in, &identity, &position, &sequence)
		if err == nil && word == "checkpoint" && (in == stream || stream == "") && sequence >= from {
			return true
		}
	}
	return false
}

// Close closes the publisher; a done after it is an error.
func (r *Trial) Close() {
	r.mu.Lock()
	closed := r.closed
	r.mu.Unlock()
	if closed {
		return
	}
	if err := r.publisher.Close(); err != nil {
		r.t.Errorf("Close: %v", err)
	}
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
}

func (r *Trial) report(cause string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		delete(r.open, cause)
	} else {
		r.open[cause] = err
	}
}

// Causes returns the current conditions.
func (r *Trial) Causes() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []string
	for cause, err := range r.open {
		all = append(all, cause+": "+err.Error())
	}
	return all
}

// Publish offers the events, in this order.
func (r *Trial) Publish(all ...*bridge.Delivery) {
	for _, d := range all {
		d.Redelivered = d.Sequence <= r.before
		r.offered = max(r.offered, d.Sequence)
		r.publisher.Publish(r.t.Context(), d, func(err error) { r.done(d, err) })
	}
}

// Store publishes the events and waits until all are done without error.
func (r *Trial) Store(all ...*bridge.Delivery) {
	r.t.Helper()
	r.Publish(all...)
	r.WaitDone(all...)
}

func (r *Trial) done(d *bridge.Delivery, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		r.t.Errorf("done called for event %d after Close", d.Sequence)
	}
	if _, twice := r.results[d.Sequence]; twice {
		r.t.Errorf("done called twice for event %d", d.Sequence)
	}
	r.results[d.Sequence] = err
	for ; r.has(r.prefix + 1); r.prefix++ {
		// prefix ends before the first event that is not done
	}
	r.state = r.publisher.State(r.prefix)
	if r.broken == nil && r.prefix >= r.kept.prefix+keepEach {
		r.kept = cursor{r.prefix, r.state}
	}
	close(r.changed)
	r.changed = make(chan struct{})
}

// has reports whether the event is done. Needs mu.
func (r *Trial) has(sequence uint64) bool {
	_, ok := r.results[sequence]
	return ok
}

// WaitSettled waits until done was called for all.
func (r *Trial) WaitSettled(all ...*bridge.Delivery) {
	r.t.Helper()
	deadline := time.After(patience)
	for {
		r.mu.Lock()
		missing, changed := 0, r.changed
		for _, d := range all {
			if _, ok := r.results[d.Sequence]; !ok {
				missing++
			}
		}
		r.mu.Unlock()
		if missing == 0 {
			return
		}
		select {
		case <-changed:
			time.Sleep(time.Millisecond) // collects more results before counting again
		case <-deadline:
			r.t.Fatalf("%d of %d events are not done after %v; causes: %q", missing, len(all), patience, r.Causes())
		}
	}
}

// WaitDone waits until all are done without error.
func (r *Trial) WaitDone(all ...*bridge.Delivery) {
	r.t.Helper()
	r.WaitSettled(all...)
	for _, d := range all {
		if err := r.ResultOf(d); err != nil {
			r.t.Errorf("event %d: %v", d.Sequence, err)
		}
	}
}

// ResultOf returns the error that done was called with for the event.
func (r *Trial) ResultOf(d *bridge.Delivery) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.results[d.Sequence]
}

// DoneOf returns how many of the events are done.
func (r *Trial) DoneOf(all ...*bridge.Delivery) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, d := range all {
		if _, ok := r.results[d.Sequence]; ok {
			n++
		}
	}
	return n
}

// Eventually waits for a condition.
func (r *Trial) Eventually(what string, is func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(patience); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("no %s after %v; causes: %q", what, patience, r.Causes())
		}
	}
}

// CheckStored checks that exactly these events are stored: once in each destination, in order per key, with all
// attributes.
func (r *Trial) CheckStored(all ...*bridge.Delivery) {
	r.t.Helper()
	for _, dest := range []bridge.Destination{bridge.Orders, bridge.Rejects, bridge.Deadletters} {
		want := make(map[string]*bridge.Delivery)
		for _, d := range all {
			if slices.Contains(d.Destinations(), dest) {
				want[d.SequenceText()] = d
			}
		}
		r.checkMessages(dest, r.bus.Stored(r.t, dest), want)
	}
}

func (r *Trial) checkMessages(dest bridge.Destination, got []Message, want map[string]*bridge.Delivery) {
	r.t.Helper()
	seen := make(map[string]bool)
	last := make(map[string]string) // sequence, by key
	for _, m := range got {
		sequence := m.Attributes["sequence"]
		d := want[sequence]
		switch {
		case d == nil:
			r.t.Errorf("%s: unexpected event %q", dest, sequence)
			continue
		case seen[sequence]:
			r.t.Errorf("%s: event %s is stored twice", dest, sequence)
		case dest != bridge.Deadletters && sequence < last[m.Key]:
			r.t.Errorf("%s: event %s of %s is stored after %s", dest, sequence, m.Key, last[m.Key])
		}
		seen[sequence] = true
		last[m.Key] = sequence
		if problem := compare(d, m, dest); problem != "" {
			r.t.Errorf("%s: event %s: %s", dest, sequence, problem)
		}
	}
	if len(seen) != len(want) {
		r.t.Errorf("%s: %d events stored, want %d", dest, len(seen), len(want))
	}
}

// compare returns the first difference between the message and the delivery, or "".
func compare(d *bridge.Delivery, m Message, dest bridge.Destination) string {
	if !bytes.Equal(m.Data, d.Data) {
		return "the data differs"
	}
	if dest != bridge.Deadletters && m.Key != d.Key() {
		return fmt.Sprintf("key %q, want %q", m.Key, d.Key())
	}
	if m.ContentType != bridge.ContentType {
		return fmt.Sprintf("content type %q", m.ContentType)
	}
	want := map[string]string{"traceparent": d.TraceParent}
	for _, a := range d.Attributes() {
		want[a[0]] = a[1]
	}
	for name, value := range want {
		if m.Attributes[name] != value {
			return fmt.Sprintf("attribute %s is %q, want %q", name, m.Attributes[name], value)
		}
	}
	return ""
}

const spoolID = "0badcafe"

// Events makes n events with numbers from first on, over so many keys; each tenth is rejected. A few ids are not plain.
func Events(first uint64, n, keys int) []*bridge.Delivery {
	all := make([]*bridge.Delivery, n)
	for i := range all {
		seq := first + uint64(i)
		key := int(seq) % keys
		d := &bridge.Delivery{
			Spool: spoolID, Sequence: seq, ID: fmt.Sprintf("%032x", seq), Broker: "kite",
			UserID: fmt.Sprint("AB", key%7), OrderID: fmt.Sprint(220303000000000 + key), Status: event.StatusOpen,
			ReceivedAt:  time.Now(),
			TraceParent: fmt.Sprintf("00-%032x-%016x-01", seq, seq),
			Data:        fmt.Appendf(nil, `{"id":"%032x","order_id":"%d"}`, seq, key),
		}
		if key == 1 {
			d.UserID = "Ünï cödé 100%\".*>"
		}
		// Not a divisor of the usual number of keys: the rejected ones come in most keys at some time.
		if seq%11 == 0 {
			d.Status = event.StatusRejected
		}
		all[i] = d
	}
	return all
}

// Deadletters returns n dead letters.
func Deadletters(first uint64, n int) []*bridge.Delivery {
	all := Events(first, n, n)
	for i, d := range all {
		all[i] = asDeadletter(d)
	}
	return all
}

// asDeadletter returns the event as a dead letter.
func asDeadletter(d *bridge.Delivery) *bridge.Delivery {
	d = d.AsDeadletter()
	d.UserID, d.OrderID, d.Status = "", "", event.StatusUnknown
	return d
}
