package kafka_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers/kafka"
	"github.com/postbridge/postbridge/publishers/publishertest"
)

// patience is how long anything may take.
const patience = 60 * time.Second

// orders is the topic of what most tests publish.
const orders = string(bridge.Orders)

// testBus is a cluster with a proxy before each broker, which is what the cluster says its brokers' addresses are. It
// is a publishertest.Bus.
type testBus struct {
	config  kafka.Config        // but for the brokers
	change  func(*kafka.Limits) // of each publisher; may be nil
	admin   []kgo.Opt           // of those that look at the cluster
	options []kfake.Opt         // but for the ports
	cluster *kfake.Cluster      // nil while stopped
	logs    bytes.Buffer        // of the publishers; guarded by mu
	full    map[bridge.Destination]*kfake.FaultHandle
	bypass  map[string]string // where a broker really is, by its proxy's address

	mu      sync.Mutex
	ports   []int                        // real ones
	proxies map[int]*publishertest.Proxy // by real port
	tap     tap                          // guarded by mu
	onLog   func()                       // guarded by mu; may be nil
}

// tap sees all that comes to the brokers and goes from them, as whole requests and answers. It may wait. What its
// functions return goes on; nil does not.
type tap struct {
	request func(request) []byte
	answer  func(request, []byte) []byte
}

// request is a request on its way to a broker, with the size first.
type request struct {
	key, version int16
	frame        []byte
}

// produced is the batch of a request to produce.
func (r request) produced(t testing.TB) (topic string, partition int32, batch kmsg.RecordBatch) {
	t.Helper()
	produce := kmsg.NewPtrProduceRequest()
	produce.SetVersion(r.version)
	body := r.frame[4+2+2+4:]
	body = body[2+max(0, int(int16(binary.BigEndian.Uint16(body)))):] // the client's name
	if err := produce.ReadFrom(body); err != nil {
		t.Errorf("a request to produce: %v", err)
		return "", 0, batch
	}
	topic, partition = produce.Topics[0].Topic, produce.Topics[0].Partitions[0].Partition
	if err := batch.ReadFrom(produce.Topics[0].Partitions[0].Records); err != nil {
		t.Errorf("a batch: %v", err)
	}
	return topic, partition, batch
}

