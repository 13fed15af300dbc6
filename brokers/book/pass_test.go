package book_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/brokers/book"
	"github.com/postbridge/postbridge/brokers/kite"
	"github.com/postbridge/postbridge/brokers/upstox"
)

// grace is that of the passes.
const grace = 30 * time.Second

// fakeBus stores events in memory, like JetStream: the revision of a key is the number of its events.
type fakeBus struct {
	mu     sync.Mutex
	stored map[string][][]byte // by destination and key
	asOf   time.Time
	err    error
	// between is called before each Publish.
	between func()
	// lookedUp is called by each Last, from any goroutine.
	lookedUp func()
}

func newFakeBus() *fakeBus {
	return &fakeBus{stored: make(map[string][][]byte), asOf: time.Date(2026, 1, 8, 6, 0, 0, 0, time.UTC)}
}

func (b *fakeBus) Refresh(context.Context, time.Time) (time.Time, error) { return b.asOf, b.err }

func (b *fakeBus) Last(_ context.Context, dest bridge.Destination, d *bridge.Delivery) ([]byte, uint64, error) {
	if b.lookedUp != nil {
		b.lookedUp()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	events := b.stored[d.Subject(dest)]
	if len(events) == 0 {
		return nil, 0, b.err
	}
	return events[len(events)-1], uint64(len(events)), b.err
}

func (b *fakeBus) Publish(_ context.Context, d *bridge.Delivery, revisions map[bridge.Destination]uint64) error {
	if b.between != nil {
		b.between()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for dest, revision := range revisions {
		if uint64(len(b.stored[d.Subject(dest)])) != revision {
			return bridge.ErrMoved
		}
		b.stored[d.Subject(dest)] = append(b.stored[d.Subject(dest)], d.Data)
	}
	return b.err
}

func (b *fakeBus) Orders(_ context.Context, broker, user string, since, until time.Time) (ids []string, err error) {
	if want := time.Date(2026, 1, 7, 18, 30, 0, 0, time.UTC); !since.Equal(want) || !until.Equal(b.asOf.Add(-grace)) {
		return nil, fmt.Errorf("from %v to %v, want from %v", since, until, want)
	}
	for subject := range b.stored {
		if id, ok := strings.CutPrefix(subject, "orders."+broker+"."+user+"."); ok {
			ids = append(ids, id)
		}
	}
	return ids, b.err
}

// post stores the event of a postback.
func (b *fakeBus) post(order, status string) {
	body := row(order, status, "")
	e := bridge.Normalize(kite.New(kite.Config{}), &bridge.Postback{Body: []byte(body)}, "checksum",
		b.asOf.Add(-time.Hour))
	d := bridge.Delivery{Broker: "kite", UserID: e.UserID, OrderID: e.OrderID, Status: e.Status}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, dest := range d.Destinations() {
		b.stored[d.Subject(dest)] = append(b.stored[d.Subject(dest)], e.Append(nil))
	}
}

// row returns a row of the book, or with the same members a postback.
func row(order, status, more string) string {
	return fmt.Sprintf(`{"user_id":"AB1234","order_id":%q,"status":%q,"quantity":50,"filled_quantity":0,`+
		`"order_timestamp":"2026-01-08 10:00:00"%s}`, order, status, more)
}

// pass returns a pass over a book with the rows.
func pass(t *testing.T, bus *fakeBus, rows ...string) *book.Pass {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"status":"success","data":[%s]}`, strings.Join(rows, ","))
	}))
	t.Cleanup(server.Close)
	b := kite.Book()
	b.URL = server.URL
	return &book.Pass{
		Client: &book.Client{HTTP: server.Client(), UserAgent: "test", MaxBytes: 1 << 20},
		Book:   b, Account: book.Account{UserID: "AB1234", Credential: "key:token"},
		Buses: []book.Bus{bus}, Grace: grace, Log: slog.New(slog.DiscardHandler),
	}
}

// check runs the pass and checks its counts.
func check(t *testing.T, p *book.Pass, want book.Counts) {
	t.Helper()
	got, err := p.Run(t.Context())
	if err != nil || got != want {
		t.Errorf("counts %+v, %v, want %+v", got, err, want)
	}
}

func TestPass(t *testing.T) {
	bus := newFakeBus()
	bus.post("1", "OPEN")
	bus.post("2", "OPEN")
	bus.post("3", "COMPLETE")
	bus.post("9", "OPEN")
	p := pass(t, bus,
		row("1", "UPDATE", ""),                             // equal: UPDATE is the word of postbacks for OPEN
		row("2", "CANCELLED", ""),                          // missed
		row("3", "OPEN", ""),                               // forged
		row("4", "REJECTED", `,"status_message":"margin"`), // missed altogether
		`{"order_id":"5"}`, `"x"`,                          // no orders
		row("6", "OPEN", `,"exchange_update_timestamp":"2026-01-08 11:29:45"`), // too recent
	)
	check(t, p, book.Counts{Rows: 7, Unreadable: 2, Equal: 1, Early: 1, Published: 3, Contradictions: 1, Missing: 1})
	for subject, n := range map[string]int{
		"orders.kite.AB1234.1": 1, "orders.kite.AB1234.2": 2, "orders.kite.AB1234.3": 2, "orders.kite.AB1234.4": 1,
		"rejects.kite.AB1234.4": 1, "orders.kite.AB1234.6": 0,
	} {
		if got := len(bus.stored[subject]); got != n {
			t.Errorf("%s: %d events, want %d", subject, got, n)
		}
	}
	last := string(bus.stored["orders.kite.AB1234.2"][1])
	for _, want := range []string{`"source":"order_book"`, `"verified_by":"order_book"`, `"status":"cancelled"`} {
		if !strings.Contains(last, want) {
			t.Errorf("the published event has no %s: %s", want, last)
		}
	}

	check(t, p, book.Counts{Rows: 7, Unreadable: 2, Equal: 4, Early: 1, Missing: 1})
}

// TestPassRejects publishes the copy in rejects that a killed run has not published.
func TestPassRejects(t *testing.T) {
	bus := newFakeBus()
	bus.post("1", "REJECTED")
	delete(bus.stored, "rejects.kite.AB1234.1")
	p := pass(t, bus, row("1", "REJECTED", ""))
	check(t, p, book.Counts{Rows: 1, Published: 1})
	if n, m := len(bus.stored["orders.kite.AB1234.1"]), len(bus.stored["rejects.kite.AB1234.1"]); n != 1 || m != 1 {
		t.Errorf("%d events in orders and %d in rejects, want one each", n, m)
	}
}

// TestPassMoved has a postback arrive between the lookup and the publish.
func TestPassMoved(t *testing.T) {
	bus := newFakeBus()
	bus.post("1", "OPEN")
	bus.between = func() { bus.post("1", "COMPLETE") }
	check(t, pass(t, bus, row("1", "CANCELLED", "")), book.Counts{Rows: 1, Early: 1})
	if events := bus.stored["orders.kite.AB1234.1"]; len(events) != 2 {
		t.Errorf("%d events, want the two of the postbacks", len(events))
	}
}

func TestPassKnownOnly(t *testing.T) {
	bus := newFakeBus()
	bus.post("1", "OPEN")
	p := pass(t, bus, row("1", "CANCELLED", ""), row("2", "OPEN", ""))
	p.KnownOnly = true
	check(t, p, book.Counts{Rows: 2, Skipped: 1, Published: 1})
}

// TestPassLegs has two rows of one order, which must not be published in turn for ever.
func TestPassLegs(t *testing.T) {
	bus := newFakeBus()
	p := pass(t, bus, row("1", "COMPLETE", ""), row("1", "OPEN", ""))
	for range 2 {
		if counts, err := p.Run(t.Context()); err != nil || counts.Skipped != 1 {
			t.Errorf("%+v, %v", counts, err)
		}
	}
	if n := len(bus.stored["orders.kite.AB1234.1"]); n > 2 {
		t.Errorf("%d events", n)
	}
}

func TestPassDryRun(t *testing.T) {
	bus := newFakeBus()
	p := pass(t, bus, row("1", "OPEN", ""))
	var events []string
	p.DryRun = func(d *bridge.Delivery) { events = append(events, d.OrderID) }
	check(t, p, book.Counts{Rows: 1, Published: 1})
	if len(bus.stored) != 0 || !slices.Equal(events, []string{"1"}) {
		t.Errorf("printed %q and stored %d keys", events, len(bus.stored))
	}
}

func TestPassBusDown(t *testing.T) {
	bus := newFakeBus()
	bus.err = errors.New("no bus")
	p := pass(t, bus, row("1", "OPEN", ""))
	if counts, err := p.Run(t.Context()); !errors.Is(err, bus.err) || counts.Published != 0 {
		t.Errorf("%+v, %v", counts, err)
	}
	bus.err = nil
	failing := errors.New("no answer")
	bus.between = func() { bus.err = failing }
	if counts, err := p.Run(t.Context()); !errors.Is(err, failing) || counts.Failed != 1 {
		t.Errorf("%+v, %v", counts, err)
	}
}

func TestPassIncomplete(t *testing.T) {
	bus := newFakeBus()
	bus.post("9", "OPEN")
	p := pass(t, bus, row("1", "OPEN", ""), `{"order_id":`)
	counts, err := p.Run(t.Context())
	if want := (book.Counts{Rows: 1, Published: 1}); !errors.Is(err, book.ErrNotUnderstood) || counts != want {
		t.Errorf("%+v, %v, want %+v and %v", counts, err, want, book.ErrNotUnderstood)
	}
}

// separator is what comes before an element of an array.
func separator(i int) string {
	if i == 0 {
		return "["
	}
	return ","
}

// TestPassLarge compares a book of 50,000 rows in little memory: a row is forgotten once it is compared.
func TestPassLarge(t *testing.T) {
	if testing.Short() {
		t.Skip("left out by -short: takes some seconds")
	}
	const orders = 50_000
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		more := `,"status_message":"` + strings.Repeat("x", 300) + `"`
		for i := range orders {
			_, _ = io.WriteString(w, separator(i)+row(fmt.Sprint(i), "OPEN", more)) // the counts show an error
		}
		_, _ = io.WriteString(w, "]")
	}))
	defer server.Close()
	bus := newFakeBus()
	p := pass(t, bus)
	p.Book = upstox.Book() // whose book may be a bare array
	p.Book.URL = server.URL
	p.Client.MaxBytes = 1 << 30
	p.KnownOnly = true
	var before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var lookups, most atomic.Uint64
	bus.lookedUp = func() {
		if lookups.Add(1)%1000 == 0 {
			var now runtime.MemStats
			runtime.ReadMemStats(&now)
			most.Store(max(most.Load(), now.HeapAlloc))
		}
	}
	check(t, p, book.Counts{Rows: orders, Skipped: orders})
	if used := int64(most.Load()) - int64(before.HeapAlloc); used > 100<<20 {
		t.Errorf("%d MiB", used>>20)
	}
}
