package bridge

import (
	"hash/maphash"
	"sync"

	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/bridge/spool"
)

// rememberedOrders is how many orders lastAccepted remembers at least; at most it remembers twice as many.
const rememberedOrders = 1 << 15

// lastAccepted is the dedup table: it holds the last accepted event of each order. An event is a repeat only of that
// one, never of an earlier one: a state that returns after another one is a new event.
type lastAccepted struct {
	seed maphash.Seed

	// mu is held over the comparison and the append, so that the table has the event that the log has last.
	mu sync.Mutex
	// Two generations bound the memory: when young is full it becomes old, and the old one is forgotten.
	young, old map[uint64]acceptedEvent
}

// acceptedEvent holds no pointers, so that the garbage collector does not scan a map of them.
type acceptedEvent struct {
	id     [32]byte
	ticket spool.Ticket
}

func newLastAccepted() lastAccepted {
	return lastAccepted{seed: maphash.MakeSeed(), young: make(map[uint64]acceptedEvent)}
}

// append appends the record, unless it repeats the order's last event; then it returns the ticket of that one, which
// may not be durable yet.
func (l *lastAccepted) append(s *spool.Spool, e *event.Event, record []byte) (t spool.Ticket, repeats bool, err error) {
	if !e.Understood() {
		t, err = s.Append(record)
		return t, false, err
	}
	order := l.hash(e)
	id := [32]byte([]byte(e.ID))
	l.mu.Lock()
	defer l.mu.Unlock()
	if last, ok := l.find(order); ok && last.id == id {
		return last.ticket, true, nil
	}
	t, err = s.Append(record)
	if err == nil {
		l.remember(order, acceptedEvent{id, t})
	}
	return t, false, err
}

// find returns the last event of the order. Needs mu.
func (l *lastAccepted) find(order uint64) (acceptedEvent, bool) {
	if last, ok := l.young[order]; ok {
		return last, true
	}
	last, ok := l.old[order]
	return last, ok
}

// hash returns the key of the order in the table. Two orders of one hash evict each other; the id tells them apart.
func (l *lastAccepted) hash(e *event.Event) uint64 {
	return maphash.Comparable(l.seed, [...]string{e.Broker, e.UserID, e.OrderID})
}

func (l *lastAccepted) remember(order uint64, e acceptedEvent) {
	if len(l.young) >= rememberedOrders {
		l.young, l.old = make(map[uint64]acceptedEvent, rememberedOrders), l.young
	}
	l.young[order] = e
}
