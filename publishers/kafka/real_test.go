package kafka_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers/kafka"
	"github.com/postbridge/postbridge/publishers/kafka/kafkatest"
	"github.com/postbridge/postbridge/publishers/publishertest"
)

// kafkaBus is topics of a real Kafka. It is a publishertest.Bus on a node of its own.
type kafkaBus struct {
	*testBus // what there is of it without a kfake
	cluster  *kafkatest.Cluster
	stops    int
}

// startReal starts a real Kafka that publishers come to directly.
func startReal(t *testing.T, o kafkatest.Options) *kafkaBus {
	t.Helper()
	return newKafkaBus(t, kafkatest.StartFor(t, o), "")
}

// newKafkaBus is on a cluster that runs, with that prefix.
func newKafkaBus(t *testing.T, c *kafkatest.Cluster, prefix string) *kafkaBus {
	b := &kafkaBus{testBus: newBus(t), cluster: c}
	b.config.Brokers, b.config.Prefix = c.Brokers(), prefix
	for i, broker := range c.Brokers() {
		b.bypass[broker] = broker
		b.bypass[c.SecureBrokers()[i]] = broker // where there are no ACLs
	}
	return b
}

// proxied is a node with a listener for each of its buses, which says that it is at a proxy: publishers come through
// that, and nobody else.
type proxied struct {
	cluster *kafkatest.Cluster
	ports   chan string // of listeners without a bus
	proxies map[string]*publishertest.Proxy
}

// startProxied starts a node for so many buses. It knows everybody as the same user, and denies what the tests tell
// it to.
func startProxied(t *testing.T, buses int) *proxied {
	t.Helper()
	kafkatest.Require(t)
	ports := freePorts(t, buses+2)
	plain, controller := ports[0], ports[1]
	p := &proxied{ports: make(chan string, buses), proxies: make(map[string]*publishertest.Proxy)}
	listeners, protocols := []string{"PLAINTEXT://" + plain}, "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT"
	advertised := slices.Clone(listeners)
	for i, port := range ports[2:] {
		p.proxies[port] = publishertest.NewProxy(t, port)
		p.ports <- port
		listeners = append(listeners, fmt.Sprintf("BUS%d://%s", i, port))
		advertised = append(advertised, fmt.Sprintf("BUS%d://%s", i, p.proxies[port].Addr()))
		protocols += fmt.Sprintf(",BUS%d:PLAINTEXT", i)
	}
	p.cluster = kafkatest.StartFor(t, kafkatest.Options{
		Listen: plain,
		ACLs:   true,
		Properties: map[string]string{
			"listeners":                      strings.Join(append(listeners, "CONTROLLER://"+controller), ","),
			"advertised.listeners":           strings.Join(advertised, ","),
			"listener.security.protocol.map": protocols,
			"controller.quorum.voters":       "1@" + controller,
			"num.network.threads":            "1", // for each listener
			"super.users":                    "User:nobody",
			"allow.everyone.if.no.acl.found": "true",
		},
	})
	return p
}

// freePorts finds ports that the system gives to nobody else.
func freePorts(t *testing.T, n int) (ports []string) {
	t.Helper()
	random := randomOf(t)
	for tries := 0; len(ports) < n; tries++ {
		l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", 20_000+random.IntN(12_000)))
		if err != nil {
			if tries > 100 {
				t.Fatal(err)
			}
			continue
		}
		defer l.Close() // when all are found
		ports = append(ports, l.Addr().String())
	}
	return ports
}

// bus is one of topics and a listener of its own.
func (p *proxied) bus(t *testing.T) *kafkaBus {
	t.Helper()
	if len(p.ports) == 0 {
		t.Fatal("there are more buses than listeners")
	}
	port := <-p.ports
	b := newKafkaBus(t, p.cluster, "p"+port[strings.LastIndex(port, ":")+1:])
	b.proxies[0] = p.proxies[port]
	b.config.Brokers = []string{p.proxies[port].Addr()}
	b.bypass[p.proxies[port].Addr()] = port
	return b
}

// Stop stops the node in order, or kills it, in turns.
func (b *kafkaBus) Stop(t *testing.T) {
	t.Helper()
	stop := b.cluster.Stop
	if b.stops++; b.stops%2 == 1 {
		stop = b.cluster.Kill
	}
	if err := stop(0); err != nil {
		t.Fatal(err)
	}
}

func (b *kafkaBus) Start(t *testing.T) { b.startNode(t, 0) }

func (b *kafkaBus) startNode(t *testing.T, node int) {
	t.Helper()
	if err := b.cluster.StartNode(t.Context(), node); err != nil {
		t.Fatal(err)
	}
}

