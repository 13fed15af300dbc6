package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rogpeppe/go-internal/testscript"
	kafkago "github.com/segmentio/kafka-go"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/publishers/kafka"
	"github.com/postbridge/postbridge/publishers/kafka/kafkatest"
)

// ---- the buses of a story -----------------------------------------------------------------------------------------

// natsServer is a NATS server in a process of its own: nats-server ADDRESS DIRECTORY [USERS]. The password of each user in
// the file USERS is the name and -secret.
func natsServer() {
	users, err := natsUsers(os.Args[3:])
	if err != nil {
		panic(err)
	}
	stop, _, err := startNATS(os.Args[1], os.Args[2], users...)
	if err != nil {
		panic(err)
	}
	defer stop()
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	<-ctx.Done()
}

func natsUsers(files []string) ([]*server.User, error) {
	if len(files) == 0 {
		return nil, nil
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		return nil, err
	}
	for _, m := range regexp.MustCompile(`\$(\w+)_PASSWORD`).FindAllStringSubmatch(string(text), -1) {
		if err := os.Setenv(m[1]+"_PASSWORD", strings.ToLower(m[1])+"-secret"); err != nil {
			return nil, err
		}
	}
	written, err := server.ProcessConfigFile(files[0])
	if err != nil {
		return nil, err
	}
	return written.Users, nil
}

// startNATS starts a NATS server; port 0 is a free one.
func startNATS(listen, dir string, users ...*server.User) (stop func(), address string, err error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return nil, "", err
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return nil, "", err
	}
	if n == 0 {
		n = server.RANDOM_PORT
	}
	s, err := server.NewServer(&server.Options{Host: host, Port: n, JetStream: true, StoreDir: dir, NoSigs: true,
		NoLog: true, Users: users})
	if err != nil {
		return nil, "", err
	}
	stop = func() {
		s.Shutdown()
		s.WaitForShutdown()
	}
	s.Start()
	if !s.ReadyForConnections(20 * time.Second) {
		stop()
		return nil, "", errors.New("the NATS server does not become ready")
	}
	return stop, s.Addr().String(), nil
}

