package main

import (
	"cmp"
	"crypto/sha256"
	"embed"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/postbridge/postbridge/brokers/kite"
)

// step is an event in the life of an order, independent of the broker.
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
	second                     int  // since the order was placed; a repeat has the second of its state
	reworded                   bool // reports the state of the one before it with another status, if the broker has one
}

// order is a generated order with all its states in the order of sending.
type order struct {
	id, user, symbol, side string
	tag                    string // the client's own order id; may be empty
	quantity, paise        int
	placed                 time.Time
	states                 []state
	sent                   int // number of states sent
}

// profile describes how a broker's postbacks are generated, addressed and signed. Its sample body is
// samples/<broker>.json, with a $name for each value to replace; its route is /<broker>, and below it a path token.
type profile struct {
	userID   string            // format of the id of a generated user
	time     string            // layout of Indian times without a zone
	sides    [2]string         // buy and sell
	statuses [6]string         // by step
	synonyms map[string]string // other statuses for the same state, of a broker that reports one change as two
	signed   bool              // each body has a checksum made with an app's secret; else the URL needs a path token
}

// profiles returns the profile of each broker.
func profiles() map[string]profile {
	return map[string]profile{
		"kite": {
			userID:   "AB%04d",
			time:     time.DateTime,
			sides:    [...]string{"BUY", "SELL"},
			statuses: [...]string{"PUT ORDER REQ RECEIVED", "OPEN", "UPDATE", "COMPLETE", "CANCELLED", "REJECTED"},
			synonyms: map[string]string{"OPEN": "UPDATE", "UPDATE": "OPEN"},
			signed:   true,
		},
		"dhan": {
			userID:   "1%09d",
			time:     time.DateTime,
			sides:    [...]string{"BUY", "SELL"},
			statuses: [...]string{"TRANSIT", "PENDING", "PART_TRADED", "TRADED", "CANCELLED", "REJECTED"},
		},
		"upstox": {
			userID:   "7AB%04d",
			time:     time.DateTime,
			sides:    [...]string{"BUY", "SELL"},
			statuses: [...]string{"put order req received", "open", "open", "complete", "cancelled", "rejected"},
		},
		"fyers": {
			userID:   "XA%05d",
			time:     "02-Jan-2006 15:04:05",
			sides:    [...]string{"1", "-1"},
			statuses: [...]string{"4", "6", "6", "2", "1", "5"},
		},
	}
}

// behaviour describes a misbehaviour of brokers: how it changes the states of an order and how they are sent.
type behaviour struct {
	name        string
	share       float64 // of the orders or states that it changes
	late        bool    // move the last partial fill after the end of its order
	twice       []step  // send these states twice ...
	reworded    bool    // ... the second time with another status
	rate        float64 // send the postbacks of a second at its beginning; postbacks per second unless --rate is set
	connections int     // minimum; send the states of half of the orders over several connections at once
}

// behaviours holds the value of --worst.
type behaviours []behaviour

// worstBehaviours returns all behaviours of --worst in the order in which they change an order.
func worstBehaviours() behaviours {
	return behaviours{
		{name: "late", share: 1, late: true},
		{name: "words", share: 1, twice: []step{open, partlyFilled}, reworded: true},
		{name: "cancels", share: 1, twice: []step{cancelled}, reworded: true},
		{name: "doubled", share: 1, twice: allSteps()},
		{name: "storm", rate: 500},
		{name: "split", connections: 4},
	}
}

func allSteps() []step { return []step{placed, open, partlyFilled, filled, cancelled, rejected} }

// set parses comma-separated names, or all.
func (b *behaviours) set(text string) error {
	all, names := worstBehaviours(), strings.Split(text, ",")
	if text == "all" {
		names = strings.Split(all.String(), ",")
	}
	*b = slices.DeleteFunc(worstBehaviours(), func(one behaviour) bool { return !slices.Contains(names, one.name) })
	if len(*b) != len(names) {
		return fmt.Errorf("%q is not known; set it to all or some of %v", text, all)
	}
	return nil
}

// apply sets the options of sending that the behaviours need.
func (b behaviours) apply(o *sendOptions) {
	for _, one := range b {
		o.burst, o.split = o.burst || one.rate > 0, o.split || one.connections > 0
		o.connections = max(o.connections, one.connections)
		o.rate = cmp.Or(o.rate, one.rate)
	}
}

func (b behaviours) String() string {
	var names list
	for _, one := range b {
		names = append(names, one.name)
	}
	return names.String()
}

// generator generates orders. An order depends on the seed and its number alone.
type generator struct {
	*sendOptions
	seed       uint64 // from the clock if --seed is 0
	start      time.Time
	behaviours behaviours
	made       uint64
	current    []*order // by worker
}

func newGenerator(o *sendOptions) *generator {
	g := &generator{sendOptions: o, seed: o.seed, start: time.Now(), current: make([]*order, o.connections)}
	if g.seed == 0 {
		g.seed = uint64(g.start.UnixNano())
	} else {
		g.start = time.Date(2026, 1, 5, 9, 15, 0, 0, time.UTC) // market open on a Monday
	}
	g.behaviours = append(behaviours{
		{share: o.repeats, twice: allSteps(), reworded: true},
		{share: o.late, late: true},
	}, o.worst...)
	return g
}

