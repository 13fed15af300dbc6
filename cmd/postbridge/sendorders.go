package main

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/postbridge/postbridge/brokers/kite"
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

// generator makes orders, each from the seed and its number alone.
type generator struct {
	*sendOptions
	seed  uint64 // in force, hence never 0
	start time.Time
	made  atomic.Int64
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
	user := r.IntN(g.users) + 1
	o := &order{
		id:       orderID(g.seed, i),
		user:     userID(g.broker, user),
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

func userID(broker string, n int) string {
	if broker == "dhan" {
		return strconv.Itoa(1_000_000_000 + n)
	}
	return fmt.Sprintf("AB%04d", n)
}

// live makes the states of the order's life.
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

// body returns the postback of a state, signed with the first app.
func (o *order) body(to *sendOptions, n int) []byte {
	if to.broker == "dhan" {
		return o.dhan(&o.states[n])
	}
	return o.kite(&o.states[n], to.app())
}

// kite writes the postback in the shape of Kite's official sample.
func (o *order) kite(s *state, app kite.Secret) []byte {
	words := [...]string{"PUT ORDER REQ RECEIVED", "OPEN", "UPDATE", "COMPLETE", "CANCELLED", "REJECTED"}
	guid, pending, reason, raw, tag := "s", s.pending, "null", "null", "null"
	if s.step == cancelled {
		pending = s.cancelled // the first of two reports still counts as pending what the second does not
	}
	if s.step == rejected {
		reason, raw = `"Insufficient funds"`, `"RMS:Margin Exceeds,Required:1000.00,Available:10.00"`
	}
	if o.tag != "" {
		tag = strconv.Quote(o.tag)
	}
	if s.reworded {
		guid, pending, words[open], words[partlyFilled] = "d", s.pending, "UPDATE", "OPEN"
	}
	at := o.at(s)
	return fmt.Appendf(nil, `{"user_id":%[1]q,"unfilled_quantity":0,"app_id":%[2]s,"checksum":%[3]q,"placed_by":%[1]q,`+
		`"order_id":%[4]q,"exchange_order_id":%[5]q,"parent_order_id":null,"status":%[6]q,`+
		`"status_message":%[7]s,"status_message_raw":%[8]s,`+
		`"order_timestamp":%[9]q,"exchange_update_timestamp":%[9]q,"exchange_timestamp":%[9]q,`+
		`"variety":"regular","exchange":"NSE","tradingsymbol":%[10]q,"instrument_token":779521,`+
		`"order_type":"LIMIT","transaction_type":%[11]q,"validity":"DAY","product":"CNC","quantity":%[12]d,`+
		`"disclosed_quantity":0,"price":%[13]s,"trigger_price":0,"average_price":%[14]s,`+
		`"filled_quantity":%[15]d,"pending_quantity":%[16]d,"cancelled_quantity":%[17]d,`+
		`"market_protection":0,"meta":{},"tag":%[18]s,"guid":%[19]q}`,
		o.user, appID(app.AppID), checksum(o.id, at, app.Secret), o.id, o.id[3:], words[s.step], reason, raw, at,
		o.symbol, o.side, o.quantity, rupees(o.paise), rupees(o.paise*min(s.filled, 1)),
		s.filled, pending, s.cancelled, tag, guid)
}

// dhan writes the postback in the shape of Dhan's official sample.
func (o *order) dhan(s *state) []byte {
	words := [...]string{"TRANSIT", "PENDING", "PART_TRADED", "TRADED", "CANCELLED", "REJECTED"}
	code, reason := "null", "null"
	if s.step == rejected {
		code, reason = `"16052"`, `"Insufficient funds"`
	}
	if s.reworded {
		words[partlyFilled] = "PENDING"
	}
	return fmt.Appendf(nil, `{"dhanClientId":%q,"orderId":%q,"correlationId":%q,"orderStatus":%q,"transactionType":%q,`+
		`"exchangeSegment":"NSE_EQ","productType":"CNC","orderType":"LIMIT","validity":"DAY","tradingSymbol":%q,`+
		`"securityId":"11536","quantity":%d,"disclosedQuantity":0,"price":%s,"triggerPrice":0.0,`+
		`"afterMarketOrder":false,"boProfitValue":0.0,"boStopLossValue":0.0,"legName":null,`+
		`"createTime":%[9]q,"updateTime":%[9]q,"exchangeTime":%[9]q,`+
		`"drvExpiryDate":null,"drvOptionType":null,"drvStrikePrice":0.0,`+
		`"omsErrorCode":%[10]s,"omsErrorDescription":%[11]s,"filled_qty":%[12]d,"algoId":null}`,
		o.user, o.id, o.tag, words[s.step], o.side, o.symbol, o.quantity, rupees(o.paise), o.at(s), code, reason, s.filled)
}

// at is the time of a state as both brokers write it: Indian time without its zone.
func (o *order) at(s *state) string {
	return o.placed.Add(5*time.Hour + 30*time.Minute + time.Duration(s.second)*time.Second).Format(time.DateTime)
}

func rupees(paise int) string {
	if paise == 0 {
		return "0"
	}
	return fmt.Sprintf("%d.%02d", paise/100, paise%100)
}

// appID writes the id of an app as Kite does, as a number; one that is not a number as a string.
func appID(id string) []byte {
	if _, err := strconv.ParseUint(id, 10, 64); err == nil && (id == "0" || id[0] != '0') {
		return []byte(id)
	}
	text, _ := jsontext.AppendQuote(nil, id) // the error reports invalid UTF-8, which is replaced
	return text
}

// checksum returns Kite's official checksum.
func checksum(orderID, at, secret string) string {
	return fmt.Sprintf("%x", sha256.Sum256([]byte(orderID+at+secret)))
}