// newBus is a cluster that is not started.
func newBus(t *testing.T, options ...kfake.Opt) *testBus {
	b := &testBus{
		options: options,
		config:  kafka.Config{CreateTopics: true, Partitions: 6, Replication: 1},
		full:    make(map[bridge.Destination]*kfake.FaultHandle),
		bypass:  make(map[string]string),
		proxies: make(map[int]*publishertest.Proxy),
	}
	t.Cleanup(func() {
		if b.cluster != nil {
			b.cluster.Close()
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		for line := range strings.Lines(b.logs.String()) {
			checkIDs(t, "a line of the log", line)
		}
	})
	return b
}

// checkIDs wants a text without the ids and keys of publishertest's events: a log or a status is not for them.
func checkIDs(t testing.TB, what, text string) {
	t.Helper()
	for _, id := range []string{"kite.", "220303", strings.Repeat("0", 24)} {
		if strings.Contains(text, id) {
			t.Errorf("%s tells an id or a key: %s", what, text)
		}
	}
}

// startBus starts a cluster of so many brokers.
func startBus(t *testing.T, brokers int, options ...kfake.Opt) *testBus {
	b := newBus(t, append(options, kfake.NumBrokers(brokers))...)
	b.Start(t)
	return b
}

// startStored starts a cluster of one broker, and a publisher that stores the events.
func startStored(t *testing.T, first ...*bridge.Delivery) (*testBus, *publishertest.Trial) {
	t.Helper()
	return storeFirst(t, startBus(t, 1), first)
}

// onePartition is startStored with one partition for each topic.
func onePartition(t *testing.T, first ...*bridge.Delivery) (*testBus, *publishertest.Trial) {
	t.Helper()
	bus := startBus(t, 1)
	bus.config.Partitions = 1
	return storeFirst(t, bus, first)
}

func storeFirst(t *testing.T, bus *testBus, first []*bridge.Delivery) (*testBus, *publishertest.Trial) {
	t.Helper()
	r := publishertest.Open(t, bus)
	r.Store(first...)
	return bus, r
}

// Start starts the cluster on the ports that it had before.
func (b *testBus) Start(t *testing.T) {
	t.Helper()
	options := append(
		b.options[:len(b.options):len(b.options)],
		kfake.ListenFn(func(network, address string) (net.Listener, error) {
			return b.listen(t, network, address)
		}),
	)
	if len(b.ports) > 0 {
		options = append(options, kfake.Ports(b.ports...))
	}
	var err error
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if b.cluster, err = kfake.NewCluster(options...); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	b.config.Brokers = b.cluster.ListenAddrs()
}

// listen is where a broker listens. It says that this is at its proxy.
func (b *testBus) listen(t *testing.T, network, address string) (net.Listener, error) {
	l, err := net.Listen(network, address)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	port := l.Addr().(*net.TCPAddr).Port
	p := b.proxies[port]
	if p == nil {
		p = publishertest.NewProxy(t, l.Addr().String())
		b.proxies[port] = p
		b.ports = append(b.ports, port)
		b.bypass[p.Addr()] = l.Addr().String()
	}
	addr, err := net.ResolveTCPAddr("tcp", p.Addr())
	return &listener{l, b, addr}, err
}

func (b *testBus) Stop(*testing.T) {
	b.cluster.Close()
	b.cluster = nil
}

func (b *testBus) Open(t *testing.T, o bridge.Opening) bridge.Publisher {
	t.Helper()
	report := o.Report
	o.Report = func(cause string, err error) {
		if err != nil {
			checkIDs(t, "a condition", cause+": "+err.Error())
		}
		report(cause, err)
	}
	p, err := kafka.OpenWith(b.config, o, slog.New(slog.NewTextHandler(b, nil)), b.change)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// beforeLog has a function called before each line of the publishers' log.
func (b *testBus) beforeLog(do func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.onLog = do
}

// Write takes a line of a publisher's log.
func (b *testBus) Write(line []byte) (int, error) {
	b.mu.Lock()
	do := b.onLog
	b.mu.Unlock()
	if do != nil {
		do()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.logs.Write(line)
}

// logged reports whether a line of the publishers' log has all these words.
func (b *testBus) logged(words ...string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for line := range strings.Lines(b.logs.String()) {
		if containsAll(line, words...) {
			return true
		}
	}
	return false
}

func containsAll(text string, words ...string) bool {
	for _, word := range words {
		if !strings.Contains(text, word) {
			return false
		}
	}
	return true
}

// ByDestination says that each partition of each topic has a writer of its own.
func (b *testBus) ByDestination() {}

func (b *testBus) Cut() {
	for _, p := range b.allProxies() {
		p.Cut()
	}
}

func (b *testBus) LoseAnswers(lose bool) {
	for _, p := range b.allProxies() {
		p.LoseAnswers(lose)
	}
}

func (b *testBus) allProxies() (all []*publishertest.Proxy) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.proxies {
		all = append(all, p)
	}
	return all
}

func (b *testBus) SetFull(_ *testing.T, dest bridge.Destination, full bool) {
	if full {
		b.full[dest] = b.cluster.Fault(produceFault(string(dest), kerr.NotEnoughReplicas, -1))
		return
	}
	b.full[dest].Remove()
}

func (b *testBus) SetMaxMessage(t *testing.T, bytes int) {
	t.Helper()
	req := kmsg.NewIncrementalAlterConfigsRequest()
	for _, dest := range []bridge.Destination{bridge.Orders, bridge.Rejects, bridge.Deadletters} {
		req.Resources = append(req.Resources, kmsg.IncrementalAlterConfigsRequestResource{
			ResourceType: kmsg.ConfigResourceTypeTopic, ResourceName: string(dest),
			Configs: []kmsg.IncrementalAlterConfigsRequestResourceConfig{
				{Name: "max.message.bytes", Value: kmsg.StringPtr(fmt.Sprint(bytes))},
			},
		})
	}
	resp, err := req.RequestWith(t.Context(), b.client(t))
	if err == nil {
		err = kerr.ErrorForCode(resp.Resources[0].ErrorCode)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// withoutNode does something while a broker is away, and takes it back.
func (b *testBus) withoutNode(t *testing.T, node int32, do func()) {
	t.Helper()
	b.mu.Lock()
	port := b.ports[node]
	b.mu.Unlock()
	if err := b.cluster.RemoveNode(node); err != nil {
		t.Fatal(err)
	}
	b.Cut()
	do()
	if _, _, err := b.cluster.AddNode(node, port); err != nil {
		t.Fatal(err)
	}
}

// produceFault makes requests to produce fail. A count of -1 is for good.
func produceFault(topic string, err *kerr.Error, count int) kfake.Fault {
	return kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: topic, Err: err, Count: count}
}

// client comes to the brokers past the proxies, as nobody's business.
func (b *testBus) client(t *testing.T, options ...kgo.Opt) *kgo.Client {
	t.Helper()
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		b.mu.Lock()
		address = b.bypass[address]
		b.mu.Unlock()
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	c, err := kgo.NewClient(
		append(slices.Concat(b.admin, options), kgo.SeedBrokers(b.config.Brokers...), kgo.Dialer(dial))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func (b *testBus) Recreate(t *testing.T, dest bridge.Destination) {
	t.Helper()
	b.makeAnew(t, string(dest))
}

// makeAnew deletes a topic and makes it again, unless the publisher does.
func (b *testBus) makeAnew(t *testing.T, topic string) {
	t.Helper()
	c := b.client(t)
	gone := kmsg.NewDeleteTopicsRequest()
	gone.TopicNames = []string{topic}
	gone.Topics = []kmsg.DeleteTopicsRequestTopic{{Topic: &topic}}
	gone.TimeoutMillis = int32(patience.Milliseconds())
	deleted, err := gone.RequestWith(t.Context(), c)
	if err == nil {
		err = kerr.ErrorForCode(deleted.Topics[0].ErrorCode)
	}
	if err != nil {
		t.Fatal(err)
	}
	anew := kmsg.NewCreateTopicsRequest()
	anew.Topics = []kmsg.CreateTopicsRequestTopic{
		{Topic: topic, NumPartitions: int32(b.config.Partitions), ReplicationFactor: 1},
	}
	anew.TimeoutMillis = gone.TimeoutMillis
	created, err := anew.RequestWith(t.Context(), c)
	if err == nil {
		err = kerr.ErrorForCode(created.Topics[0].ErrorCode)
	}
	if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		t.Fatal(err)
	}
	// A real broker answers before it has applied that. Until then it serves the topic of before. A publisher that runs
	// may have filled the topic by the time it is seen, so this wait ends by itself.
	for deadline := time.Now().Add(2 * time.Second); !b.isEmpty(t, c, topic) && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
}

// isEmpty reports whether each partition of the topic has a leader, and no records.
func (b *testBus) isEmpty(t *testing.T, c *kgo.Client, topic string) bool {
	t.Helper()
	ask := kmsg.NewListOffsetsRequest()
	ask.ReplicaID = -1
	of := kmsg.NewListOffsetsRequestTopic()
	of.Topic = topic
	for i := range b.config.Partitions {
		p := kmsg.NewListOffsetsRequestTopicPartition()
		p.Partition, p.Timestamp = int32(i), -1
		of.Partitions = append(of.Partitions, p)
	}
	ask.Topics = append(ask.Topics, of)
	ends, err := ask.RequestWith(t.Context(), c)
	if err != nil || len(ends.Topics) != 1 {
		return false
	}
	for _, p := range ends.Topics[0].Partitions {
		if p.ErrorCode != 0 || p.Offset != 0 {
			return false
		}
	}
	return len(ends.Topics[0].Partitions) == b.config.Partitions
}

func (b *testBus) Stored(t *testing.T, dest bridge.Destination) (all []publishertest.Message) {
	t.Helper()
	for _, r := range b.records(t, string(dest)) {
		all = append(all, decode(r))
	}
	return all
}

// records are all of a topic, one partition after the other.
func (b *testBus) records(t *testing.T, topic string, options ...kgo.Opt) (all []*kgo.Record) {
	t.Helper()
	partitions := b.cluster.PartitionInfos(topic)
	from, left := make(map[int32]kgo.Offset), int64(0)
	for _, p := range partitions {
		from[p.Partition] = kgo.NewOffset().At(p.LogStartOffset)
		left += p.HighWatermark - p.LogStartOffset
	}
	if left == 0 {
		return nil
	}
	c := b.client(t, append(options, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: from}))...)
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	byPartition := make([][]*kgo.Record, len(partitions))
	for left > 0 {
		fetches := c.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("cannot read %s: %v", topic, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			byPartition[r.Partition] = append(byPartition[r.Partition], r)
			left--
		})
	}
	for _, some := range byPartition {
		all = append(all, some...)
	}
	return all
}

// decode reads a record as a consumer would that knows nothing but the contract.
func decode(r *kgo.Record) publishertest.Message {
	m := publishertest.Message{Key: string(r.Key), Attributes: make(map[string]string), Data: r.Value}
	for _, h := range r.Headers {
		switch name, ok := strings.CutPrefix(h.Key, "ce_"); {
		case ok, h.Key == "traceparent":
			m.Attributes[name] = string(h.Value)
		case h.Key == "content-type":
			m.ContentType = string(h.Value)
		}
	}
	return m
}

// setTap sees to what passes from now on.
func (b *testBus) setTap(with tap) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tap = with
}

