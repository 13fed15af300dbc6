//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/segmentio/kafka-go"
)

const (
	// streamName is the stream of all events.
	streamName = "ORDERS"
	// fillTimeout bounds the time to accept all events of a drain.
	fillTimeout = 5 * time.Minute
	// readTimeout bounds the time to read back what was published.
	readTimeout = 2 * time.Minute
	// leastDrain is the shortest drain whose rate means anything.
	leastDrain = 100 * time.Millisecond
	// asyncWindow is how many messages of the nats.go loop are in flight: a stream refuses more than 10,000.
	asyncWindow = 4096
	// A batch of the kafka-go loop is as large as postbridge's.
	batchRecords = 500
	batchBytes   = 512 << 10
)

// plainLoop publishes from memory to an empty bus, as fast as the client library can. It keeps no order of orders,
// reads no spool and retries nothing.
type plainLoop func(context.Context) (*figures, error)

// drainGroup compares emptying a spool with a plain loop that publishes what postbridge published.
func (b *bench) drainGroup(library string, open func(context.Context) (*bus, error),
	read func(context.Context, *bus) (plainLoop, error)) *group {
	var loop plainLoop
	plain := &row{name: "plain " + library + " loop",
		measure: func(ctx context.Context) (*figures, error) { return loop(ctx) }}
	g := &group{title: "drain", rows: []*row{plain}}
	for _, bin := range b.binaries {
		g.rows = append(g.rows, &row{name: bin.label + " to " + library[:len(library)-3], baseline: plain,
			goal:    "0.85 of the rate",
			measure: func(ctx context.Context) (*figures, error) { return b.drain(ctx, bin, open, nil) }})
	}
	g.prepare = func(ctx context.Context) error {
		_, err := b.drain(ctx, b.binaries[0], open, func(to *bus) (err error) {
			loop, err = read(ctx, to)
			return err
		})
		return err
	}
	return g
}

// drain fills a spool while its bus is down, and measures how it is emptied once there is one. then, if not nil, gets
// the bus afterwards.
func (b *bench) drain(ctx context.Context, bin binary, open func(context.Context) (*bus, error),
	then func(*bus) error) (f *figures, err error) {
	full, err := b.filled(ctx, bin)
	if err != nil {
		return nil, err
	}
	data := filepath.Join(b.dir, "drained")
	defer func() { err = errors.Join(err, os.RemoveAll(data)) }()
	if err := os.CopyFS(data, os.DirFS(full)); err != nil {
		return nil, err
	}
	to, err := open(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, to.close()) }()
	runtime.GC()
	srv, err := startPostbridge(ctx, bin.path, data, to)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, srv.stop()) }()
	if f, err = srv.timeDrain(ctx, uint64(b.events), b.timeout); err != nil {
		return nil, fmt.Errorf("%w; the end of its log:\n%s", err, srv.logTail())
	}
	if then != nil {
		err = then(to)
	}
	return f, err
}

// filled returns a data directory whose spool holds all events. It is filled once for each binary, as a new version may
// have another format; copy it before changing it.
func (b *bench) filled(ctx context.Context, bin binary) (data string, err error) {
	data = filepath.Join(b.dir, "full-"+bin.label)
	if err := os.Mkdir(data, 0o755); err != nil {
		return data, nil // an earlier call has filled it
	}
	srv, err := startReady(ctx, bin.path, data, unreachable())
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, srv.stop()) }()
	p := plan{connections: b.connections, threads: b.threads, duration: fillTimeout}
	r, err := p.run(ctx, srv.ingest, &workload{limit: int64(b.events / len(orderLife(srv.ingest)))}, 0)
	if err != nil {
		return "", fmt.Errorf("cannot fill the spool: %w", err)
	}
	b.events = int(r.answered) // whole orders
	_, err = srv.check(ctx, r.answered, 0)
	return data, err
}

// timeDrain times the drain of a postbridge that has just been started: from the last status with nothing stored to the
// first with nothing unpublished. That is too long by two intervals at most, and leaves out the start, the connection
// and the creation of streams or topics.
func (s *server) timeDrain(ctx context.Context, events uint64, limit time.Duration) (*figures, error) {
	from, begin := time.Now(), time.Duration(0)
	err := s.awaitDrained(ctx, limit, func(stored uint64) {
		if stored == 0 {
			from = time.Now()
			begin, _ = s.cpu() // the process was there a moment ago
		}
	})
	took := time.Since(from)
	if err != nil {
		return nil, err
	}
	end, err := s.cpu()
	if err == nil && took < leastDrain {
		err = fmt.Errorf("%d events were stored within %v, too fast to measure; raise -events", events, took)
	}
	return eventFigures(events, took, end-begin), errors.Join(err, s.checkStored(ctx, events))
}

// timed times what this process does with so many events, without the garbage collector, which would have to trace all
// messages.
func timed(events int, do func() error) (*figures, error) {
	runtime.GC()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	from, begin := time.Now(), ownCPU()
	err := do()
	return eventFigures(uint64(events), time.Since(from), ownCPU()-begin), err
}

func eventFigures(events uint64, took, cpu time.Duration) *figures {
	return &figures{rate: float64(events) / took.Seconds(), cpu: cpu / time.Duration(events)}
}

