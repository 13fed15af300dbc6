//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/segmentio/kafka-go"
)

// What postbridge has published is read back once, and published again by loops that keep to no order of orders, know of
// no spool and retry nothing: what a short program with the client library and all messages in memory does.

// streamName is the stream of all events.
const streamName = "ORDERS"

// readTimeout is how long it may take to read back what was published.
const readTimeout = 2 * time.Minute

// asyncWindow is how many messages the nats.go loop has un-acknowledged: a stream refuses more than 10,000.
const asyncWindow = 4096

// readJetStream reads a stream into memory, for a loop that publishes it to a stream like that on another server.
func (b *bench) readJetStream(ctx context.Context, from *bus) (plainLoop, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	conn, err := nats.Connect(from.url)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stream, all, err := readAll(ctx, conn, func(m jetstream.Msg) (*nats.Msg, error) {
		return &nats.Msg{Subject: m.Subject(), Header: m.Headers(), Data: m.Data()}, nil
	})
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (*figures, error) { return b.natsLoop(ctx, *stream, all) }, nil
}

// readAll reads all messages of the stream, each as what it is made to, and how the stream is made.
func readAll[T any](ctx context.Context, conn *nats.Conn, as func(jetstream.Msg) (T, error)) (*jetstream.StreamConfig, []T, error) {
	js, err := jetstream.New(conn)
	if err != nil {
		return nil, nil, err
	}
	stream, err := js.Stream(ctx, streamName)
	if err != nil {
		return nil, nil, err
	}
	consumer, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return nil, nil, err
	}
	messages, err := consumer.Messages(jetstream.PullMaxMessages(5000))
	if err != nil {
		return nil, nil, err
	}
	defer messages.Stop()
	info := stream.CachedInfo()
	all := make([]T, info.State.Msgs)
	for i := range all {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err == nil {
			all[i], err = as(m)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("cannot read what was published: %w", err)
		}
	}
	return &info.Config, all, nil
}

// natsLoop publishes with as many un-acknowledged as a stream takes well, and waits for all acknowledgements.
func (b *bench) natsLoop(ctx context.Context, stream jetstream.StreamConfig, all []*nats.Msg) (f *figures, err error) {
	to, err := openJetStream(ctx, b.dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, to.close()) }()
	conn, err := nats.Connect(to.url)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	js, err := jetstream.New(conn, jetstream.WithPublishAsyncMaxPending(asyncWindow))
	if err != nil {
		return nil, err
	}
	if _, err := js.CreateStream(ctx, stream); err != nil {
		return nil, err
	}
	stall := []jetstream.PublishOpt{jetstream.WithStallWait(b.drain)}
	f, err = timed(len(all), func() error {
		for _, m := range all {
			if _, err := js.PublishMsgAsync(m, stall...); err != nil {
				return err
			}
		}
		select {
		case <-js.PublishAsyncComplete():
			return nil
		case <-time.After(b.drain):
			return errors.New("acknowledgements are missing")
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	if err != nil {
		return nil, err
	}
	return f, allHeld(ctx, to, len(all)) // also if an acknowledgement was an error
}

func allHeld(ctx context.Context, by *bus, events int) error {
	held, err := by.held(ctx)
	if err == nil && held != uint64(events) {
		err = fmt.Errorf("%d events were published, %s holds %d", events, by.name, held)
	}
	return err
}

// Of one batch, as postbridge has it.
const (
	batchRecords = 500
	batchBytes   = 512 << 10
)

// readKafka reads a topic into memory, for a loop that publishes it to another with as many partitions.
func (c *cluster) readKafka(ctx context.Context, from *bus) (plainLoop, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	ends, err := c.ends(ctx, from.topic)
	if err != nil {
		return nil, err
	}
	partitions := make([][]kafka.Message, len(ends))
	for i, end := range ends {
		if partitions[i], err = c.readPartition(ctx, from.topic, i, end); err != nil {
			return nil, fmt.Errorf("cannot read what was published: %w", err)
		}
	}
	return func(ctx context.Context) (*figures, error) { return c.kafkaLoop(ctx, partitions) }, nil
}

func (c *cluster) readPartition(ctx context.Context, topic string, partition int, end int64) ([]kafka.Message, error) {
	r := kafka.NewReader(kafka.ReaderConfig{Brokers: c.Brokers(), Topic: topic, Partition: partition, MaxBytes: 16 << 20})
	defer r.Close() //nolint:errcheck // it was only read from
	all := make([]kafka.Message, end)
	for i := range all {
		var err error
		if all[i], err = r.ReadMessage(ctx); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// kafkaLoop publishes to all partitions at once, to each one batch after the other, as large and as safe as postbridge
// does.
func (c *cluster) kafkaLoop(ctx context.Context, partitions [][]kafka.Message) (*figures, error) {
	to, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	client, end := c.client()
	defer end()
	events := 0
	for _, messages := range partitions {
		events += len(messages)
	}
	f, err := timed(events, func() error {
		errs := make([]error, len(partitions))
		var running sync.WaitGroup
		for i, messages := range partitions {
			running.Go(func() { errs[i] = produce(ctx, client, to.topic, i, messages) })
		}
		running.Wait()
		return errors.Join(errs...)
	})
	if err != nil {
		return nil, err
	}
	return f, allHeld(ctx, to, events)
}

// produce publishes to one partition.
func produce(ctx context.Context, client *kafka.Client, topic string, partition int, messages []kafka.Message) error {
	records := make([]kafka.Record, 0, batchRecords)
	for len(messages) > 0 {
		records = records[:0]
		bytes, now := 0, time.Now()
		for _, m := range messages {
			bytes += len(m.Value) + 512 // about, with key and headers
			if len(records) == batchRecords || len(records) > 0 && bytes > batchBytes {
				break
			}
			records = append(records, kafka.Record{Time: now, Key: kafka.NewBytes(m.Key), Value: kafka.NewBytes(m.Value), Headers: m.Headers})
		}
		resp, err := client.Produce(ctx, &kafka.ProduceRequest{
			Topic: topic, Partition: partition, RequiredAcks: kafka.RequireAll, Compression: kafka.Lz4,
			Records: kafka.NewRecordReader(records...),
		})
		if err == nil {
			err = resp.Error
		}
		if err != nil {
			return err
		}
		messages = messages[len(records):]
	}
	return nil
}
