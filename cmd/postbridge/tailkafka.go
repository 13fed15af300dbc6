package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/postbridge/postbridge/publishers/kafka"
)

const (
	// newPartitions is how often partitions are looked for that were added to the topic.
	newPartitions = 3 * time.Second
	// askTimeout is how long one request may take, connecting and logging in included.
	askTimeout = 10 * time.Second
	// longPoll is how long Kafka keeps a request when there is no event, pollBytes how much it answers at once.
	longPoll  = 500 * time.Millisecond
	pollBytes = 1 << 20
)

// kafkaFollower brings the events of all partitions of a topic, through outages of the bus. One goroutine looks for
// the partitions and for who leads them, and each partition has one that brings its events, in their order.
type kafkaFollower struct {
	follower
	topic      string
	configured []string // brokers
	client     *kafkago.Client
	again      chan struct{} // asks for a look at the topic

	// Owned by the goroutine of watch.
	brokers    []string                   // to ask: those that are configured, then those of the cluster
	turn       int                        // of the broker to ask
	followed   map[int]context.CancelFunc // by partition
	partitions sync.WaitGroup             // of the goroutines that follow them

	mu sync.Mutex
	// Guarded by mu.
	leaders map[int]string // address by partition, for those that have a leader
	waiting map[int]bool   // what is not there at the moment: partitions, or the topic
	said    bool           // why it is not
}

// theTopic is its place among the partitions that are waited for.
const theTopic = -1

func newKafkaFollower(f follower, o *tailOptions, prefix string) *kafkaFollower {
	topic := o.destination
	if prefix != "" {
		topic = prefix + "." + topic
	}
	return &kafkaFollower{
		follower: f,
		topic:    topic,
		again:    make(chan struct{}, 1),
		followed: make(map[int]context.CancelFunc),
		waiting:  map[int]bool{theTopic: true},
	}
}

// follow lets the messages come until end is called.
func (f *kafkaFollower) follow(ctx context.Context, bus kafka.Config) (end func()) {
	client, endClient := kafka.NewClient(bus)
	f.client, f.configured, f.brokers = client, bus.Brokers, bus.Brokers
	ctx, stop := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { f.watch(ctx) })
	return func() {
		stop()
		watching.Wait()
		endClient()
	}
}

// watch looks at the topic until ctx ends: every few seconds, and soon after something went wrong.
func (f *kafkaFollower) watch(ctx context.Context) {
	defer f.partitions.Wait()
	for {
		err := f.look(ctx)
		if ctx.Err() != nil {
			return
		}
		f.settle(theTopic, err)
		if !pause(ctx, retryInterval) {
			return
		}
		if err != nil {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-f.again:
		case <-time.After(newPartitions):
		}
	}
}

var errNoTopic = errors.New("the topic is not there")

// look asks a broker for the partitions and for who leads them, and begins to follow those that are new.
func (f *kafkaFollower) look(ctx context.Context) error {
	ask, stop := context.WithTimeout(ctx, askTimeout)
	defer stop()
	broker := f.brokers[f.turn%len(f.brokers)]
	answer, err := f.client.Metadata(ask, &kafkago.MetadataRequest{Addr: kafkago.TCP(broker), Topics: []string{f.topic}})
	if err == nil && len(answer.Topics) != 1 {
		err = fmt.Errorf("no word of topic %s from Kafka broker %s", f.topic, broker)
	}
	if err != nil {
		f.turn++
		return err
	}
	f.brokers = slices.Clone(f.configured)
	for _, b := range answer.Brokers {
		f.brokers = append(f.brokers, hostPort(b))
	}
	topic := answer.Topics[0]
	switch {
	case errors.Is(topic.Error, kafkago.UnknownTopicOrPartition):
		f.forget()
		return errNoTopic
	case topic.Error != nil:
		f.turn++
		return topic.Error
	}
	f.take(ctx, topic.Partitions)
	return nil
}

func hostPort(b kafkago.Broker) string { return net.JoinHostPort(b.Host, strconv.Itoa(b.Port)) }

// forget ends following the partitions. When the topic comes back, all of it will be new.
func (f *kafkaFollower) forget() {
	for _, stop := range f.followed {
		stop()
	}
	f.partitions.Wait()
	clear(f.followed)
	f.from = beginning{}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiting = map[int]bool{theTopic: true}
}

// take remembers the leaders, and begins to follow the partitions that are not followed yet.
func (f *kafkaFollower) take(ctx context.Context, partitions []kafkago.Partition) {
	if len(partitions) < len(f.followed) {
		f.forget() // it is another topic of that name
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leaders = make(map[int]string)
	for _, of := range partitions {
		if of.Leader.Host != "" {
			f.leaders[of.ID] = hostPort(of.Leader)
		}
		if f.followed[of.ID] != nil {
			continue
		}
		ctx, stop := context.WithCancel(ctx)
		f.followed[of.ID], f.waiting[of.ID] = stop, true
		p := &kafkaPartition{kafkaFollower: f, id: of.ID, start: f.from, next: kafka.NoOffset}
		f.partitions.Go(func() { p.follow(ctx) })
	}
	f.from = beginning{} // of what is added later
}

// lookSoon asks for a look at the topic.
func (f *kafkaFollower) lookSoon() {
	select {
	case f.again <- struct{}{}:
	default: // it will be done anyway
	}
}

// settle notes how it is with a partition or with the topic, and says so when following as a whole begins or stops.
func (f *kafkaFollower) settle(what int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case errors.Is(err, errNoTopic):
		f.notes.say("waiting for topic %s, which is not there yet", f.topic)
		f.said = false
	case err != nil:
		f.waiting[what] = true
		if !f.said {
			f.notes.say("waiting for the bus: %v", f.explain(err))
			f.said = true
		}
	case f.waiting[what]:
		delete(f.waiting, what)
		if len(f.waiting) == 0 {
			f.notes.say("following topic %s (partitions: %d) at %s", f.topic, len(f.leaders), strings.Join(f.configured, ","))
			f.said = false
			f.begun()
		}
	}
}

