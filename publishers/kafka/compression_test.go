package kafka_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers/kafka"
	"github.com/postbridge/postbridge/publishers/kafka/kafkatest"
	"github.com/postbridge/postbridge/publishers/publishertest"
)

// TestCompressionRefused is that a service without lz4, such as Azure Event Hubs, is an outage that names the setting,
// and that the setting ends it.
func TestCompressionRefused(t *testing.T) {
	t.Parallel()
	const none, gzip = 0, 1
	for _, e := range []*kerr.Error{kerr.UnsupportedForMessageFormat, kerr.UnsupportedCompressionType} {
		t.Run(e.Message, func(t *testing.T) {
			t.Parallel()
			bus := startBus(t, 1)
			fault := produceFault("", e, -1)
			fault.When = func(r kmsg.Request) bool {
				codec := batchOf(t, r).Attributes & 7
				return codec != none && codec != gzip
			}
			bus.cluster.Fault(fault)
			r := publishertest.Open(t, bus)
			all := publishertest.Events(1, 100, 20)
			r.Publish(all...)
			waitCause(r, "publishing to orders: partition ", fmt.Sprintf("[%d] ", e.Code),
				": set POSTBRIDGE_KAFKA_COMPRESSION")
			wantDone(t, r, 0, all)
			r.Close()
			bus.config.Compression = "gzip"
			r = r.Reopen()
			r.Store(all...)
			wantStored(t, r, all...)
		})
	}
}

// TestCompressionChanged is that the recovery scan reads what was stored with another compression.
func TestCompressionChanged(t *testing.T) {
	t.Parallel()
	bus := startBus(t, 1)
	r := publishertest.Open(t, bus)
	var all []*bridge.Delivery
	for _, compression := range []string{"gzip", "none", "lz4", "gzip"} {
		r.Close()
		bus.config.Compression = compression
		r = r.ReopenWith("") // so that a recovery scan has to find all of before
		all = append(all, publishertest.Events(uint64(len(all)+1), 100, 20)...)
		r.Store(all...)
		wantStored(t, r, all...)
	}
}

// TestRealCompression has Kafka check batches of each compression, and its console consumer read them.
func TestRealCompression(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts a JVM")
	}
	for _, compression := range []string{"lz4", "gzip", "none"} {
		t.Run(compression, func(t *testing.T) {
			t.Parallel()
			bus := &realBus{config: kafka.Config{
				Brokers: kafkatest.Plain(t), Prefix: fmt.Sprintf("%s-%08x", compression, randomOf(t).Uint32()),
				CreateTopics: true, Partitions: 1, Replication: 1, Compression: compression,
			}}
			r := publishertest.Open(t, bus)
			all := ordersOnly(publishertest.Events(1, 500, 30))
			r.Store(all...)
			r.CheckStored(all...)
			out, err := kafkatest.Java(t.Context(), t, "org.apache.kafka.tools.consumer.ConsoleConsumer",
				"--bootstrap-server", bus.config.Brokers[0], "--topic", bus.config.Prefix+".orders", "--from-beginning",
				"--max-messages", fmt.Sprint(len(all)), "--timeout-ms", "60000")
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Count(string(out), "\n"); got != len(all) {
				t.Errorf("the consumer read %d records, want %d", got, len(all))
			}
		})
	}
}
