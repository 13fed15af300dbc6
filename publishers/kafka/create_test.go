package kafka_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/postbridge/postbridge/publishers/kafka"
	"github.com/postbridge/postbridge/publishers/kafka/kafkatest"
	"github.com/postbridge/postbridge/publishers/publishertest"
)

// TestDefaultReplication has the cluster choose the number of replicas.
func TestDefaultReplication(t *testing.T) {
	t.Parallel()
	bus := startBus(t, 3)
	bus.config.Replication = -1
	var asked, other atomic.Int32
	observe := kfake.Fault{Keys: []kmsg.Key{kmsg.CreateTopics}, Observe: true, Count: -1}
	observe.When = func(r kmsg.Request) bool {
		asked.Add(1)
		if r.(*kmsg.CreateTopicsRequest).Topics[0].ReplicationFactor != -1 {
			other.Add(1)
		}
		return true
	}
	bus.cluster.Fault(observe)
	r := publishertest.Open(t, bus)
	all := publishertest.Events(1, 50, 10)
	r.Store(all...)
	wantStored(t, r, all...)
	if asked.Load() == 0 || other.Load() > 0 {
		t.Errorf("%d topics were requested, %d of them with another replication", asked.Load(), other.Load())
	}
}

// TestRealDefaultReplication is that a real Kafka takes -1.
func TestRealDefaultReplication(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts a JVM")
	}
	bus := &realBus{config: kafka.Config{
		Brokers: kafkatest.Plain(t), Prefix: fmt.Sprintf("de.ace.default-%08x", randomOf(t).Uint32()),
		CreateTopics: true, Partitions: 1, Replication: -1,
	}}
	r := publishertest.Open(t, bus)
	all := ordersOnly(publishertest.Events(1, 50, 10))
	r.Store(all...)
	r.CheckStored(all...)
}

// TestTopicSettingsRefused is with a service that does not let its clients set min.insync.replicas.
func TestTopicSettingsRefused(t *testing.T) {
	t.Parallel()
	for _, e := range []*kerr.Error{kerr.InvalidConfig, kerr.PolicyViolation} {
		t.Run(e.Message, func(t *testing.T) {
			t.Parallel()
			bus := startBus(t, 3)
			bus.config.Replication = 3
			fault := bus.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.CreateTopics}, Err: e, Count: -1,
				When: func(r kmsg.Request) bool { return len(r.(*kmsg.CreateTopicsRequest).Topics[0].Configs) > 0 }})
			r := publishertest.Open(t, bus)
			all := publishertest.Events(1, 50, 10)
			r.Store(all...)
			wantStored(t, r, all...)
			if fault.Hits() == 0 {
				t.Error("min.insync.replicas was not asked for")
			}
		})
	}
}

// TestTopicRefused is that the condition of a topic that is refused names the settings.
func TestTopicRefused(t *testing.T) {
	t.Parallel()
	for e, want := range map[*kerr.Error]string{
		kerr.InvalidReplicationFactor: "set POSTBRIDGE_KAFKA_REPLICATION to a number of replicas",
		kerr.InvalidConfig:            "create it yourself, with the settings that the cluster requires",
		kerr.PolicyViolation:          "set POSTBRIDGE_KAFKA_REPLICATION (3, or -1 for the cluster's default)",
	} {
		t.Run(e.Message, func(t *testing.T) {
			t.Parallel()
			bus := startBus(t, 1)
			fault := bus.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.CreateTopics}, Err: e, Count: -1})
			r := publishertest.Open(t, bus)
			waitCause(r, "topic orders: cannot create it: ", fmt.Sprintf("[%d] ", e.Code), ": "+want)
			fault.Remove()
			waitNoCauses(r)
		})
	}
}

// TestProducerIDRefused is that the condition says which permission is missing: Kafka before 2.8, and Amazon MSK with
// IAM, want one of their own for a producer id.
func TestProducerIDRefused(t *testing.T) {
	t.Parallel()
	bus := startBus(t, 1)
	fault := bus.cluster.Fault(
		kfake.Fault{Keys: []kmsg.Key{kmsg.InitProducerID}, Err: kerr.ClusterAuthorizationFailed, Count: -1})
	r := publishertest.Open(t, bus)
	all := publishertest.Events(1, 50, 10)
	r.Publish(all...)
	waitCause(r, "publishing to orders: partition ", "cannot get a producer id: [31] ",
		"IdempotentWrite on the cluster")
	fault.Remove()
	r.WaitDone(all...)
	wantStored(t, r, all...)
}

// TestNoInitProducerID is that a service without idempotent producers is refused with that word.
func TestNoInitProducerID(t *testing.T) {
	t.Parallel()
	versions := kversion.V2_4_0()
	versions.SetMaxKeyVersion(int16(kmsg.InitProducerID), -1)
	bus := startBus(t, 1, kfake.MaxVersions(versions))
	r := publishertest.Open(t, bus)
	r.Publish(publishertest.Events(1, 5, 5)...)
	waitCause(r, "cannot get a producer id: ", "InitProducerId: [35] ", "no idempotent producers (InitProducerId)")
}
