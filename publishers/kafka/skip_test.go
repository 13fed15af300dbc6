package kafka_test

import (
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/publishers/kafka"
	"github.com/postbridge/postbridge/publishers/publishertest"
)

// later makes an event so much younger than those before it that a look skips those.
func later(d *bridge.Delivery) *bridge.Delivery {
	d.ReceivedAt = time.Now().Add(25 * time.Hour)
	return d
}

// crashAfter stores events in a run that does not live to note it, and returns that run.
func crashAfter(
	t *testing.T, bus *testBus, r *publishertest.Trial, topic string, all ...*bridge.Delivery,
) *publishertest.Trial {
	t.Helper()
	before := bus.cluster.PartitionInfo(topic, 0).HighWatermark
	r.Close()
	z := holdBatch(t, bus, r, all)
	z.gate.open()
	z.wait(t)
	r.Eventually("the batch stored", func() bool {
		return bus.cluster.PartitionInfo(topic, 0).HighWatermark == before+int64(len(all))
	})
	bus.setTap(tap{})
	return z.run
}

// What a writer skips as older than its first event may be its own, with the numbers that it would use next: then a
// broker takes that event for a repeat, of as many.
func TestSkippedOfOtherPartition(t *testing.T) {
	t.Parallel()
	first := ordersOnly(publishertest.Events(1, 1, 1))
	bus, r := onePartition(t, first...)
	var moves, stays *bridge.Delivery
	for _, d := range ordersOnly(publishertest.Events(2, 40, 40)) {
		switch p := partitionOf(d.Key(), 2); {
		case p == 1 && moves == nil:
			moves = d
		case p == 0 && moves != nil && stays == nil:
			stays = later(d)
		}
	}
	crashAfter(t, bus, r, orders, moves)
	addPartitions(t, bus, 2)
	r = r.Reopen()
	r.Publish(moves, stays)
	r.WaitDone(moves, stays)
	stored := make(map[string]int)
	for _, m := range bus.Stored(t, bridge.Orders) {
		stored[m.Attributes["sequence"]]++
	}
	if stored[stays.SequenceText()] != 1 || stored[moves.SequenceText()] < 1 {
		t.Errorf("stored: %v", stored)
	}
}

func TestSkippedWhileCursorWaits(t *testing.T) {
	t.Parallel()
	first := publishertest.Events(1, 1, 1)
	bus, r := onePartition(t, first...)
	bus.SetFull(t, bridge.Rejects, true)
	waiting := ordersOnly(publishertest.Events(2, 2, 1))
	waiting[0].Status = event.StatusRejected
	r.Publish(waiting[0])
	r.Eventually(
		"it is stored in orders",
		func() bool { return bus.cluster.PartitionInfo(orders, 0).HighWatermark == 2 },
	)
	r.Publish(waiting[1])
	r.WaitDone(waiting[1])
	addPartitions(t, bus, 2)
	waitWarning(r, bus, 1, 2)
	var last *bridge.Delivery
	for _, d := range ordersOnly(publishertest.Events(4, 40, 40)) {
		if partitionOf(d.Key(), 2) == 0 {
			last = later(d)
			break
		}
	}
	r.Publish(last)
	r.WaitDone(last)
	bus.SetFull(t, bridge.Rejects, false)
	r.WaitDone(waiting...)
	wantOnce(t, bus, orders, slices.Concat(first, waiting, []*bridge.Delivery{last}))
}

func TestSkippedDeadletter(t *testing.T) {
	t.Parallel()
	first := publishertest.Deadletters(1, 1)
	bus, r := onePartition(t, first...)
	all := publishertest.Deadletters(2, 2)
	crashAfter(t, bus, r, string(bridge.Deadletters), all[0])
	r = r.Reopen()
	r.Publish(later(all[1]))
	r.WaitDone(all[1])
	r.Publish(all[0]) // dead letters come late
	r.WaitDone(all...)
	wantOnce(t, bus, string(bridge.Deadletters), append(first, all...))
}

