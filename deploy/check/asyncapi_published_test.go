package check

import (
	"bytes"
	"context"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.yaml.in/yaml/v3"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/publishers/kafka"
	"github.com/postbridge/postbridge/publishers/nats"
)

// TestAsyncAPIOnBuses publishes the example events of asyncapi.yaml to both buses and compares what they store with
// the document: streams and topics, subjects and keys, the schemas of headers and data, and the examples as they are
// written.
func TestAsyncAPIOnBuses(t *testing.T) {
	api := readAsyncAPI(t)
	var all []*bridge.Delivery
	// Kafka's messages hold the same events.
	for _, name := range []string{"natsOrder", "natsReject", "natsDeadletter"} {
		for i := range api.Components.Messages[name].Examples {
			all = append(all, api.example(t, name, i))
		}
	}
	log := slog.New(slog.DiscardHandler)
	url, brokers := startNATS(t), startKafka(t)
	publish(t, nats.NewBus(nats.Config{URL: url, CreateStreams: true}, log), all)
	topics := kafka.Config{Brokers: brokers, CreateTopics: true, Partitions: 1, Replication: 1}
	publish(t, kafka.NewBus(topics, log), all)
	for dest, n := range map[string]int{"Orders": 4, "Rejects": 1, "Deadletters": 3} {
		api.check(t, "nats"+dest, n, inStream(t, url, api.Channels["nats"+dest].Stream))
		api.check(t, "kafka"+dest, n, inTopic(t, brokers, api.Channels["kafka"+dest].Address))
	}
	if len(api.Channels) != 6 {
		t.Errorf("%d channels", len(api.Channels))
	}
}

// asyncAPI holds the parts of the document that a bus can be compared with.
type asyncAPI struct {
	Channels map[string]struct {
		Address  string
		Messages map[string]ref
		Stream   stream `yaml:"x-jetstream"`
	}
	Components struct {
		Messages map[string]struct {
			Headers  ref
			Examples []struct{ Headers, Payload map[string]any }
		}
		Schemas map[string]struct {
			Required   []string
			Properties map[string]any
		}
	}
	schemas *jsonschema.Compiler
}

type stream struct {
	Stream   string
	Subjects []string
}

type ref struct {
	To string `yaml:"$ref"`
}

// name returns the last part of the reference.
func (r ref) name() string { return r.To[strings.LastIndex(r.To, "/")+1:] }

// documents is the base of the schemas' $id.
const documents = "https://github.com/postbridge/postbridge/deploy/"

func readAsyncAPI(t *testing.T) *asyncAPI {
	t.Helper()
	api := &asyncAPI{schemas: jsonschema.NewCompiler()}
	api.schemas.AssertFormat()
	for _, file := range []string{"event.schema.json", "asyncapi.yaml"} {
		if err := api.schemas.AddResource(documents+file, parse(t, file)); err != nil {
			t.Fatal(err)
		}
	}
	if err := yaml.Unmarshal([]byte(read(t, "asyncapi.yaml")), api); err != nil {
		t.Fatal(err)
	}
	return api
}

// decode reads YAML or JSON.
func decode(t *testing.T, text []byte) (value any) {
	t.Helper()
	if err := yaml.Unmarshal(text, &value); err != nil {
		t.Fatal(err)
	}
	return value
}

// example returns the delivery of the event in an example of a message.
func (api *asyncAPI) example(t *testing.T, name string, i int) *bridge.Delivery {
	t.Helper()
	e := api.Components.Messages[name].Examples[i]
	header := func(name string) string {
		text, _ := e.Headers[name].(string)
		return text
	}
	stored := golden(t, header("ce-id"), e.Payload)
	sequence, err := strconv.ParseUint(header("ce-sequence"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	received, err := time.Parse(time.RFC3339, stored.ReceivedAt)
	if err != nil {
		t.Fatal(err)
	}
	d := &bridge.Delivery{
		Spool: header("ce-spool"), Sequence: sequence, TraceParent: header("traceparent"), ReceivedAt: received,
		ID: stored.ID, Broker: stored.Broker, UserID: stored.UserID, OrderID: stored.OrderID, Status: stored.Status,
		Deadletter: !stored.Understood(), Data: stored.Append(nil),
	}
	if stored.Other != "" {
		d.Type = event.TypeOther
	}
	return d
}

// golden returns the event that an example shows, which must be a golden file of a broker's tests.
func golden(t *testing.T, id string, payload any) *event.Event {
	t.Helper()
	files, err := filepath.Glob(top + "/brokers/*/testdata/events/*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(text, []byte(id)) || !reflect.DeepEqual(decode(t, text), payload) {
			continue
		}
		wanted := new(event.Event)
		if err := (*jsontext.Value)(&text).Compact(); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, wanted); err != nil {
			t.Fatal(err)
		}
		return wanted
	}
	t.Fatalf("no golden file of a broker has the event %s as it is in the example", id)
	return nil
}

// message is a message as read from a bus.
type message struct {
	address, key string // a JetStream message has no key
	headers      map[string]any
	data         []byte
}