// next implements source. A worker sends one order to its end. With split, every other worker shares one order, so that
// several of its states are in flight.
func (g *generator) next(worker int) (postback, error) {
	shared := worker%2 == 0 && g.split
	if shared {
		worker = 0
	}
	o := g.current[worker]
	if o == nil || o.sent == len(o.states) {
		o = g.order(g.made)
		g.made++
		g.current[worker] = o
	}
	n := o.sent
	o.sent++
	return postback{body: o.body(g.sendOptions, n), order: o.id, n: n, unordered: shared}, nil
}

// order generates order number i.
func (g *generator) order(i uint64) *order {
	r := rand.New(rand.NewPCG(g.seed, i))
	o := &order{
		id:       strconv.FormatUint(1e18+r.Uint64N(8e18), 10), // 19 digits, the longest that brokers use
		user:     fmt.Sprintf(g.profile.userID, r.IntN(g.users)+1),
		symbol:   [...]string{"SBIN", "INFY", "TATAMOTORS", "BANKNIFTY2660236800CE"}[r.IntN(4)],
		side:     g.profile.sides[r.IntN(2)],
		quantity: 10 * (1 + r.IntN(50)),
		paise:    5 * (1000 + r.IntN(40000)),
		placed:   g.start.Add(time.Duration(i) * time.Millisecond).UTC(),
	}
	o.addStates(r)
	for _, b := range g.behaviours {
		some := func() bool { return b.share > 0 && r.Float64() < b.share }
		if b.late && some() {
			o.delay()
		}
		o.repeat(b.reworded, func(s state) bool { return slices.Contains(b.twice, s.step) && some() })
	}
	return o
}

// addStates generates the states of the order: 10 % of the orders are rejected, 20 % cancelled and the rest filled.
func (o *order) addStates(r *rand.Rand) {
	s := state{step: placed, pending: o.quantity}
	next := func(to step) {
		s.step = to
		o.states = append(o.states, s)
		s.second++
	}
	next(placed)
	fate := r.Float64()
	if fate < 0.1 {
		s.pending = 0
		next(rejected)
		return
	}
	next(open)
	for range r.IntN(4) {
		if some := r.IntN(s.pending) / 2; some > 0 {
			s.filled, s.pending = s.filled+some, s.pending-some
			next(partlyFilled)
		}
	}
	if fate < 0.3 {
		s.pending, s.cancelled = 0, s.pending
		next(cancelled)
		return
	}
	s.filled, s.pending = o.quantity, 0
	next(filled)
}

// repeat duplicates the selected states, with another status or byte for byte.
func (o *order) repeat(reworded bool, selected func(state) bool) {
	var states []state
	for _, s := range o.states {
		states = append(states, s)
		if selected(s) {
			s.reworded = s.reworded || reworded
			states = append(states, s)
		}
	}
	o.states = states
}

// delay moves the last partial fill after the end of the order.
func (o *order) delay() {
	for i, s := range slices.Backward(o.states) {
		if s.step == partlyFilled {
			o.states = append(slices.Delete(o.states, i, i+1), s)
			return
		}
	}
}

// samples holds the official sample body of each broker, with a $name for each value to replace.
//
//go:embed samples
var samples embed.FS

// body returns the postback of state n, signed with the first app.
func (o *order) body(to *sendOptions, n int) []byte {
	s, app := o.states[n], append(to.apps, kite.Secret{})[0]
	status := to.profile.statuses[s.step]
	if s.reworded {
		status = cmp.Or(to.profile.synonyms[status], status)
	}
	sample, _ := samples.ReadFile("samples/" + to.broker + ".json") // embedded
	at := o.placed.Add(5*time.Hour + 30*time.Minute + time.Duration(s.second)*time.Second).Format(to.profile.time)
	values := map[string]string{
		"user": o.user, "order": o.id, "exchange_order": o.id[3:], "symbol": o.symbol, "side": o.side, "time": at,
		"quantity": strconv.Itoa(o.quantity), "filled": strconv.Itoa(s.filled), "pending": strconv.Itoa(s.pending),
		"cancelled": strconv.Itoa(s.cancelled), "unfilled": strconv.Itoa(s.pending + s.cancelled),
		"price":         rupees(o.paise),
		"average_price": rupees(o.paise * min(s.filled, 1)), "status": status, "guid": "s",
		"reason_code": "null", "reason": "null", "reason_raw": "null", "tag": "null", "correlation": o.tag,
		"app": cmp.Or(app.AppID, `""`), "checksum": checksum(o.id, at, app.Secret),
	}
	if s.reworded {
		values["guid"] = "d"
	} else if s.step == cancelled {
		values["pending"] = values["cancelled"] // only the first of two reports counts them as pending
	}
	if s.step == rejected {
		values["reason_code"], values["reason"] = `"16052"`, `"Insufficient funds"`
		values["reason_raw"] = `"RMS:Margin Exceeds,Required:1000.00,Available:10.00"`
	}
	if o.tag != "" {
		values["tag"] = strconv.Quote(o.tag)
	}
	body := os.Expand(string(sample), func(name string) string { return values[name] })
	return []byte(strings.TrimSpace(body))
}

func rupees(paise int) string { return fmt.Sprintf("%d.%02d", paise/100, paise%100) }

// checksum returns Kite's official checksum.
func checksum(orderID, at, secret string) string {
	return fmt.Sprintf("%x", sha256.Sum256([]byte(orderID+at+secret)))
}
