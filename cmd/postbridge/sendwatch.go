package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// repeatWait is how long await waits for published repeats after every event is stored.
	repeatWait = 300 * time.Millisecond
	// watchInterval is the time between two comparisons.
	watchInterval = 50 * time.Millisecond
)

// busWatch follows the buses of POSTBRIDGE_PUBLISH and compares their events with the acknowledged postbacks.
type busWatch struct {
	buses   []*watchedBus
	timeout time.Duration // of each wait
	stop    context.CancelFunc
	readers sync.WaitGroup

	mu     sync.Mutex
	orders map[string]*ackedOrder // by order id; guarded by mu, and so are the fields of the buses
}

// watchedBus records the events of one bus.
type watchedBus struct {
	name   string
	status *statusLog
	orders map[string][]string // event ids in the order of arrival, by order id
	last   time.Time           // of the last arrival
}

// ackedOrder holds the acknowledged postbacks of one order.
type ackedOrder struct {
	ids       []string // of the events that a consumer should see: each differs from the one before it
	unordered bool     // the events may be stored in another order, and some twice
}

// watchBuses follows all buses until close. It returns once all are followed, or after the timeout, which await uses,
// too. An error is a misuse.
func (p *process) watchBuses(ctx context.Context, filter busFilter, timeout time.Duration) (*busWatch, error) {
	c, credentials, err := readBusConfig(p.env)
	if err != nil {
		return nil, err
	}
	w := &busWatch{timeout: timeout, orders: make(map[string]*ackedOrder)}
	readers, stop := context.WithCancel(ctx)
	w.stop = stop
	for _, name := range c.Publish {
		b := &watchedBus{name: name, status: &statusLog{w: io.Discard}, orders: make(map[string][]string)}
		w.buses = append(w.buses, b)
		f := &follower{filter, startPosition{now: true}, b.status, func(m *message) { w.received(b, m) }}
		w.readers.Go(func() {
			if err := f.follow(readers, name, c, credentials); err != nil {
				b.status.set("%v", err)
			}
		})
	}
	w.until(ctx, func(r *busReport) bool { return r.Unread == "" })
	return w, nil
}

func (w *busWatch) close() {
	w.stop()
	w.readers.Wait()
}

// await waits until no event is missing, or for the timeout, and then for published repeats.
func (w *busWatch) await(ctx context.Context) *worstReport {
	w.until(ctx, func(r *busReport) bool { return r.Missing == 0 })
	pause(ctx, repeatWait)
	return w.report()
}

// until waits until the condition holds for all buses, or for the timeout.
func (w *busWatch) until(ctx context.Context, condition func(*busReport) bool) {
	for start := time.Now(); time.Since(start) < w.timeout; pause(ctx, watchInterval) {
		met := true
		for _, b := range w.report().Buses {
			met = met && condition(b)
		}
		if met || ctx.Err() != nil {
			return
		}
	}
}

// received records an event, which may be of an order without an acknowledged postback so far.
func (w *busWatch) received(b *watchedBus, m *message) {
	order := m.key[strings.LastIndexByte(m.key, '.')+1:]
	w.mu.Lock()
	defer w.mu.Unlock()
	b.orders[order] = append(b.orders[order], cmp.Or(m.headers["ce-id"], m.headers["ce_id"]))
	b.last = time.Now()
}

// sent records a postback with its event id, which is empty if the postback was not acknowledged.
func (w *busWatch) sent(pb postback, id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	o := w.orders[pb.order]
	if o == nil {
		o = new(ackedOrder)
		w.orders[pb.order] = o
	}
	// An unanswered postback may be stored or not, and the next one may then be a repeat or not.
	o.unordered = o.unordered || pb.unordered || id == ""
	repeat := len(o.ids) > 0 && o.ids[len(o.ids)-1] == id || o.unordered && slices.Contains(o.ids, id)
	if id != "" && !repeat {
		o.ids = append(o.ids, id)
	}
}

// worstReport compares the events that a consumer should see with those on each bus.
type worstReport struct {
	Behaviours string                `json:"behaviours"`
	Orders     int                   `json:"orders"`
	Events     int                   `json:"events"`
	Buses      map[string]*busReport `json:"buses"`

	atLeast bool // Events is a minimum: a state of an unordered order that is reached twice counts once
}

// busReport compares one bus.
type busReport struct {
	Unread    string `json:"unread,omitempty"` // why the bus could not be read; then the counts are 0
	Stored    int    `json:"stored"`
	Missing   int    `json:"missing"`
	Disorder  int    `json:"out_of_order"` // orders
	Republish int    `json:"repeats_published"`

	last   time.Time // of the last arrival
	status string    // of the follower
}

func (w *busWatch) report() *worstReport {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := &worstReport{Orders: len(w.orders), Buses: make(map[string]*busReport)}
	for _, o := range w.orders {
		r.Events += len(o.ids)
		r.atLeast = r.atLeast || o.unordered
	}
	for _, b := range w.buses {
		br := &busReport{last: b.last}
		r.Buses[b.name] = br
		var started bool
		if br.status, started = b.status.get(); !started {
			br.Unread = br.status
			continue
		}
		for id, o := range w.orders {
			br.compare(o, b.orders[id])
		}
	}
	return r
}

// compare adds one order: its acknowledged events and the stored event ids.
func (b *busReport) compare(acked *ackedOrder, stored []string) {
	b.Stored += len(stored)
	missing := 0
	for _, id := range acked.ids {
		if !slices.Contains(stored, id) {
			missing++
		}
	}
	b.Missing += missing
	if acked.unordered {
		return
	}
	distinct := slices.Compact(slices.Clone(stored))
	b.Republish += len(stored) - len(distinct)
	if missing == 0 && !slices.Equal(distinct, acked.ids) {
		b.Disorder++
	}
}

// failure reports the buses on which events are missing or out of order. Published repeats are allowed.
func (r *worstReport) failure() error {
	var wrong []error
	for _, name := range slices.Sorted(maps.Keys(r.Buses)) {
		if b := r.Buses[name]; b.Missing+b.Disorder > 0 {
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
	for _, name := range slices.Sorted(maps.Keys(r.Buses)) {
		if b := r.Buses[name]; b.Unread != "" {
			text += fmt.Sprintf("  %s: not checked, cannot be read: %s\n", name, b.Unread)
		} else {
			text += fmt.Sprintf("  %s: %d stored, %d missing, %d orders out of order, %d repeats published\n",
				name, b.Stored, b.Missing, b.Disorder, b.Republish)
		}
	}
	return text
}
