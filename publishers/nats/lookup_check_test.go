package nats

import (
	"context"
	"testing"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
)

// holding is a stream of events of one order, each sequence with the event of that number, but for those that are
// missing.
type holding struct {
	jetstream.Stream
	last    uint64
	missing map[uint64]bool
	asked   int
}

func (h *holding) message(sequence uint64) *jetstream.RawStreamMsg {
	d := &bridge.Delivery{Spool: "0badcafe", Sequence: sequence}
	return &jetstream.RawStreamMsg{Sequence: sequence, Header: natsgo.Header{
		jetstream.MsgIDHeader: {d.MsgID()}, headerSpool: {d.Spool}, headerSequence: {d.SequenceText()},
	}}
}

// GetLastMsgForSubject implements jetstream.Stream.
func (h *holding) GetLastMsgForSubject(context.Context, string) (*jetstream.RawStreamMsg, error) {
	h.asked++
	return h.message(h.last), nil
}

// GetMsg implements jetstream.Stream.
func (h *holding) GetMsg(
	_ context.Context, sequence uint64, _ ...jetstream.GetMsgOpt,
) (*jetstream.RawStreamMsg, error) {
	h.asked++
	for h.missing[sequence] {
		sequence++
	}
	if sequence > h.last {
		return nil, jetstream.ErrMsgNotFound
	}
	return h.message(sequence), nil
}

// TestLookUpsOfOneOrder: looking up many events of one order one after the other asks for few messages each, and finds
// also those that are stored before the one that was found last.
func TestLookUpsOfOneOrder(t *testing.T) {
	const n = 1000
	s := &holding{last: n, missing: map[uint64]bool{500: true}}
	look := func(number, from uint64) (at uint64) {
		t.Helper()
		at, err := findEvent(
			t.Context(),
			s,
			"orders.kite.AB1234.1",
			&bridge.Delivery{Spool: "0badcafe", Sequence: number},
			from,
		)
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	found := uint64(0)
	for number := uint64(1); number <= n; number++ {
		switch at := look(number, found); {
		case number == 500 && at != 0, number != 500 && at != number:
			t.Errorf("event %d is found at %d", number, at)
		case at > 0:
			found = at
		}
	}
	if s.asked > 2*n+n { // two each, and all there are for the missing one
		t.Errorf("%d messages were asked for", s.asked)
	}
	if at := look(3, 900); at != 3 {
		t.Errorf("event 3 is found at %d", at)
	}
	if at := look(n+1, found); at != 0 {
		t.Errorf("event %d is found at %d", n+1, at)
	}
}

// TestLookFirst: what decides is whether another run may have sent the event, and the monotonic clock of this one.
// Times of this run go on through a step of the wall clock, which changes the time at which events arrive.
func TestLookFirst(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		name        string
		redelivered bool
		received    time.Duration // ago
		sent        time.Duration // ago; 0 for never
		want        bool
	}{
		{"new", false, 0, 0, false},
		{"new, waited long", false, time.Hour, 0, false},
		{"of another run", true, 0, 0, true},
		{"of another run, by a clock ahead", true, -time.Hour, 0, true},
		{"sent just now", false, time.Hour, time.Second, false},
		{"sent long ago", false, -time.Hour, 3 * time.Minute, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &Publisher{destinations: map[bridge.Destination]*destination{
				bridge.Orders: {name: bridge.Orders, window: 2 * time.Minute},
			}}
			e := p.newEntry(&bridge.Delivery{Redelivered: c.redelivered, ReceivedAt: now.Add(-c.received)}, nil)
			if c.sent > 0 {
				e.copies[0].absentAt = now.Add(-c.sent)
			}
			if got := e.copies[0].needsLookup(now); got != c.want {
				t.Errorf("looked up first: %t", got)
			}
		})
	}
}

// TestFailedLookups: an answer ends a series of failed lookups. Those of one outage do not count in the next.
func TestFailedLookups(t *testing.T) {
	d := &destination{name: bridge.Orders, window: 2 * time.Minute}
	p := &Publisher{destinations: map[bridge.Destination]*destination{bridge.Orders: d}}
	e := p.newEntry(&bridge.Delivery{Redelivered: true}, nil)
	new(keyQueue).push(e)
	c := &e.copies[0]
	c.failedLookups = maxLookups - 1
	long := time.Now().Add(-time.Hour)
	p.finishLookup(c, long, 0, nil)
	c.lookedUp = long
	c.failedLookups++
	if !c.needsLookup(time.Now()) {
		t.Error("one failed lookup after an answer is the last")
	}
}
