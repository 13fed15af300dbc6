//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/segmentio/kafka-go"

	"github.com/postbridge/postbridge/publishers/kafka/kafkatest"
)

// bus is a bus to publish to, empty for each measurement.
type bus struct {
	name string   // in POSTBRIDGE_PUBLISH and /status
	env  []string // settings of postbridge
	// stored returns how many events the bus has stored; nil if the bus is down.
	stored func(context.Context) (uint64, error)
	close  func() error

	url   string // of JetStream
	topic string // of Kafka
}

// unreachable returns a bus that is down: port 1 is never given to a program that asks for a free one.
func unreachable() *bus {
	env := []string{"POSTBRIDGE_NATS_URL=nats://127.0.0.1:1"}
	return &bus{name: "nats", env: env, close: func() error { return nil }}
}

// openJetStream starts a NATS server in a process of its own.
func (b *bench) openJetStream(ctx context.Context) (*bus, error) {
	store, err := os.MkdirTemp(b.dir, "nats-")
	if err != nil {
		return nil, err
	}
	s, err := startSelf(ctx, b.dir, natsArgument, store)
	if err != nil {
		return nil, err
	}
	to := &bus{name: "nats", url: "nats://" + s.ingest.String()}
	to.env = []string{"POSTBRIDGE_NATS_URL=" + to.url}
	to.stored = to.storedInJetStream
	to.close = func() error { return errors.Join(s.stop(), os.RemoveAll(store)) }
	return to, nil
}

// serveNATS runs a NATS server with JetStream and default settings.
func serveNATS(ctx context.Context, store string) error {
	s, err := natsserver.NewServer(&natsserver.Options{Host: "127.0.0.1", Port: natsserver.RANDOM_PORT,
		JetStream: true, StoreDir: store, NoSigs: true})
	if err != nil {
		return err
	}
	s.Start()
	if !s.ReadyForConnections(startTimeout) {
		return errors.New("the NATS server does not become ready")
	}
	fmt.Println(s.Addr())
	<-ctx.Done()
	s.Shutdown()
	s.WaitForShutdown()
	return nil
}

// storedInJetStream returns how many events the stream has stored; it was created empty.
func (b *bus) storedInJetStream(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	js, end, err := b.jetStream()
	if err != nil {
		return 0, err
	}
	defer end()
	stream, err := js.Stream(ctx, streamName)
	if err != nil {
		return 0, err
	}
	return stream.CachedInfo().State.LastSeq, nil
}

// jetStream returns a JetStream client on a connection of its own, and what closes that.
func (b *bus) jetStream(options ...jetstream.JetStreamOpt) (js jetstream.JetStream, end func(), err error) {
	conn, err := nats.Connect(b.url, nats.Timeout(statusTimeout))
	if err != nil {
		return nil, nil, err
	}
	js, err = jetstream.New(conn, options...)
	return js, conn.Close, err
}

func (b *bus) createStream(ctx context.Context, c jetstream.StreamConfig) error {
	js, end, err := b.jetStream()
	if err != nil {
		return err
	}
	defer end()
	_, err = js.CreateStream(ctx, c)
	return err
}

// cluster is a real Kafka of one broker, for the whole run: a JVM gets faster with use.
type cluster struct {
	*kafkatest.Cluster
	opened int // buses so far
}

// errNoKafka means that this machine has no Java or no jars of Kafka.
var errNoKafka = errors.New("no Kafka can be started here")

func startKafka(ctx context.Context, dir string) (*cluster, error) {
	if _, err := exec.LookPath("java"); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoKafka, err)
	}
	if _, err := kafkatest.Jars(ctx); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoKafka, err)
	}
	c, err := kafkatest.Start(ctx, kafkatest.Options{Dir: filepath.Join(dir, "kafka")})
	if err != nil {
		return nil, err
	}
	return &cluster{Cluster: c}, nil
}

// partitions of each topic: postbridge's default.
const partitions = 6

// open returns a bus of new topics, each partition of which has a leader.
func (c *cluster) open(ctx context.Context) (*bus, error) {
	c.opened++
	prefix := fmt.Sprint("bench", c.opened)
	b := &bus{
		name: "kafka", topic: prefix + ".orders",
		env:   []string{"POSTBRIDGE_KAFKA_BROKERS=" + c.Brokers()[0], "POSTBRIDGE_PREFIX=" + prefix},
		close: func() error { return nil },
	}
	b.stored = func(ctx context.Context) (stored uint64, err error) {
		ends, err := c.ends(ctx, b.topic)
		for _, n := range ends {
			stored += uint64(n)
		}
		return stored, err
	}
	conn, err := kafka.DialContext(ctx, "tcp", c.Brokers()[0])
	if err != nil {
		return nil, err
	}
	for _, name := range []string{b.topic, prefix + ".rejects", prefix + ".deadletters"} {
		err = errors.Join(err, conn.CreateTopics(kafka.TopicConfig{Topic: name, NumPartitions: partitions,
			ReplicationFactor: 1}))
		err = errors.Join(err, poll(ctx, startTimeout, func() (bool, error) {
			_, err := c.ends(ctx, name)
			return err == nil, err
		}))
	}
	return b, errors.Join(err, conn.Close())
}

// ends returns how many records each partition of a topic holds.
func (c *cluster) ends(ctx context.Context, topic string) ([]int64, error) {
	ends := make([]int64, partitions)
	for i := range ends {
		conn, err := kafka.DialLeader(ctx, "tcp", c.Brokers()[0], topic, i)
		if err != nil {
			return nil, err
		}
		ends[i], err = conn.ReadLastOffset()
		if err := errors.Join(err, conn.Close()); err != nil {
			return nil, err
		}
	}
	return ends, nil
}
