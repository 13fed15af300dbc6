package bridge

import (
	"bytes"
	"encoding/json"
	"strconv"
	"sync"
	"unicode/utf8"
)

// What the page shows of events: so many of the last, so many of the last rejected ones, and so many bytes of a text. All
// of it takes half a megabyte, and three should a broker make each text as long as that.
const (
	recentEvents  = 500
	recentRejects = 100
	shownText     = 256

	// ordinaryTexts is what all texts of an event take, unless it has a long reason.
	ordinaryTexts = 256
)

// recent holds the last events in memory, for the page alone: nothing that is published or answered is read from it.
type recent struct {
	mu      sync.Mutex
	last    uint64 // how many were added: the place of the last
	events  [recentEvents]shownEvent
	rejects [recentRejects]shownEvent
	next    int // where in rejects the next one goes
}

// shownEvent is what is shown of one event: what postbridge made of the postback, never its body. It keeps nothing of the
// postback alive, and its memory is used again.
type shownEvent struct {
	place      uint64 // among all that were added, from 1 on; 0 if there is none yet
	sequence   uint64
	texts      []byte // one after the other
	ends       [numShownTexts]int
	quantities [numShownQuantities]Quantity
}

const (
	numShownTexts      = 17
	numShownQuantities = 4
)

// set fills in what json names.
func (s *shownEvent) set(place, sequence uint64, e *Event) {
	s.place, s.sequence, s.texts = place, sequence, s.texts[:0]
	for i, text := range [numShownTexts]string{
		e.ID, e.Broker, e.UserID, e.OrderID, string(e.Status), e.BrokerStatus, e.Reason, e.Exchange, e.Symbol, e.InstrumentID,
		e.Side, e.OrderType, e.Price, e.TriggerPrice, e.AveragePrice, e.ReceivedAt, e.VerifiedBy,
	} {
		s.texts = append(s.texts, clip(text)...)
		s.ends[i] = len(s.texts)
	}
	s.quantities = [numShownQuantities]Quantity{e.Quantity, e.FilledQuantity, e.CancelledQuantity, e.PendingQuantity}
}

// json is the event as the page is told it, under the names of the event on the bus.
func (s *shownEvent) json() json.RawMessage {
	w := objectWriter(strconv.AppendUint([]byte(`{"sequence":`), s.sequence, 10))
	start := 0
	for i, name := range [numShownTexts]string{
		"id", "broker", "user_id", "order_id", "status", "broker_status", "reason", "exchange", "symbol", "instrument_id",
		"side", "order_type", "price", "trigger_price", "average_price", "received_at", "verified_by",
	} {
		w.text(name, string(s.texts[start:s.ends[i]]))
		start = s.ends[i]
	}
	for i, name := range [numShownQuantities]string{"quantity", "filled_quantity", "cancelled_quantity", "pending_quantity"} {
		w.quantity(name, s.quantities[i])
	}
	return json.RawMessage(append(w, '}'))
}

// clip bounds a text. It ends between two characters.
func clip(s string) string {
	if len(s) <= shownText {
		return s
	}
	n := shownText
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// newRecent makes room for all of them at once, so that an ordinary event allocates nothing.
func newRecent() *recent {
	r := new(recent)
	for i := range r.events {
		r.events[i].texts = make([]byte, 0, ordinaryTexts)
	}
	for i := range r.rejects {
		r.rejects[i].texts = make([]byte, 0, ordinaryTexts)
	}
	return r
}

// add takes an event that is on disk.
func (r *recent) add(sequence uint64, e *Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last++
	r.events[r.last%recentEvents].set(r.last, sequence, e)
	if e.Status == StatusRejected {
		r.rejects[r.next].set(r.last, sequence, e)
		r.next = (r.next + 1) % recentRejects
	}
}

// since returns the events behind that place, those that came first first, and the place of the last. A place that there is
// not yet is one before a restart, and counts as 0.
func (r *recent) since(place uint64) (events []json.RawMessage, last uint64) {
	copies, last := r.copySince(place)
	events = make([]json.RawMessage, len(copies)) // not null
	for i := range copies {
		events[i] = copies[i].json()
	}
	return events, last
}

// copySince is all that postbacks have to wait for.
func (r *recent) copySince(place uint64) (events []shownEvent, last uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if place > r.last {
		place = 0
	}
	oldest := uint64(1) // in events
	if r.last > recentEvents {
		oldest = r.last - recentEvents + 1
	}
	take := func(s shownEvent) {
		s.texts = bytes.Clone(s.texts)
		events = append(events, s)
	}
	for i := range r.rejects {
		if s := &r.rejects[(r.next+i)%recentRejects]; s.place > place && s.place < oldest {
			take(*s)
		}
	}
	for p := max(oldest, place+1); p <= r.last; p++ {
		take(r.events[p%recentEvents])
	}
	return events, r.last
}
