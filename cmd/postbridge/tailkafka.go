package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/postbridge/postbridge/publishers/kafka"
)

const (
	// metadataInterval is how often the topic is checked for added partitions.
	metadataInterval = 3 * time.Second
	// kafkaTimeout limits one step of requests, connect and login included.
	kafkaTimeout = 10 * time.Second
	// fetchWait is how long a broker holds a fetch that has no event, fetchBytes how much it returns at once.
	fetchWait  = 500 * time.Millisecond
	fetchBytes = 1 << 20
)

// errNoTopic is that the topic does not exist, or not yet.
var errNoTopic = errors.New("the topic does not exist")

// kafkaFollower follows all partitions of a topic through outages of the bus, in sessions. A session looks up the
// partitions and their leaders, and fetches from each until one fails or the topic changes. Only the offsets outlive
// it. A kafka-go Reader does not report when it is positioned, and waits silently on a topic that was created anew.
type kafkaFollower struct {
	follower
	topic      string
	start      int64 // of partitions not seen yet: a time in milliseconds, kafkago.FirstOffset or kafkago.LastOffset
	brokers    []string
	turn       int // of the broker to ask for metadata
	client     *kafkago.Client
	partitions map[int]*kafkaPartition
	waiting    bool // for the bus, and logged
}

// kafkaPartition is the position in one partition.
type kafkaPartition struct {
	*kafkaFollower
	id    int
	start int64
	next  int64 // offset to fetch from; kafka.NoOffset until start is resolved
}

func newKafkaFollower(f follower, o *tailOptions, prefix string) *kafkaFollower {
	topic := o.destination
	if prefix != "" {
		topic = prefix + "." + topic
	}
	return &kafkaFollower{
		follower: f, topic: topic, start: f.from.inPartition(), partitions: make(map[int]*kafkaPartition),
	}
}

// inPartition is the beginning as Kafka's ListOffsets takes it.
func (b beginning) inPartition() int64 {
	switch {
	case b.now:
		return kafkago.LastOffset
	case b.at.IsZero():
		return kafkago.FirstOffset
	default:
		return max(0, b.at.UnixMilli())
	}
}

// follow sends the messages until end is called.
func (f *kafkaFollower) follow(ctx context.Context, bus kafka.Config) (end func()) {
	client, endClient := kafka.NewClient(bus)
	f.client, f.brokers = client, bus.Brokers
	ctx, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() {
		for ctx.Err() == nil {
			f.report(f.session(ctx))
			pause(ctx, retryInterval)
		}
	})
	return func() {
		stop()
		running.Wait()
		endClient()
	}
}

// report logs why a session ended, once per outage.
func (f *kafkaFollower) report(err error) {
	switch {
	case errors.Is(err, context.Canceled): // interrupted, or the number of partitions changed
	case errors.Is(err, errNoTopic):
		f.notes.say("waiting for topic %s, which is not there yet", f.topic)
		f.waiting = false
	case !f.waiting:
		f.notes.say("waiting for the bus: %v", kafka.Plain(err))
		f.waiting = true
	}
}

// session follows the topic until something fails or changes, and returns what.
func (f *kafkaFollower) session(ctx context.Context) error {
	found, err := f.metadata(ctx)
	if errors.Is(err, errNoTopic) || err == nil && len(found) < len(f.partitions) {
		clear(f.partitions) // it is, or will be, another topic of that name, and all of it is new
		f.start = kafkago.FirstOffset
	}
	if err != nil {
		return err
	}
	var positioned atomic.Int32
	begun := func() {
		if int(positioned.Add(1)) == len(found) {
			f.notes.say("following topic %s (partitions: %d) at %s", f.topic, len(found), strings.Join(f.brokers, ","))
			f.waiting = false
			f.begun()
		}
	}
	// ended is checked between two fetches and cuts none off: beside a failing partition, the others get on.
	ended, end := context.WithCancelCause(ctx)
	defer end(nil)
	var running sync.WaitGroup
	for _, of := range found {
		p := f.partitions[of.ID]
		if p == nil {
			p = &kafkaPartition{f, of.ID, f.start, kafka.NoOffset}
			f.partitions[of.ID] = p
		}
		running.Go(func() { end(p.follow(ctx, ended, of.Leader, begun)) })
	}
	f.start = kafkago.FirstOffset // of partitions that are added later
	for pause(ended, metadataInterval) {
		if now, err := f.metadata(ctx); errors.Is(err, errNoTopic) || err == nil && len(now) != len(found) {
			end(err)
		}
	}
	running.Wait()
	return context.Cause(ended)
}

