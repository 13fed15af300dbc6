package kafka_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
	saslplain "github.com/twmb/franz-go/pkg/sasl/plain"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/publishers/kafka"
	"github.com/postbridge/postbridge/publishers/publishertest"
)

// retriable are all errors that Kafka says to try again after, and those that people mend.
func retriable() (all []*kerr.Error) {
	for code := int16(-1); code < 200; code++ {
		if e := kerr.TypedErrorForCode(code); e != nil && e.Code == code && e.Retriable {
			all = append(all, e)
		}
	}
	return append(
		all,
		kerr.UnknownServerError,
		kerr.TopicAuthorizationFailed,
		kerr.ClusterAuthorizationFailed,
		kerr.PolicyViolation,
		kerr.InvalidRequiredAcks,
		kerr.UnsupportedForMessageFormat,
	)
}

// TestEveryError answers each error a few times: REQUEST_TIMED_OUT and NOT_ENOUGH_REPLICAS_AFTER_APPEND when the
// batch is stored, all others when it is not.
func TestEveryError(t *testing.T) {
	t.Parallel()
	for _, e := range retriable() {
		t.Run(e.Message, func(t *testing.T) {
			t.Parallel()
			first := publishertest.Events(1, 50, 20)
			bus, r := startStored(t, first...)
			fault := bus.cluster.Fault(produceFault(orders, e, 2))
			all := publishertest.Events(51, 200, 20)
			r.Store(all...)
			if fault.Hits() == 0 {
				t.Error("the error was not answered")
			}
			wantStored(t, r, append(first, all...)...)
		})
	}
}

// wantStored checks that the bus holds exactly these events, and waits for the end of all causes.
func wantStored(t *testing.T, r *publishertest.Trial, all ...*bridge.Delivery) {
	t.Helper()
	r.CheckStored(all...)
	waitNoCauses(r)
}

func waitNoCauses(r *publishertest.Trial) {
	r.Eventually("end of all conditions", func() bool { return len(r.Causes()) == 0 })
}

// waitCause waits for a cause that has all these words.
func waitCause(r *publishertest.Trial, words ...string) {
	r.Eventually("cause that says "+strings.Join(words, " … "), func() bool {
		return slices.ContainsFunc(r.Causes(), func(cause string) bool { return containsAll(cause, words...) })
	})
}

func wantDone(t *testing.T, r *publishertest.Trial, n int, all []*bridge.Delivery) {
	t.Helper()
	if got := r.DoneOf(all...); got != n {
		t.Errorf("%d events are done, want %d", got, n)
	}
}

// What is stored and not answered is not stored again.
func TestAnswersToProduceLost(t *testing.T) {
	t.Parallel()
	bus := startBus(t, 1)
	var lost atomic.Int32
	bus.setTap(tap{answer: func(r request, frame []byte) []byte {
		if r.key == int16(kmsg.Produce) && lost.Add(1)%2 == 1 && lost.Load() < 60 {
			bus.Cut() // or the publisher would wait
			return nil
		}
		return frame
	}})
	r := publishertest.Open(t, bus)
	var all []*bridge.Delivery
	for range 5 {
		some := publishertest.Events(uint64(len(all)+1), 200, 40)
		all = append(all, some...)
		r.Store(some...)
	}
	wantStored(t, r, all...)
}

func TestLeadersMove(t *testing.T) {
	t.Parallel()
	bus := startBus(t, 3)
	r := publishertest.Open(t, bus)
	var all []*bridge.Delivery
	for i := range 15 {
		some := publishertest.Events(uint64(len(all)+1), 300, 60)
		all = append(all, some...)
		r.Publish(some...)
		r.Eventually("an event done", func() bool { return r.DoneOf(some...) > 0 })
		if i%2 == 0 {
			bus.cluster.ShufflePartitionLeaders()
		} else if err := bus.cluster.MoveTopicPartition(orders, int32(i%6), int32(i%3)); err != nil {
			t.Fatal(err)
		}
	}
	r.WaitDone(all...)
	wantStored(t, r, all...)
}

func TestBrokerGoneAndBack(t *testing.T) {
	t.Parallel()
	bus := startBus(t, 3)
	r := publishertest.Open(t, bus)
	var all []*bridge.Delivery
	publish := func() []*bridge.Delivery {
		some := publishertest.Events(uint64(len(all)+1), 300, 60)
		all = append(all, some...)
		r.Publish(some...)
		return some
	}
	for node := range int32(3) {
		before := publish()
		r.Eventually("an event done", func() bool { return r.DoneOf(before...) > 0 })
		bus.withoutNode(t, node, func() { r.WaitDone(publish()...) })
		publish()
	}
	r.WaitDone(all...)
	wantStored(t, r, all...)
}

func TestAllBrokersGone(t *testing.T) {
	t.Parallel()
	bus := startDurable(t, 3)
	r := publishertest.Open(t, bus)
	all := publishertest.Events(1, 300, 60)
	r.Store(all...)
	bus.Stop(t)
	during := publishertest.Events(301, 600, 60)
	r.Publish(during...)
	waitCause(r, "connection: Kafka broker ", "closed the connection: see its log") // as the proxies do
	attempts, end := bus.countAttempts(t)
	r.Eventually("attempts time and again", func() bool { return attempts.Load() > 40 })
	wantDone(t, r, 0, during)
	end()
	bus.Start(t)
	r.WaitDone(during...) // soon: TestPaceOfRetries
	wantStored(t, r, append(all, during...)...)
}

