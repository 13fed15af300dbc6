package kafka_test

import (
	"testing"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers/publishertest"
)

// TestNumberUsedAgain: after an older copy of the spool was put back, new events have numbers that the topic knows from
// others. All of them are stored.
func TestNumberUsedAgain(t *testing.T) {
	t.Parallel()
	bus := startBus(t, 1)
	r := publishertest.Open(t, bus)
	first := publishertest.Events(1, 10, 3)
	r.Publish(first...)
	r.WaitDone(first...)
	older := r.State()
	more := publishertest.Events(11, 10, 3)
	r.Publish(more...)
	r.WaitDone(more...)
	r.Close()

	p := bus.Open(t, bridge.Opening{
		Report: func(string, error) {}, Spool: first[0].Spool, State: []byte(older), SaveState: func() error { return nil },
		Rewound: func(_ uint64, why error) { t.Error(why) },
	})
	defer p.Close()
	again := publishertest.Events(11, 10, 3)
	done := make(chan error, len(again))
	for _, d := range again {
		d.ID = "another " + d.ID
		p.Publish(t.Context(), d, func(err error) { done <- err })
	}
	for range again {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	ids := make(map[string]int)
	for _, m := range bus.Stored(t, bridge.Orders) {
		ids[m.Attributes["id"]]++
	}
	for _, d := range append(append(first, more...), again...) {
		if ids[d.ID] != 1 {
			t.Errorf("event %s is stored %d times", d.ID, ids[d.ID])
		}
	}
}
