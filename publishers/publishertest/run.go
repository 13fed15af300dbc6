package publishertest

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/postbridge/postbridge/bridge"
)

// patience is how long anything may take. Retries come up to 30 s apart.
const patience = 60 * time.Second

// run is one publisher and what came of what it was given.
type run struct {
	t         *testing.T
	bus       Bus
	publisher bridge.Publisher

	mu sync.Mutex
	// All below are guarded by mu.
	results map[uint64]error // by sequence
	changed chan struct{}    // closed and replaced with each result
	prefix  uint64           // all events up to this number are done
	note    []byte           // the publisher's, as of prefix
	open    map[string]error // causes that hold
	closed  bool
}

func open(t *testing.T, bus Bus) *run { return openAt(t, bus, 0, nil) }

// reopen is the next run, which knows what the one before, which was closed, had noted.
func (r *run) reopen() *run { return openAt(r.t, r.bus, r.prefix, r.note) }

func openAt(t *testing.T, bus Bus, prefix uint64, note []byte) *run {
	r := &run{t: t, bus: bus, prefix: prefix, note: note,
		results: make(map[uint64]error), changed: make(chan struct{}), open: make(map[string]error)}
	r.publisher = bus.Open(t, bridge.Opening{Report: r.report, Note: note, KeepNote: r.keepNote})
	t.Cleanup(r.close)
	return r
}

// keepNote notes what the publisher has to say, as a pump does with each commit.
func (r *run) keepNote() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.note = bytes.Clone(r.publisher.Note(r.prefix))
	return nil
}

// close closes the publisher; a done after it is an error.
func (r *run) close() {
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

func (r *run) report(cause string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		delete(r.open, cause)
	} else {
		r.open[cause] = err
	}
}

// causes are those that hold now.
func (r *run) causes() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []string
	for cause, err := range r.open {
		all = append(all, cause+": "+err.Error())
	}
	return all
}

func (r *run) publish(all ...*bridge.Delivery) {
	for _, d := range all {
		r.publisher.Publish(r.t.Context(), d, func(err error) { r.done(d, err) })
	}
}

func (r *run) done(d *bridge.Delivery, err error) {
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
	r.note = bytes.Clone(r.publisher.Note(r.prefix))
	close(r.changed)
	r.changed = make(chan struct{})
}

// has reports whether the event is done. Needs mu.
func (r *run) has(sequence uint64) bool {
	_, ok := r.results[sequence]
	return ok
}

// waitSettled waits until done was called for all.
func (r *run) waitSettled(all ...*bridge.Delivery) {
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
			r.t.Fatalf("%d of %d events are not done after %v; causes: %q", missing, len(all), patience, r.causes())
		}
	}
}

// waitDone waits until all are done without error.
func (r *run) waitDone(all ...*bridge.Delivery) {
	r.t.Helper()
	r.waitSettled(all...)
	for _, d := range all {
		if err := r.resultOf(d); err != nil {
			r.t.Errorf("event %d: %v", d.Sequence, err)
		}
	}
}

func (r *run) resultOf(d *bridge.Delivery) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.results[d.Sequence]
}

// doneOf counts those that are done.
func (r *run) doneOf(all ...*bridge.Delivery) int {
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

func (r *run) eventually(what string, is func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(patience); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("no %s after %v; causes: %q", what, patience, r.causes())
		}
	}
}

// checkStored checks that the bus holds exactly these events: once in each destination, in the order of their keys,
// whole.
func (r *run) checkStored(all ...*bridge.Delivery) {
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

func (r *run) checkMessages(dest bridge.Destination, got []Message, want map[string]*bridge.Delivery) {
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

// events makes n events with numbers from first on, over so many keys; each tenth is rejected. A few ids are not plain.
func events(first uint64, n, keys int) []*bridge.Delivery {
	all := make([]*bridge.Delivery, n)
	for i := range all {
		seq := first + uint64(i)
		key := int(seq) % keys
		d := &bridge.Delivery{
			Spool: spoolID, Sequence: seq, ID: fmt.Sprintf("%032x", seq), Broker: "kite",
			UserID: fmt.Sprint("AB", key%7), OrderID: fmt.Sprint(220303000000000 + key), Status: bridge.StatusOpen,
			ReceivedAt:  time.Now(),
			TraceParent: fmt.Sprintf("00-%032x-%016x-01", seq, seq),
			Data:        fmt.Appendf(nil, `{"id":"%032x","order_id":"%d"}`, seq, key),
		}
		if key == 1 {
			d.UserID = "Ünï cödé 100%\".*>"
		}
		// Not a divisor of the usual number of keys: the rejected ones come in most keys at some time.
		if seq%11 == 0 {
			d.Status = bridge.StatusRejected
		}
		all[i] = d
	}
	return all
}

// deadletters makes n dead letters.
func deadletters(first uint64, n int) []*bridge.Delivery {
	all := events(first, n, n)
	for i, d := range all {
		all[i] = d.AsDeadletter()
		all[i].UserID, all[i].OrderID, all[i].Status = "", "", bridge.StatusUnknown
	}
	return all
}