// countAttempts counts who comes to the brokers, which are stopped, until it ends.
func (b *testBus) countAttempts(t *testing.T) (n *atomic.Int32, end func()) {
	t.Helper()
	n = new(atomic.Int32)
	var listeners []net.Listener
	var running sync.WaitGroup
	for _, port := range b.ports {
		l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", port))
		if err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, l)
		running.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				n.Add(1)
				c.Close()
			}
		})
	}
	end = sync.OnceFunc(func() {
		for _, l := range listeners {
			l.Close()
		}
		running.Wait()
	})
	t.Cleanup(end)
	return n, end
}

// A broker that throttles gets no batch before its time, whatever comes in meanwhile. What it stored is done at once.
func TestThrottled(t *testing.T) {
	t.Parallel()
	const throttle = 400 * time.Millisecond
	bus := startBus(t, 1)
	bus.config.Partitions = 1
	var mu sync.Mutex
	var answered time.Time
	var early, batches int
	bus.setTap(tap{
		request: func(r request) []byte {
			mu.Lock()
			defer mu.Unlock()
			if r.key == int16(kmsg.Produce) {
				if batches++; !answered.IsZero() && time.Since(answered) < throttle-time.Millisecond {
					early++
				}
			}
			return r.frame
		},
		answer: func(r request, frame []byte) []byte {
			mu.Lock()
			defer mu.Unlock()
			if r.key == int16(kmsg.Produce) {
				binary.BigEndian.PutUint32(frame[len(frame)-4:], uint32(throttle/time.Millisecond))
				answered = time.Now()
			}
			return frame
		},
	})
	r := publishertest.Open(t, bus)
	all := publishertest.Events(1, 300, 1)
	for i, d := range all {
		d.Status = event.StatusOpen
		r.Publish(d)
		if i%100 == 0 {
			r.Eventually("the first of a batch done", func() bool { return r.DoneOf(d) == 1 })
		}
		time.Sleep(time.Millisecond)
	}
	r.WaitDone(all...)
	mu.Lock()
	if early > 0 || batches < 3 {
		t.Errorf("%d of %d batches came before the end of the throttling", early, batches)
	}
	mu.Unlock()
	r.CheckStored(all...)
}

// partitionOf is where a Java client puts the key.
func partitionOf(key string, partitions int) int {
	return kgo.StickyKeyPartitioner(nil).ForTopic("").Partition(&kgo.Record{Key: []byte(key)}, partitions)
}

// hideLeaders is a tap by which a partition of orders has no leader, while hidden says so.
func hideLeaders(t *testing.T, partition int32, hidden *atomic.Bool) func(request, []byte) []byte {
	return func(r request, frame []byte) []byte {
		if r.key != int16(kmsg.Metadata) || !hidden.Load() {
			return frame
		}
		m := kmsg.NewPtrMetadataResponse()
		m.SetVersion(r.version)
		head := 8
		if m.IsFlexible() {
			head++
		}
		if err := m.ReadFrom(frame[head:]); err != nil {
			t.Errorf("an answer with metadata: %v", err)
		}
		for _, topic := range m.Topics {
			for i, p := range topic.Partitions {
				if *topic.Topic == orders && p.Partition == partition {
					topic.Partitions[i].Leader, topic.Partitions[i].ErrorCode = -1, kerr.LeaderNotAvailable.Code
				}
			}
		}
		frame = m.AppendTo(frame[:head:head])
		binary.BigEndian.PutUint32(frame, uint32(len(frame)-4))
		return frame
	}
}

func TestOnePartitionWithoutLeader(t *testing.T) {
	t.Parallel()
	const partition = 2
	first := publishertest.Events(1, 100, 60)
	bus, r := startStored(t, first...)
	var hidden atomic.Bool
	hidden.Store(true)
	bus.setTap(tap{answer: hideLeaders(t, partition, &hidden)})
	notLeader := produceFault(orders, kerr.NotLeaderForPartition, -1)
	notLeader.Partitions = []int32{partition}
	fault := bus.cluster.Fault(notLeader)
	all := publishertest.Events(101, 600, 60)
	r.Publish(all...)
	var stuck, others []*bridge.Delivery
	for _, d := range all {
		if partitionOf(d.Key(), 6) == partition {
			stuck = append(stuck, d)
		} else {
			others = append(others, d)
		}
	}
	r.WaitDone(others...)
	waitCause(r, "publishing to orders: partition 2: has no leader: bring back its brokers")
	wantDone(t, r, 0, stuck)
	hidden.Store(false)
	fault.Remove()
	r.WaitDone(stuck...)
	wantStored(t, r, append(first, all...)...)
}