// TestClockSetBack has the clock set back between the time when events are received and the time when they are sent,
// which is what their records carry. The next run finds them: by the noted offset, whatever the times are; without one,
// by a time with a margin.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		by   time.Duration
		note func(string) string
	}{
		"Noted":    {1000 * time.Hour, func(note string) string { return note }},
		"NoteLost": {12 * time.Hour, func(string) string { return "" }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first := ordersOnly(publishertest.Events(1, 1, 1))
			bus, r := onePartition(t, first...)
			bus.change = kafka.UnsureFor(300 * time.Millisecond)
			all := ordersOnly(publishertest.Events(2, 20, 5))
			for _, d := range all {
				d.ReceivedAt = time.Now().Add(c.by)
			}
			note := c.note(r.State())
			r = crashAfter(t, bus, r, orders, all...).ReopenWith(note)
			more := ordersOnly(publishertest.Events(22, 5, 5))
			for _, some := range [][]*bridge.Delivery{all[:7], all[7:], more} { // other batches than before
				r.Publish(some...)
				r.WaitDone(some...)
			}
			wantOnce(t, bus, orders, slices.Concat(first, all, more))
		})
	}
}

// A look that is cut off goes on where it was: a throttled fetch is answered with nothing.
func TestLookGoesOn(t *testing.T) {
	t.Parallel()
	bus, r := onePartition(t, ordersOnly(publishertest.Events(1, 1, 1))...)
	r.Close()
	others := bus.client(t, kgo.ProducerBatchCompression(kgo.NoCompression()))
	const records = 20
	random := rand.NewChaCha8([32]byte{})
	for range records {
		value := make([]byte, 500<<10) // a fetch each
		_, _ = random.Read(value)
		if err := others.ProduceSync(t.Context(), &kgo.Record{Topic: orders, Value: value}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	var fetched atomic.Int32
	bus.setTap(tap{answer: func(req request, frame []byte) []byte {
		if req.key == int16(kmsg.Fetch) && fetched.Add(1)%3 == 0 {
			bus.Cut()
			return nil
		}
		return frame
	}})
	r = r.Reopen()
	more := ordersOnly(publishertest.Events(2, 1, 1))
	r.Publish(more...)
	r.WaitDone(more...)
	if n := fetched.Load(); n > 2*records {
		t.Errorf("%d fetches to read %d records", n, records)
	}
}

// An event that was acknowledged, but has to be looked after, is not given to another writer before that was done.
func TestPartitionsAddedInDoubt(t *testing.T) {
	t.Parallel()
	first := ordersOnly(publishertest.Events(1, 20, 20))
	bus, r := onePartition(t, first...)
	r.Close()
	var hidden, acknowledged atomic.Bool
	hide := hideLeaders(t, 0, &hidden)
	bus.setTap(tap{answer: func(req request, frame []byte) []byte {
		if req.key == int16(kmsg.Produce) && !acknowledged.Swap(true) {
			hidden.Store(true)
			bus.cluster.Fault(kfake.Fault{
				Keys: []kmsg.Key{kmsg.Fetch}, Topic: orders, Err: kerr.NotLeaderForPartition, Count: -1,
				When: func(kmsg.Request) bool { return hidden.Load() },
			})
		}
		return hide(req, frame)
	}})
	r = r.Reopen()
	all := ordersOnly(publishertest.Events(21, 20, 20))
	r.Publish(all...)
	waitCause(r, "partition 0: has no leader")
	addPartitions(t, bus, 2)
	waitWarning(r, bus, 1, 2)
	hidden.Store(false)
	r.WaitDone(all...)
	wantOnce(t, bus, orders, append(first, all...))
}

// While a broker refuses our numbers it is asked now and then, however many events come.
func TestRefusedNumbersArePaced(t *testing.T) {
	t.Parallel()
	bus, r := onePartition(t, ordersOnly(publishertest.Events(1, 1, 1))...)
	refuseKnown(t, bus, r, kerr.OutOfOrderSequenceNumber)
	var produced atomic.Int32
	bus.setTap(tap{request: func(req request) []byte {
		if req.key == int16(kmsg.Produce) {
			produced.Add(1)
		}
		return req.frame
	}})
	published := int32(0)
	r.Eventually("attempts", func() bool {
		published++
		r.Publish(ordersOnly(publishertest.Events(uint64(published+1), 1, 1))...)
		return produced.Load() >= 4
	})
	if n := produced.Load(); n > published/3 {
		t.Errorf("%d attempts for %d events that came meanwhile", n, published)
	}
}