func (b *kafkaBus) kill(t *testing.T, node int) {
	t.Helper()
	if err := b.cluster.Kill(node); err != nil {
		t.Fatal(err)
	}
}

// topic is what a destination is called.
func (b *kafkaBus) topic(dest bridge.Destination) string {
	if b.config.Prefix == "" {
		return string(dest)
	}
	return b.config.Prefix + "." + string(dest)
}

func (b *kafkaBus) topics() []string {
	return []string{b.topic(bridge.Orders), b.topic(bridge.Rejects), b.topic(bridge.Deadletters)}
}

// SetFull denies to write to the topic: a node alone has always as many replicas in sync as there can be.
func (b *kafkaBus) SetFull(t *testing.T, dest bridge.Destination, full bool) {
	t.Helper()
	topic := b.topic(dest)
	if full {
		b.permit(t, "User:*", topic, kmsg.ACLOperationAll, kmsg.ACLPermissionTypeAllow)
		b.permit(t, "User:*", topic, kmsg.ACLOperationWrite, kmsg.ACLPermissionTypeDeny)
		b.waitVerdict(t, topic, 1, kafkago.TopicAuthorizationFailed)
		return
	}
	req := kmsg.NewDeleteACLsRequest()
	req.Filters = []kmsg.DeleteACLsRequestFilter{{
		ResourceType: kmsg.ACLResourceTypeTopic, ResourceName: &topic, ResourcePatternType: kmsg.ACLResourcePatternTypeLiteral,
		Operation: kmsg.ACLOperationAny, PermissionType: kmsg.ACLPermissionTypeAny,
	}}
	resp, err := req.RequestWith(t.Context(), b.client(t))
	if err == nil {
		err = kerr.ErrorForCode(resp.Results[0].ErrorCode)
	}
	if err != nil {
		t.Fatal(err)
	}
	b.waitVerdict(t, topic, 1, kafkago.InvalidMessage)
}

