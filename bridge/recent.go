package bridge

import (
	"encoding/json"
	"strconv"
	"sync"
	"unicode/utf8"

	"github.com/postbridge/postbridge/bridge/event"
)

// The number of the last events and of the last rejected events that the page shows, and the bytes of each text. The
// memory for them is half a megabyte, three if each text is that long, and 13 if all of them are control characters.
const (
	recentEvents  = 500
	recentRejects = 100
	shownText     = 256

	// ordinarySize is the capacity of an event's text, which only a long reason exceeds.
	ordinarySize = 640
)

// recent holds the last events in memory, for the page alone: nothing that is published or answered is read from it.
type recent struct {
	mu              sync.Mutex
	last            uint64       // number of events added, which is the index of the last
	events, rejects []shownEvent // oldest first
}

// shownEvent is one event for the page: the order that postbridge made of the postback, never its body.
type shownEvent struct {
	index uint64          // from 1 on, in the sequence of add
	text  json.RawMessage // the event, under the names it has on the bus, and its sequence
}

// showEvent returns the text of an event. It keeps nothing of the postback alive.
func showEvent(sequence uint64, e *event.Event) json.RawMessage {
	shown := event.Event{
		ID: e.ID, Broker: e.Broker, ReceivedAt: e.ReceivedAt, VerifiedBy: e.VerifiedBy,
		Order: event.Order{
			UserID: clip(e.UserID), OrderID: clip(e.OrderID), Status: e.Status, BrokerStatus: clip(e.BrokerStatus),
			Reason: clip(e.Reason), Exchange: clip(e.Exchange), Symbol: clip(e.Symbol),
			InstrumentID: clip(e.InstrumentID), Side: clip(e.Side), OrderType: clip(e.OrderType),
			Price: clip(e.Price), TriggerPrice: clip(e.TriggerPrice), AveragePrice: clip(e.AveragePrice),
			Quantity: e.Quantity, FilledQuantity: e.FilledQuantity,
			CancelledQuantity: e.CancelledQuantity, PendingQuantity: e.PendingQuantity,
		},
	}
	text := shown.Append(make([]byte, 0, ordinarySize))
	text = strconv.AppendUint(append(text[:len(text)-1], `,"sequence":`...), sequence, 10)
	return append(text, '}')
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

// add adds an event that is on disk.
func (r *recent) add(sequence uint64, e *event.Event) {
	text := showEvent(sequence, e)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last++
	r.events = appendLast(r.events, shownEvent{r.last, text}, recentEvents)
	if e.Status == event.StatusRejected {
		r.rejects = appendLast(r.rejects, shownEvent{r.last, text}, recentRejects)
	}
}

// appendLast appends an element and drops the oldest above the limit.
func appendLast[T any](all []T, last T, limit int) []T {
	if len(all) == limit {
		all = all[1:]
	}
	return append(all, last)
}

// since returns the events after an index, oldest first, and the index of the last. An index that does not exist yet is
// from before a restart, and counts as 0.
func (r *recent) since(index uint64) (events []json.RawMessage, last uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if index > r.last {
		index = 0
	}
	events = []json.RawMessage{} // not null
	for _, e := range r.rejects {
		if e.index > index && e.index < r.events[0].index {
			events = append(events, e.text)
		}
	}
	for _, e := range r.events {
		if e.index > index {
			events = append(events, e.text)
		}
	}
	return events, r.last
}
