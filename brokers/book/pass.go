package book

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
)

// Bus is the bus whose events are compared with the rows of a book. Its methods may be called from any goroutine.
type Bus interface {
	// Refresh prepares the reads of one pass. They find every event that was stored after since and before the returned
	// time, and perhaps others.
	Refresh(ctx context.Context, since time.Time) (asOf time.Time, err error)
	// Last returns the last event of an order in a destination, and its revision for Publish; nil and 0 if there is
	// none. Of the order it needs the broker, user and order ids.
	Last(ctx context.Context, dest bridge.Destination, order *bridge.Delivery) (data []byte, revision uint64, err error)
	// Publish gives the event a spool id and a sequence and returns once it is stored in the destinations of the
	// revisions; on Kafka in all its destinations. On a bus that can compare and append it returns bridge.ErrMoved if
	// the order has got another event since the revision. A dead letter has no revision.
	Publish(ctx context.Context, d *bridge.Delivery, revisions map[bridge.Destination]uint64) error
	// Orders returns the ids of the orders of a user whose last event was stored between the times, escaped by
	// bridge.EscapeToken.
	Orders(ctx context.Context, broker, user string, since, until time.Time) ([]string, error)
}

// Pass compares the book of one account with the buses. Its runs must not overlap.
type Pass struct {
	Client  *Client
	Book    Book
	Account Account
	Buses   []Bus
	// Grace is how old a state must be to be published: its postback may be on its way before.
	Grace time.Duration
	// KnownOnly skips the orders of which a bus has no event.
	KnownOnly bool
	// DryRun gets each event in place of a bus, if it is set. It may be called from any goroutine.
	DryRun func(d *bridge.Delivery)
	// Log names the broker and the account.
	Log *slog.Logger

	logged map[string]struct{} // ids of the unreadable rows in the log
}

// Counts are the rows of a run by outcome: Rows is the sum of Unreadable to Failed.
type Counts struct {
	Rows       int64 `json:"rows"`
	Unreadable int64 `json:"unreadable"` // no order
	Equal      int64 `json:"equal"`      // nothing new
	Old        int64 `json:"old"`        // from a day before, and the bus has no event of the order
	Skipped    int64 `json:"skipped"`    // left out by KnownOnly, or another row of an order
	Early      int64 `json:"early"`      // left to the next run: too recent, or the order got another event meanwhile
	Published  int64 `json:"published"`  // contradictions included
	Failed     int64 `json:"failed"`     // the bus did not answer
	// Contradictions are the published rows that contradict an event that is not older.
	Contradictions int64 `json:"contradictions"`
	// Missing are the orders of the day on a bus that the book does not have.
	Missing int64 `json:"missing"`
}

// concurrency is how many orders are looked up at once: a lookup waits for the bus, not for the processor.
const concurrency = 16

// maxLogged is how many unreadable rows are logged once only.
const maxLogged = 1000

// run is a run of a Pass.
type run struct {
	*Pass
	asOf   time.Time
	slots  chan struct{}
	orders sync.WaitGroup

	inBook map[string]struct{} // escaped order ids; of the goroutine that reads the book

	mu     sync.Mutex
	counts Counts
	err    error // the first error of a bus
}

// Run compares the book of the account with each bus and publishes what is news there. The error is that of the book or,
// wrapped in ErrBus, of a bus; what was counted before it is valid.
func (p *Pass) Run(ctx context.Context) (Counts, error) {
	r := &run{Pass: p, slots: make(chan struct{}, concurrency), inBook: make(map[string]struct{})}
	for _, bus := range p.Buses {
		asOf, err := bus.Refresh(ctx, Midnight(time.Now()))
		if err != nil {
			return Counts{}, fmt.Errorf("%w: %w", ErrBus, err)
		}
		if r.asOf.IsZero() || asOf.Before(r.asOf) {
			r.asOf = asOf
		}
	}
	outer := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err := p.Client.Read(ctx, p.Book, p.Account, func(row []byte) {
		e := p.Book.Event(p.Account, bytes.Clone(row), time.Now())
		if !r.compares(e) {
			return
		}
		r.slots <- struct{}{}
		r.orders.Go(func() {
			defer func() { <-r.slots }()
			if err := r.row(ctx, e); err != nil {
				r.fail(err)
				cancel() // a bus that does not answer would fail for every row
			}
		})
	})
	r.orders.Wait()
	if r.err == nil && err == nil {
		r.err = r.findMissing(ctx)
	}
	switch {
	case outer.Err() != nil:
		err = outer.Err()
	case r.err != nil:
		err = fmt.Errorf("%w: %w", ErrBus, r.err)
	}
	return r.counts, err
}

// compares reports whether a row is compared, and counts it if not. Of several rows of one order, such as its legs, only
// the first is: each run would publish them in turn.
func (r *run) compares(e *event.Event) bool {
	if !e.Understood() {
		r.count(func(c *Counts) { c.Unreadable++ })
		r.logUnreadable(e)
		return false
	}
	id := bridge.EscapeToken(e.OrderID)
	if _, again := r.inBook[id]; again {
		r.count(func(c *Counts) { c.Skipped++ })
		return false
	}
	r.inBook[id] = struct{}{}
	return true
}

// logUnreadable logs a row that is no order, once.
func (p *Pass) logUnreadable(e *event.Event) {
	if _, logged := p.logged[e.ID]; logged {
		return
	}
	if p.logged == nil || len(p.logged) == maxLogged {
		p.logged = make(map[string]struct{})
	}
	p.logged[e.ID] = struct{}{}
	p.Log.Debug("a row of the order book is no order", "row", string(e.Append(nil)))
}

