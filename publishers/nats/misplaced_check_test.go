package nats

import (
	"context"
	"log/slog"
	"testing"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers"
)

func TestMisplaced(t *testing.T) {
	d := delivery()
	slashes, long := delivery(), delivery()
	slashes.UserID, slashes.OrderID = "a/b", "c/d%"
	long.UserID, long.OrderID = "é", string(make([]byte, 10_000))
	orders := newDestination(bridge.Orders, "desk1", "*.*.*")
	deadletters := newDestination(bridge.Deadletters, "", "*")
	for _, c := range []struct {
		dest    *destination
		d       *bridge.Delivery
		subject string
		want    bool
	}{
		{orders, d, "desk1.orders." + d.Key(), false},
		{orders, slashes, "desk1.orders." + slashes.Key(), false},
		{orders, long, "desk1.orders." + long.Key(), false},
		{orders, d, "desk1.orders.kite.AB1234.220303000308933", true},
		{orders, d, "desk1.orders.mapped." + d.Key(), true},
		{orders, d, "desk2.orders." + d.Key(), true},
		{orders, d, "orders." + d.Key(), true},
		{deadletters, d, "deadletters.kite", false},
		{deadletters, d, "deadletters.dhan", true},
	} {
		m := &jetstream.RawStreamMsg{Subject: c.subject, Header: newHeaders().of(c.d, c.dest.stream)}
		if got := c.dest.misplaced(m); got != c.want {
			t.Errorf("%s: misplaced %t", c.subject, got)
		}
	}
	if orders.misplaced(&jetstream.RawStreamMsg{Subject: "anything", Header: natsgo.Header{}}) {
		t.Error("a message of others is misplaced")
	}
}

func TestRenames(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{">", "orders.*.*.*", true},
		{"orders.>", "orders.*.*.*", true},
		{"orders.kite.>", "orders.*.*.*", true},
		{"*.kite.AB1234.1", "orders.*.*.*", true},
		{"orders.*.*", "orders.*.*.*", false},
		{"rejects.>", "orders.*.*.*", false},
		{"orders", "orders.*.*.*", false},
	} {
		from := func(source string) *jetstream.SubjectTransformConfig {
			return &jetstream.SubjectTransformConfig{Source: source, Destination: "elsewhere"}
		}
		if renames(from(c.a), c.b) != c.want || renames(from(c.b), c.a) != c.want {
			t.Errorf("a transform of %q renames %q: %t", c.a, c.b, !c.want)
		}
	}
}

// TestLetGo: events of a stream that fits, and which they do not reach, are sent at the pace of their retries. All are
// sent at once where a check found that the stream did not fit before.
func TestLetGo(t *testing.T) {
	for _, refused := range []bool{false, true} {
		d := newDestination(bridge.Orders, "", "*.*.*")
		d.refused = refused
		waiting := &keyQueue{key: "waiting", timer: time.NewTimer(time.Hour)}
		idle := &keyQueue{key: "idle"}
		for i, l := range []*keyQueue{waiting, idle} {
			l.push(&entry{delivery: &bridge.Delivery{Sequence: uint64(i)}})
		}
		p := &Publisher{wake: make(chan struct{}, 1), queues: map[string]*keyQueue{"waiting": waiting, "idle": idle}}
		p.resume(d)
		if !d.ready || !idle.queued || waiting.queued != refused {
			t.Errorf("refused before: %t; sent are idle: %t, waiting: %t", refused, idle.queued, waiting.queued)
		}
		waiting.stopTimer()
	}
}

