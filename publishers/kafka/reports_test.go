package kafka_test

import (
	"testing"

	"github.com/postbridge/postbridge/publishers/publishertest"
)

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
