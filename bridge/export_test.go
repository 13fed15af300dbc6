package bridge

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"time"

	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/bridge/spool"
)

// Handler is the ingest handler of a bridge whose spool is open, or nil until Open.
func Handler(o Options, s *spool.Spool) (http.Handler, *Bridge) {
	b := New(o)
	if s != nil {
		b.Open(s)
	}
	return b.receiver, b
}

// Open ends the opening of the spool.
func (b *Bridge) Open(s *spool.Spool) {
	b.receiver.open(s)
	b.opened.Store(&opened{spool: s})
}

// Limits of bodies that are not verified yet.
const (
	SmallBody   = smallBody
	LeastBudget = leastBudget
)

// BodyBudget returns how many bytes of the body budget are left.
func (b *Bridge) BodyBudget() int64 {
	b.receiver.budget.mu.Lock()
	defer b.receiver.budget.mu.Unlock()
	return b.receiver.budget.left
}

// Limits of the in-flight window.
const (
	MaxInFlight      = maxInFlight
	MaxInFlightBytes = maxInFlightBytes
	MaxWindow        = maxWindow
)

// RememberedOrders is how many orders are remembered at least.
const RememberedOrders = rememberedOrders

// AppendRecord appends the spool record of an event.
func AppendRecord(b []byte, e *event.Event) []byte {
	return appendRecord(b, e, time.Unix(1700000000, 0), "")
}

// AppendHead is what a spool record has before the event.
func AppendHead(d *Delivery) []byte { return d.appendHead(nil) }

// Admin is the handler of the admin listener.
func (b *Bridge) Admin() http.Handler { return b.admin() }

// Pumping is a bridge without listeners: its pumps run on a spool, which stop closes.
func Pumping(o Options, s *spool.Spool) (b *Bridge, stop func() error, err error) {
	b = New(o)
	running, err := b.startPumps(s)
	if err != nil {
		return nil, nil, err
	}
	return b, running.close, nil
}

// WaitForBuses waits as the stop does.
func (b *Bridge) WaitForBuses() {
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	b.waitForBuses(ctx, stalled)
}

// Bus is what /status says of a bus.
func (b *Bridge) Bus(name string) (up bool, waiting uint64, causes []string) {
	st := b.status().Buses[name]
	return st.Up, st.Waiting, st.Causes
}

// Oldest is how old the oldest event is that waits for a bus, as /status and the metric say.
func (b *Bridge) Oldest(name string) time.Duration {
	return time.Duration(b.status().Buses[name].OldestWaitingSeconds * float64(time.Second))
}

// Committed is how far a bus is.
func (b *Bridge) Committed(name string) uint64 { return b.status().Buses[name].Committed }

// DrainTimeout is how long the stop waits for the buses.
const DrainTimeout = drainTimeout

// NewDelivery is a record of the order as the spool holds it, with so many bytes of event.
func NewDelivery(order string, size int) []byte {
	d := &Delivery{
		ID:         order,
		Broker:     "kite",
		UserID:     "u",
		OrderID:    order,
		Status:     event.StatusOpen,
		ReceivedAt: time.Now(),
	}
	d.Data = make([]byte, size)
	return append(d.appendHead(nil), d.Data...)
}

// OnDisk is a bridge whose spool is on another disk.
func OnDisk(o Options, disk spool.FS) *Bridge {
	b := New(o)
	b.openDir = func(string) (spool.FS, error) { return disk, nil }
	return b
}

// WithoutLameDuck makes the stop close the listener at once.
func (b *Bridge) WithoutLameDuck() *Bridge {
	b.lameDuck = 0
	return b
}

// Working is how many connections keep a verified postback.
func (b *Bridge) Working() int {
	l := b.ingest.Load()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open - l.unverified.Len() - l.idle.Len()
}

// AtLimit is a listener with so many connections open, all idle and none with a socket.
type AtLimit struct{ l *connections }

// NewAtLimit has reached its limit.
func NewAtLimit(limit int) *AtLimit {
	a := &AtLimit{l: newConnections(nil, limit, nil, nil)}
	a.l.logged.allow("displaced") // so that none is logged
	for range limit {
		a.Admit()
	}
	return a
}

// Admit admits another connection, which brings a postback and is idle then, and reports whether it displaced one.
func (a *AtLimit) Admit() bool {
	c := &connection{of: a.l, wire: &wire{TCPConn: new(net.TCPConn)}}
	before := a.l.displaced.Load()
	admitted := a.l.admit(c)
	c.work()
	c.wait()
	return admitted && a.l.displaced.Load() > before
}

// Refusals counts what came from addresses.
type Refusals struct {
	limiter *refusalLimiter
	start   time.Time
}

// NewRefusals has counted nothing.
func NewRefusals() Refusals { return Refusals{newRefusalLimiter(), time.Now()} }

// TooMany counts a refusal, so long after the first, and reports whether its source had too many.
func (r Refusals) TooMany(address string, after time.Duration) bool {
	return r.limiter.tooMany(address, r.start.Add(after))
}

// ClientPrefix is what an address is counted under.
func ClientPrefix(address string) string { return clientPrefix(address).String() }

// Limits of refusals.
const (
	RefusalBurst    = refusalBurst
	RefusalInterval = refusalInterval
)

// Seen is a memory of the last events of orders.
type Seen struct{ last lastAccepted }

// NewSeen has seen so many orders.
func NewSeen(orders int) *Seen {
	s := &Seen{newLastAccepted()}
	for n := range orders {
		s.last.remember(uint64(n)*0x9E3779B97F4A7C15, acceptedEvent{})
	}
	return s
}

// Remembered is how many orders are in it.
func (s *Seen) Remembered() int { return len(s.last.young) + len(s.last.old) }

// Compare looks the event's order up and remembers the event, as its append does.
func (s *Seen) Compare(e *event.Event) (repeats bool) {
	order, id := s.last.hash(e), [32]byte([]byte(e.ID))
	last, ok := s.last.find(order)
	s.last.remember(order, acceptedEvent{id: id})
	return ok && last.id == id
}

// Recent are the last events that the page shows.
type Recent struct{ r *recent }

// NewRecent holds none yet.
func NewRecent() *Recent { return &Recent{new(recent)} }

// The last events there are at most.
const (
	RecentEvents  = recentEvents
	RecentRejects = recentRejects
)

// Add takes an event of a small body as the receiver does.
func (r *Recent) Add(sequence uint64, e *event.Event) { r.r.add(sequence, e, ordinaryBody) }

// AddLarge takes an event of a large body.
func (r *Recent) AddLarge(sequence uint64, e *event.Event) { r.r.add(sequence, e, ordinaryBody+1) }

// Since returns the events behind that place, and the place of the last.
func (r *Recent) Since(place uint64) ([]json.RawMessage, uint64) { return r.r.since(place) }
