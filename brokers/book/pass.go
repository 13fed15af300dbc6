package book

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
)

// Bus is the bus whose events are compared with the rows of a book. Its methods may be called from any goroutine.
type Bus interface {
	// Refresh prepares the reads of one pass. They find every event that was stored before the returned time.
	Refresh(ctx context.Context) (asOf time.Time, err error)
	// Last returns the last event of an order in a destination, and its revision for Publish; nil and 0 if there is
	// none. Of the order it needs the broker, user and order ids.
	Last(ctx context.Context, dest bridge.Destination, order *bridge.Delivery) (data []byte, revision uint64, err error)
	// Publish gives the event a spool id and a sequence and returns once it is stored in the destinations. On a bus
	// that can compare and append it returns bridge.ErrMoved if the order has got another event since the revision.
	Publish(ctx context.Context, d *bridge.Delivery, revisions map[bridge.Destination]uint64) error
	// Orders returns the ids of the orders of a user that have got an event since the time, escaped by
	// bridge.EscapeToken.
	Orders(ctx context.Context, broker, user string, since time.Time) ([]string, error)
}

// Pass is one comparison of the book of one account with the bus.
type Pass struct {
	Client  *Client
	Book    Book
	Account Account
	Bus     Bus
	// Grace is how old a state must be to be published: its postback may be on its way before.
	Grace time.Duration
	// KnownOnly skips the orders of which the bus has no event.
	KnownOnly bool
	// DryRun gets each event in place of the bus, if it is set. It may be called from any goroutine.
	DryRun func(d *bridge.Delivery)
	Log    *slog.Logger
}

// Counts are the rows of a pass by outcome: Rows = Unreadable + Equal + Early + Skipped + Published + Failed.
type Counts struct {
	Rows       int64
	Unreadable int64 // no order
	Equal      int64 // nothing new
	Early      int64 // left to the next pass: too recent, or the order got another event meanwhile
	Skipped    int64 // left out by KnownOnly
	Published  int64 // contradictions included
	Failed     int64 // the bus did not answer
	// Contradictions are the published rows that contradict an event that is not older.
	Contradictions int64
	// Missing are the orders of the day on the bus that the book does not have.
	Missing int64
}

// concurrency is how many orders are looked up at once: a lookup waits for the bus, not for the processor.
const concurrency = 16

// pass is a Pass that is running.
type pass struct {
	Pass
	asOf   time.Time
	slots  chan struct{}
	orders sync.WaitGroup

	mu     sync.Mutex
	counts Counts
	inBook map[string]struct{} // escaped order ids
	err    error               // the first error of the bus
}

// Run compares the book of the account with the bus and publishes what is news. The error is that of the book or of the
// bus; what was counted before it is valid.
func (p Pass) Run(ctx context.Context) (Counts, error) {
	asOf, err := p.Bus.Refresh(ctx)
	if err != nil {
		return Counts{}, err
	}
	r := &pass{Pass: p, asOf: asOf, slots: make(chan struct{}, concurrency), inBook: make(map[string]struct{})}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err = p.Client.Read(ctx, p.Book, p.Account, func(row []byte) {
		r.slots <- struct{}{}
		row = append([]byte(nil), row...)
		r.orders.Go(func() {
			defer func() { <-r.slots }()
			if err := r.row(ctx, row); err != nil {
				r.fail(err)
				cancel() // a bus that does not answer would fail for every row
			}
		})
	})
	r.orders.Wait()
	if r.err != nil {
		return r.counts, r.err
	}
	if err == nil {
		err = r.findMissing(ctx)
	}
	return r.counts, err
}

