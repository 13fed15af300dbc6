package bridge

import (
	"encoding/json"
	"strconv"
	"sync"
	"unicode/utf8"

	"github.com/postbridge/postbridge/bridge/event"
)

// The number of the last events and of the last rejected events that the page shows, and the bytes of each text. The
// memory for them is a megabyte, two if each body is 2 KiB, three if each text is that long, and 13 if all of them are
// control characters.
const (
	recentEvents  = 500
	recentRejects = 100
	shownText     = 256

	// ordinarySize is the capacity of an event's text, which only a long reason exceeds.
	ordinarySize = 640
	// ordinaryBody is the size of a body whose event is kept as it is. All known postbacks are smaller.
	ordinaryBody = 2 << 10
)

// recent holds the last events in memory, for the page alone: nothing that is published or answered is read from it.
type recent struct {
	mu              sync.Mutex
	last            uint64       // number of events added, which is the index of the last
	events, rejects []shownEvent // oldest first
}

// shownEvent is one event for the page: the order that postbridge made of the postback, never its body.
type shownEvent struct {
	index    uint64 // from 1 on, in the sequence of add
	sequence uint64
	event    *event.Event    // nil if there is text
	text     json.RawMessage // as showEvent returns it
}

// show returns the text of the event.
func (s *shownEvent) show() json.RawMessage {
	if s.event == nil {
		return s.text
	}
	return showEvent(s.sequence, s.event)
}

// showEvent returns the text of an event, under the names it has on the bus, with its sequence. It keeps nothing of the
// postback alive.
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

// add adds an event that is on disk, and takes it over. Its text is made when the page requests it, which it does for
// few events, unless the event would keep a large body alive until then.
func (r *recent) add(sequence uint64, e *event.Event, bodySize int) {
	s := shownEvent{sequence: sequence, event: e}
	if bodySize > ordinaryBody {
		s.event, s.text = nil, showEvent(sequence, e)
	}
	e.RawText = ""
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last++
	s.index = r.last
	r.events = appendLast(r.events, s, recentEvents)
	if e.Status == event.StatusRejected {
		r.rejects = appendLast(r.rejects, s, recentRejects)
	}
}

// appendLast appends an element and drops the oldest above the limit.
func appendLast[T any](all []T, last T, limit int) []T {
	if len(all) == limit {
		clear(all[:1]) // the array behind all stays for a while
		all = all[1:]
	}
	return append(all, last)
}

// since returns the events after an index, oldest first, and the index of the last. An index that does not exist yet is
// from before a restart, and counts as 0.
func (r *recent) since(index uint64) (events []json.RawMessage, last uint64) {
	shown, last := r.after(index)
	events = []json.RawMessage{} // not null
	for i := range shown {
		events = append(events, shown[i].show())
	}
	return events, last
}

// after is since without the texts, which are made without the lock.
func (r *recent) after(index uint64) (events []shownEvent, last uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if index > r.last {
		index = 0
	}
	for _, e := range r.rejects {
		if e.index > index && e.index < r.events[0].index {
			events = append(events, e)
		}
	}
	for _, e := range r.events {
		if e.index > index {
			events = append(events, e)
		}
	}
	return events, r.last
}