func (b *testBus) currentTap() tap {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.tap
}

// listener is a broker's. Its connections are tapped.
type listener struct {
	net.Listener
	bus  *testBus
	addr net.Addr
}

func (l *listener) Addr() net.Addr { return l.addr }

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &tapped{Conn: c, bus: l.bus, requests: make(map[int32]request)}, nil
}

// tapped is a connection as a broker has it.
type tapped struct {
	net.Conn
	bus  *testBus
	left []byte // of the request that is read

	mu       sync.Mutex
	requests map[int32]request // by correlation id; guarded by mu
}

// Read reads a request.
func (c *tapped) Read(b []byte) (int, error) {
	for len(c.left) == 0 {
		head := make([]byte, 4)
		if _, err := io.ReadFull(c.Conn, head); err != nil {
			return 0, err
		}
		frame := append(head, make([]byte, binary.BigEndian.Uint32(head))...)
		if _, err := io.ReadFull(c.Conn, frame[4:]); err != nil {
			return 0, err
		}
		r := request{int16(binary.BigEndian.Uint16(frame[4:])), int16(binary.BigEndian.Uint16(frame[6:])), frame}
		c.mu.Lock()
		c.requests[int32(binary.BigEndian.Uint32(frame[8:]))] = r
		c.mu.Unlock()
		c.left = frame
		if see := c.bus.currentTap().request; see != nil {
			c.left = see(r)
		}
	}
	n := copy(b, c.left)
	c.left = c.left[n:]
	return n, nil
}

// Write writes an answer, whole as a broker writes it.
func (c *tapped) Write(frame []byte) (int, error) {
	id := int32(binary.BigEndian.Uint32(frame[4:]))
	c.mu.Lock()
	r := c.requests[id]
	delete(c.requests, id)
	c.mu.Unlock()
	out := frame
	if see := c.bus.currentTap().answer; see != nil {
		out = see(r, bytes.Clone(frame))
	}
	if _, err := c.Conn.Write(out); err != nil {
		return 0, err
	}
	return len(frame), nil
}

// randomOf returns random numbers for one goroutine of a test, which logs their seed.
func randomOf(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("random numbers of seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}
