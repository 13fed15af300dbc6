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
	"time"
)

const (
	// quietTime is how long repeats are waited for when everything is there.
	quietTime = 300 * time.Millisecond
	// watchInterval is the time between two comparisons.
	watchInterval = 50 * time.Millisecond
)

// watch reads the buses of the environment and compares what arrives with what was acknowledged.
type watch struct {
	buses   []*watchedBus
	stop    context.CancelFunc
	readers sync.WaitGroup

	mu sync.Mutex
	// Guarded by mu, and so are the buses.
	orders map[string]*ackedOrder // by order id
}

// watchedBus is what arrives from one bus.
type watchedBus struct {
	follower
	name   string
	ready  bool                // all that is stored from now on arrives
	orders map[string][]string // event ids as they arrived, by the order id in the key
	last   time.Time           // when the last one arrived
}

// ackedOrder is what was acknowledged of one order.
type ackedOrder struct {
	ids       []string // of the events that a consumer should see: each differs from the one before it
	unordered bool     // they may arrive in another order, and some twice
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
		b := &watchedBus{follower: f, name: name, orders: make(map[string][]string)}
		b.begun = func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			b.ready = true
		}
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
	w.until(ctx, timeout, func(r *busReport) bool { return r.Unread == "" })
}

// await waits until everything is stored, or for the timeout, and then for repeats.
func (w *watch) await(ctx context.Context, timeout time.Duration) *worstReport {
	w.until(ctx, timeout, func(r *busReport) bool { return r.Missing == 0 })
	pause(ctx, quietTime)
	return w.report()
}

// until waits until all buses are so, or for the timeout.
func (w *watch) until(ctx context.Context, timeout time.Duration, so func(*busReport) bool) {
	for start := time.Now(); time.Since(start) < timeout; pause(ctx, watchInterval) {
		waits := false
		for _, of := range w.report().Buses {
			waits = waits || !so(of)
		}
		if !waits || ctx.Err() != nil {
			return
		}
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
			order := m.key[strings.LastIndexByte(m.key, '.')+1:]
			w.mu.Lock()
			b.orders[order] = append(b.orders[order], cmp.Or(m.headers["ce-id"], m.headers["ce_id"]))
			b.last = time.Now()
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

	last time.Time // when the last event arrived
	note string    // the state of the connection
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
		of := &busReport{last: b.last, note: b.notes.lastSaid()}
		r.Buses[b.name] = of
		if !b.ready {
			of.Unread = of.note
			continue
		}
		for id, o := range w.orders {
			of.compare(o, b.orders[id])
		}
	}
	return r
}

// compare adds one order: what was acknowledged, and what is stored.
func (b *busReport) compare(want *ackedOrder, got []string) {
	b.Stored += len(got)
	missing := 0
	for _, id := range want.ids {
		if !slices.Contains(got, id) {
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
	if r == nil {
		return ""
	}
	least := ""
	if r.atLeast {
		least = "at least "
	}
	text := fmt.Sprintf("%s: a consumer should see %s%d events of %d orders\n", r.Behaviours, least, r.Events, r.Orders)
	for _, name := range busNames() {
		if of := r.Buses[name]; of != nil && of.Unread != "" {
			text += fmt.Sprintf("  %s: not checked, since it cannot be read: %s\n", name, of.Unread)
		} else if of != nil {
			text += fmt.Sprintf("  %s: %d stored, %d missing, %d orders out of order, %d repeats published\n",
				name, of.Stored, of.Missing, of.Disorder, of.Republish)
		}
	}
	return text
}
