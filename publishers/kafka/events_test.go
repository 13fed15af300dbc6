package kafka

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

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
	asOf, err := events.Refresh(t.Context(), begin.Add(-time.Hour).Truncate(24*time.Hour))
	if err != nil || asOf.Before(begin) || asOf.After(time.Now()) {
		t.Fatalf("as of %v, %v", asOf, err)
	}
	last, err := events.Last(t.Context(), dest, d)
	data := last.Data
	if err != nil || (data == nil) != (want == "") {
		t.Fatalf("last event in %s: %s, %v, want %q", dest, data, err, want)
	}
	if data != nil && time.Since(last.Time) > time.Hour {
		t.Errorf("last event in %s: stored at %v", dest, last.Time)
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
	ids, err := again.Orders(t.Context(), "kite", "AB.1", time.Time{}, time.Now())
	slices.Sort(ids)
	if want := []string{"7", "8%2Fx"}; err != nil || !slices.Equal(ids, want) {
		t.Errorf("orders %q, %v, want %q", ids, err, want)
	}
	if ids, err := again.Orders(t.Context(), "kite", "AB.1", time.Now(), time.Now()); err != nil || ids != nil {
		t.Errorf("orders %q, %v, want none from now on", ids, err)
	}

	// On a new day the last events of the day before can still be read, for a pass that began then.
	again.startDay(time.Now())
	if last, err := again.Last(t.Context(), bridge.Orders, first); err != nil || last.Data == nil {
		t.Errorf("last event of the day before: %+v, %v", last, err)
	}
}

// TestEventsRecreated recreates a topic, whose offsets begin anew: what was read of it is of no use any more.
func TestEventsRecreated(t *testing.T) {
	t.Parallel()
	cluster := startKfake(t, kfake.NumBrokers(1), kfake.SeedTopics(1, "orders", "rejects", "deadletters"))
	events := openEvents(t, Config{Brokers: cluster.ListenAddrs()}, "0badcafe")
	for _, order := range []string{"7", "8"} {
		if err := events.Publish(t.Context(), orderEvent("AB.1", order, event.StatusOpen), nil); err != nil {
			t.Fatal(err)
		}
	}
	since := time.Now().Add(-time.Hour)
	if _, err := events.Refresh(t.Context(), since); err != nil {
		t.Fatal(err)
	}
	events.mu.Lock()
	events.offsets["orders/0"] = 1000
	events.mu.Unlock()
	if _, err := events.Refresh(t.Context(), since); err == nil {
		t.Error("an end before what was read is no error")
	}
}

// TestEventsOutage has an event held up by an outage, which must not be published once the bus is back: its order may
// have got other events meanwhile.
func TestEventsOutage(t *testing.T) {
	t.Parallel()
	cluster := startKfake(t, kfake.NumBrokers(1), kfake.SeedTopics(1, "orders", "rejects", "deadletters"))
	var down atomic.Bool
	down.Store(true)
	cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		return nil, errors.New("closed"), down.Load()
	})
	events := openEvents(t, Config{Brokers: cluster.ListenAddrs()}, "0badcafe")
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	held := orderEvent("AB.1", "7", event.StatusOpen)
	if err := events.Publish(ctx, held, nil); err == nil {
		t.Fatal("published in an outage")
	}
	down.Store(false)
	next := openEvents(t, Config{Brokers: cluster.ListenAddrs()}, "0badcaff")
	if err := next.Publish(t.Context(), orderEvent("AB.1", "8", event.StatusOpen), nil); err != nil {
		t.Fatal(err)
	}
	checkStatus(t, next, bridge.Orders, held, "")
}

func TestEventsBusDown(t *testing.T) {
	t.Parallel()
	cluster := startKfake(t, kfake.NumBrokers(1), kfake.SeedTopics(1, "orders", "rejects", "deadletters"))
	cfg := Config{Brokers: cluster.ListenAddrs()}
	cluster.Close()
	events := openEvents(t, cfg, "0badcafe")
	if _, err := events.Refresh(t.Context(), time.Now()); err == nil {
		t.Error("refreshed without a bus")
	}
	missing := startKfake(t, kfake.NumBrokers(1), kfake.SeedTopics(1, "orders"))
	_, err := openEvents(t, Config{Brokers: missing.ListenAddrs()}, "0badcafe").Refresh(t.Context(), time.Now())
	if err == nil || errors.Is(err, t.Context().Err()) {
		t.Errorf("refreshed without a topic: %v", err)
	}
}
