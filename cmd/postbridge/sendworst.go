package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// misbehaviour is something that brokers are known to do: how it changes the states of an order, and how they are sent.
type misbehaviour struct {
	name        string
	late        bool    // the last partial fill comes after the end of its order
	twice       []step  // these states come twice ...
	reworded    bool    // ... the second time in other words
	rate        float64 // the postbacks of a second come all at its beginning; this many unless --rate is set
	connections int     // at least this many; the states of half of the orders come over several at once
}

// allMisbehaviours returns every misbehaviour in the order in which they change an order.
func allMisbehaviours() misbehaviours {
	return misbehaviours{
		{name: "late", late: true},
		{name: "words", twice: []step{open, partlyFilled}, reworded: true},
		{name: "cancels", twice: []step{cancelled}, reworded: true},
		{name: "doubled", twice: []step{placed, open, partlyFilled, filled, cancelled, rejected}},
		{name: "storm", rate: 500},
		{name: "split", connections: 4},
	}
}

// misbehaviours is the value of --worst.
type misbehaviours []misbehaviour

// UnmarshalText reads names, or all.
func (m *misbehaviours) UnmarshalText(text []byte) error {
	all := allMisbehaviours()
	if string(text) == "all" {
		*m = all
		return nil
	}
	var names list
	if err := names.UnmarshalText(text); err != nil {
		return err
	}
	for _, name := range names {
		if !slices.ContainsFunc(all, func(of misbehaviour) bool { return of.name == name }) {
			return fmt.Errorf("%q is not known; set it to all or some of %s", name, all)
		}
	}
	*m = slices.DeleteFunc(all, func(of misbehaviour) bool { return !slices.Contains(names, of.name) })
	return nil
}

// MarshalText returns the names, separated by commas.
func (m misbehaviours) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

func (m misbehaviours) String() string {
	var names list
	for _, of := range m {
		names = append(names, of.name)
	}
	return names.String()
}

// split reports whether the states of some orders are sent over several connections at once.
func (m misbehaviours) split() bool {
	return slices.ContainsFunc(m, func(of misbehaviour) bool { return of.connections > 0 })
}

// burst reports whether the postbacks of a second come all at its beginning.
func (m misbehaviours) burst() bool {
	return slices.ContainsFunc(m, func(of misbehaviour) bool { return of.rate > 0 })
}

// beginLimit is how long a bus may take to be there, for those who can do without it.
const beginLimit = 5 * time.Second

// sendWorst sends what brokers do at their worst, and looks at what comes of it on each bus.
func (p *process) sendWorst(ctx context.Context, o *sendOptions) error {
	buses, end, err := p.watchBuses(ctx, &tailOptions{broker: o.broker, destination: "orders"})
	if err != nil {
		return err
	}
	defer end()
	s, err := p.newSending(o)
	if err != nil {
		return err
	}
	buses.awaitBegin(ctx, min(beginLimit, o.timeout))
	w := newWitness(buses)
	s.witness = w.sent
	total, failure := s.run(ctx, o.connections)
	total.worst = w.await(ctx, o.timeout)
	total.worst.Behaviours = o.worst
	if failure == nil && ctx.Err() == nil {
		failure = total.worst.failure()
	}
	return errors.Join(failure, s.acked.close(), p.print(total.text(o.json)))
}

// witness compares what was sent with what is on the buses.
type witness struct {
	buses watchedBuses
	quit  chan struct{}
	reads sync.WaitGroup

	mu sync.Mutex
	// Guarded by mu.
	orders map[string]*witnessed // by the escaped order id, as it is in a key
	stored []map[string][]string // of each bus: the ids of an order's events, as they came
	last   time.Time             // when an event of these orders came
}

// witnessed is what was acknowledged of one order.
type witnessed struct {
	ids       []string // of the events a consumer should see: each other than the one before it
	unordered bool     // they may come in another order, and some twice
}

