package kafka_test

import (
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/publishers/publishertest"
)

// TestZombie has a batch of the run before arrive at the broker when the next run is at work already: before that
// looks, between that and its first batch, or behind that. The two batches are cut the same or differently, and of
// dead letters, which have no order, the next run offers others first.
func TestZombie(t *testing.T) {
	t.Parallel()
	const batch = 30 // of the zombie
	for _, arrives := range []string{"BeforeLook", "BeforeBatch", "AfterBatch", "AfterEvent"} {
		for name, cut := range map[string]int{"Same": batch, "Shorter": batch / 3, "Longer": batch + 10} {
			if testing.Short() && (name == "Longer" || arrives == "AfterEvent") {
				continue // Shorter and AfterBatch are their likes
			}
			t.Run(arrives+name, func(t *testing.T) {
				t.Parallel()
				testZombie(t, arrives, batch, cut, false, bridge.Orders)
			})
			t.Run(arrives+name+"AnswerLost", func(t *testing.T) {
				t.Parallel()
				testZombie(t, arrives, batch, cut, true, bridge.Orders)
			})
			t.Run(arrives+name+"OtherOrder", func(t *testing.T) {
				t.Parallel()
				testZombie(t, arrives, batch, cut, false, bridge.Deadletters)
			})
		}
	}
}

func testZombie(t *testing.T, arrives string, batch, cut int, loseAnswer bool, dest bridge.Destination) {
	bus := startBus(t, 1)
	bus.config.Partitions = 1
	r := publishertest.Open(t, bus)
	first, all := ordersOnly(publishertest.Events(1, 20, 3)), ordersOnly(publishertest.Events(21, batch+20, 3))
	if dest == bridge.Deadletters {
		first, all = publishertest.Deadletters(1, 20), publishertest.Deadletters(21, batch+20)
	}
	r.Publish(first...)
	r.WaitDone(first...)
	r.Close()

	z := holdBatch(t, bus, r, all[:batch])
	if dest == bridge.Deadletters {
		slices.Reverse(all)
	}
	arrived := func() bool { return bus.cluster.PartitionInfo(string(dest), 0).HighWatermark > 20 }
	learn := newGate(t)
	var sent, lost atomic.Bool
	bus.setTap(tap{
		request: func(req request) []byte {
			switch {
			case req.key == int16(kmsg.Metadata):
				learn.pass() // so that the batch has all that is published before
			case req.key == int16(kmsg.Produce) && !sent.Swap(true):
				if _, _, b := req.produced(t); arrives != "BeforeLook" && int(b.NumRecords) != cut {
					t.Errorf("the batch has %d events, want %d", b.NumRecords, cut)
				}
				if arrives == "BeforeBatch" {
					z.gate.open()
					z.wait(t)
				}
			}
			return req.frame
		},
		answer: func(req request, frame []byte) []byte {
			if req.key != int16(kmsg.Produce) || z.is(req) {
				return frame
			}
			if arrives == "AfterBatch" {
				z.gate.open()
			}
			if loseAnswer && !lost.Swap(true) {
				bus.Cut()
				return nil
			}
			return frame
		},
	})
	if arrives == "BeforeLook" {
		z.gate.open()
		r.Eventually("the zombie stored", arrived)
	}
	r = r.Reopen()
	r.Publish(all[:cut]...)
	learn.open()
	r.Eventually("a batch sent, or all found", func() bool { return sent.Load() || r.DoneOf(all[:cut]...) == cut })
	if arrives == "AfterEvent" {
		r.WaitDone(all[:cut]...)
		z.gate.open()
	}
	r.Publish(all[cut:]...)
	r.WaitDone(all...)
	z.wait(t)
	r.CheckStored(slices.Concat(first, all)...)
	waitNoCauses(r)
}

// Who may not look has to be somebody else: otherwise what is stored of the run before passes for other events of as
// many. They may be stored twice, but none is lost.
func TestBlindAfterCrash(t *testing.T) {
	t.Parallel()
	bus := secured(t, kmsg.ACLOperationWrite, kmsg.ACLOperationDescribe, kmsg.ACLOperationCreate)
	bus.config.Partitions = 1
	r := publishertest.Open(t, bus)
	first, all := publishertest.Deadletters(1, 20), publishertest.Deadletters(21, 60)
	r.Publish(first...)
	r.WaitDone(first...)
	r.Close()
	z := holdBatch(t, bus, r, all[:30])
	z.gate.open()
	z.wait(t)
	learn := newGate(t)
	bus.setTap(tap{request: func(req request) []byte {
		if req.key == int16(kmsg.Metadata) {
			learn.pass()
		}
		return req.frame
	}})
	r = r.Reopen()
	r.Publish(all[30:]...) // as many
	learn.open()
	r.WaitDone(all[30:]...)
	r.Publish(all[:30]...)
	r.WaitDone(all...)
	count := make(map[string]int)
	for _, m := range bus.Stored(t, bridge.Deadletters) {
		count[m.Attributes["sequence"]]++
	}
	for _, d := range append(first, all...) {
		if count[d.SequenceText()] == 0 {
			t.Errorf("event %d is lost", d.Sequence)
		}
	}
}

// zombie is a batch whose publisher is closed and that did not arrive yet.
type zombie struct {
	gate    *gate
	request request
	arrived chan struct{} // closed when it did
	run     *publishertest.Trial
}

// holdBatch has the run after r send all as one batch, holds that, and closes the run.
func holdBatch(t *testing.T, bus *testBus, r *publishertest.Trial, all []*bridge.Delivery) *zombie {
	z := &zombie{gate: newGate(t), arrived: make(chan struct{})}
	held := make(chan struct{})
	var once sync.Once
	learn := newGate(t)
	bus.setTap(tap{request: func(req request) []byte {
		switch req.key {
		case int16(kmsg.Metadata):
			learn.pass()
		case int16(kmsg.Produce):
			once.Do(func() {
				z.request = req
				close(held)
			})
			z.gate.pass()
		}
		return req.frame
	}})
	r = r.Reopen()
	r.Publish(all...)
	learn.open()
	<-held
	if _, _, b := z.request.produced(t); int(b.NumRecords) != len(all) {
		t.Errorf("the batch has %d events, want %d", b.NumRecords, len(all))
	}
	r.Close()
	z.run = r

	_, _, mine := z.request.produced(t)
	arrive := sync.OnceFunc(func() { close(z.arrived) })
	seen := produceFault("", nil, 1)
	seen.Observe = true
	seen.When = func(req kmsg.Request) bool {
		if batchOf(t, req).CRC != mine.CRC {
			return false
		}
		arrive()
		return true
	}
	bus.cluster.Fault(seen)
	return z
}

func (z *zombie) is(r request) bool { return &r.frame[0] == &z.request.frame[0] }

// wait waits until the broker has it.
func (z *zombie) wait(t *testing.T) {
	t.Helper()
	select {
	case <-z.arrived:
	case <-time.After(patience):
		t.Error("the batch of the run before did not arrive")
	}
}

// ordersOnly makes them all events of one destination.
func ordersOnly(all []*bridge.Delivery) []*bridge.Delivery {
	for _, d := range all {
		d.Status = event.StatusOpen
	}
	return all
}

// gate holds who passes until it is open.
type gate struct {
	opened chan struct{}
	open   func()
}

func newGate(t *testing.T) *gate {
	g := &gate{opened: make(chan struct{})}
	g.open = sync.OnceFunc(func() { close(g.opened) })
	t.Cleanup(g.open)
	return g
}

func (g *gate) pass() { <-g.opened }
