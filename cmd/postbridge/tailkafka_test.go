package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
)

// kafkaBus is a Kafka in this process to publish to by hand.
type kafkaBus struct {
	*kfake.Cluster
	port     int // of the first broker
	dir      string
	producer *kgo.Client
}

// startKafka starts a Kafka of one broker; port 0 is a free one.
func startKafka(t *testing.T, port int, dir string, options ...kfake.Opt) *kafkaBus {
	t.Helper()
	options = append([]kfake.Opt{kfake.NumBrokers(1), kfake.DataDir(dir), kfake.SyncWrites()}, options...)
	if port != 0 {
		options = append(options, kfake.Ports(port))
	}
	cluster, err := kfake.NewCluster(options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	_, text, err := net.SplitHostPort(cluster.ListenAddrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	if port, err = strconv.Atoi(text); err != nil {
		t.Fatal(err)
	}
	return &kafkaBus{cluster, port, dir, newProducer(t, cluster)}
}

func newProducer(t *testing.T, cluster *kfake.Cluster, options ...kgo.Opt) *kgo.Client {
	t.Helper()
	producer, err := kgo.NewClient(append(options,
		kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.MetadataMinAge(10*time.Millisecond),
	)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(producer.Close)
	return producer
}

// stop stops the cluster; its data stays.
func (b *kafkaBus) stop() {
	b.producer.Close()
	b.Close()
}

// again starts it anew where it was.
func (b *kafkaBus) again(t *testing.T) *kafkaBus {
	t.Helper()
	return startKafka(t, b.port, b.dir)
}

func (b *kafkaBus) addTopic(t *testing.T, topic string, partitions int) {
	t.Helper()
	if err := b.CreateTopic(topic, int32(partitions), nil); err != nil {
		t.Fatal(err)
	}
}

// record is one event as postbridge publishes it.
func record(topic string, partition int, d bridge.Delivery) *kgo.Record {
	if d.Data == nil {
		d.Data = fmt.Appendf(nil, `{"id":"%s<","broker":"%s","user_id":%q,"order_id":%q,"status":%q}`, d.ID, d.Broker,
			d.UserID, d.OrderID, d.Status)
	}
	r := &kgo.Record{Topic: topic, Partition: int32(partition), Key: []byte(d.Key()), Value: d.Data,
		Timestamp: d.ReceivedAt}
	for _, a := range d.Attributes() {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: "ce_" + a[0], Value: []byte(a[1])})
	}
	return r
}

func (b *kafkaBus) add(t *testing.T, topic string, partition int, d bridge.Delivery) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := b.producer.ProduceSync(ctx, record(topic, partition, d)).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

// addOpen publishes an event of which only the id matters.
func (b *kafkaBus) addOpen(t *testing.T, partition int, id string) {
	t.Helper()
	b.add(t, "orders", partition, bridge.Delivery{ID: id, Broker: "kite", UserID: "AB1", OrderID: "7",
		Status: event.StatusOpen})
}

func (b *kafkaBus) environ(more string) []string {
	return environ(fmt.Sprintf("PUBLISH=kafka KAFKA_BROKERS=127.0.0.1:%d %s", b.port, more))
}

func (b *kafkaBus) tail(t *testing.T, args string) result {
	t.Helper()
	return runWith(t, b.environ(""), append([]string{"tail"}, strings.Fields(args)...)...)
}

// wantLines fails unless there are so many on stdout, now that the tail has ended.
func (f *following) wantLines(t *testing.T, want int) {
	t.Helper()
	if n := strings.Count(f.stdout.String(), "\n"); n != want {
		t.Errorf("%d lines, want %d\n%s%s", n, want, &f.stdout, &f.stderr)
	}
}

func TestTailKafkaFilters(t *testing.T) {
	b := startKafka(t, 0, t.TempDir())
	for _, topic := range []string{"orders", "rejects", "deadletters"} {
		b.addTopic(t, topic, 3)
	}
	long := time.Now().Add(-48 * time.Hour)
	for i, d := range []bridge.Delivery{
		{ID: "1", Broker: "kite", UserID: "AB1", OrderID: "7", Status: event.StatusOpen, ReceivedAt: long},
		{ID: "2", Broker: "kite", UserID: "A.*", OrderID: "8", Status: event.StatusRejected, ReceivedAt: long},
		{ID: "3", Broker: "dhan", UserID: "AB1", OrderID: "9", Status: event.StatusFilled, ReceivedAt: long},
		{ID: "4", Broker: "kite", UserID: "AB1", OrderID: "7", Status: event.StatusFilled, ReceivedAt: time.Now()},
		{ID: "5", Broker: "dhan", Deadletter: true, Status: event.StatusUnknown},
	} {
		for _, dest := range d.Destinations() {
			b.add(t, string(dest), i%3, d)
		}
	}
	for _, test := range []struct{ args, want string }{
		{"--count 4", "1 2 3 4"},
		{"--count 3 --broker kite", "1 2 4"},
		{"--count 3 --user AB1", "1 3 4"},
		{"--count 1 --user A.*", "2"},
		{"--count 2 --order 7", "1 4"},
		{"--count 2 --status filled", "3 4"},
		{"--count 3 --status filled --status rejected", "2 3 4"},
		{"--count 1 --broker kite --order 7 --status filled", "4"},
		{"--count 1 --destination rejects", "2"},
		{"--count 1 --destination deadletters --broker dhan", "5"},
		{"--count 1 --from 1h", "4"},
		{"--count 4 --from 49h", "1 2 3 4"},
		{"--count 4 --from 1000000h", "1 2 3 4"},
		{"--count 4 --from 2020-01-05T09:15:00+05:30", "1 2 3 4"},
	} {
		t.Run(test.args, func(t *testing.T) {
			args := test.args
			if !strings.Contains(args, "--from") {
				args += " --from start"
			}
			got := b.tail(t, args+" --timeout 10s")
			ids := got.ids(t)
			slices.Sort(ids) // partitions have no order among themselves
			if got.code != 0 || !slices.Equal(ids, strings.Fields(test.want)) {
				t.Errorf("%v, exit %d, %s", ids, got.code, got.stderr)
			}
		})
	}
	got := b.tail(t, "--from start --count 5 --timeout 2s")
	if got.code != 1 || len(got.ids(t)) != 4 || !strings.HasSuffix(got.stderr,
		"postbridge: tail: timed out after 2s with 4 of 5 events\n") {
		t.Errorf("%+v", got)
	}
	if got := b.tail(t, "--from now --timeout 1s"); got.code != 0 || got.stdout != "" {
		t.Errorf("%+v", got)
	}
}

func TestTailKafkaHeaders(t *testing.T) {
	b := startKafka(t, 0, t.TempDir())
	b.addTopic(t, "de.desk1.orders", 2)
	d := bridge.Delivery{ID: "1", Broker: "kite", UserID: "AB1", OrderID: "7", Status: event.StatusOpen,
		Data: []byte(`{"id": "1","raw":{"x":"<&>"}}`)}
	b.add(t, "de.desk1.orders", 1, bridge.Delivery{ID: "0", Broker: "kite"})
	b.add(t, "de.desk1.orders", 1, d)
	got := runWith(t, b.environ("PREFIX=de.desk1"), "tail", "--headers", "--from", "start", "--order", "7", "--count",
		"1", "--timeout", "10s")
	if !strings.HasPrefix(got.stdout, `{"topic":"de.desk1.orders","partition":1,"offset":1,"key":"kite.AB1.7",`+
		`"headers":{"ce_id":"1",`) {
		t.Errorf("%+v", got)
	}
	var line struct {
		Headers map[string]string
		Event   json.RawMessage
	}
	if err := json.Unmarshal([]byte(got.stdout), &line); err != nil {
		t.Fatalf("%v: %+v", err, got)
	}
	if line.Headers["ce_orderstatus"] != "open" || string(line.Event) != string(d.Data) {
		t.Errorf("%+v", line)
	}
	got = runWith(t, b.environ("PREFIX=de.desk1"), "tail", "--from", "start", "--order", "7", "--count", "1")
	if got.stdout != string(d.Data)+"\n" {
		t.Errorf("the event is not as it was: %q", got.stdout)
	}
}

// TestTailKafkaForeign prints a record of another program, without key and value.
func TestTailKafkaForeign(t *testing.T) {
	b := startKafka(t, 0, t.TempDir())
	b.addTopic(t, "orders", 1)
	if err := b.producer.ProduceSync(t.Context(), &kgo.Record{Topic: "orders"}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	got := b.tail(t, "--headers --from start --count 1 --timeout 10s")
	want := `{"topic":"orders","partition":0,"offset":0,"key":"","headers":{},"event":null}` + "\n"
	if got.stdout != want {
		t.Errorf("%+v\nwant %s", got, want)
	}
}

// TestTailKafkaOrder holds that a partition's events come in order, however many, and however they are batched.
func TestTailKafkaOrder(t *testing.T) {
	b := startKafka(t, 0, t.TempDir())
	b.addTopic(t, "orders", 1)
	const n = 5000
	var all []*kgo.Record
	for i := range n {
		all = append(all, record("orders", 0, bridge.Delivery{ID: strconv.Itoa(i), Broker: "kite",
			UserID: strings.Repeat("u", 1000), OrderID: "7"}))
	}
	if err := b.producer.ProduceSync(t.Context(), all...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	ids := b.tail(t, "--from start --timeout 20s --count "+strconv.Itoa(n)).ids(t)
	if len(ids) != n {
		t.Fatalf("%d events", len(ids))
	}
	for i, id := range ids {
		if id != strconv.Itoa(i) {
			t.Fatalf("event %d is %s", i, id)
		}
	}
}

// TestTailKafkaWaits starts before the bus and before the topic, and lives through a restart of the bus, partitions
// that are added, and another topic of that name.
func TestTailKafkaWaits(t *testing.T) {
	b := startKafka(t, 0, t.TempDir())
	b.stop()
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	f := follow(ctx, b.environ(""))
	f.waitFor(t, "waiting for the bus: ")
	b = b.again(t)
	f.waitFor(t, "waiting for topic orders, which does not exist yet\n")
	b.addTopic(t, "orders", 2)
	b.addOpen(t, 1, "1")
	f.waitFor(t, `"id":"1<"`)

	b.stop()
	b = b.again(t)
	b.addOpen(t, 0, "2")
	f.waitFor(t, `"id":"2<"`)

	more := kmsg.NewPtrCreatePartitionsRequest()
	more.Topics = []kmsg.CreatePartitionsRequestTopic{{Topic: "orders", Count: 3}}
	if resp, err := more.RequestWith(ctx, b.producer); err != nil || resp.Topics[0].ErrorCode != 0 {
		t.Fatalf("%+v, %v", resp, err)
	}
	b.producer = newProducer(t, b.Cluster) // which knows of it
	b.addOpen(t, 2, "3")
	f.waitFor(t, `"id":"3<"`)

	if err := b.DeleteTopic("orders"); err != nil {
		t.Fatal(err)
	}
	b.addTopic(t, "orders", 1)
	b.producer = newProducer(t, b.Cluster)
	b.addOpen(t, 0, "4")
	f.waitFor(t, `"id":"4<"`)
	interrupt()
	if code := <-f.done; code != 0 {
		t.Errorf("exit %d after an interrupt\n%s", code, &f.stderr)
	}
	f.wantLines(t, 4)
}

// TestTailKafkaNow prints only the events stored after it started, also if the bus fails before the first event.
func TestTailKafkaNow(t *testing.T) {
	b := startKafka(t, 0, t.TempDir())
	b.addTopic(t, "orders", 2)
	b.addOpen(t, 0, "1")
	f := follow(t.Context(), b.environ(""), "--count", "2", "--timeout", "20s")
	f.waitFor(t, "following topic orders (partitions: 2) at 127.0.0.1:")
	b.addOpen(t, 1, "2")
	f.waitFor(t, `"id":"2<"`)
	b.stop()
	f.waitFor(t, "waiting for the bus: ")
	b = b.again(t)
	b.addOpen(t, 0, "3")
	if code := <-f.done; code != 0 || strings.Contains(f.stdout.String(), `"1<"`) ||
		!strings.Contains(f.stdout.String(), `"3<"`) {
		t.Errorf("exit %d\n%s%s", code, &f.stdout, &f.stderr)
	}
	f.wantLines(t, 2)
	// a second time if it saw the first broken connection before the end
	if n := strings.Count(f.stderr.String(), "waiting for the bus: "); n > 2 {
		t.Errorf("says %d times that it waits\n%s", n, &f.stderr)
	}
}

// TestTailKafkaLeaderMoves follows a partition from broker to broker.
func TestTailKafkaLeaderMoves(t *testing.T) {
	b := startKafka(t, 0, t.TempDir(), kfake.NumBrokers(3))
	b.addTopic(t, "orders", 1)
	f := follow(t.Context(), b.environ(""), "--from", "start", "--count", "4", "--timeout", "20s")
	for node := range 4 {
		if err := b.MoveTopicPartition("orders", 0, int32(node%3)); err != nil {
			t.Fatal(err)
		}
		b.addOpen(t, 0, strconv.Itoa(node))
		f.waitFor(t, fmt.Sprintf(`"id":"%d<"`, node))
	}
	if code := <-f.done; code != 0 {
		t.Errorf("exit %d\n%s", code, &f.stderr)
	}
	f.wantLines(t, 4)
}

// TestTailKafkaGone continues at the first stored offset if the next one is out of range.
func TestTailKafkaGone(t *testing.T) {
	b := startKafka(t, 0, t.TempDir())
	b.addTopic(t, "orders", 1)
	f := follow(t.Context(), b.environ(""), "--from", "start", "--count", "3", "--timeout", "20s")
	b.addOpen(t, 0, "1")
	f.waitFor(t, `"id":"1<"`)
	b.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Topic: "orders", Err: kerr.OffsetOutOfRange})
	f.waitFor(t, "the next offset of partition 0 is no longer stored; continuing at the first one that is\n")
	b.addOpen(t, 0, "2")
	if code := <-f.done; code != 0 || strings.Count(f.stdout.String(), `"id":"1<"`) != 2 {
		t.Errorf("exit %d\n%s%s", code, &f.stdout, &f.stderr)
	}
}

// TestTailKafkaErrors lives through what brokers answer when they are busy with themselves.
func TestTailKafkaErrors(t *testing.T) {
	b := startKafka(t, 0, t.TempDir())
	b.addTopic(t, "orders", 2)
	b.addOpen(t, 0, "1")
	for _, fault := range []kfake.Fault{
		{Keys: []kmsg.Key{kmsg.Metadata}, Topic: "orders", Err: kerr.LeaderNotAvailable},
		{Keys: []kmsg.Key{kmsg.ListOffsets}, Topic: "orders", Err: kerr.NotLeaderForPartition, Count: 2},
		{Keys: []kmsg.Key{kmsg.Fetch}, Topic: "orders", Err: kerr.KafkaStorageError, Count: 3},
	} {
		b.Fault(fault)
	}
	got := b.tail(t, "--from start --count 1 --timeout 20s")
	if got.code != 0 || !slices.Equal(got.ids(t), []string{"1"}) {
		t.Errorf("%+v", got)
	}
	if n := strings.Count(got.stderr, "waiting for the bus: [5] Leader Not Available"); n != 1 {
		t.Errorf("%+v", got)
	}
}

// TestTailKafkaTransactions continues after a transaction marker.
func TestTailKafkaTransactions(t *testing.T) {
	b := startKafka(t, 0, t.TempDir())
	b.addTopic(t, "orders", 1)
	producer := newProducer(t, b.Cluster, kgo.TransactionalID("t"))
	if err := producer.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	d := bridge.Delivery{ID: "1", Broker: "kite", UserID: "AB1", OrderID: "7"}
	if err := producer.ProduceSync(t.Context(), record("orders", 0, d)).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if err := producer.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	behind := b.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Topic: "orders", Observe: true,
		When: func(r kmsg.Request) bool {
			return r.(*kmsg.FetchRequest).Topics[0].Partitions[0].FetchOffset == 2
		}})
	f := follow(t.Context(), b.environ(""), "--from", "start", "--count", "2", "--timeout", "20s")
	if err := behind.Wait(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	b.addOpen(t, 0, "2")
	if code := <-f.done; code != 0 {
		t.Errorf("exit %d\n%s", code, &f.stderr)
	}
	f.wantLines(t, 2)
}

