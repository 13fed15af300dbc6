package kafka

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
)

// orderEvent is an event of an order.
func orderEvent(user, order string, status event.Status) *bridge.Delivery {
	e := event.Event{
		ID: fmt.Sprintf("%032x", 1), Broker: "kite", Order: event.Order{UserID: user, OrderID: order, Status: status},
		ReceivedAt: time.Now().UTC().Format(event.TimeFormat), VerifiedBy: "order_book", Source: "order_book",
		Raw: json.RawMessage(`{"large":"body"}`),
	}
	return &bridge.Delivery{
		ID: e.ID, Broker: e.Broker, UserID: user, OrderID: order, Status: status, ReceivedAt: time.Now(),
		Data: e.Append(nil),
	}
}

// openEvents opens the events of a run.
func openEvents(t *testing.T, cfg Config, spool string) *Events {
	t.Helper()
	events, err := OpenEvents(cfg, spool, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(events.Close)
	return events
}

// checkStatus refreshes and checks the status of the last event of an order; "" if there is none.
func checkStatus(t *testing.T, events *Events, dest bridge.Destination, d *bridge.Delivery, want event.Status) {
	t.Helper()
	begin := time.Now()
	asOf, err := events.Refresh(t.Context())
	if err != nil || asOf.Before(begin) || asOf.After(time.Now()) {
		t.Fatalf("as of %v, %v", asOf, err)
	}
	data, _, err := events.Last(t.Context(), dest, d)
	if err != nil || (data == nil) != (want == "") {
		t.Fatalf("last event in %s: %s, %v, want %q", dest, data, err, want)
	}
	var e event.Event
	if data != nil && (json.Unmarshal(data, &e) != nil || e.Status != want || e.Raw != nil || e.OrderID != d.OrderID) {
		t.Errorf("last event in %s: %s, want %q without a body", dest, data, want)
	}
}

func TestEvents(t *testing.T) {
	t.Parallel()
	cluster := startKfake(t, kfake.NumBrokers(3), kfake.DefaultNumPartitions(3),
		kfake.SeedTopics(3, "desk1.orders", "desk1.rejects", "desk1.deadletters"))
	cfg := Config{Brokers: cluster.ListenAddrs(), Prefix: "desk1"}
	events := openEvents(t, cfg, "0badcafe")
	first := orderEvent("AB.1", "7", event.StatusOpen)
	checkStatus(t, events, bridge.Orders, first, "")
	publish := func(d *bridge.Delivery) {
		t.Helper()
		if err := events.Publish(t.Context(), d, nil); err != nil {
			t.Fatal(err)
		}
	}
	publish(first)
	checkStatus(t, events, bridge.Orders, first, event.StatusOpen)
	publish(orderEvent("AB.1", "7", event.StatusFilled))
	publish(orderEvent("AB.1", "8/x", event.StatusRejected))
	publish(orderEvent("AB.2", "9", event.StatusOpen))
	checkStatus(t, events, bridge.Orders, first, event.StatusFilled)

	// Another run reads everything anew.
	again := openEvents(t, cfg, "0badcaff")
	checkStatus(t, again, bridge.Orders, first, event.StatusFilled)
	for _, dest := range []bridge.Destination{bridge.Orders, bridge.Rejects} {
		checkStatus(t, again, dest, orderEvent("AB.1", "8/x", event.StatusRejected), event.StatusRejected)
	}
	ids, err := again.Orders(t.Context(), "kite", "AB.1", time.Time{})
	slices.Sort(ids)
	if want := []string{"7", "8%2Fx"}; err != nil || !slices.Equal(ids, want) {
		t.Errorf("orders %q, %v, want %q", ids, err, want)
	}
}

func TestEventsBusDown(t *testing.T) {
	t.Parallel()
	cluster := startKfake(t, kfake.NumBrokers(1), kfake.SeedTopics(1, "orders", "rejects", "deadletters"))
	cfg := Config{Brokers: cluster.ListenAddrs()}
	cluster.Close()
	events := openEvents(t, cfg, "0badcafe")
	if _, err := events.Refresh(t.Context()); err == nil {
		t.Error("refreshed without a bus")
	}
	missing := startKfake(t, kfake.NumBrokers(1), kfake.SeedTopics(1, "orders"))
	_, err := openEvents(t, Config{Brokers: missing.ListenAddrs()}, "0badcafe").Refresh(t.Context())
	if err == nil || errors.Is(err, t.Context().Err()) {
		t.Errorf("refreshed without a topic: %v", err)
	}
}
