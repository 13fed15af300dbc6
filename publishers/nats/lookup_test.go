package nats_test

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers/nats"
	"github.com/postbridge/postbridge/publishers/publishertest"
)

// shortWindow is a stream that forgets message ids after a moment.
func shortWindow(t *testing.T, js jetstream.JetStream) {
	t.Helper()
	createStream(t, js, jetstream.StreamConfig{
		Name: "ORDERS", Subjects: []string{"orders.>"}, Duplicates: 200 * time.Millisecond, AllowDirect: true,
	})
}

// forget waits until the stream does not know the ids any more that it knows now.
func forget(t *testing.T, js jetstream.JetStream) {
	t.Helper()
	probe := func() bool {
		ack, err := js.Publish(t.Context(), "orders.test.probe.1", nil, jetstream.WithMsgID(t.Name()))
		if err != nil {
			t.Fatal(err)
		}
		return !ack.Duplicate
	}
	probe()
	eventually(t, "forgotten id", probe, func() any { return "" })
	s, err := js.Stream(t.Context(), "ORDERS")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(t.Context(), jetstream.WithPurgeSubject("orders.test.>")); err != nil {
		t.Fatal(err)
	}
}

// old are events of one order that arrived an hour ago and may have been offered then.
func old(sequences ...uint64) (all []*bridge.Delivery) { return arrived(time.Hour, sequences...) }

// arrived are events of one order that may have been offered by a run before, by a clock that showed then what ours did
// so long ago.
func arrived(ago time.Duration, sequences ...uint64) (all []*bridge.Delivery) {
	for _, sequence := range sequences {
		d := order(sequence)
		d.ReceivedAt, d.Redelivered = time.Now().Add(-ago), true
		all = append(all, d)
	}
	return all
}

// TestOfferedAgainMuchLater: what the run before stored is not stored again, however long ago, and whatever was done to
// the clock since.
func TestOfferedAgainMuchLater(t *testing.T) {
	t.Parallel()
	for name, ago := range map[string]time.Duration{
		"later": time.Hour, "clock set back": -time.Hour, "just now": time.Millisecond,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := startServer(t, nil)
			js := n.admin(t)
			shortWindow(t, js)
			cfg := nats.Config{URL: n.url(), CreateStreams: true}
			first := openEdge(t, cfg)
			first.publish(arrived(ago, 1, 2, 3)...)
			first.Close()
			forget(t, js)

			again := openEdge(t, cfg)
			again.publish(arrived(ago, 2, 3, 4)...)
			wantStored(t, js, "ORDERS", 1, 2, 3, 4)
		})
	}
}

// That a later event is stored does not say that an earlier one is: it may have been refused, and not yet be in the
// dead letters when the run ended.
func TestOfferedAgainWithGap(t *testing.T) {
	t.Parallel()
	n := startServer(t, nil)
	js := n.admin(t)
	shortWindow(t, js)
	cfg := nats.Config{URL: n.url(), CreateStreams: true}
	first := openEdge(t, cfg)
	first.publish(old(1, 2, 4, 5)...)
	first.Close()
	forget(t, js)

	again := openEdge(t, cfg)
	again.publish(old(2, 3)...)
	wantStored(t, js, "ORDERS", 1, 2, 4, 5, 3)
}

// What no run before offered is not looked up: here it would have been found.
func TestNotOfferedBefore(t *testing.T) {
	t.Parallel()
	n := startServer(t, nil)
	js := n.admin(t)
	shortWindow(t, js)
	cfg := nats.Config{URL: n.url(), CreateStreams: true}
	first := openEdge(t, cfg)
	first.publish(old(1, 2, 3)...)
	first.Close()
	forget(t, js)

	again := openEdge(t, cfg)
	all := old(1, 2, 3)
	all[2].Redelivered = false
	again.publish(all...)
	wantStored(t, js, "ORDERS", 1, 2, 3, 3)
}