// permit allows or denies an operation on a topic.
func (b *kafkaBus) permit(t *testing.T, who, topic string, op kmsg.ACLOperation, allow kmsg.ACLPermissionType) {
	t.Helper()
	req := kmsg.NewCreateACLsRequest()
	req.Creations = []kmsg.CreateACLsRequestCreation{{
		ResourceType: kmsg.ACLResourceTypeTopic, ResourceName: topic, ResourcePatternType: kmsg.ACLResourcePatternTypeLiteral,
		Principal: who, Host: "*", Operation: op, PermissionType: allow,
	}}
	resp, err := req.RequestWith(t.Context(), b.client(t))
	if err == nil {
		err = kerr.ErrorForCode(resp.Results[0].ErrorCode)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (b *kafkaBus) SetMaxMessage(t *testing.T, size int) {
	t.Helper()
	for _, topic := range b.topics() {
		b.alter(t, topic, "max.message.bytes", fmt.Sprint(size))
		b.waitVerdict(t, topic, size+1, kafkago.MessageSizeTooLarge)
	}
}

// alter sets a topic's configuration.
func (b *kafkaBus) alter(t *testing.T, topic, name, value string) {
	t.Helper()
	req := kmsg.NewIncrementalAlterConfigsRequest()
	req.Resources = []kmsg.IncrementalAlterConfigsRequestResource{{
		ResourceType: kmsg.ConfigResourceTypeTopic, ResourceName: topic,
		Configs: []kmsg.IncrementalAlterConfigsRequestResourceConfig{{Name: name, Value: &value}},
	}}
	resp, err := req.RequestWith(t.Context(), b.client(t))
	if err == nil {
		err = kerr.ErrorForCode(resp.Resources[0].ErrorCode)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// waitVerdict waits until each partition answers a batch of that size so. It is one with a wrong checksum, that is not
// stored: what is changed in the cluster takes a moment to reach each partition.
func (b *kafkaBus) waitVerdict(t *testing.T, topic string, size int, want kafkago.Error) {
	t.Helper()
	var set bytes.Buffer
	records := protocol.RecordSet{
		Version: 2,
		Records: protocol.NewRecordReader(protocol.Record{Value: protocol.NewBytes(make([]byte, size))}),
	}
	if _, err := records.WriteTo(&set); err != nil {
		t.Fatal(err)
	}
	set.Bytes()[4+17]++ // the checksum
	client, end := kafka.NewClient(kafka.Config{Brokers: b.cluster.Brokers()})
	defer end()
	for partition := range b.config.Partitions {
		eventually(t, fmt.Sprintf("answer %v of %s/%d", want, topic, partition), func() bool {
			resp, err := client.RawProduce(t.Context(), &kafkago.RawProduceRequest{
				Topic: topic, Partition: partition, RequiredAcks: kafkago.RequireAll,
				RawRecords: protocol.RawRecordSet{Reader: bytes.NewReader(set.Bytes())},
			})
			return err == nil && errors.Is(resp.Error, want)
		})
	}
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %s after %v", what, patience)
		}
	}
}

// metadata is what the cluster says of a topic.
func (b *kafkaBus) metadata(t *testing.T, topic string) kmsg.MetadataResponseTopic {
	t.Helper()
	req := kmsg.NewMetadataRequest()
	req.Topics = []kmsg.MetadataRequestTopic{{Topic: &topic}}
	resp, err := req.RequestWith(t.Context(), b.client(t))
	if err != nil {
		t.Fatal(err)
	}
	return resp.Topics[0]
}

// offsets are where the partitions of a topic begin, for -2, or end, for -1. There are none if the topic is not there.
func (b *kafkaBus) offsets(t *testing.T, topic string, timestamp int64) map[int32]int64 {
	t.Helper()
	req := kmsg.NewListOffsetsRequest()
	of := kmsg.ListOffsetsRequestTopic{Topic: topic}
	for _, p := range b.metadata(t, topic).Partitions {
		of.Partitions = append(of.Partitions, kmsg.ListOffsetsRequestTopicPartition{
			Partition: p.Partition, CurrentLeaderEpoch: -1, Timestamp: timestamp,
		})
	}
	if len(of.Partitions) == 0 {
		return nil
	}
	req.ReplicaID, req.Topics = -1, []kmsg.ListOffsetsRequestTopic{of}
	resp, err := req.RequestWith(t.Context(), b.client(t))
	if err != nil {
		t.Fatal(err)
	}
	offsets := make(map[int32]int64)
	for _, p := range resp.Topics[0].Partitions {
		if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
			t.Fatalf("%s/%d: %v", topic, p.Partition, err)
		}
		offsets[p.Partition] = p.Offset
	}
	return offsets
}

// records are all of a topic, one partition after the other.
func (b *kafkaBus) records(t *testing.T, topic string) (all []*kgo.Record) {
	t.Helper()
	ends, from, left := b.offsets(t, topic, -1), make(map[int32]kgo.Offset), int64(0)
	for p, first := range b.offsets(t, topic, -2) {
		from[p] = kgo.NewOffset().At(first)
		left += ends[p] - first
	}
	if left == 0 {
		return nil
	}
	c := b.client(t, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: from}))
	defer c.Close()
	byPartition := make(map[int32][]*kgo.Record)
	for deadline := time.Now().Add(patience); left > 0; {
		fetches := c.PollFetches(t.Context())
		if err := fetches.Err(); err != nil || time.Now().After(deadline) {
			t.Fatalf("cannot read %s: %v", topic, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if r.Offset < ends[r.Partition] {
				byPartition[r.Partition] = append(byPartition[r.Partition], r)
				left--
			}
		})
	}
	for _, p := range slices.Sorted(maps.Keys(byPartition)) {
		all = append(all, byPartition[p]...)
	}
	return all
}

func (b *kafkaBus) Stored(t *testing.T, dest bridge.Destination) (all []publishertest.Message) {
	t.Helper()
	for _, r := range b.records(t, b.topic(dest)) {
		all = append(all, decode(r))
	}
	return all
}

func (b *kafkaBus) Recreate(t *testing.T, dest bridge.Destination) {
	t.Helper()
	b.makeAnew(t, b.topic(dest))
}

// TestRealContract is the contract on two nodes: one for the tests that stop theirs, one after the other, and one for
// all others. A partition that is full stands for one that may not be written.
func TestRealContract(t *testing.T) {
	t.Parallel()
	stopping := []string{"DownAtStart", "RestartedUnderLoad", "CloseWhileDown"}
	const tests = 18
	calm, stopped := startProxied(t, tests-len(stopping)), startProxied(t, len(stopping))
	var alone sync.Mutex
	// As a test of its own, so that the nodes outlive what runs in parallel in it.
	t.Run("Run", func(t *testing.T) {
		publishertest.Run(t, func(t *testing.T) publishertest.Bus {
			if !slices.Contains(stopping, filepath.Base(t.Name())) {
				return calm.bus(t)
			}
			alone.Lock()
			t.Cleanup(alone.Unlock)
			return stopped.bus(t)
		})
	})
}

// load is events that come all the time, through one run of the publisher after the other.
type load struct {
	*publishertest.Trial
	t     *testing.T
	all   []*bridge.Delivery // what came; not to be read while it runs
	start time.Time
	// random is for what is done to the load, and arrivals for what comes, in a goroutine of its own.
	random, arrivals *rand.Rand

	runs int
	stop func()
}