// cmdStreams creates the streams as an operator might: streams NATS_ADDRESS DUPLICATE_WINDOW.
func cmdStreams(ts *testscript.TestScript, _ bool, args []string) {
	window, err := time.ParseDuration(args[1])
	ts.Check(err)
	eventually(ts, "the streams", func() error {
		return withJetStream(args[0], func(ctx context.Context, js jetstream.JetStream) error {
			for _, dest := range []bridge.Destination{bridge.Orders, bridge.Rejects, bridge.Deadletters} {
				_, err := js.CreateStream(ctx, jetstream.StreamConfig{
					Name: strings.ToUpper(string(dest)), Subjects: []string{string(dest) + ".>"}, AllowDirect: true,
					Duplicates: window,
				})
				if err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// storyKafka is what a story has of Kafka.
type storyKafka struct {
	t       testing.TB
	cluster *kafkatest.Cluster // its own; nil if it has none
}

func kafkaOf(ts *testscript.TestScript) *storyKafka { return ts.Value(storyKafka{}).(*storyKafka) }

// cmdKafka makes a real Kafka the bus of the story, or skips the story if there is none on this machine: kafka takes
// the node that stories share, with a prefix of the story's own; kafka own starts a node for this story, which kafka
// kill kills with -9, kafka stop stops and kafka start starts again.
func cmdKafka(ts *testscript.TestScript, _ bool, args []string) {
	k := kafkaOf(ts)
	switch strings.Join(args, " ") {
	case "":
		ts.Setenv("POSTBRIDGE_KAFKA_BROKERS", strings.Join(kafkatest.Plain(k.t), ","))
		ts.Setenv("POSTBRIDGE_PREFIX", fmt.Sprintf("%s-%08x", ts.Name(), rand.Uint32()))
		ts.Setenv("POSTBRIDGE_PUBLISH", "kafka")
	case "own":
		k.cluster = kafkatest.StartFor(k.t, kafkatest.Options{})
		jars, err := kafkatest.Jars(context.Background())
		ts.Check(err)
		ts.Setenv("KAFKA_JARS", jars)
		ts.Setenv("POSTBRIDGE_KAFKA_BROKERS", k.cluster.Brokers()[0])
		ts.Setenv("POSTBRIDGE_PUBLISH", "kafka")
	case "kill":
		ts.Check(k.cluster.Kill(0))
	case "stop":
		ts.Check(k.cluster.Stop(0))
	case "start":
		ts.Check(k.cluster.StartNode(context.Background(), 0))
	default:
		ts.Fatalf("kafka %s is unknown", args)
	}
}

// cmdTopics creates the topics as an operator might: topics PARTITIONS.
func cmdTopics(ts *testscript.TestScript, _ bool, args []string) {
	partitions, err := strconv.Atoi(args[0])
	ts.Check(err)
	client, end := kafkaClient(ts)
	defer end()
	var topics []kafkago.TopicConfig
	for _, dest := range []bridge.Destination{bridge.Orders, bridge.Rejects, bridge.Deadletters} {
		topics = append(topics, kafkago.TopicConfig{Topic: topicOf(ts, dest), NumPartitions: partitions,
			ReplicationFactor: 1})
	}
	resp, err := client.CreateTopics(context.Background(), &kafkago.CreateTopicsRequest{Topics: topics})
	ts.Check(err)
	for _, topic := range topics {
		ts.Check(resp.Errors[topic.Topic])
	}
}

func kafkaClient(ts *testscript.TestScript) (client *kafkago.Client, end func()) {
	return kafka.NewClient(kafka.Config{Brokers: strings.Split(ts.Getenv("POSTBRIDGE_KAFKA_BROKERS"), ",")})
}

func topicOf(ts *testscript.TestScript, dest bridge.Destination) string {
	if prefix := ts.Getenv("POSTBRIDGE_PREFIX"); prefix != "" {
		return prefix + "." + string(dest)
	}
	return string(dest)
}

// cmdConsumed wants Java's console consumer, in a group, to get the same messages that tail --headers printed into a
// file, each from the same partition, at the same offset and with the same key and headers: consumed DESTINATION FILE.
func cmdConsumed(ts *testscript.TestScript, _ bool, args []string) {
	var want []string
	for line := range strings.Lines(ts.ReadFile(args[1])) {
		want = append(want, tailedLine(ts, line))
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := kafkatest.Java(ctx, kafkaOf(ts).t, "org.apache.kafka.tools.consumer.ConsoleConsumer",
		"--bootstrap-server", ts.Getenv("POSTBRIDGE_KAFKA_BROKERS"), "--topic",
		topicOf(ts, bridge.Destination(args[0])),
		"--group", "risk", "--from-beginning", "--max-messages", strconv.Itoa(len(want)), "--timeout-ms", "30000",
		"--formatter-property", "print.partition=true", "--formatter-property", "print.offset=true",
		"--formatter-property", "print.headers=true", "--formatter-property", "print.key=true")
	ts.Check(err)
	var got []string
	for line := range strings.Lines(string(out)) {
		got = append(got, sortHeaders(line))
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		ts.Fatalf("Java got\n%s\ntail printed\n%s", strings.Join(got, ""), strings.Join(want, ""))
	}
	ts.Logf("Java got the same %d messages", len(got))
}

// tailedLine writes a line of tail --headers as Java's console consumer does, with sorted headers.
func tailedLine(ts *testscript.TestScript, line string) string {
	var m struct {
		Partition, Offset int
		Key               string
		Headers           map[string]string
		Event             json.RawMessage
	}
	ts.Check(json.Unmarshal([]byte(line), &m))
	var headers []string
	for _, name := range slices.Sorted(maps.Keys(m.Headers)) {
		headers = append(headers, name+":"+m.Headers[name])
	}
	return fmt.Sprintf("Partition:%d\tOffset:%d\t%s\t%s\t%s\n", m.Partition, m.Offset, strings.Join(headers, ","),
		m.Key, m.Event)
}

func sortHeaders(line string) string {
	fields := strings.SplitN(line, "\t", 4)
	if len(fields) == 4 {
		headers := strings.Split(fields[2], ",")
		slices.Sort(headers)
		fields[2] = strings.Join(headers, ",")
	}
	return strings.Join(fields, "\t")
}

// ---- what a bus holds ---------------------------------------------------------------------------------------------

// cmdStored wants everything on the bus once: all that was acknowledged, each number of the spool, the events of an
// order in the order of their numbers, and a copy of each rejected one in rejects. stored BUS ACKED_FILE, where the bus
// is the address of a NATS server, or kafka. The spool's events must all be orders.
func cmdStored(ts *testscript.TestScript, _ bool, args []string) {
	acked := ackedIDs(ts, args[1])
	if len(acked) == 0 {
		ts.Fatalf("%s has no acknowledged postback", args[1])
	}
	eventually(ts, "everything on the bus", func() error {
		orders, err := readBus(ts, args[0], bridge.Orders)
		if err != nil {
			return err
		}
		rejects, err := readBus(ts, args[0], bridge.Rejects)
		if err != nil {
			return err
		}
		for _, wrong := range []string{orders.wrong(), rejects.wrong()} {
			if wrong != "" {
				ts.Fatalf("%s", wrong)
			}
		}
		if err := orders.missing(acked, rejects); err != nil {
			return err
		}
		ts.Logf("%d acknowledged, %d stored, each once, %d of them in rejects, too", len(acked), len(orders),
			len(rejects))
		return nil
	})
}

func ackedIDs(ts *testscript.TestScript, file string) map[string]bool {
	f, err := os.Open(ts.MkAbs(file))
	ts.Check(err)
	defer f.Close()
	ids := make(map[string]bool)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		id, _, _ := strings.Cut(lines.Text(), "\t")
		ids[id] = true
	}
	return ids
}

// storedEvent is what stories look at in a message.
type storedEvent struct{ order, id, status, number string }

// storedEvents are those of one destination; those of an order as they follow each other there.
type storedEvents []storedEvent

// wrong says what waiting does not mend: what is stored twice or out of order.
func (all storedEvents) wrong() string {
	var wrong []string
	ids, numbers, last := make(map[string]int), make(map[string]int), make(map[string]string)
	twice, disorder := 0, 0
	for _, e := range all {
		ids[e.id]++
		numbers[e.number]++
		if ids[e.id] > 1 || numbers[e.number] > 1 {
			twice++
			wrong = append(wrong, fmt.Sprintf("event %s, number %s, of %s is there again", e.id, e.number, e.order))
		} else if e.number < last[e.order] {
			disorder++
			wrong = append(wrong, fmt.Sprintf("number %s of %s comes after %s", e.number, e.order, last[e.order]))
		}
		last[e.order] = e.number
	}
	if len(wrong) == 0 {
		return ""
	}
	return fmt.Sprintf("%d of %d stored are there twice, %d out of order:\n%s",
		twice, len(all), disorder, strings.Join(wrong[:min(len(wrong), 10)], "\n"))
}

// missing says what is not there yet.
func (all storedEvents) missing(acked map[string]bool, rejects storedEvents) error {
	ids, numbers, rejected := make(map[string]bool), make(map[string]bool), make(map[string]bool)
	for _, e := range rejects {
		rejected[e.number] = true
	}
	uncopied := 0
	for _, e := range all {
		ids[e.id], numbers[e.number] = true, true
		if e.status == string(event.StatusRejected) && !rejected[e.number] {
			uncopied++
		}
	}
	lost, gaps := 0, 0
	for id := range acked {
		if !ids[id] {
			lost++
		}
	}
	for n := range len(all) {
		if !numbers[fmt.Sprintf("%020d", n+1)] {
			gaps++
		}
	}
	if lost+gaps+uncopied == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d acknowledged are not among %d stored, %d numbers are missing, %d rejected are not "+
		"in rejects",
		lost, len(acked), len(all), gaps, uncopied)
}

func readBus(ts *testscript.TestScript, bus string, dest bridge.Destination) (all storedEvents, err error) {
	if bus == "kafka" {
		client, end := kafkaClient(ts)
		defer end()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		return readTopic(ctx, client, topicOf(ts, dest))
	}
	err = withJetStream(bus, func(ctx context.Context, js jetstream.JetStream) error {
		all, err = readStream(ctx, js, strings.ToUpper(string(dest)))
		return err
	})
	return all, err
}

func withJetStream(address string, do func(context.Context, jetstream.JetStream) error) error {
	nc, err := nats.Connect("nats://" + address)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return do(ctx, js)
}

func readStream(ctx context.Context, js jetstream.JetStream, name string) (all storedEvents, err error) {
	stream, err := js.Stream(ctx, name)
	if err != nil || stream.CachedInfo().State.Msgs == 0 {
		return nil, err
	}
	consumer, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return nil, err
	}
	messages, err := consumer.Messages()
	if err != nil {
		return nil, err
	}
	defer messages.Stop()
	for range stream.CachedInfo().State.Msgs {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return nil, err
		}
		h := m.Headers()
		all = append(all, storedEvent{m.Subject(), h.Get("ce-id"), h.Get("ce-orderstatus"), h.Get("ce-sequence")})
	}
	return all, nil
}

func readTopic(ctx context.Context, client *kafkago.Client, name string) (all storedEvents, err error) {
	m, err := client.Metadata(ctx, &kafkago.MetadataRequest{Topics: []string{name}})
	if err != nil {
		return nil, err
	}
	for _, p := range m.Topics[0].Partitions {
		of, err := readPartition(ctx, client, name, p)
		if err != nil {
			return nil, err
		}
		all = append(all, of...)
	}
	return all, m.Topics[0].Error
}

func readPartition(
	ctx context.Context, client *kafkago.Client, topic string, p kafkago.Partition,
) (all storedEvents, err error) {
	for next, end := int64(0), int64(1); next < end; {
		resp, err := client.Fetch(ctx, &kafkago.FetchRequest{
			Addr: kafkago.TCP(kafka.HostPort(p.Leader)), Topic: topic, Partition: p.ID, Offset: next, MaxBytes: 8 << 20,
		})
		if err == nil {
			err = resp.Error
		}
		if err != nil {
			return nil, err
		}
		end = resp.HighWatermark
		for {
			r, err := resp.Records.ReadRecord()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, err
			}
			if r.Offset < next {
				continue // a batch may begin earlier
			}
			next = r.Offset + 1
			e, err := storedRecord(r)
			if err != nil {
				return nil, err
			}
			all = append(all, e)
		}
	}
	return all, nil
}

func storedRecord(r *kafkago.Record) (storedEvent, error) {
	key, err := kafkago.ReadAll(r.Key)
	headers := make(map[string]string, len(r.Headers))
	for _, h := range r.Headers {
		headers[h.Key] = string(h.Value)
	}
	return storedEvent{string(key), headers["ce_id"], headers["ce_orderstatus"], headers["ce_sequence"]}, err
}