func newWitness(buses watchedBuses) *witness {
	w := &witness{buses: buses, quit: make(chan struct{}), orders: make(map[string]*witnessed)}
	for _, b := range buses {
		stored := make(map[string][]string)
		w.stored = append(w.stored, stored)
		w.reads.Go(func() { w.read(b, stored) })
	}
	return w
}

// sent notes one postback, in the order of its order.
func (w *witness) sent(pb postback, id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	o := w.orders[pb.order]
	if o == nil {
		o = new(witnessed)
		w.orders[pb.order] = o
	}
	// Nobody knows whether one without an answer is stored, and so whether the next one repeats it.
	o.unordered = o.unordered || pb.unordered || id == ""
	switch {
	case id == "", len(o.ids) > 0 && o.ids[len(o.ids)-1] == id, o.unordered && slices.Contains(o.ids, id):
	default:
		o.ids = append(o.ids, id)
	}
}

// read notes the events of a bus. Those of others are noted, too: whose they are may not be known yet.
func (w *witness) read(b *watchedBus, stored map[string][]string) {
	for {
		select {
		case <-w.quit:
			return
		case m := <-b.messages:
			if !b.wants(m) {
				continue
			}
			order := m.key[strings.LastIndexByte(m.key, '.')+1:]
			w.mu.Lock()
			stored[order] = append(stored[order], m.eventID())
			if w.orders[order] != nil {
				w.last = time.Now()
			}
			w.mu.Unlock()
		}
	}
}

// quietTime is how long a bus has to be quiet, when everything is there, for nothing more to be expected.
const quietTime = 300 * time.Millisecond

// await waits until everything is there and it is quiet, or until no event has come for the timeout.
func (w *witness) await(ctx context.Context, timeout time.Duration) *worstReport {
	defer w.reads.Wait()
	defer close(w.quit)
	w.mu.Lock()
	w.last = time.Now()
	w.mu.Unlock()
	for {
		r, quiet := w.report()
		if ctx.Err() != nil || quiet > timeout || r.missing() == 0 && quiet > quietTime {
			return r
		}
		pause(ctx, quietTime/3)
	}
}

func (w *witness) report() (r *worstReport, quiet time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r = &worstReport{Orders: len(w.orders), Buses: make(map[string]*busReport)}
	for _, o := range w.orders {
		r.Events += len(o.ids)
	}
	for i, b := range w.buses {
		of := new(busReport)
		r.Buses[b.name] = of
		if !b.hasBegun() {
			of.Unread = b.notes.lastSaid()
			continue
		}
		for id, o := range w.orders {
			of.compare(o, w.stored[i][id])
		}
	}
	return r, time.Since(w.last)
}

// worstReport is what a consumer should see, and what is on each bus.
type worstReport struct {
	Behaviours misbehaviours          `json:"behaviours"`
	Orders     int                   `json:"orders"`
	Events     int                   `json:"events"`
	Buses      map[string]*busReport `json:"buses"`
}

// busReport is how one bus compares.
type busReport struct {
	Unread    string `json:"unread,omitempty"` // why it could not be read; then nothing else holds
	Stored    int    `json:"stored"`
	Missing   int    `json:"missing"`
	Disorder  int    `json:"out_of_order"` // orders
	Republish int    `json:"repeats_published"`
}

// compare takes in one order: what was acknowledged, and what is stored.
func (b *busReport) compare(want *witnessed, got []string) {
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

func (r *worstReport) missing() (n int) {
	for _, b := range r.Buses {
		n += b.Missing
	}
	return n
}

// failure says what is wrong: something is missing, or out of order. A repeat that is published is allowed.
func (r *worstReport) failure() error {
	var wrong []error
	for _, name := range busNames() {
		if b := r.Buses[name]; b != nil && b.Missing+b.Disorder > 0 {
			wrong = append(wrong, fmt.Errorf("send: %s lacks %d of %d events, and has %d of %d orders out of order",
				name, b.Missing, r.Events, b.Disorder, r.Orders))
		}
	}
	return errors.Join(wrong...)
}

func (r *worstReport) text() string {
	var b strings.Builder
	least := ""
	if r.Behaviours.split() {
		least = "at least " // a state may come, go and come again
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
