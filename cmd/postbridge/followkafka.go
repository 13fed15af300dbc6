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
	// sessionLimit is the time after which partitions and leaders are looked up again.
	sessionLimit = 3 * time.Second
	// kafkaTimeout limits a request, including connect and login.
	kafkaTimeout = 10 * time.Second
	// fetchWait is how long a broker holds an empty fetch, fetchBytes the maximum that it returns.
	fetchWait  = 500 * time.Millisecond
	fetchBytes = 1 << 20
)

// kafkaFollower follows all partitions of a topic through outages of the bus, in sessions. A session looks up the
// partitions and their leaders and fetches from each until a fetch fails or sessionLimit is over. Only the offsets
// outlive it. A kafka-go Reader does not report its start position, and waits silently on a recreated topic.
type kafkaFollower struct {
	*follower
	topic      string
	start      int64 // of new partitions: a time in milliseconds, kafkago.FirstOffset or kafkago.LastOffset
	brokers    []string
	turn       int // index of the broker to ask for metadata
	client     *kafkago.Client
	partitions map[int]*kafkaPartition
}

// kafkaPartition is the position in one partition.
type kafkaPartition struct {
	*kafkaFollower
	id    int
	start int64
	next  int64 // offset to fetch from; kafka.NoOffset until start is resolved
}

func newKafkaFollower(f *follower, prefix string) *kafkaFollower {
	topic := f.destination
	if prefix != "" {
		topic = prefix + "." + topic
	}
	return &kafkaFollower{
		follower: f, topic: topic, start: f.from.listOffsetsTime(), partitions: make(map[int]*kafkaPartition),
	}
}

// listOffsetsTime returns the timestamp of the position for Kafka's ListOffsets.
func (s startPosition) listOffsetsTime() int64 {
	switch {
	case s.now:
		return kafkago.LastOffset
	case s.at.IsZero():
		return kafkago.FirstOffset
	default:
		return max(0, s.at.UnixMilli())
	}
}

// follow delivers the messages until ctx ends.
func (f *kafkaFollower) follow(ctx context.Context, bus kafka.Config) {
	client, end := kafka.NewClient(bus)
	defer end()
	f.client, f.brokers = client, bus.Brokers
	for ctx.Err() == nil {
		err := f.session(ctx)
		switch {
		case errors.Is(err, context.Canceled): // interrupted, or the next session
			continue
		case errors.Is(err, kafkago.UnknownTopicOrPartition):
			f.status.set("waiting for topic %s, which does not exist yet", f.topic)
		default:
			if status, _ := f.status.get(); !strings.HasPrefix(status, waitingForBus) { // once per outage
				f.status.set(waitingForBus+"%v", kafka.Plain(err))
			}
		}
		pause(ctx, retryInterval)
	}
}

// session follows the topic until a request fails or sessionLimit is over, and returns the cause.
func (f *kafkaFollower) session(ctx context.Context) error {
	found, err := f.metadata(ctx)
	if errors.Is(err, kafkago.UnknownTopicOrPartition) || err == nil && len(found) < len(f.partitions) {
		clear(f.partitions) // it is, or will be, another topic with that name and without any event seen
		f.start = kafkago.FirstOffset
	}
	if err != nil {
		return err
	}
	var positioned atomic.Int32
	onStart := func() {
		if int(positioned.Add(1)) == len(found) {
			f.status.start("following topic %s (partitions: %d) at %s",
				f.topic, len(found), strings.Join(f.brokers, ","))
		}
	}
	// ended is checked between two fetches and cancels none: a failing partition must not starve the others.
	ended, end := context.WithCancelCause(ctx)
	defer time.AfterFunc(sessionLimit, func() { end(nil) }).Stop()
	var running sync.WaitGroup
	for _, partition := range found {
		p := f.partitions[partition.ID]
		if p == nil {
			p = &kafkaPartition{f, partition.ID, f.start, kafka.NoOffset}
			f.partitions[partition.ID] = p
		}
		running.Go(func() { end(p.follow(ctx, ended, partition.Leader, onStart)) })
	}
	running.Wait()
	f.start = kafkago.FirstOffset // of partitions that are added later
	return context.Cause(ended)
}

// metadata asks the next broker for the partitions of the topic.
func (f *kafkaFollower) metadata(ctx context.Context) ([]kafkago.Partition, error) {
	ctx, stop := context.WithTimeout(ctx, kafkaTimeout)
	defer stop()
	broker := f.brokers[f.turn%len(f.brokers)]
	request := &kafkago.MetadataRequest{Addr: kafkago.TCP(broker), Topics: []string{f.topic}}
	answer, err := f.client.Metadata(ctx, request)
	switch {
	case err == nil && len(answer.Topics) != 1:
		err = fmt.Errorf("no answer from Kafka broker %s about topic %s", broker, f.topic)
	case err == nil && answer.Topics[0].Error == nil:
		return answer.Topics[0].Partitions, nil
	case err == nil:
		err = answer.Topics[0].Error
	}
	f.turn++
	return nil, err
}

// follow delivers the messages of the partition until a request fails or the session has ended.
func (p *kafkaPartition) follow(ctx, ended context.Context, leader kafkago.Broker, onStart func()) error {
	address := kafka.HostPort(leader)
	if address == "" {
		return kafkago.LeaderNotAvailable
	}
	if p.next == kafka.NoOffset {
		if err := p.seek(ctx, address); err != nil {
			return err
		}
	}
	onStart()
	for {
		if err := p.fetch(ctx, address); err != nil || ended.Err() != nil {
			return err
		}
	}
}

// seek resolves start to an offset. It requests the end of the partition first, so that no message stored meanwhile is
// skipped.
func (p *kafkaPartition) seek(ctx context.Context, leader string) error {
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

// fetch delivers the messages from next on, or waits up to fetchWait for one.
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
		p.status.set("the next offset of partition %d is no longer stored; continuing at the first one that is", p.id)
		p.start = kafkago.FirstOffset
		return p.seek(ctx, leader)
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
		if r.Offset >= p.next { // a batch may begin before the requested offset
			p.received(m)
			p.next = r.Offset + 1
		}
	}
	if _, some := answer.Records.(*protocol.RecordStream); some && p.next == from {
		p.next++ // the batch has only a transaction marker, or was compacted away
	}
	return nil
}

// kafkaPosition is the position of a message on Kafka.
type kafkaPosition struct {
	Topic     string `json:"topic"`
	Partition int    `json:"partition"`
	Offset    int64  `json:"offset"`
	Key       string `json:"key"`
}

// message copies a record, whose bytes are reused for the next one.
func (p *kafkaPartition) message(r *kafkago.Record) (*message, error) {
	key, err1 := kafkago.ReadAll(r.Key)
	data, err2 := kafkago.ReadAll(r.Value)
	if r.Value == nil {
		data = []byte("null") // not an event of postbridge
	}
	headers := make(map[string]string, len(r.Headers))
	for _, h := range r.Headers {
		headers[h.Key] = string(h.Value)
	}
	return &message{
		position: kafkaPosition{p.topic, p.id, r.Offset, string(key)},
		key:      string(key), status: headers["ce_orderstatus"], headers: headers, data: data,
	}, errors.Join(err1, err2)
}
