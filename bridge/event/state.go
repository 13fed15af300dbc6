package event

import (
	"math/big"
	"strings"
	"time"
)

// Verdict is what an event is to a consumer that has applied others of the same order.
type Verdict string

// The verdicts. The state of an order changes with VerdictNew only.
const (
	VerdictNew    Verdict = "new"
	VerdictRepeat Verdict = "repeat" // the same id as the last event applied
	VerdictLate   Verdict = "late"   // older than the last event applied
)

// State is the state of one order, or of one leg of it, after the events applied so far. It is JSON, to be stored with
// what a consumer computes from it. The zero value is an order without events.
type State struct {
	ID           string `json:"id"` // of the last event applied
	Status       Status `json:"status"`
	Filled       int64  `json:"filled_quantity"`
	AveragePrice string `json:"average_price,omitzero"` // of what is filled; empty if it is not known

	// Updated is the broker's time of the change, and AtExchange whether the exchange had the order then: before, its
	// times are of another clock.
	Updated    string `json:"updated_time,omitzero"`
	AtExchange bool   `json:"at_exchange,omitzero"`
	// Received is the received_at of the last event applied, and Book that of the last one from the order book.
	Received string `json:"received_at"`
	Book     string `json:"book,omitzero"`
	Spool    string `json:"spool,omitzero"`
	Sequence uint64 `json:"sequence,omitzero"`
}

// Change is what an event changed.
type Change struct {
	Verdict Verdict
	// NewFill is the quantity filled since the last event applied; never negative.
	NewFill int64
	// FillPrice is the average price of NewFill, to 6 places, computed from the averages before and after; empty if one
	// of them is not known. As brokers round averages, a small fill of a large order may be off by more than a tick;
	// quantity times price, summed over all fills, is right.
	FillPrice string
	// Corrected is by how much the filled quantity fell: the exchange cancelled a trade, or the order book disproved a
	// postback. It takes back fills that were reported.
	Corrected int64
	// State is the state of the order now.
	State State
}

// Apply applies an event of the order. Whatever the sequence of the events, their repeats and delays, fills minus
// corrections add up to the filled quantity of the newest one, which decides the state. Of two events the newer is, in
// this order: the terminal one, the one that the broker changed later, the one with the larger filled quantity, the one
// with the higher number in one spool, the one applied later. An event of the order book wins over what was received
// before the book was requested.
func (s *State) Apply(m *Message) Change {
	switch {
	case s.ID != "" && m.ID == s.ID:
		return Change{Verdict: VerdictRepeat, State: *s}
	case s.ID != "" && s.newerThan(m):
		return Change{Verdict: VerdictLate, State: *s}
	}
	return s.change(m)
}

// maxSkew is how far the clocks of replicas may differ: a postback may seem that much older than the book, and yet have
// arrived after it.
const maxSkew = 10 * time.Second

// newerThan compares by the order book, then by the broker's own word, and last by our numbers.
func (s *State) newerThan(m *Message) bool {
	inBook := m.Source == SourceOrderBook
	if d, known := since(s.Book, m.ReceivedAt); known && (inBook && d <= 0 || d < -maxSkew) {
		return true
	}
	if d, known := since(s.Received, m.ReceivedAt); known && inBook && d > 0 {
		return false
	}
	if terminal := s.Status.Terminal(); terminal != m.Status.Terminal() {
		return terminal
	}
	if d, known := since(s.Updated, m.UpdatedTime); known && d != 0 && s.AtExchange == (m.ExchangeTime != "") {
		return d < 0
	}
	if filled := s.filledAfter(m); filled != s.Filled {
		return filled < s.Filled
	}
	return s.Spool != "" && s.Spool == m.Spool && m.Sequence <= s.Sequence
}

// since returns how much later the second of two times is; false if one of them is not known.
func since(first, second string) (time.Duration, bool) {
	a, errA := time.Parse(time.RFC3339, first)
	b, errB := time.Parse(time.RFC3339, second)
	return b.Sub(a), errA == nil && errB == nil
}

// filledAfter returns the filled quantity after the event.
func (s *State) filledAfter(m *Message) int64 {
	if n, known := m.FilledQuantity.Get(); known {
		return n
	}
	if n, known := m.Quantity.Get(); known && m.Status == StatusFilled {
		return n
	}
	return s.Filled
}

func (s *State) change(m *Message) Change {
	filled, average, book := s.filledAfter(m), m.AveragePrice, s.Book
	if price(average) == nil {
		average = ""
		if filled == s.Filled {
			average = s.AveragePrice
		}
	}
	if m.Source == SourceOrderBook {
		book = m.ReceivedAt
	}
	c := Change{Verdict: VerdictNew, NewFill: max(filled-s.Filled, 0), Corrected: max(s.Filled-filled, 0)}
	c.FillPrice = fillPrice(s.AveragePrice, s.Filled, average, filled)
	*s = State{
		ID: m.ID, Status: m.Status, Filled: filled, AveragePrice: average, Updated: m.UpdatedTime,
		AtExchange: m.ExchangeTime != "", Received: m.ReceivedAt, Book: book, Spool: m.Spool, Sequence: m.Sequence,
	}
	c.State = *s
	return c
}

// fillPrice returns the average price of the fills between two states of an order; empty if it is not known.
func fillPrice(average1 string, filled1 int64, average2 string, filled2 int64) string {
	p1, p2 := price(average1), price(average2)
	switch {
	case filled2 <= filled1, p2 == nil, filled1 != 0 && p1 == nil:
		return ""
	case filled1 == 0:
		return average2
	}
	value := p2.Sub(p2.Mul(p2, big.NewRat(filled2, 1)), p1.Mul(p1, big.NewRat(filled1, 1)))
	if value.Sign() <= 0 {
		return "" // a broker's rounding, or error
	}
	value.Quo(value, big.NewRat(filled2-filled1, 1))
	return strings.TrimRight(strings.TrimRight(value.FloatString(6), "0"), ".")
}

// price returns a price of a fill, nil if it is not known: brokers write 0 then.
func price(s string) *big.Rat {
	if strings.Trim(s, "-.0123456789") != "" { // no exponent: it may be large
		return nil
	}
	p, ok := new(big.Rat).SetString(s)
	if !ok || p.Sign() <= 0 {
		return nil
	}
	return p
}