// sampling is a publisher whose stream may be sent one event of each of these orders.
func sampling(orders ...string) (p *Publisher, d *destination, queues []*keyQueue) {
	p = &Publisher{
		wake: make(chan struct{}, 1), queues: make(map[string]*keyQueue), inFlight: make(map[uint64]*eventCopy),
		session: session{ctx: context.Background()}, log: slog.New(slog.DiscardHandler), report: func(string, error) {},
	}
	d = newDestination(bridge.Orders, "", "*.*.*")
	d.ready, d.window, d.lookups = true, time.Hour, context.Background()
	d.failing.Report = p.report
	p.destinations = map[bridge.Destination]*destination{bridge.Orders: d}
	for i, id := range orders {
		e := p.newEntry(&bridge.Delivery{Broker: "kite", OrderID: id, Sequence: uint64(i + 1)}, func(error) {})
		l := &keyQueue{key: id}
		l.push(e)
		p.queues[id] = l
		p.enqueue(l)
		queues = append(queues, l)
	}
	return p, d, queues
}

func (p *Publisher) sent() (ids []string) {
	_, batch := p.nextBatch()
	for _, b := range batch {
		ids = append(ids, p.inFlight[b.attempt].entry.delivery.OrderID)
	}
	return ids
}

// TestSample: until one event was read back, one at a time is sent: the next one if it is not stored, the same one if
// it is misplaced.
func TestSample(t *testing.T) {
	p, d, queues := sampling("a", "b", "c", "d")
	end := func(l *keyQueue, outcome func(*eventCopy)) {
		p.endAttempt(&l.head.copies[0], outcome)
	}
	wantSent := func(want ...string) {
		t.Helper()
		if got := p.sent(); len(got) != len(want) || len(got) > 0 && got[0] != want[0] {
			t.Fatalf("sent %q, want %q", got, want)
		}
	}
	wantSent("a")
	wantSent()
	end(queues[0], func(c *eventCopy) { p.retry(c, &d.failing, bridge.ErrRejected) }) // not stored
	wantSent("b")
	wantSent()
	end(queues[1], func(c *eventCopy) { p.finish(c, bridge.ErrRejected) }) // too large
	wantSent("c")
	end(queues[2], func(c *eventCopy) { c.misplaced = true; p.retry(c, &d.failing, bridge.ErrRejected) })
	queues[0].stopTimer()
	p.enqueue(queues[0])
	wantSent() // neither a nor d
	queues[2].stopTimer()
	p.enqueue(queues[2])
	wantSent("c")
	p.checkpoints, _ = publishers.LoadCheckpoints(nil, publishers.BlindFor, nil)
	end(queues[2], func(c *eventCopy) { p.stored(c, &jetstream.PubAck{Sequence: 1}) })
	if got := p.sent(); len(got) != 2 {
		t.Errorf("then sent %q, want a and d", got)
	}
	for _, l := range queues {
		l.stopTimer()
	}
}

// TestSampleFound: when a sample is refused and the event that is next turns out to be stored, a third one is sent.
func TestSampleFound(t *testing.T) {
	p, _, queues := sampling("a", "b", "c")
	if got := p.sent(); len(got) != 1 || got[0] != "a" {
		t.Fatalf("sent %q", got)
	}
	p.endAttempt(&queues[0].head.copies[0], func(c *eventCopy) { p.finish(c, bridge.ErrRejected) })
	// b was sent before, and a lookup finds it.
	p.ready[0].queued, p.ready = false, p.ready[1:]
	b := &queues[1].head.copies[0]
	p.beginAttempt(b, time.Time{})
	p.endAttempt(b, func(c *eventCopy) { p.finish(c, nil) })
	if got := p.sent(); len(got) != 1 || got[0] != "c" {
		t.Errorf("sent %q, want c", got)
	}
}

// TestSampleStale: an event that waits for the sample may be found meanwhile.
func TestSampleStale(t *testing.T) {
	p, _, queues := sampling("a", "b", "c")
	if got := p.sent(); len(got) != 1 || got[0] != "a" {
		t.Fatalf("sent %q", got)
	}
	b := &queues[1].head.copies[0]
	p.beginAttempt(b, time.Time{})
	p.endAttempt(b, func(c *eventCopy) { p.finish(c, nil) }) // a lookup found it
	p.endAttempt(&queues[0].head.copies[0], func(c *eventCopy) { p.finish(c, bridge.ErrRejected) })
	if got := p.sent(); len(got) != 1 || got[0] != "c" {
		t.Errorf("sent %q, want c", got)
	}
}
