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

// patience is how long anything may take. Retries come up to 30 s apart.
const patience = 60 * time.Second

// Trial is one publisher and what came of what it was given.
type Trial struct {
	t         *testing.T
	bus       Bus
	publisher bridge.Publisher
	start     uint64 // the prefix to begin with
	before    uint64 // the highest number that a run before offered
	offered   uint64 // and this one

	mu sync.Mutex
	// All below are guarded by mu.
	results map[uint64]error // by sequence
	changed chan struct{}    // closed and replaced with each result
	prefix  uint64           // all events up to this number are done
	state   []byte           // the publisher's, as of prefix
	kept    cursor           // what is on disk
	broken  error            // why nothing comes to disk
	asked   int              // how often the publisher wanted it to, while nothing did
	open    map[string]error // causes that hold
	closed  bool

	lossExpected bool
	lost         []Loss
}

// cursor is how far a publisher has come, and its state as of then.
type cursor struct {
	prefix uint64
	state  []byte
}

// keepEach is how many events are done until the cursor comes to disk without being asked for.
const keepEach = 20

// Open opens a publisher that knows of none before it.
func Open(t *testing.T, bus Bus) *Trial {
	t.Helper()
	return open(t, bus, cursor{}, 0)
}

// openFrom opens a publisher of another spool.
func openFrom(t *testing.T, bus Bus, spool string) *Trial {
	t.Helper()
	return openSpool(t, bus, spool, cursor{}, 0)
}

// Reopen is the next run after this one, which is closed, and which has ended well.
func (r *Trial) Reopen() *Trial {
	r.t.Helper()
	return open(r.t, r.bus, cursor{r.prefix, r.state}, r.offered)
}

// ReopenWith is Reopen with another publisher state.
func (r *Trial) ReopenWith(state string) *Trial {
	r.t.Helper()
	return open(r.t, r.bus, cursor{r.prefix, []byte(state)}, r.offered)
}

// Recover is the next run after this one, which is closed, with what a crash leaves: an earlier cursor. All events
// beyond Prefix are to be published again.
func (r *Trial) Recover() *Trial {
	r.t.Helper()
	return open(r.t, r.bus, r.kept, r.offered)
}

// GoBack waits until the bus is known to have lost events, and is the next run: from there on. All events beyond
// Prefix are to be published again.
func (r *Trial) GoBack() *Trial {
	r.t.Helper()
	r.Eventually("word of the loss", func() bool { return len(r.Lost()) > 0 })
	r.Close()
	committed := r.Prefix()
	for _, l := range r.Lost() {
		committed = min(committed, l.Committed)
	}
	r.publisher.Rewind(committed)
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

// saveState is what a pump does when its publisher asks for it.
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

// rewound is what no bus may say that has lost nothing.
func (r *Trial) rewound(committed uint64, why error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lossExpected {
		r.lost = append(r.lost, Loss{committed, why})
		return
	}
	r.t.Errorf("the bus is said to have lost what is behind %d: %v", committed, why)
}

// Loss is what a publisher said of a bus that has lost what it stored.
type Loss struct {
	Committed uint64
	Why       error
}

// ExpectLoss says that the bus loses events.
func (r *Trial) ExpectLoss() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lossExpected = true
}

// Lost is what the publisher said of a loss.
func (r *Trial) Lost() []Loss {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lost
}

// BreakDisk says why nothing comes to disk from now on; nil that it does again.
func (r *Trial) BreakDisk(why error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken = why
}

// DiskAsked is how often the publisher wanted its state on disk while nothing came there.
func (r *Trial) DiskAsked() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked
}

// Prefix is the number up to which all events are done.
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

// HasCheckpoint reports whether the publisher noted where an event with that number or a later one is stored: in that
// stream or partition, or if it is empty, in any.
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

// Causes are those that hold now.
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
		// all up to the next are done
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
			time.Sleep(time.Millisecond) // let a few more come before counting again
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

// ResultOf is what done was called with for the event.
func (r *Trial) ResultOf(d *bridge.Delivery) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.results[d.Sequence]
}

// DoneOf counts those that are done.
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

// CheckStored checks that the bus holds exactly these events: once in each destination, in the order of their keys,
// whole.
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
			r.t.Errorf("%s: event %q should not be there", dest, sequence)
			continue
		case seen[sequence]:
			r.t.Errorf("%s: event %s is stored twice", dest, sequence)
		case dest != bridge.Deadletters && sequence < last[m.Key]:
			r.t.Errorf("%s: event %s of %s is stored behind %s", dest, sequence, m.Key, last[m.Key])
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

// compare says what of the message is not as the delivery has it.
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

// Deadletters makes n dead letters.
func Deadletters(first uint64, n int) []*bridge.Delivery {
	all := Events(first, n, n)
	for i, d := range all {
		all[i] = asDeadletter(d)
	}
	return all
}

// asDeadletter is the event as one that was not understood.
func asDeadletter(d *bridge.Delivery) *bridge.Delivery {
	d = d.AsDeadletter()
	d.UserID, d.OrderID, d.Status = "", "", event.StatusUnknown
	return d
}
