package book

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
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
	// Last returns the last event of an order in a destination; the zero value if there is none. Of the order it needs
	// the broker, user and order ids.
	Last(ctx context.Context, dest bridge.Destination, order *bridge.Delivery) (bridge.Stored, error)
	// Publish gives the event a spool id and a sequence and returns once it is stored in the destinations of the
	// revisions; on Kafka in all its destinations. On a bus that can compare and append it returns bridge.ErrMoved if
	// the order has got another event since the revision, and bridge.ErrRejected if it can never store the event. A
	// dead letter has no revision.
	Publish(ctx context.Context, d *bridge.Delivery, revisions map[bridge.Destination]uint64) error
	// Orders returns the ids of the orders of a user whose last event was stored between the times, escaped by
	// event.EscapeToken.
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
	// early are the rows left to the next run, by event id, since when.
	early map[string]time.Time
	// orders are the escaped ids of the orders whose last event on a bus is of the day, until readUntil.
	orders         map[string]struct{}
	day, readUntil time.Time
	missing        int // in the last run
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
	Failed     int64 `json:"failed"`     // the bus did not answer, or can never store the event
	// Contradictions are the published rows that contradict an event that is not older.
	Contradictions int64 `json:"contradictions"`
	// Missing are the orders of the day on a bus that the book does not have.
	Missing int64 `json:"missing"`
}

// concurrency is how many orders are looked up at once: a lookup waits for the bus, not for the processor.
const concurrency = 16

// patience is how long a row may be left to the next run. Somebody who sends forged postbacks again and again must not
// prevent the correction.
const patience = 5 * time.Minute

// maxLogged is how many unreadable rows are logged once only.
const maxLogged = 1000

// run is a run of a Pass.
type run struct {
	*Pass
	asOf  time.Time
	slots chan struct{}
	rows  sync.WaitGroup

	inBook map[string]struct{} // escaped order ids; of the goroutine that reads the book

	mu     sync.Mutex
	counts Counts
	early  map[string]time.Time
	err    error // the first error of a bus
}

