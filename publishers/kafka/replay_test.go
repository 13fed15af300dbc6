package kafka_test

import (
	"testing"
	"time"

	"github.com/postbridge/postbridge/bridge"
)

// TestReplay: what the topic holds already is stored again, with the same event id and key, as a message of another spool.
func TestReplay(t *testing.T) {
	b := startBus(t, 1)
	runs := make(map[string]bool)
	for range 2 {
		bus := bridge.Bus{Name: "kafka", Open: func(o bridge.Opening) (bridge.Publisher, error) { return b.Open(t, o), nil }}
		r, err := bridge.NewReplay(bus, func(string, error) {}, func(_ *bridge.Delivery, _ uint64, err error) { t.Error(err) })
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{"one", "two"} {
			err := r.Offer(t.Context(), &bridge.Delivery{
				Spool: "5b001dea", Sequence: 7, ID: id, Broker: "kite", UserID: "u", OrderID: "1",
				Status: bridge.StatusOpen, ReceivedAt: time.Now(), Data: []byte("{}"),
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := r.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		runs[r.ID()] = true
	}
	all := b.Stored(t, bridge.Orders)
	if len(all) != 4 || len(runs) != 2 {
		t.Fatalf("%d messages of %d runs, want 4 of 2", len(all), len(runs))
	}
	for i, m := range all {
		id, sequence := []string{"one", "two"}[i%2], []string{"00000000000000000001", "00000000000000000002"}[i%2]
		if m.Attributes["id"] != id || m.Attributes["sequence"] != sequence || !runs[m.Attributes["spool"]] || m.Key != "kite.u.1" {
			t.Errorf("message %d is %+v", i, m)
		}
	}
}