// secured is a cluster that asks who comes, and has ACLs.
func secured(t *testing.T, allowed ...kmsg.ACLOperation) *testBus {
	var acls []kfake.ACL
	for _, dest := range []bridge.Destination{bridge.Orders, bridge.Rejects, bridge.Deadletters} {
		for _, op := range allowed {
			acls = append(acls, kfake.ACL{
				Resource: kmsg.ACLResourceTypeTopic, Name: string(dest), Pattern: kmsg.ACLResourcePatternTypeLiteral, Operation: op, Allow: true,
			})
		}
	}
	bus := startBus(
		t,
		1,
		kfake.EnableSASL(),
		kfake.EnableACLs(),
		kfake.Superuser("PLAIN", "admin", "admin"),
		kfake.User("PLAIN", "edge", "secret", acls...),
	)
	bus.config.SASLMechanism, bus.config.User, bus.config.Password = "PLAIN", "edge", func() string { return "secret" }
	bus.admin = []kgo.Opt{kgo.SASL(saslplain.Auth{User: "admin", Pass: "admin"}.AsMechanism())}
	return bus
}

// allow grants an operation on a topic.
func (b *testBus) allow(t *testing.T, topic string, op kmsg.ACLOperation) {
	t.Helper()
	req := kmsg.NewCreateACLsRequest()
	req.Creations = []kmsg.CreateACLsRequestCreation{{
		ResourceType: kmsg.ACLResourceTypeTopic, ResourceName: topic, ResourcePatternType: kmsg.ACLResourcePatternTypeLiteral,
		Principal: "User:edge", Host: "*", Operation: op, PermissionType: kmsg.ACLPermissionTypeAllow,
	}}
	resp, err := req.RequestWith(t.Context(), b.client(t))
	if err == nil {
		err = kerr.ErrorForCode(resp.Results[0].ErrorCode)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestPermissionsGrantedLater(t *testing.T) {
	t.Parallel()
	bus := secured(t)
	r := publishertest.Open(t, bus)
	all := publishertest.Events(1, 200, 40)
	r.Publish(all...)
	waitCause(r, "topic orders: ", "Topic Authorization Failed", "deploy/kafka/acls.sh grants all rights")
	topics := []string{orders, string(bridge.Rejects), string(bridge.Deadletters)}
	for _, topic := range topics {
		bus.allow(t, topic, kmsg.ACLOperationDescribe)
	}
	waitCause(r, "topic orders: cannot create it: ", "Authorization Failed")
	for _, topic := range topics {
		bus.allow(t, topic, kmsg.ACLOperationCreate)
	}
	waitCause(r, "publishing to orders: ", "Cluster Authorization Failed")
	bus.allow(t, string(bridge.Rejects), kmsg.ACLOperationWrite) // with which an id is given out
	waitCause(r, "publishing to orders: ", "Topic Authorization Failed", ": allow Write on it; deploy/kafka/acls.sh does")
	wantDone(t, r, 0, all[:10]) // none of them rejected
	bus.allow(t, orders, kmsg.ACLOperationWrite)
	r.WaitDone(all...)
	wantStored(t, r, all...)
}

// Without permission to read, events are published all the same.
func TestReadNotAllowed(t *testing.T) {
	t.Parallel()
	bus := secured(t, kmsg.ACLOperationWrite, kmsg.ACLOperationDescribe, kmsg.ACLOperationCreate)
	r := publishertest.Open(t, bus)
	all := publishertest.Events(1, 200, 40)
	r.Store(all...)
	r.Close()
	r = r.Reopen()
	more := publishertest.Events(201, 200, 40)
	r.Store(more...)
	if !bus.logged("level=WARN", "no permission to read", "topic=orders") {
		t.Error("it is not said that there is no permission to read")
	}
	wantStored(t, r, append(all, more...)...)
}

// TestNumbersRefused has the broker refuse our numbers once.
func TestNumbersRefused(t *testing.T) {
	t.Parallel()
	for _, e := range []*kerr.Error{kerr.OutOfOrderSequenceNumber, kerr.DuplicateSequenceNumber, kerr.InvalidProducerEpoch, kerr.UnknownProducerID} {
		t.Run(e.Message, func(t *testing.T) {
			t.Parallel()
			first := publishertest.Events(1, 100, 40)
			bus, r := startStored(t, first...)
			fault := bus.cluster.Fault(produceFault(orders, e, 1))
			all := publishertest.Events(101, 300, 40)
			r.Store(all...)
			if fault.Hits() != 1 {
				t.Error("the error was not answered")
			}
			wantStored(t, r, append(first, all...)...)
		})
	}
}

// TestNumbersRefusedForGood has the broker refuse our numbers until we are somebody else.
func TestNumbersRefusedForGood(t *testing.T) {
	t.Parallel()
	for _, e := range []*kerr.Error{kerr.OutOfOrderSequenceNumber, kerr.InvalidProducerEpoch, kerr.UnknownProducerID} {
		t.Run(e.Message, func(t *testing.T) {
			t.Parallel()
			bus := startBus(t, 1)
			bus.change = kafka.UnsureFor(300 * time.Millisecond)
			r := publishertest.Open(t, bus)
			first := publishertest.Events(1, 100, 40)
			r.Store(first...)
			refuseKnown(t, bus, r, e)
			all := publishertest.Events(101, 300, 40)
			r.Store(all...)
			if !bus.logged("level=WARN", "the broker no longer knows what this producer wrote") {
				t.Error("the log does not say that the writers go on as new producers")
			}
			wantStored(t, r, append(first, all...)...)

			// The next run has the new numbers.
			r.Close()
			r = r.Recover()
			more := publishertest.Events(401, 100, 40)
			r.Publish(append(append(first, all...)[r.Prefix():], more...)...)
			r.WaitDone(more...)
			r.CheckStored(append(append(first, all...), more...)...)
		})
	}
}

// refuseKnown has the broker refuse the producers in the publisher state.
func refuseKnown(t *testing.T, bus *testBus, r *publishertest.Trial, e *kerr.Error) {
	t.Helper()
	known := producersOf(t, r)
	fault := produceFault("", e, -1)
	fault.When = func(req kmsg.Request) bool { return known[batchOf(t, req).ProducerID] }
	bus.cluster.Fault(fault)
}

// producersOf are the producers in the publisher state.
func producersOf(t *testing.T, r *publishertest.Trial) (known map[int64]bool) {
	t.Helper()
	known = make(map[int64]bool)
	for line := range strings.Lines(r.State()) {
		var topic string
		var partition, producer int64
		if _, err := fmt.Sscan(line, &topic, &partition, &producer); err == nil {
			known[producer] = true
		}
	}
	if len(known) == 0 {
		t.Fatalf("no producers in %q", r.State())
	}
	return known
}

// batchOf is the one batch in a request to produce.
func batchOf(t *testing.T, req kmsg.Request) (batch kmsg.RecordBatch) {
	if err := batch.ReadFrom(req.(*kmsg.ProduceRequest).Topics[0].Partitions[0].Records); err != nil {
		t.Errorf("a batch: %v", err)
	}
	return batch
}

// A batch is stored, the answer lost, and then the broker does not know us any more.
func TestForgottenAfterLostAnswer(t *testing.T) {
	t.Parallel()
	first := publishertest.Events(1, 10, 5)
	bus, r := onePartition(t, first...)
	var lost atomic.Bool
	bus.setTap(tap{answer: func(req request, frame []byte) []byte {
		if req.key == int16(kmsg.Produce) && !lost.Swap(true) {
			bus.cluster.Fault(produceFault(orders, kerr.UnknownProducerID, 1))
			bus.Cut()
			return nil
		}
		return frame
	}})
	all := publishertest.Events(12, 1, 1) // the scan finds all that the partition has
	r.Store(all...)
	wantStored(t, r, append(first, all...)...)
}

// TestNumbersTakenForOld has the broker take what comes for a repeat of something that it stored long ago. What the
// writer finds there again and again keeps it from nothing: it goes on as a new producer.
func TestNumbersTakenForOld(t *testing.T) {
	t.Parallel()
	first := ordersOnly(publishertest.Events(1, 20, 5))
	bus, r := onePartition(t, first...)
	known := producersOf(t, r)
	bus.cluster.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		bus.cluster.KeepControl()
		if !known[batchOf(t, req).ProducerID] {
			return nil, nil, false
		}
		produce := req.(*kmsg.ProduceRequest)
		resp := produce.ResponseKind().(*kmsg.ProduceResponse)
		topic, partition := kmsg.NewProduceResponseTopic(), kmsg.NewProduceResponseTopicPartition()
		topic.Topic, partition.Partition = produce.Topics[0].Topic, produce.Topics[0].Partitions[0].Partition
		partition.BaseOffset = 5
		topic.Partitions = append(topic.Partitions, partition)
		resp.Topics = append(resp.Topics, topic)
		return resp, nil, true
	})
	more := ordersOnly(publishertest.Events(21, 20, 5))
	r.Store(more...)
	wantOnce(t, bus, orders, slices.Concat(first, more))
	waitNoCauses(r)
}

