package kafka_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers/kafka"
	"github.com/postbridge/postbridge/publishers/publishertest"
)

// TestZombieOfAnotherPlace has a topic made anew while a batch is on its way to another one, where it arrives when
// the next publisher has looked already.
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
	bus.Recreate(t, bridge.Rejects)
	rejected := publishertest.Events(88, 1, 3)
	r.Publish(rejected...) // so that it looks
	next := r.Rewind()
	all = slices.Concat(all, late)
	all = append(all, rejected...)
	next.Publish(all...)
	next.WaitDone(all...)
	next.CheckStored(all...)
	waitNoCauses(next)
}

// TestBlind: events do not wait for ever where their partition cannot be looked at: it is damaged there, or the
// broker says nothing but errors.
func TestBlind(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(frame []byte){
		"Damaged": func(frame []byte) { frame[max(0, bytes.Index(frame, []byte("order_id")))] ^= 1 },
		"Error": func(frame []byte) {
			binary.BigEndian.PutUint16(frame[bytes.Index(frame, []byte(orders))+len(orders)+8:], uint16(kerr.KafkaStorageError.Code))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bus := startBus(t, 1)
			bus.config.Partitions = 1
			bus.change = kafka.BlindFor(time.Second)
			r := publishertest.Open(t, bus)
			all := ordersOnly(publishertest.Events(1, 50, 3))
			r.Publish(all...)
			r.WaitDone(all...)
			r.Eventually("a checkpoint", func() bool { return strings.Contains(r.State(), "checkpoint ") })
			r.Close()
			var sent atomic.Bool
			bus.setTap(tap{
				request: func(req request) []byte {
					if req.key == int16(kmsg.Produce) {
						sent.Store(true)
					}
					return req.frame
				},
				answer: func(req request, frame []byte) []byte {
					if req.key == int16(kmsg.Fetch) && !sent.Load() && bytes.Contains(frame, []byte("order_id")) {
						damage(frame)
					}
					return frame
				},
			})
			r = r.Reopen()
			more := ordersOnly(publishertest.Events(51, 50, 3))
			r.Publish(more...)
			waitCause(r, "cannot check whether it still has what it stored")
			r.WaitDone(more...)
			if !bus.logged("level=WARN", "going on without") {
				t.Error("it is not said that nobody looked")
			}
			r.CheckStored(append(all, more...)...)
			waitNoCauses(r)
		})
	}
}