// check compares the messages in a channel with the document.
func (api *asyncAPI) check(t *testing.T, name string, n int, messages []message) {
	t.Helper()
	if len(messages) != n {
		t.Errorf("%s: %d messages, want %d", name, len(messages), n)
	}
	channel := api.Channels[name]
	if len(channel.Messages) != 1 {
		t.Errorf("%s: %d kinds of messages", name, len(channel.Messages))
	}
	for _, of := range channel.Messages {
		described := api.Components.Messages[of.name()]
		headers := api.Components.Schemas[described.Headers.name()]
		asWritten := make([]bool, len(described.Examples))
		for _, m := range messages {
			event := decode(t, m.data).(map[string]any)
			if want := address(channel.Address, event); m.address != want {
				t.Errorf("%s: a message is at %s; the document says %s", name, m.address, want)
			}
			api.fits(t, of.To+"/headers", m.headers)
			api.fits(t, of.To+"/payload", event)
			if strings.HasPrefix(name, "kafka") {
				api.fits(t, of.To+"/bindings/kafka/key", m.key)
			}
			sameNames(t, name, m.headers, headers.Required)
			sameNames(t, name, headers.Properties, headers.Required)
			for i, e := range described.Examples {
				asWritten[i] = asWritten[i] || reflect.DeepEqual(m.headers, e.Headers) && reflect.DeepEqual(event, e.Payload)
			}
		}
		if slices.Contains(asWritten, false) {
			t.Errorf("%s: an example of %s equals no message: %v", name, of.name(), asWritten)
			for _, m := range messages {
				t.Logf("%v %s", m.headers, m.data)
			}
		}
	}
}

// sameNames fails the test unless the headers are exactly the required ones.
func sameNames(t *testing.T, channel string, headers map[string]any, required []string) {
	t.Helper()
	got, want := slices.Sorted(maps.Keys(headers)), slices.Sorted(slices.Values(required))
	if !slices.Equal(got, want) {
		t.Errorf("%s: headers %q; the document requires %q", channel, got, want)
	}
}

// address returns the subject or topic that the document gives the event.
func address(template string, payload map[string]any) string {
	text := func(name string) string {
		s, _ := payload[name].(string)
		return event.EscapeToken(s)
	}
	fill := strings.NewReplacer(
		"{broker}",
		text("broker"),
		"{user_id}",
		text("user_id"),
		"{order_id}",
		text("order_id"),
	)
	return fill.Replace(template)
}

// fits validates a value against a schema in the document.
func (api *asyncAPI) fits(t *testing.T, schema string, value any) {
	t.Helper()
	compiled, err := api.schemas.Compile(documents + "asyncapi.yaml" + schema)
	if err == nil {
		err = compiled.Validate(value)
	}
	if err != nil {
		t.Errorf("%v: %v", value, err)
	}
}

func startNATS(t *testing.T) (url string) {
	t.Helper()
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(20 * time.Second) {
		t.Fatal("the NATS server is not ready")
	}
	return s.ClientURL()
}

func startKafka(t *testing.T) (brokers []string) {
	t.Helper()
	c, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c.ListenAddrs()
}

func publish(t *testing.T, bus bridge.Bus, all []*bridge.Delivery) {
	t.Helper()
	p, err := bus.Open(bridge.Opening{Report: func(string, error) {}, SaveState: func() error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	done := make(chan error, len(all))
	for _, d := range all {
		p.Publish(t.Context(), d, func(err error) { done <- err })
	}
	for range all {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%s does not store the events", bus.Name)
		}
	}
}

// inStream reads all messages of a stream, whose subjects must be those of the document.
func inStream(t *testing.T, url string, want stream) (all []message) {
	t.Helper()
	conn, err := natsgo.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(t.Context(), want.Stream)
	if err != nil {
		t.Fatalf("%q: %v", want.Stream, err)
	}
	if got := s.CachedInfo().Config.Subjects; !slices.Equal(got, want.Subjects) {
		t.Errorf("%s takes %q; the document says %q", want.Stream, got, want.Subjects)
	}
	consumer, err := s.OrderedConsumer(t.Context(), jetstream.OrderedConsumerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	for range s.CachedInfo().State.Msgs {
		stored, err := consumer.Next(jetstream.FetchMaxWait(30 * time.Second))
		if err != nil {
			t.Fatal(err)
		}
		m := message{stored.Subject(), "", make(map[string]any), stored.Data()}
		for name := range stored.Headers() {
			m.headers[name] = stored.Headers().Get(name)
		}
		all = append(all, m)
	}
	return all
}

// inTopic reads all messages of a topic with one partition.
func inTopic(t *testing.T, brokers []string, topic string) (all []message) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().AtStart()}}))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for read, end := int64(0), int64(1); read < end; {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("%q: %v", topic, err)
		}
		fetches.EachPartition(func(p kgo.FetchTopicPartition) { end = p.HighWatermark })
		fetches.EachRecord(func(r *kgo.Record) {
			m := message{r.Topic, string(r.Key), make(map[string]any), r.Value}
			for _, h := range r.Headers {
				m.headers[h.Key] = string(h.Value)
			}
			all = append(all, m)
			read = r.Offset + 1
		})
	}
	return all
}