// What a writer found and nobody publishes keeps it neither from waiting nor from giving up its numbers.
func TestNumbersRefusedWithOthersFound(t *testing.T) {
	t.Parallel()
	bus := startBus(t, 1)
	bus.config.Partitions = 1
	bus.change = kafka.UnsureFor(300 * time.Millisecond)
	r := publishertest.Open(t, bus)
	first := publishertest.Events(1, 1, 1)
	r.Store(first...)
	// One that is not done, so that the note stays behind.
	bus.SetFull(t, bridge.Rejects, true)
	all := publishertest.Events(2, 60, 10)
	all[0].Status = event.StatusRejected
	for _, d := range all[1:] {
		d.Status = event.StatusOpen
	}
	r.Publish(all...)
	r.WaitDone(all[1:]...)
	addPartitions(t, bus, 2)
	waitWarning(r, bus, 1, 2)
	refuseKnown(t, bus, r, kerr.OutOfOrderSequenceNumber)
	more := ordersOnly(publishertest.Events(62, 60, 10))
	// Somebody else writes to the partition all the time.
	stop := writeOn(t, bus, 0)
	r.Store(more...)
	stop()
	bus.SetFull(t, bridge.Rejects, false)
	r.WaitDone(all...)
	wantOnce(t, bus, orders, slices.Concat(first, all, more))
}

