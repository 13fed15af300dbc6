package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// beginLimit is how long --worst waits for a bus that does not answer.
	beginLimit = 5 * time.Second
	// quietTime is how long nothing may arrive, when everything is there, until nothing more is expected.
	quietTime = 300 * time.Millisecond
	// watchInterval is the time between two comparisons.
	watchInterval = 50 * time.Millisecond
)

// watch reads the buses of the environment and compares what arrives with what was acknowledged.
type watch struct {
	buses   []*watchedBus
	stop    context.CancelFunc
	readers sync.WaitGroup

	mu     sync.Mutex
	orders map[string]*ackedOrder // by order id; guarded by mu
}

// watchedBus is what arrives from one bus.
type watchedBus struct {
	follower
	name   string
	ready  atomic.Bool             // all that is stored from now on arrives
	orders map[string]*storedOrder // by the order id in the key; guarded by watch.mu
}

// ackedOrder is what was acknowledged of one order.
type ackedOrder struct {
	ids       []string // of the events that a consumer should see: each differs from the one before it
	unordered bool     // they may arrive in another order, and some twice
}

// storedOrder is what a bus has of one order.
type storedOrder struct {
	ids  []string // of the events as they arrived
	last time.Time
}

// watchBuses begins to read all buses, until close. An error is a misuse: a bus that is down is waited for.
func (p *process) watchBuses(ctx context.Context, o *tailOptions) (*watch, error) {
	c, credentials, err := readBusConfig(p.env)
	if err != nil {
		return nil, err
	}
	w := &watch{orders: make(map[string]*ackedOrder)}
	ctx, w.stop = context.WithCancel(ctx)
	for _, name := range c.Publish {
		f := newFollower(beginning{now: true}, io.Discard)
		b := &watchedBus{follower: f, name: name, orders: make(map[string]*storedOrder)}
		b.begun = func() { b.ready.Store(true) }
		w.buses = append(w.buses, b)
		w.readers.Go(func() {
			end, err := o.follow(ctx, b.follower, name, c, credentials)
			if err != nil {
				b.notes.say("%v", err)
				return
			}
			defer end()
			w.read(ctx, b, o)
		})
	}
	return w, nil
}

func (w *watch) close() {
	w.stop()
	w.readers.Wait()
}

// awaitBegin waits until all buses are read, or for the timeout.
func (w *watch) awaitBegin(ctx context.Context, timeout time.Duration) {
	waits := func(b *watchedBus) bool { return !b.ready.Load() }
	start := time.Now()
	for slices.ContainsFunc(w.buses, waits) && time.Since(start) < timeout && pause(ctx, watchInterval) {
	}
}

// read records the events of a bus, also those of orders of which no postback has been acknowledged yet.
func (w *watch) read(ctx context.Context, b *watchedBus, o *tailOptions) {
	for {
		select {
		case <-ctx.Done():
			return
		case m := <-b.messages:
			if !o.wants(m) {
				continue
			}
			id := m.key[strings.LastIndexByte(m.key, '.')+1:]
			w.mu.Lock()
			if b.orders[id] == nil {
				b.orders[id] = new(storedOrder)
			}
			of := b.orders[id]
			of.ids, of.last = append(of.ids, cmp.Or(m.headers["ce-id"], m.headers["ce_id"])), time.Now()
			w.mu.Unlock()
		}
	}
}

// sent records a postback with the id of its event, or nothing if it was not answered.
func (w *watch) sent(pb postback, id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	o := w.orders[pb.order]
	if o == nil {
		o = new(ackedOrder)
		w.orders[pb.order] = o
	}
	// Whether a postback without an answer is stored is not known, nor whether the next one is then a repeat.
	o.unordered = o.unordered || pb.unordered || id == ""
	repeat := len(o.ids) > 0 && o.ids[len(o.ids)-1] == id || o.unordered && slices.Contains(o.ids, id)
	if id != "" && !repeat {
		o.ids = append(o.ids, id)
	}
}

