package main

import (
	"cmp"
	"crypto/sha256"
	"embed"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// step is what happened to an order, in no broker's words.
type step int

const (
	placed step = iota
	open
	partlyFilled
	filled
	cancelled
	rejected
)

// state is one state of a generated order.
type state struct {
	step                       step
	filled, pending, cancelled int
	// second counts from when the order was placed. The repeat of a state has the same.
	second int
	// reworded is set for the repeat of a state in other words: Kite reports one change as UPDATE and as OPEN.
	reworded bool
}

// order is a generated order with all its states, in the order in which they are sent.
type order struct {
	id, user, symbol, side string
	tag                    string // the client's own id of it; mostly empty
	quantity, paise        int
	placed                 time.Time
	states                 []state
}

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

// misbehaviours are those that --worst names.
type misbehaviours []misbehaviour

// set reads names, or all.
func (m *misbehaviours) set(text string) error {
	all := allMisbehaviours()
	if text == "all" {
		text = all.String()
	}
	var names list
	if err := names.UnmarshalText([]byte(text)); err != nil {
		return err
	}
	for _, name := range names {
		if !slices.Contains(strings.Split(all.String(), ","), name) {
			return fmt.Errorf("%q is not known; set it to all or some of %v", name, all)
		}
	}
	*m = slices.DeleteFunc(all, func(of misbehaviour) bool { return !slices.Contains(names, of.name) })
	return nil
}

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

// generator makes orders, each from the seed and its number alone.
type generator struct {
	*sendOptions
	seed  uint64 // in force, hence never 0
	start time.Time
	made  atomic.Int64 // how many orders
}

func newGenerator(o *sendOptions) *generator {
	g := &generator{sendOptions: o, seed: o.seed, start: time.Now()}
	if g.seed == 0 {
		g.seed = uint64(g.start.UnixNano())
	} else {
		g.start = time.Date(2026, 1, 5, 9, 15, 0, 0, time.UTC) // a Monday, when the market opens
	}
	return g
}

// postbacks returns a function for each connection that makes the states of one order after the other. If orders are
// split, every other connection has the same function, so that the states of an order are in flight at the same time.
func (g *generator) postbacks() []func() postback {
	all := make([]func() postback, g.connections)
	shared := g.lives(true)
	for i := range all {
		if all[i] = shared; i%2 == 1 || !g.worst.split() {
			all[i] = g.lives(false)
		}
	}
	return all
}

func (g *generator) lives(shared bool) func() postback {
	var mu sync.Mutex
	o, n := new(order), 0
	return func() postback {
		mu.Lock()
		defer mu.Unlock()
		if n == len(o.states) {
			o, n = g.order(uint64(g.made.Add(1)-1)), 0
		}
		n++
		return postback{body: o.body(g.sendOptions, n-1), order: o.id, n: n - 1, unordered: shared}
	}
}

// order makes order number i.
func (g *generator) order(i uint64) *order {
	r := rand.New(rand.NewPCG(g.seed, i))
	userID := map[string]string{"kite": "AB%04d", "dhan": "1%09d"}[g.broker]
	o := &order{
		id:       orderID(g.seed, i),
		user:     fmt.Sprintf(userID, r.IntN(g.users)+1),
		symbol:   [...]string{"SBIN", "INFY", "TATAMOTORS", "BANKNIFTY2660236800CE"}[r.IntN(4)],
		side:     [...]string{"BUY", "SELL"}[r.IntN(2)],
		quantity: 10 * (1 + r.IntN(50)),
		paise:    5 * (1000 + r.IntN(40000)),
		placed:   g.start.Add(time.Duration(i) * time.Millisecond).UTC(),
	}
	o.live(r)
	o.repeat(true, func(state) bool { return g.repeats > 0 && r.Float64() < g.repeats })
	if r.Float64() < g.late {
		o.delay()
	}
	for _, m := range g.worst {
		if m.late {
			o.delay()
		}
		o.repeat(m.reworded, func(s state) bool { return slices.Contains(m.twice, s.step) })
	}
	return o
}

// orderID returns 19 digits, like the longest that brokers use. Runs with different seeds have different ids.
func orderID(seed, i uint64) string {
	sum := sha256.Sum256(binary.LittleEndian.AppendUint64(nil, seed))
	return strconv.FormatUint(1e18+binary.BigEndian.Uint64(sum[:])%1e10*1e8+i%1e8, 10)
}

// live makes the states of the order: one out of ten orders is rejected, two are cancelled, and the rest is filled.
func (o *order) live(r *rand.Rand) {
	s := state{step: placed, pending: o.quantity}
	next := func(to step) {
		s.step = to
		o.states = append(o.states, s)
		s.second++
	}
	next(placed)
	fate := r.Float64()
	if fate < 0.1 {
		s.pending, s.cancelled = 0, 0
		next(rejected)
		return
	}
	next(open)
	for range r.IntN(4) {
		some := r.IntN(s.pending) / 2
		if some == 0 {
			continue
		}
		s.filled, s.pending = s.filled+some, s.pending-some
		next(partlyFilled)
	}
	if fate < 0.3 {
		s.pending, s.cancelled = 0, s.pending
		next(cancelled)
		return
	}
	s.filled, s.pending = o.quantity, 0
	next(filled)
}

// repeat inserts a second copy of some states, in other words or byte for byte.
func (o *order) repeat(reworded bool, some func(state) bool) {
	var states []state
	for _, s := range o.states {
		states = append(states, s)
		if some(s) {
			s.reworded = s.reworded || reworded
			states = append(states, s)
		}
	}
	o.states = states
}

// delay moves the last partial fill behind the end of the order.
func (o *order) delay() {
	for i := len(o.states) - 2; i >= 0; i-- {
		if s := o.states[i]; s.step == partlyFilled {
			o.states = append(slices.Delete(o.states, i, i+1), s)
			return
		}
	}
}

// samples are the official sample of each broker, with a $name for each value that differs.
//
//go:embed samples
var samples embed.FS

// body returns the postback of a state, signed with the first app.
func (o *order) body(to *sendOptions, n int) []byte {
	s, app := o.states[n], to.app()
	// Both brokers write Indian time without its zone.
	at := o.placed.Add(5*time.Hour + 30*time.Minute + time.Duration(s.second)*time.Second).Format(time.DateTime)
	guid, pending, code, reason, raw := "s", s.pending, "", "", ""
	if s.reworded {
		guid = "d"
	} else if s.step == cancelled {
		pending = s.cancelled // the first of two reports still counts as pending what the second does not
	}
	if s.step == rejected {
		code, reason, raw = "16052", "Insufficient funds", "RMS:Margin Exceeds,Required:1000.00,Available:10.00"
	}
	values := map[string]any{
		"user": o.user, "order": o.id, "exchange_order": o.id[3:], "symbol": o.symbol, "side": o.side, "time": at,
		"quantity": o.quantity, "price": rupees(o.paise), "average_price": rupees(o.paise * min(s.filled, 1)),
		"filled": s.filled, "pending": pending, "cancelled": s.cancelled, "status": s.word(to.broker), "guid": guid,
		"reason_code": orNull(code), "reason": orNull(reason), "reason_raw": orNull(raw),
		"tag": orNull(o.tag), "correlation": o.tag,
		"app": cmp.Or(app.AppID, `""`), "checksum": checksum(o.id, at, app.Secret),
	}
	sample, _ := samples.ReadFile("samples/" + to.broker + ".json") // is part of the program
	body := os.Expand(string(sample), func(name string) string { return fmt.Sprint(values[name]) })
	return []byte(strings.TrimSpace(body))
}

// word returns what the broker calls a state. Only Kite is known to report one state in two words.
func (s *state) word(broker string) string {
	words := map[string][6]string{
		"kite": {"PUT ORDER REQ RECEIVED", "OPEN", "UPDATE", "COMPLETE", "CANCELLED", "REJECTED"},
		"dhan": {"TRANSIT", "PENDING", "PART_TRADED", "TRADED", "CANCELLED", "REJECTED"},
	}[broker]
	word := words[s.step]
	if other, ok := map[string]string{"OPEN": "UPDATE", "UPDATE": "OPEN"}[word]; ok && s.reworded {
		return other
	}
	return word
}

func orNull(text string) string {
	if text == "" {
		return "null"
	}
	return strconv.Quote(text)
}

func rupees(paise int) string {
	if paise == 0 {
		return "0"
	}
	return fmt.Sprintf("%d.%02d", paise/100, paise%100)
}

// checksum returns Kite's official checksum.
func checksum(orderID, at, secret string) string {
	return fmt.Sprintf("%x", sha256.Sum256([]byte(orderID+at+secret)))
}