// writeOn writes records of somebody else until it is stopped.
func writeOn(t *testing.T, bus *testBus, partition int32) (stop func()) {
	t.Helper()
	c := bus.client(t, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	done := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				c.ProduceSync(
					t.Context(),
					&kgo.Record{Topic: orders, Partition: partition, Value: []byte("of somebody else")},
				)
			}
		}
	})
	stop = sync.OnceFunc(func() {
		close(done)
		running.Wait()
	})
	t.Cleanup(stop)
	return stop
}

// wantOnce checks that a topic holds these events, once each, and perhaps others.
func wantOnce(t *testing.T, bus *testBus, topic string, all []*bridge.Delivery) {
	t.Helper()
	count := make(map[string]int)
	for _, r := range bus.records(t, topic) {
		count[decode(r).Attributes["sequence"]]++
	}
	for _, d := range all {
		if n := count[d.SequenceText()]; n != 1 {
			t.Errorf("event %d is stored %d times", d.Sequence, n)
		}
	}
}

// Of a batch, only the event that the broker can never take is refused.
func TestOneRecordInvalid(t *testing.T) {
	t.Parallel()
	bus := startBus(t, 1)
	poison := []byte(`"poison"`)
	fault := produceFault(orders, kerr.InvalidRecord, -1)
	fault.When = func(req kmsg.Request) bool {
		records, err := kfake.BatchRecords(batchOf(t, req))
		if err != nil {
			t.Error(err)
		}
		return slices.ContainsFunc(records, func(r kmsg.Record) bool { return bytes.Equal(r.Value, poison) })
	}
	bus.cluster.Fault(fault)
	r := publishertest.Open(t, bus)
	all := publishertest.Events(1, 1000, 40)
	all[500].Data = poison
	r.Publish(all...)
	r.WaitSettled(all...)
	if err := r.ResultOf(all[500]); !errors.Is(err, bridge.ErrRejected) {
		t.Errorf("the invalid event: %v, want ErrRejected", err)
	} else {
		checkIDs(t, "the error", err.Error())
	}
	rest := slices.Concat(all[:500], all[501:])
	r.WaitDone(rest...)
	wantStored(t, r, rest...)
}

// Where every event is invalid, it is for a setting of the topic: the backlog waits until that is mended.
func TestEveryRecordInvalid(t *testing.T) {
	t.Parallel()
	first := ordersOnly(publishertest.Events(1, 20, 5))
	bus, r := onePartition(t, first...)
	fault := bus.cluster.Fault(produceFault(orders, kerr.InvalidRecord, -1))
	all := ordersOnly(publishertest.Events(21, 300, 40))
	r.Publish(all...)
	waitCause(r, "publishing to orders: partition 0: ", "Invalid Record", "turn off schema validation")
	const most = 3
	wantDone(t, r, most, all)
	fault.Remove()
	r.WaitSettled(all...)
	for _, d := range all[:most] {
		if err := r.ResultOf(d); !errors.Is(err, bridge.ErrRejected) {
			t.Errorf("%v, want ErrRejected", err)
		}
	}
	r.WaitDone(all[most:]...)
	wantStored(t, r, append(first, all[most:]...)...)
}

// TestInvalidTimestamp: a topic that refuses the time of the records is an outage, of which the condition says what to
// do; records carry the time at which they are sent, also after an outage, and whatever the clock was when events came
// in.
func TestInvalidTimestamp(t *testing.T) {
	t.Parallel()
	bus, r := onePartition(t)
	began := time.Now()
	fault := bus.cluster.Fault(produceFault(orders, kerr.InvalidTimestamp, -1))
	all := ordersOnly(publishertest.Events(1, 100, 40))
	for i, d := range all {
		d.ReceivedAt = d.ReceivedAt.Add(time.Duration(i-50) * 1000 * time.Hour)
	}
	r.Publish(all...)
	waitCause(r, "publishing to orders: partition 0: ", "Invalid Timestamp")
	wantDone(t, r, 0, all)
	fault.Remove()
	r.WaitDone(all...)
	r.CheckStored(all...)
	for _, record := range bus.records(t, orders) {
		if record.Timestamp.Before(began.Truncate(time.Millisecond)) || record.Timestamp.After(time.Now()) {
			t.Errorf("a record has time %v, and was sent after %v", record.Timestamp, began)
		}
	}
	waitNoCauses(r)
}

// An event is stored, the answer lost, and then it is too large all of a sudden. The next event has numbers of its own.
func TestRefusedAfterLostAnswer(t *testing.T) {
	t.Parallel()
	bus, r := onePartition(t)
	all := ordersOnly(publishertest.Events(1, 4, 1))
	r.Publish(all[0])
	r.WaitDone(all[0])
	var lost atomic.Bool
	bus.setTap(tap{answer: func(req request, frame []byte) []byte {
		if req.key == int16(kmsg.Produce) && !lost.Swap(true) {
			bus.cluster.Fault(produceFault(orders, kerr.MessageTooLarge, 1))
			bus.Cut()
			return nil
		}
		return frame
	}})
	for _, d := range all[1:] {
		r.Publish(d)
		r.WaitDone(d)
	}
	wantStored(t, r, all...)
}

