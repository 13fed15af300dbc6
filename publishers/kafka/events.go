package kafka

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
)

const (
	// publishTimeout is how long Events.Publish waits: longer than the election of a leader takes.
	publishTimeout = 30 * time.Second
	// refreshTimes is how often Refresh reads the topics: what is stored while it reads them for the first time, which
	// may take a minute, is read the second time.
	refreshTimes = 2
)

// Events holds the last event of each order of a day, which it reads from the topics, and publishes events of one run
// of a command. Kafka cannot compare and append: an event that is stored between Refresh and Publish is not noticed. Its
// methods may be called from any goroutine.
type Events struct {
	cfg    Config
	client *kafkago.Client
	end    func()
	// publisher has no saved state, and no event of a run is published twice, so it need not read the topics.
	publisher *Publisher
	spool     string

	publishing sync.Mutex // guards sequence; never locked while mu is, which the publisher's reports lock
	sequence   uint64     // of the last event that was published

	refreshing sync.Mutex // held by Refresh; locked before mu

	mu      sync.Mutex               // guards what follows
	blocked map[string]error         // conditions of the publisher
	since   time.Time                // the beginning of the day: see Refresh
	last    map[string]bridge.Stored // the last events without the brokers' bodies, by topic and key
	offsets map[string]int64         // the next offset to read, by topic and partition
	// lastDay has the last events of the day before, for a pass that began then.
	lastDay map[string]bridge.Stored
}

// OpenEvents opens the events of a valid configuration without waiting for Kafka. Refresh comes before Last and Orders. spool is the spool id of the events
// that are published: 8 hex digits, different for each run, so that no spool takes them for its own.
func OpenEvents(cfg Config, spool string, log *slog.Logger) (*Events, error) {
	e := &Events{cfg: cfg, spool: spool, blocked: make(map[string]error)}
	var err error
	e.publisher, err = Open(cfg, bridge.Opening{
		Report: e.report, Spool: spool, SaveState: func() error { return nil }, Rewound: func(uint64, error) {},
	}, log)
	if err != nil {
		return nil, err
	}
	e.client, e.end = NewClient(cfg)
	return e, nil
}

// Close ends the connections. Events that Publish has not returned for may be stored or not. It may be called again.
func (e *Events) Close() {
	_ = e.publisher.Close() // always nil
	e.end()
}

// report records a condition of the publisher.
func (e *Events) report(condition string, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if delete(e.blocked, condition); err != nil {
		e.blocked[condition] = err
	}
}

// Refresh reads what was stored since then, and was not read by a Refresh before. A later since begins a new day: of
// the day before the last events are kept. Every event that was stored before asOf is found.
func (e *Events) Refresh(ctx context.Context, since time.Time) (asOf time.Time, err error) {
	e.refreshing.Lock()
	defer e.refreshing.Unlock()
	e.startDay(since)
	for range refreshTimes {
		asOf = time.Now()
		for _, dest := range []bridge.Destination{bridge.Orders, bridge.Rejects} {
			name := topicName(e.cfg.Prefix, dest)
			if err := e.read(ctx, name); err != nil {
				return asOf, fmt.Errorf("cannot read topic %s: %w", name, Plain(err))
			}
		}
	}
	return asOf, nil
}

// startDay drops the events of the day before the last one, if the day is a new one.
func (e *Events) startDay(since time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if since.After(e.since) {
		e.lastDay = e.last
		e.since, e.last, e.offsets = since, make(map[string]bridge.Stored), make(map[string]int64)
	}
}

// read reads all partitions of a topic to their ends.
func (e *Events) read(ctx context.Context, topic string) error {
	partitions, err := e.partitions(ctx, topic)
	if err != nil {
		return err
	}
	errs := make([]error, len(partitions))
	var running sync.WaitGroup
	for i, p := range partitions {
		running.Go(func() { errs[i] = e.readPartition(ctx, topic, p) })
	}
	running.Wait()
	return errors.Join(errs...)
}

// partitions asks one bootstrap broker after the other.
func (e *Events) partitions(ctx context.Context, topic string) (_ []kafkago.Partition, failed error) {
	for _, broker := range e.cfg.Brokers {
		m, err := e.client.Metadata(ctx, &kafkago.MetadataRequest{Addr: kafkago.TCP(broker), Topics: []string{topic}})
		switch {
		case err != nil:
			failed = err
		case len(m.Topics) != 1:
			failed = errors.New("the broker does not answer for the topic")
		case m.Topics[0].Error != nil:
			failed = m.Topics[0].Error
		default:
			return m.Topics[0].Partitions, nil
		}
	}
	return nil, failed
}