// await waits until everything is stored and nothing more arrives, or until nothing has arrived for the timeout.
func (w *watch) await(ctx context.Context, timeout time.Duration) *worstReport {
	for start := time.Now(); ; {
		r := w.report()
		quiet, missing := time.Since(start), 0
		for _, b := range r.Buses {
			quiet = min(quiet, time.Since(b.last))
			missing += b.Missing
		}
		if ctx.Err() != nil || quiet > timeout || missing == 0 && quiet > quietTime {
			return r
		}
		pause(ctx, watchInterval)
	}
}

func (w *watch) report() *worstReport {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := &worstReport{Orders: len(w.orders), Buses: make(map[string]*busReport)}
	for _, o := range w.orders {
		r.Events += len(o.ids)
		r.atLeast = r.atLeast || o.unordered
	}
	for _, b := range w.buses {
		of := &busReport{note: b.notes.lastSaid()}
		r.Buses[b.name] = of
		if !b.ready.Load() {
			of.Unread = of.note
			continue
		}
		for id, o := range w.orders {
			stored := cmp.Or(b.orders[id], new(storedOrder))
			of.compare(o, stored.ids)
			if stored.last.After(of.last) {
				of.last = stored.last
			}
		}
	}
	return r
}

// worstReport is what a consumer should see, and what is on each bus.
type worstReport struct {
	Behaviours string                `json:"behaviours"`
	Orders     int                   `json:"orders"`
	Events     int                   `json:"events"`
	Buses      map[string]*busReport `json:"buses"`

	atLeast bool // the order of some states is not known, and one that is left and reached again counts once
}

// busReport is how one bus compares.
type busReport struct {
	Unread    string `json:"unread,omitempty"` // why it could not be read; then nothing else holds
	Stored    int    `json:"stored"`
	Missing   int    `json:"missing"`
	Disorder  int    `json:"out_of_order"` // orders
	Republish int    `json:"repeats_published"`

	last time.Time // when the last event of these orders arrived
	note string    // the state of the connection
}

// compare adds one order: what was acknowledged, and what is stored.
func (b *busReport) compare(want *ackedOrder, got []string) {
	b.Stored += len(got)
	there := make(map[string]bool, len(got))
	for _, id := range got {
		there[id] = true
	}
	missing := 0
	for _, id := range want.ids {
		if !there[id] {
			missing++
		}
	}
	b.Missing += missing
	if want.unordered {
		return
	}
	news := slices.Compact(slices.Clone(got))
	b.Republish += len(got) - len(news)
	if missing == 0 && !slices.Equal(news, want.ids) {
		b.Disorder++
	}
}

// failure reports buses on which events are missing or out of order. A repeat that is published is allowed.
func (r *worstReport) failure() error {
	var wrong []error
	for _, name := range busNames() {
		if b := r.Buses[name]; b != nil && b.Missing+b.Disorder > 0 {
			wrong = append(wrong, fmt.Errorf("%s lacks %d of %d events, and has %d of %d orders out of order",
				name, b.Missing, r.Events, b.Disorder, r.Orders))
		}
	}
	return errors.Join(wrong...)
}

func (r *worstReport) text() string {
	var b strings.Builder
	least := ""
	if r.atLeast {
		least = "at least "
	}
	fmt.Fprintf(&b, "%s: a consumer should see %s%d events of %d orders\n", r.Behaviours, least, r.Events, r.Orders)
	for _, name := range busNames() {
		of := r.Buses[name]
		switch {
		case of == nil:
		case of.Unread != "":
			fmt.Fprintf(&b, "  %s: not checked, since it cannot be read: %s\n", name, of.Unread)
		default:
			fmt.Fprintf(&b, "  %s: %d stored, %d missing, %d orders out of order, %d repeats published\n",
				name, of.Stored, of.Missing, of.Disorder, of.Republish)
		}
	}
	return b.String()
}