// addPartitions makes it so many partitions of orders.
func addPartitions(t *testing.T, bus *testBus, n int32) {
	t.Helper()
	req := kmsg.NewCreatePartitionsRequest()
	req.Topics = []kmsg.CreatePartitionsRequestTopic{{Topic: orders, Count: n}}
	resp, err := req.RequestWith(t.Context(), bus.client(t))
	if err == nil {
		err = kerr.ErrorForCode(resp.Topics[0].ErrorCode)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// chronicle is a bus whose messages are in the order in which they came first, over all partitions.
type chronicle struct {
	*testBus
	mu    sync.Mutex
	first map[string]int // by destination and sequence
}

func newChronicle(t *testing.T, bus *testBus) *chronicle {
	c := &chronicle{testBus: bus, first: make(map[string]int)}
	bus.setTap(tap{request: func(r request) []byte {
		if r.key == int16(kmsg.Produce) {
			c.note(t, r)
		}
		return r.frame
	}})
	return c
}

func (c *chronicle) note(t *testing.T, r request) {
	topic, _, batch := r.produced(t)
	records, err := kfake.BatchRecords(batch)
	if err != nil {
		t.Error(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range records {
		for _, h := range r.Headers {
			if _, ok := c.first[topic+string(h.Value)]; h.Key == "ce_sequence" && !ok {
				c.first[topic+string(h.Value)] = len(c.first)
			}
		}
	}
}

func (c *chronicle) Stored(t *testing.T, dest bridge.Destination) []publishertest.Message {
	all := c.testBus.Stored(t, dest)
	c.mu.Lock()
	defer c.mu.Unlock()
	slices.SortStableFunc(all, func(a, b publishertest.Message) int {
		return c.first[string(dest)+a.Attributes["sequence"]] - c.first[string(dest)+b.Attributes["sequence"]]
	})
	return all
}

// waitWarning waits until it is said how many partitions orders has now.
func waitWarning(r *publishertest.Trial, bus *testBus, before, now int) {
	r.Eventually("a warning", func() bool {
		return bus.logged(
			"level=WARN",
			"the number of partitions changed",
			"topic=orders",
			fmt.Sprint("before=", before),
			fmt.Sprint("now=", now),
		)
	})
}

func TestPartitionsAdded(t *testing.T) {
	t.Parallel()
	bus := startBus(t, 3)
	r := publishertest.Open(t, newChronicle(t, bus))
	var all []*bridge.Delivery
	for i := range 12 {
		some := publishertest.Events(uint64(len(all)+1), 400, 60)
		all = append(all, some...)
		r.Publish(some...)
		r.Eventually("an event done", func() bool { return r.DoneOf(some...) > 0 })
		switch i {
		case 3:
			addPartitions(t, bus, 9)
			waitWarning(r, bus, 6, 9)
		case 6:
			bus.Cut()
			addPartitions(t, bus, 10)
			waitWarning(r, bus, 9, 10)
		}
	}
	r.WaitDone(all...)
	r.CheckStored(all...)
	more := publishertest.Events(uint64(len(all)+1), 400, 60)
	r.Store(more...)
	r.CheckStored(append(all, more...)...)
	for _, p := range bus.cluster.PartitionInfos(orders) {
		if p.HighWatermark == 0 {
			t.Errorf("there is nothing in partition %d", p.Partition)
		}
	}
	waitNoCauses(r)
}

// What may be stored in a partition does not go to another, also if the partition has no leader when others are added.
func TestPartitionsAddedWithoutLeader(t *testing.T) {
	t.Parallel()
	first := publishertest.Events(1, 20, 20)
	bus, r := onePartition(t, first...)
	var hidden, lost atomic.Bool
	var learned atomic.Int32
	hide := hideLeaders(t, 0, &hidden)
	bus.setTap(tap{answer: func(req request, frame []byte) []byte {
		if req.key == int16(kmsg.Metadata) {
			learned.Add(1)
		}
		if req.key == int16(kmsg.Produce) && !lost.Swap(true) {
			hidden.Store(true)
			fault := produceFault(orders, kerr.NotLeaderForPartition, -1)
			fault.When = func(kmsg.Request) bool { return hidden.Load() }
			bus.cluster.Fault(fault)
			bus.Cut()
			return nil
		}
		return hide(req, frame)
	}})
	all := ordersOnly(publishertest.Events(21, 20, 20))
	r.Publish(all...)
	waitCause(r, "partition 0: has no leader")
	addPartitions(t, bus, 2)
	waitWarning(r, bus, 1, 2)
	more := publishertest.Events(41, 20, 20)
	r.Publish(more...)
	// What should not happen may: the publisher learns of the new partition time and again.
	known := learned.Load()
	r.Eventually("metadata", func() bool { return learned.Load() >= known+5 })
	hidden.Store(false)
	r.WaitDone(append(all, more...)...)
	wantOnce(t, bus, orders, slices.Concat(first, all, more))
	waitNoCauses(r)
}

// TestTopicRecreated is with brokers that take any first number, and with those (from 4.5 on) that do not.
func TestTopicRecreated(t *testing.T) {
	t.Parallel()
	for name, options := range map[string][]kfake.Opt{"4.2": {kfake.MaxVersions(kversion.V4_2_0())}, "4.5": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bus := startBus(t, 1, options...)
			bus.change = kafka.UnsureFor(time.Second)
			r := publishertest.Open(t, bus)
			gone := ordersOnly(publishertest.Events(1, 200, 40))
			r.Store(gone...)
			r.ExpectLoss()
			if err := bus.cluster.DeleteTopic(orders); err != nil {
				t.Fatal(err)
			}
			all := publishertest.Events(201, 300, 40)
			r.Publish(all...)
			r = r.Rewind()
			all = append(gone, all...)
			r.Store(all...)
			r.CheckStored(all...)
			more := publishertest.Events(501, 300, 40)
			r.Store(more...)
			wantStored(t, r, append(all, more...)...)
		})
	}
}

// TestTopicRecreatedWhileAway is seen by the next run only, and said.
func TestTopicRecreatedWhileAway(t *testing.T) {
	t.Parallel()
	bus := startBus(t, 1)
	bus.change = kafka.UnsureFor(time.Second)
	r := publishertest.Open(t, bus)
	gone := ordersOnly(publishertest.Events(1, 200, 40))
	r.Store(gone...)
	r.Close()
	if err := bus.cluster.DeleteTopic(orders); err != nil {
		t.Fatal(err)
	}
	// Of what is only noted, and not marked, an error is said.
	var unmarked []string
	for line := range strings.Lines(r.State()) {
		if !strings.HasPrefix(line, "checkpoint ") {
			unmarked = append(unmarked, line)
		}
	}
	r = r.ReopenWith(strings.Join(unmarked, ""))
	all := publishertest.Events(201, 300, 40)
	r.Store(all...)
	r.CheckStored(all...)
	if !bus.logged("level=ERROR", "the partition ends before what it had stored") {
		t.Error("it is not said that the topic was made anew")
	}
	waitNoCauses(r)
}

// TestFewerPartitions is a topic that was made anew with fewer partitions.
func TestFewerPartitions(t *testing.T) {
	t.Parallel()
	bus := startBus(t, 1, kfake.MaxVersions(kversion.V4_2_0()))
	bus.change = kafka.ShrinkAfter(300 * time.Millisecond)
	bus.config.CreateTopics = false
	for _, dest := range []bridge.Destination{bridge.Orders, bridge.Rejects, bridge.Deadletters} {
		if err := bus.cluster.CreateTopic(string(dest), 6, nil); err != nil {
			t.Fatal(err)
		}
	}
	r := publishertest.Open(t, bus)
	gone := ordersOnly(publishertest.Events(1, 200, 40))
	r.Store(gone...)
	r.ExpectLoss()
	if err := bus.cluster.DeleteTopic(orders); err != nil {
		t.Fatal(err)
	}
	if err := bus.cluster.CreateTopic(orders, 4, nil); err != nil {
		t.Fatal(err)
	}
	all := publishertest.Events(201, 300, 40)
	r.Publish(all...)
	r = r.Rewind()
	all = append(gone, all...)
	r.Store(all...)
	// What went to the new topic before it was known to have fewer is in other partitions than it is looked for in.
	stored := make(map[string]bool)
	for _, m := range bus.Stored(t, bridge.Orders) {
		stored[m.Attributes["sequence"]] = true
	}
	if len(stored) != len(all) {
		t.Errorf("%d events of %d are stored", len(stored), len(all))
	}
	waitNoCauses(r)
}

func TestTopicMissing(t *testing.T) {
	t.Parallel()
	bus := startBus(t, 1)
	bus.config.CreateTopics = false
	r := publishertest.Open(t, bus)
	all := publishertest.Events(1, 200, 40)
	r.Publish(all...)
	waitCause(r, "topic orders: it is missing: create it, or set POSTBRIDGE_KAFKA_CREATE_TOPICS=true")
	wantDone(t, r, 0, all)
	for _, dest := range []bridge.Destination{bridge.Orders, bridge.Rejects, bridge.Deadletters} {
		if err := bus.cluster.CreateTopic(string(dest), 3, nil); err != nil {
			t.Fatal(err)
		}
	}
	r.WaitDone(all...)
	wantStored(t, r, all...)
}

func TestTooFewBrokersToCreate(t *testing.T) {
	t.Parallel()
	bus := startBus(t, 1)
	bus.config.Replication = 2
	r := publishertest.Open(t, bus)
	all := publishertest.Events(1, 200, 40)
	r.Publish(all...)
	waitCause(r, "topic orders: cannot create it: [38] Invalid Replication Factor")
	if _, _, err := bus.cluster.AddNode(1, 0); err != nil {
		t.Fatal(err)
	}
	r.WaitDone(all...)
	wantStored(t, r, all...)
}

// A young cluster answers without an error, but with one in the answer, and with an id that guards nothing.
func TestNoProducerIDYet(t *testing.T) {
	t.Parallel()
	bus := startBus(t, 1)
	fault := bus.cluster.Fault(
		kfake.Fault{Keys: []kmsg.Key{kmsg.InitProducerID}, Err: kerr.CoordinatorLoadInProgress, Count: 20},
	)
	bus.setTap(tap{request: func(r request) []byte {
		if r.key == int16(kmsg.Produce) {
			if _, _, batch := r.produced(t); batch.ProducerID < 0 {
				t.Errorf("a batch of producer %d", batch.ProducerID)
			}
		}
		return r.frame
	}})
	r := publishertest.Open(t, bus)
	all := publishertest.Events(1, 200, 40)
	r.Store(all...)
	if fault.Hits() != 20 {
		t.Errorf("%d answers without an id, want 20", fault.Hits())
	}
	wantStored(t, r, all...)
}

// Nothing is sent before it is on disk who sends it.
func TestDiskBroken(t *testing.T) {
	t.Parallel()
	bus, r := startStored(t)
	r.BreakDisk(errors.New("the disk is full"))
	all := publishertest.Events(1, 200, 40)
	r.Publish(all...)
	waitCause(r, "publishing to orders: ", "the disk is full")
	r.Eventually("each writer asking time and again", func() bool { return r.DiskAsked() > 60 })
	if got := bus.Stored(t, bridge.Orders); len(got) > 0 {
		t.Errorf("%d events are stored", len(got))
	}
	wantDone(t, r, 0, all)
	r.BreakDisk(nil)
	r.WaitDone(all...)
	wantStored(t, r, all...)
}

// Notes of another cluster say nothing, whether it comes between two runs or within one.
func TestOtherCluster(t *testing.T) {
	t.Parallel()
	for name, running := range map[string]bool{"Between": false, "Within": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bus := startBus(t, 1, kfake.ClusterID("one"))
			r := publishertest.Open(t, bus)
			gone := publishertest.Events(1, 200, 40)
			r.Store(gone...)
			if !running {
				r.Close()
			}
			bus.Stop(t)
			bus.options = append(bus.options, kfake.ClusterID("other"))
			bus.Start(t)
			if !running {
				r = r.Reopen()
			}
			all := publishertest.Events(201, 200, 40)
			r.Store(all...)
			r.CheckStored(all...)
			if !bus.logged("level=WARN", "the Kafka cluster has changed", "cluster=other") {
				t.Error("it is not said that it is another cluster")
			}
			if state := r.State(); !strings.HasPrefix(state, "cluster other\norders ") &&
				!strings.HasPrefix(state, "cluster other\nrejects ") {
				t.Errorf("the publisher state is %q", state)
			}
			waitNoCauses(r)
		})
	}
}

