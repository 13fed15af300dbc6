package nats_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers"
	"github.com/postbridge/postbridge/publishers/nats"
	"github.com/postbridge/postbridge/publishers/publishertest"
)

// addMapping adds a subject mapping to the account of a server.
func (n *node) addMapping(t *testing.T, from, to string) {
	t.Helper()
	if err := n.server.GlobalAccount().AddMapping(from, to); err != nil {
		t.Fatal(err)
	}
}

// subjects counts the messages of a stream by the first tokens of their subjects.
func subjects(t *testing.T, js jetstream.JetStream, stream string, tokens int) map[string]int {
	t.Helper()
	count := make(map[string]int)
	err := eachMessage(t.Context(), js, stream, func(m jetstream.Msg) error {
		count[strings.Join(strings.SplitN(m.Subject(), ".", tokens+1)[:tokens], ".")]++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return count
}

// orders are n events, each of an order of its own.
func orders(n uint64) (all []*bridge.Delivery) {
	for i := range n {
		d := order(i + 1)
		d.OrderID = fmt.Sprint(i)
		all = append(all, d)
	}
	return all
}

func (e *edge) offerAll(all []*bridge.Delivery) (results []<-chan error) {
	for _, d := range all {
		results = append(results, e.offer(d))
	}
	return results
}

func (e *edge) waitAll(results []<-chan error) {
	e.t.Helper()
	for _, result := range results {
		if err := e.wait(result); err != nil {
			e.t.Error(err)
		}
	}
}

// TestSubjectTransform: a stream that renames what it stores gets nothing until it does not.
func TestSubjectTransform(t *testing.T) {
	t.Parallel()
	n := startServer(t, nil)
	js := n.admin(t)
	c := jetstream.StreamConfig{
		Name: "ORDERS", Subjects: []string{"orders.>"},
		SubjectTransform: &jetstream.SubjectTransformConfig{Source: "orders.>", Destination: "stored.orders.>"},
	}
	createStream(t, js, c)
	cfg := nats.Config{URL: n.url(), CreateStreams: true}
	e := openEdge(t, cfg)
	held := e.offer(order(1))
	e.waitCause("stream ORDERS", "subject transform from orders.> to stored.orders.>")
	undone(t, held)
	wantStored(t, js, "ORDERS")
	wantResult(t, checkBus(t, cfg), publishers.Fail, "stream ORDERS renames what it stores", "remove the transform")
	c.SubjectTransform = nil
	if _, err := js.UpdateStream(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if err := e.wait(held); err != nil {
		t.Error(err)
	}
	e.waitNoCauses()
}

// TestSubjectMapping: nothing tells of a mapping beforehand, so one event is misplaced, and all others are held.
func TestSubjectMapping(t *testing.T) {
	t.Parallel()
	n := startServer(t, nil)
	js := n.admin(t)
	shortWindow(t, js)
	n.addMapping(t, "orders.*.*.*", "orders.mapped.$1.$2.$3")
	cfg := nats.Config{URL: n.url(), CreateStreams: true}
	e := openEdge(t, cfg)
	results := e.offerAll(orders(50))
	e.waitCause("publish orders", "subject mapping")
	e.publish(order(100).AsDeadletter()) // has another stream
	for _, result := range results {
		undone(t, result)
	}
	// The one is offered again and again, and stored again when the stream has forgotten it.
	misplaced := make(map[string]bool)
	for _, id := range stored(t, js, "ORDERS") {
		misplaced[id] = true
	}
	if len(misplaced) != 1 {
		t.Errorf("%d events are misplaced: %v", len(misplaced), misplaced)
	}
	n.server.GlobalAccount().RemoveMapping("orders.*.*.*")
	e.waitAll(results)
	e.waitNoCauses()
	if got := subjects(t, js, "ORDERS", 2); got["orders.kite"] != 50 {
		t.Errorf("%v, want 50 of orders.kite", got)
	}
}

// TestSubjectMappingOfSome: where only some orders are renamed, their events are found when they are offered again.
// They are not stored time and again.
func TestSubjectMappingOfSome(t *testing.T) {
	t.Parallel()
	n := startServer(t, nil)
	js := n.admin(t)
	shortWindow(t, js)
	n.addMapping(t, "orders.dhan.*.*", "orders.mapped.dhan.$1.$2")
	e := openEdge(t, nats.Config{URL: n.url(), CreateStreams: true})
	all := orders(50)
	for i, d := range all {
		if i%2 == 1 {
			d.Broker = "dhan"
		}
		d.Redelivered = true
	}
	e.publish(all[0])
	results := e.offerAll(all[1:])
	e.waitCause("publish orders", "subject mapping")
	n.server.GlobalAccount().RemoveMapping("orders.dhan.*.*")
	e.waitAll(results)
	e.waitNoCauses()
	if got := subjects(t, js, "ORDERS", 2); got["orders.kite"] != 25 || got["orders.dhan"] != 25 {
		t.Errorf("%v, want 25 of each broker", got)
	}
}

// TestMisplacedBefore: what a run before had stored under another subject is stored again under its own, as soon as the
// stream does not take it for a repeat. Nothing else waits for that.
func TestMisplacedBefore(t *testing.T) {
	t.Parallel()
	n := startServer(t, nil)
	js := n.admin(t)
	createStream(t, js, jetstream.StreamConfig{
		Name: "ORDERS", Subjects: []string{"orders.>"}, AllowDirect: true, Duplicates: time.Minute,
	})
	e := openEdge(t, nats.Config{URL: n.url(), CreateStreams: true})
	e.publish(order(1)) // is read back
	d := order(2)
	d.OrderID, d.Redelivered = "2", true
	if _, err := js.PublishMsg(t.Context(), &natsgo.Msg{
		Subject: "orders.elsewhere", Header: natsgo.Header{"Nats-Msg-Id": {d.MsgID()}},
	}); err != nil {
		t.Fatal(err)
	}
	held := e.offer(d)
	e.waitCause("publish orders", "subject mapping")
	e.publish(order(3))
	undone(t, held)
	c := streamConfig(t, js, "ORDERS")
	tries := 0
	eventually(t, "event 2 under its own subject", func() bool {
		tries++
		c.Duplicates = time.Duration(100+tries%2) * time.Millisecond // changed until it takes effect, as in forgetAll
		if _, err := js.UpdateStream(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-held:
			if err != nil {
				t.Error(err)
			}
			return true
		default:
			return false
		}
	}, func() any { return e.all() })
	e.waitNoCauses()
	wantStored(t, js, "ORDERS", 1, 2, 3, 2)
}

// TestSubjectMappingLater: what was stored under another subject since a mapping was added is published again.
func TestSubjectMappingLater(t *testing.T) {
	t.Parallel()
	b := startBus(t, 1)
	js := b.nodes[0].admin(t, natsgo.UserInfo("admin", "admin"))
	shortWindow(t, js)
	r := publishertest.Open(t, b)
	var all []*bridge.Delivery
	publishUntilNoted := func() {
		r.Eventually("a checkpoint", func() bool {
			some := publishertest.Events(uint64(len(all)+1), 50, 20)
			all = append(all, some...)
			r.Publish(some...)
			r.WaitDone(some...)
			return r.HasCheckpoint("ORDERS", uint64(len(all)-50))
		})
	}
	publishUntilNoted()
	b.nodes[0].addMapping(t, "orders.*.*.*", "orders.mapped.$1.$2.$3")
	publishUntilNoted()
	r.ExpectLoss()
	b.Cut()
	r = r.Rewind()
	r.Publish(all[r.Prefix():]...)
	r.Eventually(
		"condition",
		func() bool { return strings.Contains(strings.Join(r.Causes(), "\n"), "subject mapping") },
	)
	b.nodes[0].server.GlobalAccount().RemoveMapping("orders.*.*.*")
	r.WaitDone(all[r.Prefix():]...)
	if got := subjects(t, js, "ORDERS", 2); got["orders.kite"] != len(all) {
		t.Errorf("%v, want %d of orders.kite", got, len(all))
	}
	r.Eventually("end of all conditions", func() bool { return len(r.Causes()) == 0 })
}
