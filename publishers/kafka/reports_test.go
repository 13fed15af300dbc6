package kafka_test

import (
	"sync/atomic"
	"testing"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers/publishertest"
)

// blockedBus is a bus whose publisher's reports block while the gate is closed, from the first error on that is not of
// the connection.
type blockedBus struct {
	*testBus
	gate    *gate
	blocked atomic.Bool
}

func (b *blockedBus) Open(t *testing.T, o bridge.Opening) bridge.Publisher {
	t.Helper()
	report := o.Report
	o.Report = func(cause string, err error) {
		if err != nil && cause != "connection" {
			b.blocked.Store(true)
			b.gate.pass()
		}
		report(cause, err)
	}
	return b.testBus.Open(t, o)
}

// TestReportBlocks: a report that blocks holds up neither Publish nor any partition, also when leaders move.
func TestReportBlocks(t *testing.T) {
	t.Parallel()
	const partition = 2
	bus := &blockedBus{testBus: startBus(t, 3), gate: newGate(t)}
	var hidden atomic.Bool
	hidden.Store(true)
	bus.setTap(tap{answer: hideLeaders(t, partition, &hidden)})
	r := publishertest.Open(t, bus)
	all := publishertest.Events(1, 300, 60)
	var stuck, others []*bridge.Delivery
	for _, d := range all {
		if partitionOf(d.Key(), 6) == partition && d.Status != bridge.StatusRejected {
			stuck = append(stuck, d)
		} else if partitionOf(d.Key(), 6) != partition {
			others = append(others, d)
		}
	}
	r.Publish(stuck...)
	r.Eventually("a report that blocks", bus.blocked.Load)
	half := len(others) / 2
	r.Publish(others[:half]...)
	r.WaitDone(others[:half]...)
	bus.cluster.ShufflePartitionLeaders()
	r.Publish(others[half:]...)
	r.WaitDone(others[half:]...)
	wantDone(t, r, 0, stuck)
	bus.gate.open()
	waitCause(r, "publishing to orders: partition 2: has no leader")
	hidden.Store(false)
	r.WaitDone(stuck...)
	waitNoCauses(r)
}

// TestLogBlocks: a log that blocks holds up neither Publish nor any partition.
func TestLogBlocks(t *testing.T) {
	t.Parallel()
	bus := startBus(t, 1)
	bus.config.Partitions = 1
	r := publishertest.Open(t, bus)
	all := ordersOnly(publishertest.Events(1, 100, 60))
	r.Publish(all[:50]...)
	r.WaitDone(all[:50]...)
	blocked, log := newGate(t), newGate(t)
	bus.beforeLog(func() {
		blocked.open()
		log.pass()
	})
	addPartitions(t, bus, 2)
	blocked.pass()
	r.Publish(all[50:]...)
	r.WaitDone(all[50:]...)
	log.open()
	waitWarning(r, bus, 1, 2)
	r.CheckStored(all...)
}
