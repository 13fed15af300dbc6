package book

import (
	"strings"
	"time"

	"github.com/postbridge/postbridge/bridge/event"
)

// State is the part of an event that is compared with a row of the order book. A zero field is not known: brokers send
// 0 or omit it without a rule.
type State struct {
	Status     event.Status
	statusWord string // the broker's, of an unknown status

	filled                             event.Quantity
	quantity, cancelled                int64
	price, triggerPrice, averagePrice  string // canonical decimals
	side, orderType, product, validity string
	exchange, symbol, instrumentID     string
	exchangeOrderID, leg               string

	// Updated is when the order last changed, by the broker's clock. Received is when the event was received or, if that
	// is later, stored, by ours.
	Updated, Received time.Time
}

// StateOf returns the state in an event. It does not refer to the event.
func StateOf(e *event.Event) State {
	s := State{
		Status:          e.Status,
		filled:          e.FilledQuantity,
		price:           decimal(e.Price),
		triggerPrice:    decimal(e.TriggerPrice),
		averagePrice:    decimal(e.AveragePrice),
		side:            e.Side,
		orderType:       e.OrderType,
		product:         e.Product,
		validity:        e.Validity,
		exchange:        e.Exchange,
		symbol:          e.Symbol,
		instrumentID:    e.InstrumentID,
		exchangeOrderID: e.ExchangeOrderID,
		leg:             e.Leg,
	}
	if e.Status == event.StatusUnknown {
		s.statusWord = strings.ToUpper(e.BrokerStatus)
	}
	s.quantity, _ = e.Quantity.Get()
	s.cancelled, _ = e.CancelledQuantity.Get()
	s.Updated = latest(e.UpdatedTime, e.ExchangeTime, e.OrderTime)
	s.Received = latest(e.ReceivedAt)
	return s
}

// latest returns the latest of the times that are known.
func latest(texts ...string) (last time.Time) {
	for _, text := range texts {
		if t, err := time.Parse(time.RFC3339, text); err == nil && t.After(last) {
			last = t
		}
	}
	return last
}

// decimal returns a decimal without trailing zeros, and "" for 0.
func decimal(s string) string {
	if strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	if s == "0" || s == "-0" {
		return ""
	}
	return s
}

// Verdict is the result of a comparison.
type Verdict int

// The verdicts.
const (
	// Equal: all fields that both know are equal. Nothing is published.
	Equal Verdict = iota
	// Old: the row is from a day before, and the bus, which is read from the beginning of the day, has no event.
	Old
	// skipped by Pass.KnownOnly.
	skipped
	// Early: a postback may be on its way. The next pass compares again.
	Early
	// News: the bus does not have this state.
	News
	// Contradiction: the row undoes what does not change, or is not newer than the event and still reports another
	// state. A postback was forged, or the broker erred. The row is news, too.
	Contradiction
)

// Compare compares a row of a book, requested at that time, with the last event of its order on the bus. stored is nil
// if the bus has no event of the order.
func Compare(stored *State, row State, requested time.Time, grace time.Duration) Verdict {
	switch {
	case stored != nil && (!stored.differs(row) || stored.isOtherLeg(row)):
		return Equal
	case stored == nil && !row.Updated.IsZero() && row.Updated.Before(Midnight(requested)):
		return Old
	case row.Updated.After(requested.Add(-grace)), stored != nil && stored.Received.After(requested.Add(-grace)):
		return Early
	case stored != nil && stored.contradicts(row):
		return Contradiction
	}
	return News
}

// isOtherLeg reports whether row and event may be of two legs of an order of Dhan, which share its id. Consumers count
// the fills of each leg, so a row that does not name the leg of the event would be counted again.
func (s State) isOtherLeg(row State) bool {
	return s.leg != row.leg && strings.HasSuffix(s.leg, "_leg") && (row.leg == "" || strings.HasSuffix(row.leg, "_leg"))
}

// differs reports whether a field that both know differs, or the row has fills or a fill price that the event lacks:
// Dhan's postbacks have no fill price. Pending quantities do not count; brokers report them inconsistently, and they
// follow from the others.
func (s State) differs(row State) bool {
	missesPrice := s.averagePrice == "" && row.averagePrice != "" && row.fills() > 0
	return s.differsInState(row) || s.differsInOrder(row) || missesPrice ||
		differ(s.triggerPrice, row.triggerPrice) || differ(s.cancelled, row.cancelled) ||
		differ(s.orderType, row.orderType) || differ(s.product, row.product) ||
		differ(s.validity, row.validity) || differ(s.exchangeOrderID, row.exchangeOrderID)
}

// differsInOrder is differs for the fields that no modification changes.
func (s State) differsInOrder(row State) bool {
	return differ(s.side, row.side) || differ(s.exchange, row.exchange) || differ(s.symbol, row.symbol) ||
		differ(s.instrumentID, row.instrumentID)
}

// differsInState is differs for the fields on which a consumer acts.
func (s State) differsInState(row State) bool {
	_, known := row.filled.Get()
	return s.statusDiffers(row) || known && s.fills() != row.fills() ||
		differ(s.quantity, row.quantity) || differ(s.price, row.price) || differ(s.averagePrice, row.averagePrice)
}

// statusDiffers compares the broker's words of two unknown states.
func (s State) statusDiffers(row State) bool {
	return s.Status != row.Status || differ(s.statusWord, row.statusWord)
}

// contradicts reports whether the row cannot come after the event: it undoes what does not change, whatever the times
// are, which Kite does not sign; or it is older, by the broker's times, and has another state.
func (s State) contradicts(row State) bool {
	_, known := row.filled.Get()
	return s.Status.Terminal() && s.statusDiffers(row) || known && s.fills() > row.fills() || s.differsInOrder(row) ||
		s.differsInState(row) && !row.Updated.IsZero() && row.Updated.Before(s.Updated)
}

// fills returns the filled quantity; 0 if it is not known.
func (s State) fills() int64 {
	n, _ := s.filled.Get()
	return n
}

// differ reports whether two values are known and different.
func differ[T comparable](a, b T) bool {
	var unknown T
	return a != unknown && b != unknown && a != b
}