func ownCPU() time.Duration {
	var self syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &self) // it cannot fail for the caller
	return time.Duration(self.Utime.Nano() + self.Stime.Nano())
}

// readJetStream reads a stream into memory, for a loop that publishes it to a stream of the same configuration.
func (b *bench) readJetStream(ctx context.Context, from *bus) (plainLoop, error) {
	var all []*nats.Msg
	config, err := readStream(ctx, from, func(m jetstream.Msg) error {
		all = append(all, &nats.Msg{Subject: m.Subject(), Header: m.Headers(), Data: m.Data()})
		return nil
	})
	return func(ctx context.Context) (*figures, error) { return b.natsLoop(ctx, config, all) }, err
}

// readStream calls each with all messages of the stream, and returns its configuration.
func readStream(ctx context.Context, from *bus, each func(jetstream.Msg) error) (c jetstream.StreamConfig, err error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	js, end, err := from.jetStream()
	if err != nil {
		return c, err
	}
	defer end()
	stream, err := js.Stream(ctx, streamName)
	if err != nil {
		return c, err
	}
	consumer, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return c, err
	}
	messages, err := consumer.Messages(jetstream.PullMaxMessages(5000))
	if err != nil {
		return c, err
	}
	defer messages.Stop()
	info := stream.CachedInfo()
	for range info.State.Msgs {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err == nil {
			err = each(m)
		}
		if err != nil {
			return c, fmt.Errorf("cannot read what was published: %w", err)
		}
	}
	return info.Config, nil
}

// natsLoop publishes with asyncWindow messages in flight, and waits for all acknowledgements.
func (b *bench) natsLoop(ctx context.Context, c jetstream.StreamConfig, all []*nats.Msg) (f *figures, err error) {
	to, err := b.openJetStream(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, to.close()) }()
	if err := to.createStream(ctx, c); err != nil {
		return nil, err
	}
	js, end, err := to.jetStream(jetstream.WithPublishAsyncMaxPending(asyncWindow))
	if err != nil {
		return nil, err
	}
	defer end()
	stall := []jetstream.PublishOpt{jetstream.WithStallWait(b.timeout)}
	f, err = timed(len(all), func() error {
		for _, m := range all {
			if _, err := js.PublishMsgAsync(m, stall...); err != nil {
				return err
			}
		}
		select {
		case <-js.PublishAsyncComplete():
			return nil
		case <-time.After(b.timeout):
			return errors.New("acknowledgements are missing")
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return f, errors.Join(err, awaitStored(ctx, to, uint64(len(all)))) // an acknowledgement may be an error
}

// awaitStored waits until the bus has stored exactly that many events.
func awaitStored(ctx context.Context, to *bus, events uint64) error {
	return poll(ctx, statusTimeout, func() (bool, error) {
		stored, err := to.stored(ctx)
		if err == nil && stored != events {
			err = fmt.Errorf("%d events were published, %s has stored %d", events, to.name, stored)
		}
		return err == nil, err
	})
}

// readKafka reads a topic into memory, for a loop that publishes it to a topic with as many partitions.
func (b *bench) readKafka(ctx context.Context, from *bus) (plainLoop, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	ends, err := b.kafka.ends(ctx, from.topic)
	if err != nil {
		return nil, err
	}
	all := make([][]kafka.Message, len(ends))
	events := 0
	for i, end := range ends {
		r := kafka.NewReader(kafka.ReaderConfig{Brokers: b.kafka.Brokers(), Topic: from.topic, Partition: i,
			MaxBytes: 16 << 20})
		for range end {
			m, err := r.ReadMessage(ctx)
			if err != nil {
				return nil, errors.Join(fmt.Errorf("cannot read what was published: %w", err), r.Close())
			}
			all[i] = append(all[i], m)
			events++
		}
		_ = r.Close() // it was only read from
	}
	return func(ctx context.Context) (*figures, error) { return b.kafka.loop(ctx, all, events) }, nil
}

// loop publishes to all partitions at once, to each one batch after the other, as large and as safe as postbridge's.
func (c *cluster) loop(ctx context.Context, partitions [][]kafka.Message, events int) (*figures, error) {
	to, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	client := &kafka.Client{Addr: kafka.TCP(c.Brokers()...), Transport: new(kafka.Transport)}
	defer client.Transport.(*kafka.Transport).CloseIdleConnections()
	f, err := timed(events, func() error {
		errs := make([]error, len(partitions))
		var running sync.WaitGroup
		for i, messages := range partitions {
			running.Go(func() { errs[i] = produce(ctx, client, to.topic, i, messages) })
		}
		running.Wait()
		return errors.Join(errs...)
	})
	return f, errors.Join(err, awaitStored(ctx, to, uint64(events)))
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
			records = append(records, kafka.Record{Time: now, Key: kafka.NewBytes(m.Key),
				Value: kafka.NewBytes(m.Value), Headers: m.Headers})
		}
		answer, err := client.Produce(ctx, &kafka.ProduceRequest{
			Topic: topic, Partition: partition, RequiredAcks: kafka.RequireAll, Compression: kafka.Lz4,
			Records: kafka.NewRecordReader(records...),
		})
		if err == nil {
			err = answer.Error
		}
		if err != nil {
			return err
		}
		messages = messages[len(records):]
	}
	return nil
}