// row compares one row. The error is that of a bus.
func (r *run) row(ctx context.Context, e *event.Event) error {
	d := delivery(e)
	var verdict Verdict
	for _, bus := range r.Buses {
		one := *d
		got, err := r.onBus(ctx, bus, &one, StateOf(e))
		if err != nil {
			r.count(func(c *Counts) { c.Failed++ })
			return err
		}
		verdict = max(verdict, got)
	}
	r.counted(verdict, d)
	return nil
}

// onBus compares a row with the last event of its order on one bus, and publishes it there if it is news.
func (r *run) onBus(ctx context.Context, bus Bus, d *bridge.Delivery, row State) (Verdict, error) {
	verdict, revisions, err := r.compare(ctx, bus, d, row)
	switch {
	case err != nil || verdict < News:
		return verdict, err
	case r.DryRun != nil:
		r.DryRun(d)
		return verdict, nil
	case ctx.Err() != nil: // the end comes between two publishes
		return verdict, ctx.Err()
	}
	if err = bus.Publish(context.WithoutCancel(ctx), d, revisions); errors.Is(err, bridge.ErrMoved) {
		return Early, nil
	}
	return verdict, err
}

// Keep stores a response that is not understood as a dead letter, for a person to read.
func (p *Pass) Keep(ctx context.Context, u *Unexpected) error {
	if len(bytes.TrimSpace(u.Body)) == 0 {
		return nil
	}
	d := delivery(p.Book.Event(p.Account, u.Body, time.Now()))
	d.Deadletter = true
	for _, bus := range p.Buses {
		one := *d
		if err := bus.Publish(ctx, &one, map[bridge.Destination]uint64{bridge.Deadletters: 0}); err != nil {
			return fmt.Errorf("%w: %w", ErrBus, err)
		}
	}
	return nil
}

// delivery returns the event as it is published.
func delivery(e *event.Event) *bridge.Delivery {
	received, _ := time.Parse(event.TimeFormat, e.ReceivedAt) // written by Normalize
	return &bridge.Delivery{
		ID: e.ID, Broker: e.Broker, UserID: e.UserID, OrderID: e.OrderID, Status: e.Status,
		ReceivedAt: received, TraceParent: bridge.NewTraceParent(), Data: e.Append(nil),
	}
}

// compare compares a row with the last event of its order in each destination of a bus, and returns those that lack the
// state. The verdict is that of the orders, unless only the copy in rejects is missing.
func (r *run) compare(ctx context.Context, bus Bus, d *bridge.Delivery, row State) (
	verdict Verdict, revisions map[bridge.Destination]uint64, err error,
) {
	revisions = make(map[bridge.Destination]uint64)
	for _, dest := range d.Destinations() {
		data, revision, err := bus.Last(ctx, dest, d)
		if err != nil {
			return Equal, nil, err
		}
		stored := stateOf(data)
		if stored == nil && r.KnownOnly && dest == bridge.Orders {
			return skipped, nil, nil
		}
		got := Compare(stored, row, r.asOf, r.Grace)
		if got == Early || got == Old {
			return got, nil, nil
		}
		if got >= News {
			revisions[dest] = revision
		}
		verdict = max(verdict, got)
	}
	return verdict, revisions, nil
}

// stateOf returns the state in an event on the bus; nil if there is none, or if it is not one of ours.
func stateOf(data []byte) *State {
	var e event.Event
	if data == nil || json.Unmarshal(data, &e) != nil {
		return nil
	}
	s := StateOf(&e)
	return &s
}

// counted counts and logs the outcome of a row.
func (r *run) counted(verdict Verdict, d *bridge.Delivery) {
	if verdict == Contradiction {
		r.Log.Error("the order book contradicts the last event of an order: a postback was forged, or the broker "+
			"erred; the state in the book is published", "id", d.ID)
	}
	r.count(func(c *Counts) {
		switch verdict {
		case Equal:
			c.Equal++
		case Old:
			c.Old++
		case Early:
			c.Early++
		case skipped:
			c.Skipped++
		case Contradiction:
			c.Contradictions++
			c.Published++
		case News:
			c.Published++
		}
	})
}

// findMissing counts the orders on the buses that a complete book does not have. It invents no event for them.
func (r *run) findMissing(ctx context.Context) error {
	missing := make(map[string]struct{})
	for _, bus := range r.Buses {
		orders, err := bus.Orders(ctx, r.Book.Broker.Name(), r.Account.UserID, Midnight(r.asOf), r.asOf.Add(-r.Grace))
		if err != nil {
			return err
		}
		for _, id := range orders {
			if _, ok := r.inBook[id]; !ok {
				missing[id] = struct{}{}
			}
		}
	}
	for id := range missing {
		r.Log.Debug("an order of today is on the bus and not in the order book", "order", id)
	}
	if r.counts.Missing = int64(len(missing)); len(missing) > 0 {
		r.Log.Warn("orders of today are on the bus and not in the order book", "orders", len(missing))
	}
	return nil
}

// Midnight returns the beginning of a day in India, for which order books are kept. India has no daylight saving.
func Midnight(t time.Time) time.Time {
	t = t.In(time.FixedZone("IST", 5*60*60+30*60))
	return time.Date(t.Year(), t.Month(), t.Day(), 0, 0, 0, 0, t.Location())
}

func (r *run) count(add func(*Counts)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts.Rows++
	add(&r.counts)
}

// fail records the first error of the bus.
func (r *run) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err = err
	}
}
