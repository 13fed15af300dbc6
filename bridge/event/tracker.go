package event

import (
	"cmp"
	"container/list"
	"encoding/json"
)

// Tracker keeps the State of each order that a consumer follows, in bounded memory. The zero value is ready. It is not
// safe for concurrent use.
//
// Its JSON is a snapshot. A consumer that stores it before it acknowledges a message, together with what it computed,
// counts no fill twice and misses none, however often it restarts. A snapshot has all orders: with more than a few
// thousand, keep the State of each order in a row of a database instead, by StateKey.
type Tracker struct {
	// MaxOrders is how many orders are kept; 0 is 100,000, about 40 MB. Beyond it, the order that changed longest ago is
	// forgotten, and so that no fill is counted twice, events of unknown orders that were received before its last event
	// are late from then on. It must be more than the orders of a day.
	MaxOrders int

	orders    map[string]*list.Element // of order
	byChange  *list.List               // the order that changed longest ago first
	forgotten string                   // received_at of the latest event of a forgotten order
}

// order is an order in a Tracker and in its snapshot.
type order struct {
	Key string `json:"key"` // of the order, and its leg
	State
}

// Apply applies an event to its order, as State.Apply does. An event that is not Understood has no order and is new.
func (t *Tracker) Apply(m *Message) Change {
	if !m.Understood() {
		return Change{Verdict: VerdictNew}
	}
	key := m.StateKey()
	known := t.orders[key]
	if d, ok := since(t.forgotten, m.ReceivedAt); known == nil && ok && d <= 0 {
		return Change{Verdict: VerdictLate}
	}
	if known == nil {
		known = t.add(order{Key: key})
	}
	o := known.Value.(order)
	c := o.Apply(m)
	known.Value = o
	if c.Verdict == VerdictNew {
		t.byChange.MoveToBack(known)
	}
	return c
}

func (t *Tracker) add(o order) *list.Element {
	if t.orders == nil {
		t.orders, t.byChange = make(map[string]*list.Element), list.New()
	}
	for len(t.orders) >= cmp.Or(t.MaxOrders, 100_000) {
		oldest := t.byChange.Remove(t.byChange.Front()).(order)
		delete(t.orders, oldest.Key)
		if d, ok := since(t.forgotten, oldest.Received); !ok || d > 0 {
			t.forgotten = oldest.Received
		}
	}
	e := t.byChange.PushBack(o)
	t.orders[o.Key] = e
	return e
}

// snapshot is the JSON of a Tracker.
type snapshot struct {
	Forgotten string  `json:"forgotten,omitzero"`
	Orders    []order `json:"orders"` // the order that changed longest ago first
}

// MarshalJSON returns the snapshot.
func (t Tracker) MarshalJSON() ([]byte, error) {
	s := snapshot{t.forgotten, make([]order, 0, len(t.orders))}
	if t.byChange != nil {
		for e := t.byChange.Front(); e != nil; e = e.Next() {
			s.Orders = append(s.Orders, e.Value.(order))
		}
	}
	return json.Marshal(s)
}

// UnmarshalJSON replaces all orders by those of a snapshot.
func (t *Tracker) UnmarshalJSON(b []byte) error {
	var s snapshot
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	*t = Tracker{MaxOrders: t.MaxOrders, forgotten: s.Forgotten}
	for _, o := range s.Orders {
		t.add(o)
	}
	return nil
}