// TestTailBus chooses between two buses.
func TestTailBus(t *testing.T) {
	b, n := startKafka(t, 0, t.TempDir()), startBus(t, "127.0.0.1:0", t.TempDir())
	b.addTopic(t, "orders", 1)
	b.addOpen(t, 0, "of-kafka")
	n.addStream(t, "", "orders")
	n.add(t, "", bridge.Orders, bridge.Delivery{ID: "of-nats", Broker: "kite", UserID: "AB1", OrderID: "7",
		Status: event.StatusOpen})
	for _, test := range []struct{ publish, args, want string }{
		{"nats,kafka", "", "of-nats"},
		{"kafka,nats", "", "of-kafka"},
		{"nats,kafka", "--bus kafka", "of-kafka"},
		{"kafka,nats", "--bus nats", "of-nats"},
	} {
		env := environ(fmt.Sprintf("PUBLISH=%s NATS_LISTEN=%s KAFKA_BROKERS=127.0.0.1:%d", test.publish, n.address,
			b.port))
		got := runWith(t, env, append(strings.Fields("tail --from start --count 1 --timeout 10s"),
			strings.Fields(test.args)...)...)
		if ids := got.ids(t); !slices.Equal(ids, []string{test.want}) {
			t.Errorf("%s %s: %+v", test.publish, test.args, got)
		}
	}
}
