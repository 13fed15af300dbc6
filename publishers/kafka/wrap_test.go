package kafka_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers/kafka"
	"github.com/postbridge/postbridge/publishers/kafka/kafkatest"
	"github.com/postbridge/postbridge/publishers/publishertest"
)

// realBus is a Kafka that cannot be harmed, with a prefix of the test's own.
type realBus struct {
	publishertest.Bus // nil
	config            kafka.Config
	note              []byte // instead of none
	logs              testBus
}

func (b *realBus) Open(t *testing.T, o bridge.Opening) bridge.Publisher {
	t.Helper()
	if o.State == nil {
		o.State = b.note
	}
	p, err := kafka.Open(b.config, o, slog.New(slog.NewTextHandler(&b.logs, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (b *realBus) Stored(t *testing.T, dest bridge.Destination) (all []publishertest.Message) {
	t.Helper()
	client, end := kafka.NewClient(b.config)
	defer end()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for offset := int64(0); ; {
		resp, err := client.Fetch(
			ctx,
			&kafkago.FetchRequest{Topic: b.config.Prefix + "." + string(dest), Offset: offset, MaxBytes: 1 << 20},
		)
		if err == nil {
			err = resp.Error
		}
		if err != nil {
			t.Fatal(err)
		}
		if offset >= resp.HighWatermark {
			return all
		}
		for {
			r, err := resp.Records.ReadRecord()
			if err != nil {
				break
			}
			key, _ := protocol.ReadAll(r.Key)
			value, _ := protocol.ReadAll(r.Value)
			record := &kgo.Record{Key: key, Value: value}
			for _, h := range r.Headers {
				record.Headers = append(record.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
			}
			all = append(all, decode(record))
			offset = r.Offset + 1
		}
	}
}

// TestNumbersWrapAround has a real Kafka say what comes behind 2^31-1. (kfake takes one less for the last.)
func TestNumbersWrapAround(t *testing.T) {
	t.Parallel()
	bus := &realBus{config: kafka.Config{
		Brokers: kafkatest.Plain(
			t,
		), Prefix: fmt.Sprint("wrap-", time.Now().UnixNano()), CreateTopics: true, Partitions: 1, Replication: 1,
	}}
	// A producer that the broker does not know may begin with any number.
	bus.note = fmt.Appendf(nil, "%s.orders 0 %d 0 %d 0\n", bus.config.Prefix, 1<<40, 1<<31-8)
	r := publishertest.Open(t, bus)
	all := ordersOnly(publishertest.Events(1, 600, 30))
	for _, d := range all[:15] { // one by one
		r.Publish(d)
		r.WaitDone(d)
	}
	r.Publish(all[15:]...)
	r.WaitDone(all...)
	r.CheckStored(all...)
	if bus.logs.logged("level=WARN", "no longer knows") {
		t.Error("the broker took another number than ours for the next")
	}
	r.Close()
	r = r.Reopen()
	more := ordersOnly(publishertest.Events(601, 100, 30))
	r.Publish(more...)
	r.WaitDone(more...)
	r.CheckStored(append(all, more...)...)
}