// maxUndone is how many events a pump would offer at most before the first is done.
const maxUndone = 5000

func startLoad(t *testing.T, bus publishertest.Bus) *load {
	t.Helper()
	l := &load{
		Trial: publishertest.Open(t, bus), t: t, start: time.Now(), random: randomOf(t), arrivals: randomOf(t),
	}
	l.run()
	return l
}

// run offers what is not done, and then what comes.
func (l *load) run() {
	l.runs++
	l.Publish(l.all[l.Prefix():]...)
	done := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(time.Duration(l.arrivals.IntN(10)) * time.Millisecond):
			}
			next := uint64(len(l.all) + 1)
			if next-l.Prefix() > maxUndone {
				continue
			}
			some := publishertest.Events(next, 1+l.arrivals.IntN(60), 200)
			if l.arrivals.IntN(10) == 0 {
				some = publishertest.Deadletters(next, 10)
			}
			l.all = append(l.all, some...)
			l.Publish(some...)
		}
	})
	l.stop = sync.OnceFunc(func() {
		close(done)
		running.Wait()
	})
	l.t.Cleanup(l.stop)
}

// more waits until so many more events are done, and all before them.
func (l *load) more(n int) {
	l.t.Helper()
	want := l.Prefix() + uint64(n)
	l.Eventually(fmt.Sprint(n, " more events done"), func() bool { return l.Prefix() >= want })
}

// reopen ends the run and begins another: with what a crash leaves, or with what a good end does.
func (l *load) reopen(crash bool, between func()) {
	l.t.Helper()
	l.stop()
	l.Close()
	between()
	if crash {
		l.Trial = l.Recover()
	} else {
		l.Trial = l.Reopen()
	}
	l.run()
}

// finish waits until all is done, and checks what is stored.
func (l *load) finish(what string) {
	l.t.Helper()
	l.stop()
	offered := time.Since(l.start)
	l.Eventually("end", func() bool { return l.Prefix() == uint64(len(l.all)) })
	l.CheckStored(l.all...)
	waitNoCauses(l.Trial)
	l.t.Logf("%s: %d events in %d runs and %v", what, len(l.all), l.runs, offered.Round(time.Second/10))
}

func TestRealKill9(t *testing.T) {
	t.Parallel()
	const kills = 6
	bus := startReal(t, kafkatest.Options{})
	l := startLoad(t, bus)
	for kill := range kills {
		l.more(500 + l.random.IntN(3000))
		bus.kill(t, 0)
		switch kill % 3 {
		case 1: // the publisher goes with the broker
			l.reopen(true, func() {})
		case 2: // before the broker is back it has come and gone
			l.reopen(true, func() {})
			l.reopen(kill == 2, func() {})
		}
		bus.startNode(t, 0)
	}
	l.more(1000)
	l.finish(fmt.Sprint(kills, " kills of the broker"))
}

// Answers get lost, the publisher ends at any moment and begins again at a cursor that is behind, and with other
// batches than before.
func TestRealRounds(t *testing.T) {
	t.Parallel()
	const rounds = 12
	bus := startProxied(t, 1).bus(t)
	l := startLoad(t, bus)
	for round := range rounds {
		l.more(100 + l.random.IntN(1500))
		if round%3 != 0 {
			bus.LoseAnswers(true)
			time.Sleep(
				time.Duration(l.random.IntN(50)) * time.Millisecond,
			) // not waiting for anything: the time of the end
		}
		l.reopen(round%4 != 3, func() {
			bus.LoseAnswers(false)
			bus.Cut()
		})
		if round%4 == 1 {
			l.more(1)
			bus.LoseAnswers(true)
			time.Sleep(
				time.Duration(l.random.IntN(50)) * time.Millisecond,
			) // not waiting for anything: the time of the cut
			bus.LoseAnswers(false)
			bus.Cut()
		}
	}
	l.more(1000)
	l.finish("answers lost")
}

// allInSync reports whether each partition of the topics has three replicas in sync.
func (b *kafkaBus) allInSync(t *testing.T) bool {
	for _, topic := range b.topics() {
		for _, p := range b.metadata(t, topic).Partitions {
			if len(p.ISR) != 3 {
				return false
			}
		}
	}
	return true
}