// readPartition reads a partition from the saved offset to its end at the time of the call.
func (e *Events) readPartition(ctx context.Context, topic string, p kafkago.Partition) error {
	leader := HostPort(p.Leader)
	if leader == "" {
		return errNoLeader
	}
	end, err := OffsetAt(ctx, e.client, leader, topic, p.ID, kafkago.LastOffset)
	if err != nil {
		return err
	}
	name := fmt.Sprintf("%s/%d", topic, p.ID)
	e.mu.Lock()
	next, known := e.offsets[name]
	since := e.since
	e.mu.Unlock()
	if known && end < next { // the topic was recreated, or lost events in an unclean election
		return fmt.Errorf("partition %d ends at offset %d, and %d were read; what is stored must be read again",
			p.ID, end, next)
	}
	if !known {
		if next, err = OffsetAt(ctx, e.client, leader, topic, p.ID, since.UnixMilli()); next == NoOffset {
			next = end
		}
	}
	for err == nil && next < end {
		next, err = e.fetch(ctx, leader, topic, p.ID, next)
	}
	if err == nil {
		e.mu.Lock()
		e.offsets[name] = next
		e.mu.Unlock()
	}
	return err
}

// fetch records the events of one fetch, and returns the next offset.
func (e *Events) fetch(ctx context.Context, leader, topic string, partition int, from int64) (next int64, err error) {
	resp, err := e.client.Fetch(ctx, &kafkago.FetchRequest{
		Addr: kafkago.TCP(leader), Topic: topic, Partition: partition, Offset: from,
		MinBytes: 1, MaxBytes: fetchBytes, MaxWait: time.Second,
	})
	if err == nil {
		err = resp.Error
	}
	if err != nil {
		return from, err
	}
	next = from
	for {
		r, err := resp.Records.ReadRecord()
		switch {
		case errors.Is(err, io.EOF) && next == from:
			_, some := resp.Records.(*protocol.RecordStream)
			if some {
				next++ // a batch without records, of compaction or a transaction
			}
			return next, nil
		case errors.Is(err, io.EOF):
			return next, nil
		case err != nil:
			return next, err
		}
		key, err1 := kafkago.ReadAll(r.Key)
		data, err2 := kafkago.ReadAll(r.Value)
		if err := errors.Join(err1, err2); err != nil {
			return next, err
		}
		if r.Offset >= from { // a batch may begin before
			e.record(topic, string(key), bridge.Stored{Data: data, Time: r.Time})
			next = r.Offset + 1
		}
	}
}

// record makes an event the last one of its order. Without the broker's body it is small.
func (e *Events) record(topic, key string, last bridge.Stored) {
	var stored event.Event
	if json.Unmarshal(last.Data, &stored) != nil {
		return // of another program
	}
	stored.Raw, stored.RawText, stored.RawBase64 = nil, "", nil
	last.Data = stored.Append(nil)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last[topic+"/"+key] = last
}

// Last returns the last event of an order in a destination, without the broker's body; the zero value if there is none.
// Kafka has no revisions.
func (e *Events) Last(_ context.Context, dest bridge.Destination, order *bridge.Delivery) (bridge.Stored, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	name := topicName(e.cfg.Prefix, dest) + "/" + order.Key()
	if last, ok := e.last[name]; ok {
		return last, nil
	}
	return e.lastDay[name], nil
}

// Publish gives the event its spool id and sequence, and returns once it is stored in all its destinations. After an
// outage no event of this Events is published any more: a state that was held up may be older than the order's by then.
func (e *Events) Publish(ctx context.Context, d *bridge.Delivery, _ map[bridge.Destination]uint64) error {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	stored := make(chan error, 1)
	e.publishing.Lock()
	e.sequence++
	d.Spool, d.Sequence = e.spool, e.sequence
	e.publisher.Publish(ctx, d, func(err error) { stored <- err }) // in the order of the sequences
	e.publishing.Unlock()
	select {
	case err := <-stored:
		return err
	case <-ctx.Done():
		err := e.blockedBy(ctx.Err())
		_ = e.publisher.Close() // always nil
		return err
	}
}

// blockedBy returns the conditions of the publisher, or the error if there is none.
func (e *Events) blockedBy(err error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for condition, why := range e.blocked {
		err = fmt.Errorf("%s: %w", condition, why)
	}
	return fmt.Errorf("cannot publish: %w", err)
}

// Orders returns the ids of the orders of a user whose last event was stored between the times, as they are in the
// keys.
func (e *Events) Orders(_ context.Context, broker, user string, since, until time.Time) (ids []string, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	start := topicName(e.cfg.Prefix, bridge.Orders) + "/" + broker + "." + event.EscapeToken(user) + "."
	for key, last := range e.last {
		id, ok := strings.CutPrefix(key, start)
		if ok && !last.Time.Before(since) && !last.Time.After(until) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}