// row compares one row. The error is that of the bus.
func (r *pass) row(ctx context.Context, row []byte) error {
	e := r.Book.Event(r.Account, row, time.Now())
	if !e.Understood() {
		r.count(func(c *Counts) { c.Unreadable++ })
		r.Log.Debug("a row of the order book is no order", "broker", e.Broker, "row", string(row))
		return nil
	}
	r.mu.Lock()
	r.inBook[bridge.EscapeToken(e.OrderID)] = struct{}{}
	r.mu.Unlock()
	d := r.delivery(e)
	verdict, revisions, err := r.compare(ctx, d, StateOf(e))
	if err == nil && verdict >= News {
		err = r.publish(ctx, d, revisions)
	}
	switch {
	case errors.Is(err, bridge.ErrMoved):
		verdict = Early
	case err != nil:
		r.count(func(c *Counts) { c.Failed++ })
		return err
	}
	r.counted(verdict, d)
	return nil
}

// delivery returns the event as it is published.
func (r *pass) delivery(e *event.Event) *bridge.Delivery {
	received, _ := time.Parse(event.TimeFormat, e.ReceivedAt) // written by Normalize
	return &bridge.Delivery{
		ID: e.ID, Broker: e.Broker, UserID: e.UserID, OrderID: e.OrderID, Status: e.Status,
		ReceivedAt: received, Data: e.Append(nil),
	}
}

// compare compares a row with the last event of its order in each destination, and returns those that lack the state.
// The verdict is that of the orders, unless only the copy in rejects is missing.
func (r *pass) compare(ctx context.Context, d *bridge.Delivery, row State) (
	verdict Verdict, revisions map[bridge.Destination]uint64, err error,
) {
	revisions = make(map[bridge.Destination]uint64)
	for _, dest := range d.Destinations() {
		data, revision, err := r.Bus.Last(ctx, dest, d)
		if err != nil {
			return Equal, nil, err
		}
		stored := stateOf(data)
		if stored == nil && r.KnownOnly && dest == bridge.Orders {
			return skipped, nil, nil
		}
		got := Compare(stored, row, r.asOf, r.Grace)
		if got == Early {
			return Early, nil, nil
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

// publish publishes the event, except in a dry run.
func (r *pass) publish(ctx context.Context, d *bridge.Delivery, revisions map[bridge.Destination]uint64) error {
	if r.DryRun != nil {
		r.DryRun(d)
		return nil
	}
	return r.Bus.Publish(ctx, d, revisions)
}

// counted counts and logs the outcome of a row.
func (r *pass) counted(verdict Verdict, d *bridge.Delivery) {
	if verdict == Contradiction {
		r.Log.Error("the order book contradicts the last event of an order: a postback was forged, or the broker "+
			"erred; the state in the book is published", "broker", d.Broker, "id", d.ID)
	}
	r.count(func(c *Counts) {
		switch verdict {
		case Equal:
			c.Equal++
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

// findMissing counts the orders on the bus that a complete book does not have. It invents no event for them.
func (r *pass) findMissing(ctx context.Context) error {
	orders, err := r.Bus.Orders(ctx, r.Book.Broker.Name(), r.Account.UserID, midnight(r.asOf))
	if err != nil {
		return err
	}
	for _, id := range orders {
		if _, ok := r.inBook[id]; !ok {
			r.counts.Missing++
			r.Log.Debug("an order of today is on the bus and not in the order book", "order", id)
		}
	}
	if r.counts.Missing > 0 {
		r.Log.Warn("orders of today are on the bus and not in the order book", "broker", r.Book.Broker.Name(),
			"orders", r.counts.Missing)
	}
	return nil
}

// midnight returns the beginning of the day in India, for which order books are kept.
func midnight(t time.Time) time.Time {
	t = t.In(India())
	return time.Date(t.Year(), t.Month(), t.Day(), 0, 0, 0, 0, t.Location())
}

// India returns the time zone of the brokers, which has no daylight saving.
func India() *time.Location { return time.FixedZone("IST", 5*60*60+30*60) }

func (r *pass) count(add func(*Counts)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts.Rows++
	add(&r.counts)
}

// fail records the first error of the bus.
func (r *pass) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err = err
	}
}