// configured is what a topic is configured to by itself.
func (b *kafkaBus) configured(t *testing.T, topic, name string) string {
	t.Helper()
	req := kmsg.NewDescribeConfigsRequest()
	req.Resources = []kmsg.DescribeConfigsRequestResource{
		{ResourceType: kmsg.ConfigResourceTypeTopic, ResourceName: topic, ConfigNames: []string{name}},
	}
	resp, err := req.RequestWith(t.Context(), b.client(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range resp.Resources[0].Configs {
		if c.Source == kmsg.ConfigSourceDynamicTopicConfig && c.Value != nil {
			return *c.Value
		}
	}
	return ""
}

func TestRealLeaderKilled(t *testing.T) {
	t.Parallel()
	const kills = 4
	bus := startReal(t, kafkatest.Options{Nodes: 3})
	bus.config.Replication = 3
	l := startLoad(t, bus)
	l.more(1000)
	for _, topic := range bus.topics() {
		if got := bus.configured(t, topic, "min.insync.replicas"); got != "2" {
			t.Errorf("min.insync.replicas of %s is %q, want 2", topic, got)
		}
	}
	for kill := range kills {
		eventually(t, "all replicas in sync", func() bool { return bus.allInSync(t) })
		l.more(500 + l.random.IntN(3000))
		leader, err := bus.cluster.Leader(t.Context(), orders, kill%bus.config.Partitions)
		if err != nil {
			t.Fatal(err)
		}
		last := kill == kills-1
		if last {
			bus.alter(t, orders, "min.insync.replicas", "3")
		}
		bus.kill(t, leader)
		if last {
			waitCause(l.Trial, "publishing to orders", "Not Enough Replicas")
			bus.alter(t, orders, "min.insync.replicas", "2")
		}
		l.more(maxUndone + 1) // with the node away
		if kill == 1 {
			l.reopen(true, func() {})
		}
		bus.startNode(t, leader)
	}
	l.more(1000)
	l.finish(fmt.Sprint(kills, " kills of the leader"))
}

// secureReal is a bus on a cluster with logins, for kafkatest.User.
func secureReal(t *testing.T, c *kafkatest.Cluster, prefix string) *kafkaBus {
	b := newKafkaBus(t, c, prefix)
	b.config.Brokers, b.config.TLSCAFile, b.config.SASLMechanism = c.SecureBrokers(), c.CAFile(), "SCRAM-SHA-512"
	b.config.User, b.config.Password = kafkatest.User, func() string { return kafkatest.Password }
	return b
}

// grant allows the user an operation on topics of the bus.
func (b *kafkaBus) grant(t *testing.T, op kmsg.ACLOperation, topics ...string) {
	t.Helper()
	for _, topic := range topics {
		b.permit(t, "User:"+kafkatest.User, topic, op, kmsg.ACLPermissionTypeAllow)
	}
}

// create creates a topic as people do.
func (b *kafkaBus) create(t *testing.T, topic string) {
	t.Helper()
	req := kmsg.NewCreateTopicsRequest()
	req.Topics = []kmsg.CreateTopicsRequestTopic{
		{Topic: topic, NumPartitions: int32(b.config.Partitions), ReplicationFactor: 1},
	}
	resp, err := req.RequestWith(t.Context(), b.client(t))
	if err == nil {
		err = kerr.ErrorForCode(resp.Topics[0].ErrorCode)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// warnings counts the lines of the log that have all these words.
func (b *kafkaBus) warnings(words ...string) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for line := range strings.Lines(b.logs.String()) {
		if containsAll(line, words...) {
			n++
		}
	}
	return n
}

func TestRealSecure(t *testing.T) {
	t.Parallel()
	c := kafkatest.StartFor(t, kafkatest.Options{Secure: true, ACLs: true})

	// One after the other: to be given a producer id takes the right to write some topic, whichever.
	t.Run("GrantedLater", func(t *testing.T) {
		bus := secureReal(t, c, "later")
		topics := bus.topics()
		r := publishertest.Open(t, bus)
		all := publishertest.Events(1, 300, 60)
		r.Publish(all...)
		waitCause(r, "topic later.orders: ", "Topic Authorization Failed")
		bus.grant(t, kmsg.ACLOperationDescribe, topics...)
		waitCause(r, "topic later.orders: cannot create it: ", "Authorization Failed")
		bus.create(t, topics[0])
		bus.grant(t, kmsg.ACLOperationCreate, topics[1:]...)
		waitCause(r, "publishing to later.orders", "Cluster Authorization Failed")
		waitCause(r, "publishing to later.rejects", "Cluster Authorization Failed")
		bus.grant(t, kmsg.ACLOperationWrite, topics[1:]...)
		waitCause(r, "publishing to later.orders", "Topic Authorization Failed")
		if n := len(bus.Stored(t, bridge.Orders)); n != 0 {
			t.Errorf("%d events are stored without a permission", n)
		}
		bus.grant(t, kmsg.ACLOperationWrite, topics[0])
		r.WaitDone(all...)
		r.CheckStored(all...)
		waitNoCauses(r)

		// Without Read, the next run publishes all the same, and says so.
		const noRead = "no permission to read what the topic holds"
		r.Close()
		r = r.Reopen()
		more := publishertest.Events(301, 600, 60)
		r.Publish(more[:300]...)
		r.WaitDone(more[:300]...)
		r.Publish(more[300:]...)
		r.WaitDone(more[300:]...)
		r.CheckStored(append(all, more...)...)
		waitNoCauses(r)
		if n := bus.warnings("level=WARN", noRead, "topic=later.orders"); n != 1 {
			t.Errorf("%d warnings that orders may not be read, want one", n)
		}
		bus.grant(t, kmsg.ACLOperationRead, topics...)
		before := bus.warnings(noRead)
		r.Close()
		r = r.Reopen()
		last := publishertest.Events(901, 300, 60)
		r.Publish(last...)
		r.WaitDone(last...)
		r.CheckStored(slices.Concat(all, more, last)...)
		if n := bus.warnings(noRead) - before; n > 0 {
			t.Errorf("%d warnings that it may not be read, which it may", n)
		}
	})

	// What the README says is enough, with a tool of Kafka's own.
	for name, create := range map[string][]string{
		"CreateTopics":  {"--operation", "Create", "--topic", "CreateTopics.orders", "--topic", "CreateTopics.rejects", "--topic", "CreateTopics.deadletters"},
		"CreateCluster": {"--operation", "Create", "--cluster"},
	} {
		t.Run(name, func(t *testing.T) {
			bus := secureReal(t, c, name)
			for _, rights := range [][]string{create, {
				"--operation", "Write", "--operation", "Describe", "--operation", "Read",
				"--topic", name + ".orders", "--topic", name + ".rejects", "--topic", name + ".deadletters",
			}} {
				args := append(
					[]string{
						"--bootstrap-server",
						c.Brokers()[0],
						"--add",
						"--allow-principal",
						"User:" + kafkatest.User,
					},
					rights...)
				if _, err := c.Java(t.Context(), "org.apache.kafka.tools.AclCommand", args...); err != nil {
					t.Fatal(err)
				}
			}
			l := startLoad(t, bus)
			for range 3 {
				l.more(1000)
				l.reopen(true, func() {})
			}
			l.more(1000)
			l.finish("over SASL_SSL")
			if n := bus.warnings("level=WARN") + bus.warnings("level=ERROR"); n > 0 {
				t.Errorf("%d warnings: %s", n, bus.logs.String())
			}
		})
	}
}

// consumerBus is a bus whose topics are read by a consumer of Kafka's own, in a group.
type consumerBus struct {
	*kafkaBus
	partitions map[string]string // by key, of orders
	read       map[bridge.Destination][]publishertest.Message
	expect     map[bridge.Destination]int
}

// Stored returns what the group has read so far. What it read before it does not read again.
func (b *consumerBus) Stored(t *testing.T, dest bridge.Destination) []publishertest.Message {
	t.Helper()
	const end = "#end#\n"
	out, err := b.cluster.Java(
		t.Context(),
		"org.apache.kafka.tools.consumer.ConsoleConsumer",
		"--bootstrap-server",
		b.cluster.Brokers()[0],
		"--topic",
		b.topic(dest),
		"--group",
		"readers-of-"+string(dest),
		"--from-beginning",
		"--max-messages",
		fmt.Sprint(b.expect[dest]-len(b.read[dest])),
		"--timeout-ms",
		"30000",
		"--formatter-property",
		"print.partition=true",
		"--formatter-property",
		"print.headers=true",
		"--formatter-property",
		"print.key=true",
		"--formatter-property",
		"headers.separator=|",
		"--formatter-property",
		"line.separator="+end,
	)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(strings.TrimSuffix(string(out), end), end) {
		fields := strings.Split(line, "\t")
		if len(fields) != 4 {
			t.Fatalf("a record is %q", line)
		}
		r := &kgo.Record{Key: []byte(fields[2]), Value: []byte(fields[3])}
		for header := range strings.SplitSeq(fields[1], "|") {
			name, value, _ := strings.Cut(header, ":")
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: name, Value: []byte(value)})
		}
		partition := strings.TrimPrefix(fields[0], "Partition:")
		if before, ok := b.partitions[fields[2]]; dest == bridge.Orders && ok && before != partition {
			t.Errorf("key %q is in the partitions %s and %s", fields[2], before, partition)
		}
		if dest == bridge.Orders {
			b.partitions[fields[2]] = partition
		}
		b.read[dest] = append(b.read[dest], decode(r))
	}
	return b.read[dest]
}

func TestRealIndependentClient(t *testing.T) {
	t.Parallel()
	bus := &consumerBus{
		kafkaBus: startReal(t, kafkatest.Options{}), partitions: make(map[string]string),
		read: make(map[bridge.Destination][]publishertest.Message), expect: make(map[bridge.Destination]int),
	}
	r := publishertest.Open(t, bus)
	var all []*bridge.Delivery
	for range 2 {
		some := append(
			publishertest.Events(uint64(len(all)+1), 400, 100),
			publishertest.Deadletters(uint64(len(all)+401), 20)...)
		all = append(all, some...)
		r.Publish(some...)
		r.WaitDone(some...)
		for _, d := range some {
			for _, dest := range d.Destinations() {
				bus.expect[dest]++
			}
		}
		r.CheckStored(all...)
	}

	// A producer of Kafka's own puts the same keys into the same partitions.
	const topic = "of.java"
	bus.create(t, topic)
	jars, err := kafkatest.Jars(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	producer := exec.CommandContext(
		t.Context(),
		"java",
		"-cp",
		filepath.Join(jars, "*"),
		"org.apache.kafka.tools.ConsoleProducer",
		"--bootstrap-server",
		bus.cluster.Brokers()[0],
		"--topic",
		topic,
		"--reader-property",
		"parse.key=true",
	)
	var keys strings.Builder
	for key := range bus.partitions {
		fmt.Fprintf(&keys, "%s\tvalue\n", key)
	}
	producer.Stdin = strings.NewReader(keys.String())
	if out, err := producer.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	theirs := bus.records(t, topic)
	if len(theirs) != 100 {
		t.Errorf("the producer stored %d records, want 100", len(theirs))
	}
	for _, theirs := range theirs {
		if ours := bus.partitions[string(theirs.Key)]; ours != fmt.Sprint(theirs.Partition) {
			t.Errorf("key %q is in partition %q, with Kafka's own producer in %d", theirs.Key, ours, theirs.Partition)
		}
	}
}

// producers counts the producers that the broker remembers in a topic.
func (b *kafkaBus) producers(t *testing.T, topic string) (n int) {
	t.Helper()
	req := kmsg.NewDescribeProducersRequest()
	of := kmsg.DescribeProducersRequestTopic{Topic: topic}
	for _, p := range b.metadata(t, topic).Partitions {
		of.Partitions = append(of.Partitions, p.Partition)
	}
	req.Topics = []kmsg.DescribeProducersRequestTopic{of}
	resp, err := req.RequestWith(t.Context(), b.client(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range resp.Topics[0].Partitions {
		n += len(p.ActiveProducers)
	}
	return n
}

// A producer that the broker has forgotten goes on, in the same run and in the next.
func TestRealProducerExpired(t *testing.T) {
	t.Parallel()
	bus := startReal(t, kafkatest.Options{Properties: map[string]string{
		"producer.id.expiration.ms": "1500", "producer.id.expiration.check.interval.ms": "100",
	}})
	r := publishertest.Open(t, bus)
	var all []*bridge.Delivery
	for _, crash := range []bool{false, false, true, false} {
		r.Publish(all[r.Prefix():]...)
		some := publishertest.Events(uint64(len(all)+1), 300, 60)
		all = append(all, some...)
		r.Publish(some...)
		r.WaitDone(some...)
		eventually(t, "producer that just wrote and is remembered", func() bool {
			one := publishertest.Events(uint64(len(all)+1), 1, 60)
			all = append(all, one...)
			r.Publish(one...)
			r.WaitDone(one...)
			return bus.producers(t, orders) > 0
		})
		for _, topic := range bus.topics()[:2] {
			eventually(t, "end of the memory of "+topic, func() bool { return bus.producers(t, topic) == 0 })
		}
		if crash {
			r.Close()
			r = r.Recover()
		}
	}
	r.CheckStored(all...)
	waitNoCauses(r)
}

// deleteRecords cuts a partition off at the front.
func (b *kafkaBus) deleteRecords(t *testing.T, topic string, before map[int32]int64) {
	t.Helper()
	req := kmsg.NewDeleteRecordsRequest()
	of := kmsg.DeleteRecordsRequestTopic{Topic: topic}
	for p, offset := range before {
		of.Partitions = append(of.Partitions, kmsg.DeleteRecordsRequestTopicPartition{Partition: p, Offset: offset})
	}
	req.TimeoutMillis, req.Topics = 10_000, []kmsg.DeleteRecordsRequestTopic{of}
	resp, err := req.RequestWith(t.Context(), b.client(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range resp.Topics[0].Partitions {
		if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
			t.Fatalf("%s/%d: %v", topic, p.Partition, err)
		}
	}
}

// What is gone from the front of the partitions while the publisher is away takes nothing with it that is still
// there, or still to come.
func TestRealRetention(t *testing.T) {
	t.Parallel()
	c := kafkatest.StartFor(t, kafkatest.Options{})
	for name, keep := range map[string]int64{"Some": 5, "Nothing": 0, "Almost": 1} {
		for _, crash := range []bool{false, true} {
			t.Run(fmt.Sprint(name, "Crash", crash), func(t *testing.T) {
				bus := newKafkaBus(t, c, fmt.Sprint(name, crash))
				bus.change = kafka.UnsureFor(3 * time.Second)
				r := publishertest.Open(t, bus)
				first := publishertest.Events(1, 500, 60)
				for i := 0; i < len(first); i += 50 {
					r.Publish(first[i : i+50]...)
					r.WaitDone(first[i : i+50]...)
				}
				r.Close()
				for _, topic := range bus.topics() {
					before, begin := bus.offsets(t, topic, -1), bus.offsets(t, topic, -2)
					for p := range before {
						before[p] = max(begin[p], before[p]-keep)
					}
					bus.deleteRecords(t, topic, before)
				}
				left := bus.Stored(t, bridge.Orders)
				if crash {
					r = r.Recover()
				} else {
					r = r.Reopen()
				}
				again, more := first[r.Prefix():], publishertest.Events(501, 300, 60)
				began := time.Now()
				r.Publish(again...)
				r.Publish(more...)
				r.WaitDone(again...)
				r.WaitDone(more...)
				waitNoCauses(r)
				count := make(map[string]int)
				for _, m := range bus.Stored(t, bridge.Orders) {
					count[m.Attributes["sequence"]]++
				}
				for _, m := range left {
					if n := count[m.Attributes["sequence"]]; n != 1 {
						t.Errorf("event %s, which was still there, is stored %d times", m.Attributes["sequence"], n)
					}
				}
				for _, d := range more {
					if n := count[d.SequenceText()]; n != 1 {
						t.Errorf("event %d is stored %d times", d.Sequence, n)
					}
				}
				for sequence, n := range count {
					if n > 1 {
						t.Errorf("event %s is stored %d times", sequence, n)
					}
				}
				t.Logf(
					"%d left, %d offered again, all done after %v",
					len(left),
					len(again),
					time.Since(began).Round(time.Millisecond),
				)
			})
		}
	}
}

// TestRealTimestamps: events that waited for longer than the topic lets records be old are stored. Where it takes the
// time of no record, that is an outage, and the condition says which setting mends it.
func TestRealTimestamps(t *testing.T) {
	t.Parallel()
	kafkatest.Require(t)
	b := &kafkaBus{testBus: newBus(t)}
	b.config.Brokers, b.config.Prefix = kafkatest.Plain(t), fmt.Sprintf("times-%08x", randomOf(t).Uint32())
	for _, broker := range b.config.Brokers {
		b.bypass[broker] = broker
	}
	const before, after = "message.timestamp.before.max.ms", "message.timestamp.after.max.ms"
	createTopics(t, b.testBus, 1, map[string]string{before: "3600000", after: "3600000"})
	r := publishertest.Open(t, b)
	all := ordersOnly(publishertest.Events(1, 40, 10))
	for _, d := range all {
		d.ReceivedAt = d.ReceivedAt.Add(-30 * 24 * time.Hour)
	}
	r.Publish(all[:20]...)
	r.WaitDone(all[:20]...)
	b.alter(t, b.topic(bridge.Orders), before, "0")
	b.alter(t, b.topic(bridge.Orders), after, "0")
	// Unless a record is stored in the millisecond that it is sent in.
	for refused := false; !refused; {
		some := ordersOnly(publishertest.Events(uint64(len(all)+1), 10, 10))
		all = append(all, some...)
		r.Publish(some...)
		r.Eventually("a verdict", func() bool {
			refused = slices.ContainsFunc(r.Causes(), func(cause string) bool {
				return containsAll(cause, "publishing to ", "Invalid Timestamp")
			})
			return refused || r.DoneOf(some...) == len(some)
		})
	}
	b.alter(t, b.topic(bridge.Orders), before, "3600000")
	b.alter(t, b.topic(bridge.Orders), after, "3600000")
	r.Publish(all[20:40]...)
	r.WaitDone(all...)
	waitNoCauses(r)
}
