package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strconv"
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
	// doubled is set for the repeat of a state in other words; Kite says UPDATE and OPEN for one change.
	doubled bool
}

// order is a generated order with all its states, in the order in which they are sent.
type order struct {
	id, user, symbol, side string
	tag                    string // what the client calls it; mostly nothing
	quantity, paise        int
	placed                 time.Time
	states                 []state
}

// orderSource generates lives of orders. Order number i is the same whenever the seed is.
func orderSource(o *sendOptions) func() source {
	g := &generator{sendOptions: o, seed: o.seed, start: time.Now()}
	if g.seed == 0 {
		g.seed = uint64(g.start.UnixNano())
	} else {
		g.start = time.Date(2026, 1, 5, 9, 15, 0, 0, time.UTC) // a Monday, when the market opens
	}
	app := parseApp(o.secret)
	return func() source {
		life, n, buf := new(order), 0, []byte(nil)
		return func() postback {
			if n == len(life.states) {
				life, n = g.order(uint64(g.taken.Add(1)-1)), 0
			}
			if o.broker == "dhan" {
				buf = life.appendDhan(buf[:0], &life.states[n])
			} else {
				buf = life.appendKite(buf[:0], &life.states[n], app)
			}
			n++
			return postback{body: buf, order: life.id, n: n - 1}
		}
	}
}

// generator makes orders, each from the seed and its number alone.
type generator struct {
	*sendOptions
	seed  uint64 // in force, hence never 0
	start time.Time
	taken atomic.Int64
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
	if g.repeats > 0 {
		o.repeat(r, g.repeats)
	}
	if r.Float64() < g.late {
		o.delay()
	}
	o.misbehave(g.worst)
	return o
}