// metadata asks the next broker for the partitions of the topic.
func (f *kafkaFollower) metadata(ctx context.Context) ([]kafkago.Partition, error) {
	ctx, stop := context.WithTimeout(ctx, kafkaTimeout)
	defer stop()
	broker := f.brokers[f.turn%len(f.brokers)]
	answer, err := f.client.Metadata(ctx, &kafkago.MetadataRequest{Addr: kafkago.TCP(broker), Topics: []string{f.topic}})
	switch {
	case err == nil && len(answer.Topics) != 1:
		err = fmt.Errorf("no answer from Kafka broker %s about topic %s", broker, f.topic)
	case err == nil && errors.Is(answer.Topics[0].Error, kafkago.UnknownTopicOrPartition):
		return nil, errNoTopic
	case err == nil:
		err = answer.Topics[0].Error
	}
	if err != nil {
		f.turn++
		return nil, err
	}
	return answer.Topics[0].Partitions, nil
}

// follow sends the messages of the partition until a request fails or ended is done.
func (p *kafkaPartition) follow(ctx, ended context.Context, leader kafkago.Broker, begun func()) error {
	address := kafka.HostPort(leader)
	if address == "" {
		return kafkago.LeaderNotAvailable
	}
	if p.next == kafka.NoOffset {
		if err := p.begin(ctx, address); err != nil {
			return err
		}
	}
	begun()
	for {
		if err := p.fetch(ctx, address); err != nil || ended.Err() != nil {
			return err
		}
	}
}

// begin resolves start to an offset. The end of the partition is asked for first, so that no message is left out that
// is stored meanwhile.
func (p *kafkaPartition) begin(ctx context.Context, leader string) error {
	ctx, stop := context.WithTimeout(ctx, kafkaTimeout)
	defer stop()
	next, err := kafka.OffsetAt(ctx, p.client, leader, p.topic, p.id, kafkago.LastOffset)
	if err == nil && p.start != kafkago.LastOffset {
		var first int64
		if first, err = kafka.OffsetAt(ctx, p.client, leader, p.topic, p.id, p.start); first != kafka.NoOffset {
			next = first
		}
	}
	if err == nil {
		p.next = next
	}
	return err
}

// fetch sends the messages from next on, or waits a moment for some.
func (p *kafkaPartition) fetch(ctx context.Context, leader string) error {
	limited, stop := context.WithTimeout(ctx, kafkaTimeout)
	defer stop()
	answer, err := p.client.Fetch(limited, &kafkago.FetchRequest{
		Addr: kafkago.TCP(leader), Topic: p.topic, Partition: p.id, Offset: p.next,
		MinBytes: 1, MaxBytes: fetchBytes, MaxWait: fetchWait,
	})
	switch {
	case err != nil:
		return err
	case errors.Is(answer.Error, kafkago.OffsetOutOfRange):
		p.notes.say("what was to come next in partition %d is gone; following from the first that is there", p.id)
		p.start = kafkago.FirstOffset
		return p.begin(ctx, leader)
	case answer.Error != nil:
		return answer.Error
	}
	from := p.next
	for {
		r, err := answer.Records.ReadRecord()
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
		if r.Offset >= p.next { // a batch may begin before the offset asked for
			p.send(ctx, m)
			p.next = r.Offset + 1
		}
	}
	if _, some := answer.Records.(*protocol.RecordStream); some && p.next == from {
		p.next++ // the batch holds only a transaction's mark, or was compacted to nothing
	}
	return nil
}

// kafkaPlace is the position of a message.
type kafkaPlace struct {
	Topic     string `json:"topic"`
	Partition int    `json:"partition"`
	Offset    int64  `json:"offset"`
	Key       string `json:"key"`
}

// message copies a record: its bytes are reused for the next.
func (p *kafkaPartition) message(r *kafkago.Record) (*message, error) {
	key, err1 := kafkago.ReadAll(r.Key)
	data, err2 := kafkago.ReadAll(r.Value)
	if r.Value == nil {
		data = []byte("null") // not an event of ours
	}
	headers := make(map[string]string, len(r.Headers))
	for _, h := range r.Headers {
		headers[h.Key] = string(h.Value)
	}
	place := kafkaPlace{p.topic, p.id, r.Offset, string(key)}
	m := &message{place: place, key: string(key), status: headers["ce_orderstatus"], headers: headers, data: data}
	return m, errors.Join(err1, err2)
}
