package kafka_test

import (
	"slices"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers/publishertest"
)

// TestZombieOfAnotherPlace has a topic made anew while a batch is on its way to another one, where it arrives when the next
// publisher has looked already.
func TestZombieOfAnotherPlace(t *testing.T) {
	t.Parallel()
	bus := startBus(t, 1)
	bus.config.Partitions = 1
	r := publishertest.Open(t, bus)
	all := publishertest.Events(1, 50, 3)
	r.Publish(all...)
	r.WaitDone(all...)

	held, arrives := newGate(t), newGate(t)
	var sent atomic.Int32
	bus.setTap(tap{request: func(req request) []byte {
		if req.key != int16(kmsg.Produce) {
			return req.frame
		}
		if topic, _, _ := req.produced(t); topic != orders {
			return req.frame
		}
		switch sent.Add(1) {
		case 1:
			held.open()
			arrives.pass()
		case 2:
			before := bus.cluster.PartitionInfo(orders, 0).HighWatermark
			arrives.open()
			r.Eventually("the batch of the publisher before", func() bool {
				return bus.cluster.PartitionInfo(orders, 0).HighWatermark > before
			})
		}
		return req.frame
	}})
	late := ordersOnly(publishertest.Events(51, 30, 3))
	r.Publish(late...)
	held.pass()
	r.ExpectLoss()
	bus.MakeAnew(t, bridge.Rejects)
	rejected := publishertest.Events(88, 1, 3)
	r.Publish(rejected...) // so that it looks
	next := r.GoBack()
	all = slices.Concat(all, late)
	next.Publish(all...)
	next.Publish(rejected...)
	next.WaitDone(all...)
	next.CheckStored(append(all, rejected...)...)
	waitNoCauses(next)
}
