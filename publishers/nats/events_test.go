package nats_test

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/publishers/nats"
)

// orderEvent is an event of an order of user AB.1. Its data is n.
func orderEvent(n uint64, order string, status event.Status) *bridge.Delivery {
	return &bridge.Delivery{
		ID: fmt.Sprintf("%032x", n), Broker: "kite", UserID: "AB.1",
		OrderID: order, Status: status, ReceivedAt: time.Now(), Data: []byte(strconv.FormatUint(n, 10)),
	}
}

// openEvents opens the events of a new bus that has all streams.
func openEvents(t *testing.T, prefix string) (*nats.Events, jetstream.JetStream) {
	t.Helper()
	bus := startServer(t, nil)
	cfg := nats.Config{URL: bus.url(), CreateStreams: true, Replicas: 1, MaxAge: time.Hour, Prefix: prefix}
	if _, err := nats.OpenEvents(t.Context(), cfg, "0badcafe"); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Fatalf("opened without streams: %v", err)
	}
	openEdge(t, cfg) // creates the streams
	var events *nats.Events
	eventually(t, "streams", func() (ok bool) {
		var err error
		events, err = nats.OpenEvents(t.Context(), cfg, "0badcafe")
		return err == nil
	}, func() any { return nil })
	t.Cleanup(events.Close)
	return events, bus.admin(t)
}

// checkLast checks the last event of an order, and returns its revision.
func checkLast(
	t *testing.T, events *nats.Events, dest bridge.Destination, d *bridge.Delivery, want string,
) (revision uint64) {
	t.Helper()
	data, revision, err := events.Last(t.Context(), dest, d)
	if err != nil || string(data) != want || (data == nil) != (revision == 0) {
		t.Fatalf("last event in %s: %q at %d, %v, want %q", dest, data, revision, err, want)
	}
	return revision
}

func TestEvents(t *testing.T) {
	t.Parallel()
	for _, prefix := range []string{"", "desk1"} {
		events, js := openEvents(t, prefix)
		first := orderEvent(1, "7", event.StatusOpen)
		checkLast(t, events, bridge.Orders, first, "")
		at := func(revision uint64) map[bridge.Destination]uint64 {
			return map[bridge.Destination]uint64{bridge.Orders: revision}
		}
		if err := events.Publish(t.Context(), first, at(0)); err != nil {
			t.Fatal(err)
		}
		revision := checkLast(t, events, bridge.Orders, first, "1")

		// A postback arrives between the read and the publish.
		if err := events.Publish(t.Context(), orderEvent(2, "7", event.StatusFilled), at(revision)); err != nil {
			t.Fatal(err)
		}
		for _, stale := range []uint64{0, revision} {
			err := events.Publish(t.Context(), orderEvent(3, "7", event.StatusCancelled), at(stale))
			if !errors.Is(err, bridge.ErrMoved) {
				t.Errorf("published after revision %d: %v, want %v", stale, err, bridge.ErrMoved)
			}
		}
		checkLast(t, events, bridge.Orders, first, "2")

		rejected := orderEvent(4, "8", event.StatusRejected)
		both := map[bridge.Destination]uint64{bridge.Orders: 0, bridge.Rejects: 0}
		if err := events.Publish(t.Context(), rejected, both); err != nil {
			t.Fatal(err)
		}
		checkLast(t, events, bridge.Orders, rejected, "4")
		checkLast(t, events, bridge.Rejects, rejected, "4")

		stream := "ORDERS"
		if prefix != "" {
			stream = "DESK1_ORDERS"
		}
		s, err := js.Stream(t.Context(), stream)
		if err != nil {
			t.Fatal(err)
		}
		m, err := s.GetMsg(t.Context(), revision)
		if err != nil || m.Header.Get("ce-spool") != "0badcafe" || m.Header.Get("ce-id") != first.ID {
			t.Errorf("the message is %+v, %v", m, err)
		}
	}
}

// TestEventsOrders returns the orders of one user that have an event since a time.
func TestEventsOrders(t *testing.T) {
	t.Parallel()
	events, _ := openEvents(t, "")
	start := time.Now()
	checkOrders := func(since, until time.Time, want ...string) {
		t.Helper()
		got, err := events.Orders(t.Context(), "kite", "AB.1", since, until)
		slices.Sort(got)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("orders %q, %v, want %q", got, err, want)
		}
	}
	later := time.Now().Add(time.Hour)
	checkOrders(start, later)
	publish := func(d *bridge.Delivery) {
		t.Helper()
		_, revision, err := events.Last(t.Context(), bridge.Orders, d)
		if err == nil {
			err = events.Publish(t.Context(), d, map[bridge.Destination]uint64{bridge.Orders: revision})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	publish(orderEvent(1, "7", event.StatusOpen))
	publish(orderEvent(2, "8/x", event.StatusOpen))
	publish(orderEvent(3, "7", event.StatusFilled))
	other := orderEvent(4, "9", event.StatusOpen)
	other.UserID = "AB.2"
	publish(other)
	checkOrders(start.Add(-time.Minute), later, "7", "8%2Fx")
	checkOrders(later, later)
	checkOrders(start.Add(-time.Minute), start)
}

func TestEventsBusDown(t *testing.T) {
	t.Parallel()
	cfg := nats.Config{URL: fmt.Sprint("nats://127.0.0.1:", freePort(t))}
	if _, err := nats.OpenEvents(t.Context(), cfg, "0badcafe"); err == nil {
		t.Error("opened without a bus")
	}
}

// TestEventsBusLost returns an error from each read and publish once the connection has ended.
func TestEventsBusLost(t *testing.T) {
	t.Parallel()
	events, _ := openEvents(t, "")
	events.Close()
	d := orderEvent(1, "7", event.StatusOpen)
	_, _, last := events.Last(t.Context(), bridge.Orders, d)
	_, orders := events.Orders(t.Context(), "kite", "AB.1", time.Now(), time.Now())
	publish := events.Publish(t.Context(), d, map[bridge.Destination]uint64{bridge.Orders: 0})
	if last == nil || orders == nil || publish == nil {
		t.Errorf("errors %v, %v, %v", last, orders, publish)
	}
}