// Run compares the book of the account with each bus and publishes what is news there. The error is that of the book or,
// wrapped in ErrBus, of a bus; what was counted before it is valid.
func (p *Pass) Run(ctx context.Context) (Counts, error) {
	r := &run{
		Pass: p, slots: make(chan struct{}, concurrency), inBook: make(map[string]struct{}),
		early: make(map[string]time.Time),
	}
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
	requested := time.Now() // the book has every change before it, and perhaps later ones
	err := p.Client.Read(ctx, p.Book, p.Account, func(row []byte) {
		e := p.Book.Event(p.Account, bytes.Clone(row), requested)
		if !r.compares(e) {
			return
		}
		r.slots <- struct{}{}
		r.rows.Go(func() {
			defer func() { <-r.slots }()
			if err := r.row(ctx, e); err != nil {
				r.fail(err)
				cancel() // a bus that does not answer would fail for every row
			}
		})
	})
	r.rows.Wait()
	p.early = r.early
	if r.err == nil && err == nil {
		r.err = r.findMissing(ctx)
	}
	switch {
	case outer.Err() != nil:
		err = outer.Err()
	case r.err != nil:
		err = fmt.Errorf("%w: %w", ErrBus, r.err)
	case err == nil && r.counts.Failed > 0:
		err = fmt.Errorf("%d events: %w", r.counts.Failed, bridge.ErrRejected)
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
	id := event.EscapeToken(e.OrderID)
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

// row compares one row with each bus. The error is that of a bus which does not answer.
func (r *run) row(ctx context.Context, e *event.Event) error {
	d := delivery(e)
	var verdict Verdict
	for _, bus := range r.Buses {
		one := *d
		got, err := r.onBus(ctx, bus, &one, StateOf(e))
		if err != nil {
			r.count(func(c *Counts) { c.Failed++ })
			if !errors.Is(err, bridge.ErrRejected) {
				return err
			}
			r.Log.Error("the bus can never store an event of the order book", "id", d.ID, "error", err)
			return nil
		}
		verdict = max(verdict, got)
	}
	if r.DryRun != nil && verdict >= News {
		r.DryRun(d)
	}
	r.counted(verdict, d)
	return nil
}

// onBus compares a row with the last event of its order on one bus, and publishes it there if it is news.
func (r *run) onBus(ctx context.Context, bus Bus, d *bridge.Delivery, row State) (Verdict, error) {
	verdict, revisions, err := r.compare(ctx, bus, d, row)
	switch {
	case err != nil || verdict < News || r.DryRun != nil:
		return verdict, err
	case ctx.Err() != nil: // the end comes between two publishes
		return verdict, ctx.Err()
	}
	if err = bus.Publish(context.WithoutCancel(ctx), d, revisions); errors.Is(err, bridge.ErrMoved) {
		return Early, nil
	}
	return verdict, err
}

// Keep stores a response that is not understood as a dead letter, for a person to read. A token in it is removed.
func (p *Pass) Keep(ctx context.Context, u *Unexpected) error {
	body := bytes.TrimSpace(u.Body)
	if len(body) == 0 {
		return nil
	}
	for secret := range strings.SplitSeq(p.Account.Credential, ":") {
		body = bytes.ReplaceAll(body, []byte(secret), []byte("(removed)"))
	}
	d := delivery(p.Book.Event(p.Account, body, time.Now()))
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
	grace := r.Grace
	if since, early := r.Pass.early[d.ID]; early && r.asOf.Sub(since) > patience {
		grace = -24 * time.Hour // nothing is early
	}
	for _, dest := range d.Destinations() {
		last, err := bus.Last(ctx, dest, d)
		if err != nil {
			return Equal, nil, err
		}
		stored := stateOf(last)
		if stored == nil && r.KnownOnly && dest == bridge.Orders {
			return skipped, nil, nil
		}
		got := Compare(stored, row, r.asOf, grace)
		if got == Early || got == Old {
			return got, nil, nil
		}
		if got >= News {
			revisions[dest] = last.Revision
		}
		verdict = max(verdict, got)
	}
	return verdict, revisions, nil
}

// stateOf returns the state in an event on the bus; nil if there is none, or if another program wrote it.
func stateOf(last bridge.Stored) *State {
	var e event.Event
	if last.Data == nil || json.Unmarshal(last.Data, &e) != nil {
		return nil
	}
	s := StateOf(&e)
	if last.Time.After(s.Received) {
		s.Received = last.Time
	}
	return &s
}

// counted counts and logs the outcome of a row.
func (r *run) counted(verdict Verdict, d *bridge.Delivery) {
	if verdict == Contradiction && r.DryRun == nil {
		r.Log.Error("the order book contradicts the last event of an order: a postback was forged, or the broker "+
			"erred; the state in the book is published", "id", d.ID)
	}
	if verdict == Early {
		r.keepEarly(d.ID)
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

// keepEarly records a row that is left to the next run.
func (r *run) keepEarly(id string) {
	since, early := r.Pass.early[id]
	if !early {
		since = r.asOf
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.early[id] = since
}

// findMissing counts the orders on the buses that a complete book does not have. It invents no event for them.
func (r *run) findMissing(ctx context.Context) error {
	if err := r.readOrders(ctx); err != nil {
		return err
	}
	missing := 0
	for id := range r.orders {
		if _, ok := r.inBook[id]; !ok {
			missing++
			r.Log.Debug("an order of today is on the bus and not in the order book", "order", id)
		}
	}
	if missing > r.missing {
		r.Log.Warn("orders of today are on the bus and not in the order book", "orders", missing)
	}
	r.missing, r.counts.Missing = missing, int64(missing)
	return nil
}

// readOrders adds the orders that the buses have got events of since the run before, or since the day began. The events
// of the grace are left to the next run, which may find their orders in the book.
func (r *run) readOrders(ctx context.Context) error {
	p, until := r.Pass, r.asOf.Add(-r.Grace)
	if day := Midnight(r.asOf); !day.Equal(p.day) {
		p.day, p.readUntil, p.orders = day, day, make(map[string]struct{})
	}
	for _, bus := range r.Buses {
		orders, err := bus.Orders(ctx, r.Book.Broker.Name(), r.Account.UserID, p.readUntil, until)
		if err != nil {
			return err
		}
		for _, id := range orders {
			p.orders[id] = struct{}{}
		}
	}
	p.readUntil = until
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
