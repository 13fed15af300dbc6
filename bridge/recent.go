package bridge

import (
	"bytes"
	"encoding/json"
	"strconv"
	"sync"
	"unicode/utf8"

	"github.com/postbridge/postbridge/bridge/event"
)

// What the page shows of events: so many of the last, so many of the last rejected ones, and so many bytes of a text.
// All of it takes half a megabyte, three if each text is as long as that, and 13 if all of them are control characters.
const (
	recentEvents  = 500
	recentRejects = 100
	shownText     = 256

	// ordinarySize is how long the text of an event is, unless it has a long reason.
	ordinarySize = 640
)

// recent holds the last events in memory, for the page alone: nothing that is published or answered is read from it.
type recent struct {
	mu      sync.Mutex
	last    uint64 // number of events added, which is the index of the last
	events  [recentEvents]shownEvent
	rejects [recentRejects]shownEvent
	next    int // index in rejects of the next one
}

// shownEvent is one event for the page: what postbridge made of the postback, never its body. It keeps nothing of the
// postback alive, and its memory is used again.
type shownEvent struct {
	index uint64 // from 1 on, in the sequence of add; 0 for an empty slot
	text  []byte // the event as JSON, under the names it has on the bus, and its sequence
}

func (s *shownEvent) set(index, sequence uint64, e *event.Event) {
	shown := event.Event{
		ID: e.ID, Broker: e.Broker, ReceivedAt: e.ReceivedAt, VerifiedBy: e.VerifiedBy,
		Order: event.Order{
			UserID: clip(e.UserID), OrderID: clip(e.OrderID), Status: e.Status, BrokerStatus: clip(e.BrokerStatus),
			Reason: clip(
				e.Reason,
			), Exchange: clip(e.Exchange), Symbol: clip(e.Symbol), InstrumentID: clip(e.InstrumentID),
			Side: clip(e.Side), OrderType: clip(e.OrderType), Price: clip(e.Price), TriggerPrice: clip(e.TriggerPrice),
			AveragePrice: clip(e.AveragePrice), Quantity: e.Quantity, FilledQuantity: e.FilledQuantity,
			CancelledQuantity: e.CancelledQuantity, PendingQuantity: e.PendingQuantity,
		},
	}
	s.index, s.text = index, shown.Append(s.text[:0])
	s.text = strconv.AppendUint(append(s.text[:len(s.text)-1], `,"sequence":`...), sequence, 10)
	s.text = append(s.text, '}')
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

// newRecent allocates the memory of all events at once, so that an ordinary event allocates nothing.
func newRecent() *recent {
	r := new(recent)
	for i := range r.events {
		r.events[i].text = make([]byte, 0, ordinarySize)
	}
	for i := range r.rejects {
		r.rejects[i].text = make([]byte, 0, ordinarySize)
	}
	return r
}

// add adds an event that is on disk.
func (r *recent) add(sequence uint64, e *event.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last++
	r.events[r.last%recentEvents].set(r.last, sequence, e)
	if e.Status == event.StatusRejected {
		r.rejects[r.next].set(r.last, sequence, e)
		r.next = (r.next + 1) % recentRejects
	}
}

// since returns the events after an index, oldest first, and the index of the last. An index that does not exist yet is
// from before a restart, and counts as 0.
func (r *recent) since(index uint64) (events []json.RawMessage, last uint64) {
	copies, last := r.copySince(index)
	events = make([]json.RawMessage, len(copies)) // not null
	for i := range copies {
		events[i] = copies[i].text
	}
	return events, last
}

// copySince copies under the lock that add waits for; since encodes after it.
func (r *recent) copySince(index uint64) (events []shownEvent, last uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if index > r.last {
		index = 0
	}
	oldest := uint64(1) // in events
	if r.last > recentEvents {
		oldest = r.last - recentEvents + 1
	}
	take := func(s shownEvent) {
		s.text = bytes.Clone(s.text)
		events = append(events, s)
	}
	for i := range r.rejects {
		if s := &r.rejects[(r.next+i)%recentRejects]; s.index > index && s.index < oldest {
			take(*s)
		}
	}
	for p := max(oldest, index+1); p <= r.last; p++ {
		take(r.events[p%recentEvents])
	}
	return events, r.last
}