// orderID is 19 digits, like the longest that brokers use: runs with different seeds do not meet.
func orderID(seed, i uint64) string {
	var b [8]byte
	for j := range b {
		b[j] = byte(seed >> (8 * j))
	}
	sum := sha256.Sum256(b[:])
	run := uint64(0)
	for _, x := range sum[:8] {
		run = run<<8 | uint64(x)
	}
	return strconv.FormatUint(1e18+run%1e10*1e8+i%1e8, 10)
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

// repeat doubles a fraction of the states, as brokers do.
func (o *order) repeat(r *rand.Rand, fraction float64) {
	var states []state
	for _, s := range o.states {
		states = append(states, s)
		if r.Float64() < fraction {
			s.doubled = true
			states = append(states, s)
		}
	}
	o.states = states
}

// delay moves the last fill behind the end of the order, as it arrives now and then.
func (o *order) delay() {
	for i := len(o.states) - 2; i >= 0; i-- {
		if s := o.states[i]; s.step == partlyFilled {
			o.states = append(append(o.states[:i:i], o.states[i+1:]...), s)
			return
		}
	}
}

func (s *state) kite() string {
	switch s.step {
	case placed:
		return "PUT ORDER REQ RECEIVED"
	case open, partlyFilled:
		if (s.step == open) == s.doubled {
			return "UPDATE"
		}
		return "OPEN"
	case filled:
		return "COMPLETE"
	case cancelled:
		return "CANCELLED"
	default:
		return "REJECTED"
	}
}

func (s *state) dhan() string {
	switch s.step {
	case placed:
		return "TRANSIT"
	case open:
		return "PENDING"
	case partlyFilled:
		if s.doubled {
			return "PENDING"
		}
		return "PART_TRADED"
	case filled:
		return "TRADED"
	case cancelled:
		return "CANCELLED"
	default:
		return "REJECTED"
	}
}

// appendTime writes a time as both brokers do: without its zone, which is India's.
func (o *order) appendTime(b []byte, s *state) []byte {
	ist := o.placed.Add(5*time.Hour + 30*time.Minute + time.Duration(s.second)*time.Second)
	return ist.AppendFormat(b, time.DateTime)
}

func appendRupees(b []byte, paise int) []byte {
	b = strconv.AppendInt(b, int64(paise/100), 10)
	return append(b, '.', byte('0'+paise/10%10), byte('0'+paise%10))
}

// appendKite writes the postback in the shape of Kite's official sample.
func (o *order) appendKite(b []byte, s *state, app kite.Secret) []byte {
	var clock [32]byte
	at := o.appendTime(clock[:0], s)
	pending, guid := s.pending, "s"
	if s.doubled {
		guid = "d"
	} else if s.step == cancelled {
		pending = s.cancelled // the first of two still counts what the second no longer does
	}
	text := func(name, value string) {
		b = append(append(append(append(b, name...), '"'), value...), '"')
	}
	number := func(name string, n int) { b = strconv.AppendInt(append(b, name...), int64(n), 10) }

	text(`{"user_id":`, o.user)
	b = appendAppID(append(b, `,"unfilled_quantity":0,"app_id":`...), app.AppID)
	b = append(b, `,"checksum":"`...)
	b = appendChecksum(b, o.id, at, app.Secret)
	text(`","placed_by":`, o.user)
	text(`,"order_id":`, o.id)
	text(`,"exchange_order_id":`, o.id[3:])
	text(`,"parent_order_id":null,"status":`, s.kite())
	if s.step == rejected {
		text(`,"status_message":`, "Insufficient funds")
		text(`,"status_message_raw":`, "RMS:Margin Exceeds,Required:1000.00,Available:10.00")
	} else {
		b = append(b, `,"status_message":null,"status_message_raw":null`...)
	}
	text(`,"order_timestamp":`, string(at))
	text(`,"exchange_update_timestamp":`, string(at))
	text(`,"exchange_timestamp":`, string(at))
	text(`,"variety":"regular","exchange":"NSE","tradingsymbol":`, o.symbol)
	text(`,"instrument_token":779521,"order_type":"LIMIT","transaction_type":`, o.side)
	number(`,"validity":"DAY","product":"CNC","quantity":`, o.quantity)
	b = appendRupees(append(b, `,"disclosed_quantity":0,"price":`...), o.paise)
	b = append(b, `,"trigger_price":0,"average_price":`...)
	b = o.appendAverage(b, s)
	number(`,"filled_quantity":`, s.filled)
	number(`,"pending_quantity":`, pending)
	number(`,"cancelled_quantity":`, s.cancelled)
	if o.tag == "" {
		b = append(b, `,"market_protection":0,"meta":{},"tag":null`...)
	} else {
		text(`,"market_protection":0,"meta":{},"tag":`, o.tag)
	}
	text(`,"guid":`, guid)
	return append(b, '}')
}

func (o *order) appendAverage(b []byte, s *state) []byte {
	if s.filled == 0 {
		return append(b, '0')
	}
	return appendRupees(b, o.paise)
}

// appendAppID writes the id of an app as Kite does, which is a number; one that is none, as a string.
func appendAppID(b []byte, id string) []byte {
	if _, err := strconv.ParseUint(id, 10, 64); err == nil && (id == "0" || id[0] != '0') {
		return append(b, id...)
	}
	b, _ = jsontext.AppendQuote(b, id) // the error says that a byte was no UTF-8, which is replaced
	return b
}

// appendChecksum writes Kite's official checksum.
func appendChecksum(b []byte, orderID string, at []byte, secret string) []byte {
	var text [128]byte
	sum := sha256.Sum256(append(append(append(text[:0], orderID...), at...), secret...))
	return hex.AppendEncode(b, sum[:])
}

// appendDhan writes the postback in the shape of Dhan's official sample.
func (o *order) appendDhan(b []byte, s *state) []byte {
	var clock [32]byte
	at := string(o.appendTime(clock[:0], s))
	text := func(name, value string) {
		b = append(append(append(append(b, name...), '"'), value...), '"')
	}
	number := func(name string, n int) { b = strconv.AppendInt(append(b, name...), int64(n), 10) }

	text(`{"dhanClientId":`, o.user)
	text(`,"orderId":`, o.id)
	text(`,"correlationId":`, o.tag)
	text(`,"orderStatus":`, s.dhan())
	text(`,"transactionType":`, o.side)
	text(`,"exchangeSegment":"NSE_EQ","productType":"CNC","orderType":"LIMIT","validity":"DAY","tradingSymbol":`, o.symbol)
	number(`,"securityId":"11536","quantity":`, o.quantity)
	b = appendRupees(append(b, `,"disclosedQuantity":0,"price":`...), o.paise)
	b = append(b, `,"triggerPrice":0.0,"afterMarketOrder":false,"boProfitValue":0.0,"boStopLossValue":0.0,"legName":null`...)
	text(`,"createTime":`, at)
	text(`,"updateTime":`, at)
	text(`,"exchangeTime":`, at)
	b = append(b, `,"drvExpiryDate":null,"drvOptionType":null,"drvStrikePrice":0.0`...)
	if s.step == rejected {
		b = append(b, `,"omsErrorCode":"16052","omsErrorDescription":"Insufficient funds"`...)
	} else {
		b = append(b, `,"omsErrorCode":null,"omsErrorDescription":null`...)
	}
	number(`,"filled_qty":`, s.filled)
	return append(b, `,"algoId":null}`...)
}
