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

// bus is where a postbridge publishes to. Each measurement gets one that is empty.
type bus struct {
	name string   // in POSTBRIDGE_PUBLISH and /status
	env  []string // the settings that lead to it
	// held is how many events the bus itself says it has; nil if there is no bus at that place.
	held  func(context.Context) (uint64, error)
	close func() error

	url   string // of JetStream
	topic string // of Kafka
}

// nobody is where no bus is: port 1 is not given out to programs that ask for a free one.
const nobody = "127.0.0.1:1"

// unreachable is a bus that is down.
func unreachable(name string) *bus {
	env := map[string]string{"nats": "POSTBRIDGE_NATS_URL=nats://", "kafka": "POSTBRIDGE_KAFKA_BROKERS="}
	return &bus{name: name, env: []string{env[name] + nobody}, close: func() error { return nil }}
}

// openEmbedded is the JetStream server in postbridge.
func openEmbedded() (*bus, error) {
	ports, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	b := &bus{
		name: "nats", url: "nats://" + ports[0].String(),
		env:   []string{"POSTBRIDGE_NATS_LISTEN=" + ports[0].String()},
		close: func() error { return nil },
	}
	b.held = b.inJetStream
	return b, nil
}

// openJetStream starts a NATS server in a process of its own.
func openJetStream(ctx context.Context, dir string) (*bus, error) {
	store, err := os.MkdirTemp(dir, "nats-")
	if err != nil {
		return nil, err
	}
	s, err := startSelf(ctx, dir, natsArgument, store)
	if err != nil {
		return nil, err
	}
	b := &bus{name: "nats", url: "nats://" + s.ingest.String()}
	b.env = []string{"POSTBRIDGE_NATS_URL=" + b.url}
	b.held = b.inJetStream
	b.close = func() error { return errors.Join(s.stop(), os.RemoveAll(store)) }
	return b, nil
}

// serveNATS is nats-server with JetStream and what is default there.
func serveNATS(ctx context.Context, store string) error {
	s, err := natsserver.NewServer(&natsserver.Options{Host: "127.0.0.1", Port: natsserver.RANDOM_PORT, JetStream: true, StoreDir: store, NoSigs: true})
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

// inJetStream is how many events the stream has stored. It began empty.
func (b *bus) inJetStream(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	conn, err := nats.Connect(b.url, nats.Timeout(askTimeout))
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return 0, err
	}
	stream, err := js.Stream(ctx, streamName)
	if err != nil {
		return 0, err
	}
	return stream.CachedInfo().State.LastSeq, nil
}

// cluster is a real Kafka of one broker, for the whole run: a JVM gets faster with use.
type cluster struct {
	*kafkatest.Cluster
	opened int // buses so far
}

// errNoKafka is that there cannot be a Kafka on this machine.
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

// partitions of each topic: what postbridge makes by itself.
const partitions = 6

// open is a bus of new topics, each partition of which is ready to be written.
func (c *cluster) open(ctx context.Context) (*bus, error) {
	c.opened++
	prefix := fmt.Sprint("bench", c.opened)
	b := &bus{
		name: "kafka", topic: prefix + ".orders",
		env:   []string{"POSTBRIDGE_KAFKA_BROKERS=" + c.Brokers()[0], "POSTBRIDGE_PREFIX=" + prefix},
		close: func() error { return nil },
	}
	b.held = func(ctx context.Context) (held uint64, err error) {
		ends, err := c.ends(ctx, b.topic)
		for _, n := range ends {
			held += uint64(n)
		}
		return held, err
	}
	return b, c.createTopics(ctx, b.topic, prefix+".rejects", prefix+".deadletters")
}

func (c *cluster) createTopics(ctx context.Context, names ...string) error {
	client, end := c.client()
	defer end()
	var topics []kafka.TopicConfig
	for _, name := range names {
		topics = append(topics, kafka.TopicConfig{Topic: name, NumPartitions: partitions, ReplicationFactor: 1})
	}
	created, err := client.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: topics})
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := created.Errors[name]; err != nil {
			return fmt.Errorf("cannot create %s: %w", name, err)
		}
		err = poll(ctx, startTimeout, func() (bool, error) { // until each partition has a leader that knows it is one
			ends, err := c.ends(ctx, name)
			return err == nil && len(ends) == partitions, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// ends is how many records each partition of a topic holds.
func (c *cluster) ends(ctx context.Context, topic string) ([]int64, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	client, end := c.client()
	defer end()
	m, err := client.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{topic}})
	if err != nil {
		return nil, err
	}
	if err := m.Topics[0].Error; err != nil {
		return nil, err
	}
	ends := make([]int64, len(m.Topics[0].Partitions))
	ask := make([]kafka.OffsetRequest, len(ends))
	for i := range ask {
		ask[i] = kafka.LastOffsetOf(i)
	}
	offsets, err := client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{topic: ask}})
	if err != nil {
		return nil, err
	}
	for _, o := range offsets.Topics[topic] {
		err = errors.Join(err, o.Error)
		ends[o.Partition] = o.LastOffset
	}
	return ends, err
}

// client has connections of its own, and knows no topics yet.
func (c *cluster) client() (client *kafka.Client, end func()) {
	t := new(kafka.Transport)
	return &kafka.Client{Addr: kafka.TCP(c.Brokers()...), Transport: t}, t.CloseIdleConnections
}