// A look that fails half-way notes no more than what is done.
func TestLookFailsHalfWay(t *testing.T) {
	t.Parallel()
	bus := startBus(t, 1)
	bus.config.Partitions = 1
	bus.setTap(tap{request: oneBatchAtATime(t)})
	r := publishertest.Open(t, bus)
	all := publishertest.Events(1, 10, 10)
	r.Store(all...)
	r.Close()
	c := bus.client(t)
	for range 3 {
		if err := c.ProduceSync(t.Context(), &kgo.Record{Topic: orders, Value: []byte("of somebody else")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}

	// The next run finds all, but the first is not done, so that it may all be offered again.
	r = r.Recover()
	if r.Prefix() != 0 {
		t.Fatalf("the cursor is at %d", r.Prefix())
	}
	all[0].Status = event.StatusRejected
	bus.SetFull(t, bridge.Rejects, true)
	bus.cluster.Fault(
		kfake.Fault{
			Keys:  []kmsg.Key{kmsg.Fetch},
			Topic: orders,
			Err:   kerr.NotLeaderForPartition,
			When: func(req kmsg.Request) bool {
				return req.(*kmsg.FetchRequest).Topics[0].Partitions[0].FetchOffset >= 10
			},
		},
	)
	r.Publish(all...)
	r.WaitDone(all[1:]...)
	r.Close()

	r = r.Reopen()
	bus.SetFull(t, bridge.Rejects, false)
	r.Store(all...)
	wantOnce(t, bus, orders, all)
}

// oneBatchAtATime has a fetch get one batch.
func oneBatchAtATime(t *testing.T) func(request) []byte {
	return func(r request) []byte {
		if r.key != int16(kmsg.Fetch) || r.version > 11 { // the publisher's are not newer
			return r.frame
		}
		fetch := kmsg.NewPtrFetchRequest()
		fetch.SetVersion(r.version)
		head := 14 + int(binary.BigEndian.Uint16(r.frame[12:]))
		if err := fetch.ReadFrom(r.frame[head:]); err != nil {
			t.Errorf("a request to fetch: %v", err)
			return r.frame
		}
		fetch.MaxBytes, fetch.Topics[0].Partitions[0].PartitionMaxBytes = 1, 1
		frame := fetch.AppendTo(r.frame[:head:head])
		binary.BigEndian.PutUint32(frame, uint32(len(frame)-4))
		return frame
	}
}