// Replicas publish to the same subjects, each from a spool of its own.
func TestOfferedAgainBehindReplica(t *testing.T) {
	t.Parallel()
	n := startServer(t, nil)
	js := n.admin(t)
	shortWindow(t, js)
	cfg := nats.Config{URL: n.url(), CreateStreams: true}
	first := openEdge(t, cfg)
	first.publish(old(1, 2)...)
	replica := old(7)[0]
	replica.Spool = "feedface"
	first.publish(replica)
	first.Close()
	forget(t, js)

	again := openEdge(t, cfg)
	again.publish(old(1, 2, 3)...)
	if got := stored(t, js, "ORDERS"); len(got) != 4 {
		t.Errorf("stored %q", got)
	}
}

// An event in flight when an outage begins is not stored twice, even if that lasts longer than the stream remembers.
func TestOutageLongerThanWindow(t *testing.T) {
	t.Parallel()
	n := startServer(t, nil)
	js := n.admin(t)
	shortWindow(t, js)
	proxy := publishertest.NewProxy(t, n.url()[len("nats://"):])
	e := openEdge(t, nats.Config{URL: "nats://" + proxy.Addr(), CreateStreams: true})
	e.publish(order(1))
	proxy.LoseAnswers(true)
	results := []<-chan error{e.offer(order(2)), e.offer(order(3))}
	eventually(
		t,
		"event 2 in the stream",
		func() bool { return len(stored(t, js, "ORDERS")) == 2 },
		func() any { return "" },
	)
	forget(t, js)
	proxy.LoseAnswers(false)
	proxy.Cut()
	for _, result := range results {
		if err := e.wait(result); err != nil {
			t.Error(err)
		}
	}
	wantStored(t, js, "ORDERS", 1, 2, 3)
}

// TestSlowLookup: an event is sent once a lookup found that the stream does not hold it, also if the lookup took longer
// than the stream's duplicate window.
func TestSlowLookup(t *testing.T) {
	t.Parallel()
	n := startServer(t, nil)
	js := n.admin(t)
	shortWindow(t, js)
	proxy := publishertest.NewProxy(t, n.url()[len("nats://"):])
	proxy.DelayAnswers(250 * time.Millisecond)
	e := openEdge(t, nats.Config{URL: "nats://" + proxy.Addr(), CreateStreams: true})
	e.publish(old(1)...)
	wantStored(t, js, "ORDERS", 1)
}

// Whoever may not look is not held up for ever: an event may then be stored twice.
func TestLookUpDenied(t *testing.T) {
	t.Parallel()
	n := startServer(t, func(o *server.Options) {
		o.Users = []*server.User{
			{Username: "admin", Password: "admin"},
			{
				Username: "edge",
				Permissions: &server.Permissions{
					Publish: &server.SubjectPermission{Deny: []string{"$JS.API.DIRECT.GET.>"}},
				},
			},
		}
	})
	js := n.admin(t, natsgo.UserInfo("admin", "admin"))
	shortWindow(t, js)
	e := openEdge(t, nats.Config{URL: n.url(), User: "edge", Password: noPassword, CreateStreams: true})
	e.publish(old(1, 2)...)
	wantStored(t, js, "ORDERS", 1, 2)
}

// TestNumberUsedAgain: what a run after an older copy of the spool was put back numbers like an event of before is
// not lost without a word. What may have been sent by a run before is taken for stored.
func TestNumberUsedAgain(t *testing.T) {
	t.Parallel()
	n := startServer(t, nil)
	js := n.admin(t)
	before := openEdge(t, nats.Config{URL: n.url(), CreateStreams: true})
	before.publish(order(1), order(2))

	e := openEdge(t, nats.Config{URL: n.url()})
	redelivered := order(1)
	redelivered.Redelivered = true
	e.publish(redelivered)
	another := order(2)
	another.ID = "another"
	err := e.wait(e.offer(another))
	wantRejected(t, err)
	if err != nil && (!strings.Contains(err.Error(), "older copy") ||
		strings.Contains(err.Error(), another.SequenceText())) {
		t.Error(err)
	}
	e.publish(another.AsDeadletter())
	wantStored(t, js, "ORDERS", 1, 2)
	wantStored(t, js, "DEADLETTERS", 2)
}
