package kafka_test

import (
	"path"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers/kafka"
	"github.com/postbridge/postbridge/publishers/publishertest"
)

func TestContract(t *testing.T) {
	publishertest.Run(t, func(t *testing.T) publishertest.Bus {
		b := startDurable(t, 1)
		if path.Base(t.Name()) == "Recreated" { // it waits for a check of the checkpoints
			b.change = kafka.CheckInterval(time.Second)
		}
		return b
	})
}

func TestContractCluster(t *testing.T) {
	t.Parallel()
	publishertest.RunCluster(t, func(t *testing.T) publishertest.Bus { return &movingBus{startDurable(t, 3)} })
}

// startDurable starts a cluster that keeps its data when it is stopped.
func startDurable(t *testing.T, brokers int) *testBus {
	return startBus(t, brokers, kfake.DataDir(t.TempDir()), kfake.SyncWrites())
}

// movingBus is a cluster in which leaders move.
type movingBus struct{ *testBus }

// KillLeader takes the broker away that leads the first partition, and brings it back when others lead all it led.
func (b *movingBus) KillLeader(t *testing.T, dest bridge.Destination) {
	t.Helper()
	b.withoutNode(t, b.cluster.LeaderFor(string(dest), 0), func() {})
}