// explain words an error for people.
func (f *kafkaFollower) explain(err error) error {
	if errors.Is(err, kafkago.TopicAuthorizationFailed) {
		return fmt.Errorf("no permission to read topic %s; allow Read and Describe on it", f.topic)
	}
	return kafka.Plain(err)
}

// kafkaPartition follows one partition.
type kafkaPartition struct {
	*kafkaFollower
	id    int
	start beginning
	next  int64 // offset to ask for; kafka.NoOffset until start is looked up
}

// follow lets the messages of the partition come until ctx ends.
func (p *kafkaPartition) follow(ctx context.Context) {
	for {
		err := p.advance(ctx)
		if ctx.Err() != nil {
			return
		}
		p.settle(p.id, err)
		if err == nil {
			continue
		}
		p.lookSoon()
		if !pause(ctx, retryInterval) {
			return
		}
	}
}

var errNoLeader = errors.New("a partition has no leader")

// advance finds where to begin, or waits a moment for messages.
func (p *kafkaPartition) advance(ctx context.Context) (err error) {
	p.mu.Lock()
	leader, ok := p.leaders[p.id]
	p.mu.Unlock()
	if !ok {
		return errNoLeader
	}
	ask, stop := context.WithTimeout(ctx, askTimeout)
	defer stop()
	if p.next == kafka.NoOffset {
		p.next, err = p.begin(ask, leader)
		return err
	}
	answer, err := p.client.Fetch(ask, &kafkago.FetchRequest{
		Addr: kafkago.TCP(leader), Topic: p.topic, Partition: p.id, Offset: p.next,
		MinBytes: 1, MaxBytes: pollBytes, MaxWait: longPoll,
	})
	switch {
	case err != nil:
		return err
	case errors.Is(answer.Error, kafkago.OffsetOutOfRange):
		p.notes.say("what was to come next in partition %d is gone; following from the first that is there", p.id)
		p.start, p.next = beginning{}, kafka.NoOffset
		return nil
	case answer.Error != nil:
		return answer.Error
	}
	return p.read(ctx, answer.Records)
}

// begin finds the offset to begin at.
func (p *kafkaPartition) begin(ctx context.Context, leader string) (int64, error) {
	if p.start == (beginning{}) {
		return p.offset(ctx, leader, kafkago.FirstOffset)
	}
	// The end comes first, so that no message that is stored meanwhile is left out.
	end, err := p.offset(ctx, leader, kafkago.LastOffset)
	if err != nil || p.start.now {
		return end, err
	}
	first, err := p.offset(ctx, leader, max(0, p.start.at.UnixMilli())) // less than 0 has meanings of its own
	if first == kafka.NoOffset && err == nil {
		return end, nil // nothing is that new
	}
	return first, err
}

func (p *kafkaPartition) offset(ctx context.Context, leader string, at int64) (int64, error) {
	return kafka.OffsetAt(ctx, p.client, leader, p.topic, p.id, at)
}

// read sends the messages of an answer.
func (p *kafkaPartition) read(ctx context.Context, records kafkago.RecordReader) error {
	asked := p.next
	for {
		r, err := records.ReadRecord()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		m, err := p.message(r)
		if err != nil {
			return err
		}
		if r.Offset >= p.next { // a batch may begin earlier
			p.send(ctx, m)
			p.next = r.Offset + 1
		}
	}
	if _, some := records.(*protocol.RecordStream); some && p.next == asked {
		p.next++ // there is a batch, but of a transaction's marks, or compacted to nothing
	}
	return nil
}

// kafkaPlace is where a message is on Kafka.
type kafkaPlace struct {
	Topic     string `json:"topic"`
	Partition int    `json:"partition"`
	Offset    int64  `json:"offset"`
	Key       string `json:"key"`
}

// message copies a record, whose bytes are used again for others.
func (p *kafkaPartition) message(r *kafkago.Record) (*message, error) {
	key, err1 := readBytes(r.Key)
	data, err2 := readBytes(r.Value)
	if data == nil {
		data = []byte("null") // not an event of ours
	}
	headers := make(map[string]string, len(r.Headers))
	for _, h := range r.Headers {
		headers[h.Key] = string(h.Value)
	}
	return &message{
		place:   kafkaPlace{p.topic, p.id, r.Offset, string(key)},
		key:     string(key),
		status:  headers["ce_orderstatus"],
		headers: headers,
		data:    data,
	}, errors.Join(err1, err2)
}

// readBytes reads a key or a value, nil if there is none.
func readBytes(b kafkago.Bytes) ([]byte, error) {
	if b == nil {
		return nil, nil
	}
	defer b.Close()
	return kafkago.ReadAll(b)
}
