package event

import (
	"cmp"
	"container/list"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// ErrFull is the error of Tracker.Apply for an event of an order that the Tracker has no space for.
var ErrFull = errors.New("the Tracker is full; raise MaxOrders")

// Tracker keeps the State of each order that a consumer follows, in bounded memory. The zero value is ready. It is not
// safe for concurrent use.
//
// Its JSON is a snapshot. A consumer that stores it before it acknowledges a message, together with what it computed,
// counts no fill twice and misses none, however often it restarts. A snapshot has all orders: with more than a few
// thousand, keep the State of each order in a row of a database instead, by StateKey.
type Tracker struct {
	// MaxOrders is how many orders are kept; 0 is 100,000, about 40 MB. Beyond it, the order without an event for longest
	// is forgotten, a day after its last event was received; before that, Apply returns ErrFull. So that no fill is
	// counted twice, events of unknown orders that were received no later than that event are late from then on.
	MaxOrders int

	orders    map[string]*list.Element // of *order
	byEvent   *list.List               // the order without an event for longest first
	forgotten string                   // received_at of the latest event of a forgotten order
}

// order is an order in a Tracker and in its snapshot.
type order struct {
	Key  string `json:"key"`  // of the order, and its leg
	Seen string `json:"seen"` // received_at of its latest event, also of a repeat or a late one
	State
}

// Apply applies an event to its order, as State.Apply does. An event that is not Understood has no order and is new. The
// error wraps ErrFull; nothing is applied then, and a consumer must stop, not acknowledge the message.
func (t *Tracker) Apply(m *Message) (Change, error) {
	if !m.Understood() {
		return Change{Verdict: VerdictNew}, nil
	}
	known := t.orders[m.StateKey()]
	if known == nil {
		if d, ok := since(t.forgotten, m.ReceivedAt); ok && d <= 0 {
			return Change{Verdict: VerdictLate}, nil
		}
		if err := t.makeSpace(m.ReceivedAt); err != nil {
			return Change{}, err
		}
		known = t.add(&order{Key: m.StateKey()})
	}
	t.byEvent.MoveToBack(known)
	o := known.Value.(*order)
	o.Seen = later(o.Seen, m.ReceivedAt)
	return o.Apply(m), nil
}

// makeSpace forgets orders until there is space for one whose event was received now.
func (t *Tracker) makeSpace(now string) error {
	limit := cmp.Or(t.MaxOrders, 100_000)
	for len(t.orders) >= limit {
		o := t.byEvent.Front().Value.(*order)
		if d, ok := since(o.Seen, now); !ok || d <= 24*time.Hour {
			return fmt.Errorf("more than %d orders changed within a day: %w", limit, ErrFull)
		}
		t.forgotten = later(t.forgotten, o.Seen)
		t.byEvent.Remove(t.byEvent.Front())
		delete(t.orders, o.Key)
	}
	return nil
}

// later returns the later of two times, of which the second is empty or known.
func later(first, second string) string {
	if d, ok := since(first, second); first == "" || ok && d > 0 {
		return second
	}
	return first
}

func (t *Tracker) add(o *order) *list.Element {
	if t.orders == nil {
		t.orders, t.byEvent = make(map[string]*list.Element), list.New()
	}
	t.orders[o.Key] = t.byEvent.PushBack(o)
	return t.orders[o.Key]
}

// snapshot is the JSON of a Tracker.
type snapshot struct {
	Forgotten string  `json:"forgotten,omitzero"`
	Orders    []order `json:"orders"` // the order without an event for longest first
}

// MarshalJSON returns the snapshot.
func (t Tracker) MarshalJSON() ([]byte, error) {
	s := snapshot{t.forgotten, make([]order, 0, len(t.orders))}
	if t.byEvent != nil {
		for e := t.byEvent.Front(); e != nil; e = e.Next() {
			s.Orders = append(s.Orders, *e.Value.(*order))
		}
	}
	return json.Marshal(s)
}

// UnmarshalJSON replaces all orders by those of a snapshot, also by more than MaxOrders.
func (t *Tracker) UnmarshalJSON(b []byte) error {
	var s snapshot
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	*t = Tracker{MaxOrders: t.MaxOrders, forgotten: s.Forgotten}
	for _, o := range s.Orders {
		o.Seen = cmp.Or(o.Seen, o.Received) // a snapshot of an earlier version has no Seen
		t.add(&o)
	}
	return nil
}
