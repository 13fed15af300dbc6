package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

const (
	// fetchBytes is how much of a partition a look reads at a time, and fetchTimeout how long that may take: on a slow
	// line, many lanes look at once after a restart.
	fetchBytes   = 512 << 10
	fetchTimeout = 10 * time.Second
	// clockMargin is how far a record's time may lie before the time when its event was received: clocks of brokers
	// differ from ours, and ours may have been set back in between. Beyond that, an event is stored twice after its
	// offset was lost.
	clockMargin = 24 * time.Hour
)

// open makes the lane ready. What tells the next run is on disk before anything is sent. If it fails it goes on, the next
// time, where it came to.
func (l *lane) open(ctx context.Context, leader string) error {
	if !l.placed {
		if err := l.place(ctx, leader); err != nil {
			return err
		}
		l.placed = true
	}
	if l.before {
		if err := l.look(ctx, leader); err != nil {
			return err
		}
	}
	l.opened = true
	return nil
}

// place puts the lane where the run before came to, or makes it a new producer.
func (l *lane) place(ctx context.Context, leader string) error {
	noted, known := l.p.notes.find(l.topic.name, l.partition)
	known = known && !l.fresh // noted just now, and the disk did not take it
	l.at, l.doubted, l.fresh = noted, known, !known
	// A run before may have sent the event, even if what that noted is lost.
	l.before = known || l.pending[0].delivery.Redelivered
	var err error
	switch {
	case !l.before:
		l.at.offset, err = l.offset(ctx, leader, kafkago.LastOffset)
	case noted.offset == 0 || !l.pending[0].delivery.Redelivered:
		err = l.skipAhead(ctx, leader)
	default: // what the run before sent lies behind the noted offset, whatever clocks say
	}
	if err == nil && !known {
		err = l.renew(ctx, leader)
	}
	return err
}

// renew makes the lane go on as a new producer.
func (l *lane) renew(ctx context.Context, leader string) error {
	id, err := l.p.newProducer(ctx, leader)
	if err != nil {
		return err
	}
	l.at.producer, l.at.next = id, 0
	l.p.notes.begin(l.topic.name, l.partition, l.at)
	return l.p.saveState()
}

// newProducer asks any broker for a producer id.
func (p *Publisher) newProducer(ctx context.Context, broker string) (producer, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	resp, err := p.client.InitProducerID(ctx, &kafkago.InitProducerIDRequest{Addr: kafkago.TCP(broker), ProducerID: -1, ProducerEpoch: -1})
	if err == nil {
		err = resp.Error // with an id of -1, which nothing would be guarded by
	}
	if err != nil {
		return producer{}, fmt.Errorf("cannot get a producer id: %w", Plain(err))
	}
	return producer{int64(resp.Producer.ProducerID), int16(resp.Producer.ProducerEpoch)}, nil
}

// offset asks the leader for an offset of the partition; see OffsetAt.
func (l *lane) offset(ctx context.Context, leader string, at int64) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return OffsetAt(ctx, l.p.client, leader, l.topic.name, l.partition, at)
}

// skipAhead moves a lane on over what is older than its first event, by the clock, where no offset is known to go by,
// or nothing of what is pending was offered before: in a partition that many write to, it may be long ago that we did.
// It may go too far, over a dead letter that comes late, or over an event that belongs to another partition by now:
// such a one may be stored twice, and our numbers go on behind it, which the first answer shows.
func (l *lane) skipAhead(ctx context.Context, leader string) error {
	since := l.pending[0].delivery.ReceivedAt.Add(-clockMargin)
	offset, err := l.offset(ctx, leader, since.UnixMilli())
	if err == nil && offset == NoOffset { // nothing is as new as that
		offset, err = l.offset(ctx, leader, kafkago.LastOffset)
	}
	if err != nil {
		return err
	}
	if offset > l.at.offset {
		l.at.offset = offset
	}
	return nil
}

// look is the recovery scan: it reads the partition from where the lane is on, and indexes which of our events are
// there. It also learns where our numbers go on.
func (l *lane) look(ctx context.Context, leader string) error {
	if first := l.firstPending(); first > l.index.high {
		l.index.open(first, l.pending[0].delivery.Sequence)
	}
	for {
		end, err := l.lookOnce(ctx, leader)
		var code kafkago.Error
		switch {
		case errors.As(err, &code) && code == kafkago.OffsetOutOfRange:
			if err := l.backInRange(ctx, leader); err != nil {
				return err
			}
		case errors.As(err, &code) && code == kafkago.TopicAuthorizationFailed:
			l.p.sayUnread(l.topic, err)
			// With the numbers of before, what is stored might pass for other events of as many, and those be lost.
			l.doubted = false
			return l.renew(ctx, leader)
		case err != nil:
			return err
		case l.at.offset >= end:
			l.p.notes.stored(l.topic.name, l.partition, l.highest, l.at)
			return nil
		}
	}
}

// firstPending returns the least sequence of what is pending.
func (l *lane) firstPending() uint64 {
	first := l.pending[0].delivery.Sequence
	for _, e := range l.pending {
		first = min(first, e.delivery.Sequence)
	}
	return first
}

// lookOnce indexes one answer's worth, and returns where the partition ends.
func (l *lane) lookOnce(ctx context.Context, leader string) (end int64, err error) {
	l.index.seal()
	before := l.at.offset
	end, err = l.fetch(ctx, leader, before, fetchBytes, l.read, func(b *protocol.RecordBatch, n int) {
		if (producer{b.ProducerID, b.ProducerEpoch}) == l.at.producer {
			l.at.next = after(b.BaseSequence, n)
		}
	})
	if err == nil && l.at.offset == before && before < end {
		l.at.offset++ // there may be gaps
	}
	return end, err
}

// read indexes a record, if it is one of ours.
func (l *lane) read(r *protocol.Record) {
	l.at.offset = r.Offset + 1
	if number, ok := ours(r.Headers, l.spool()); ok {
		l.index.add(number, eventID(r.Headers), r.Offset)
		l.p.checkpoints.Found(l.name(), identity, uint64(l.at.offset), number)
		l.highest = max(l.highest, number)
	}
}

// moveWindow moves the window of the index to the first pending event, and fetches again what the scan saw of that part
// of the partition.
func (l *lane) moveWindow(ctx context.Context, leader string) error {
	for _, c := range l.index.open(l.firstPending(), l.pending[0].delivery.Sequence) {
		if l.index.ends(c) {
			return nil
		}
		for at := c.begin; at < c.end; {
			var err error
			if at, err = l.lookAgain(ctx, leader, at, c.end); errors.Is(err, kafkago.TopicAuthorizationFailed) {
				l.p.sayUnread(l.topic, err)
				l.index = newIndex() // what it holds cannot be told from what it does not
				return nil
			} else if err != nil {
				return err
			}
		}
	}
	return nil
}

// lookAgain reads one answer's worth of what was indexed, and returns the offset to go on at.
func (l *lane) lookAgain(ctx context.Context, leader string, at, end int64) (next int64, err error) {
	next = at
	highWatermark, err := l.fetch(ctx, leader, at, fetchBytes, func(r *protocol.Record) {
		next = r.Offset + 1
		if number, ok := ours(r.Headers, l.spool()); ok && r.Offset < end {
			l.index.hold(number, eventID(r.Headers), r.Offset)
		}
	}, nil)
	switch {
	case errors.Is(err, kafkago.OffsetOutOfRange), err == nil && next == at && highWatermark <= at:
		return l.backIn(ctx, leader, at, end)
	case err == nil && next == at:
		next++ // there may be gaps
	}
	return next, err
}

// backIn returns where to go on in offsets at..end that were indexed, but are not all in the partition any more. What
// retention removed was stored, but nobody can tell any more; what was lost is not stored.
func (l *lane) backIn(ctx context.Context, leader string, at, end int64) (next int64, err error) {
	first, err := l.offset(ctx, leader, kafkago.FirstOffset)
	if err != nil {
		return at, err
	}
	last, err := l.offset(ctx, leader, kafkago.LastOffset) // fails while a new leader does not know how far others are
	switch {
	case err != nil:
		return at, err
	case last <= at:
		return end, nil
	default:
		return min(max(first, at), end), nil
	}
}

// fetch reads one answer's worth from an offset on, and returns where the partition ends. read gets each record from
// there on, and batch, if not nil, each batch and how many records it has.
func (l *lane) fetch(ctx context.Context, leader string, from, maxBytes int64, read func(*protocol.Record),
	batch func(b *protocol.RecordBatch, n int),
) (end int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	resp, err := l.p.client.Fetch(ctx, &kafkago.FetchRequest{
		Addr: kafkago.TCP(leader), Topic: l.topic.name, Partition: l.partition, Offset: from, MaxBytes: maxBytes,
	})
	if err == nil {
		err = resp.Error
	}
	if err != nil {
		return 0, err
	}
	stream, ok := resp.Records.(*protocol.RecordStream)
	if !ok {
		return resp.HighWatermark, nil // empty
	}
	for _, records := range stream.Records {
		n, err := readAll(records, from, read)
		if err != nil {
			return 0, fmt.Errorf("cannot read what the partition holds from offset %d on: %w", from, err)
		}
		if b, ok := records.(*protocol.RecordBatch); ok && batch != nil {
			batch(b, n)
		}
	}
	return resp.HighWatermark, nil
}

// readAll reads a batch, and returns how many records it has. An answer may begin before the offset that was asked for.
func readAll(records protocol.RecordReader, from int64, read func(*protocol.Record)) (n int, err error) {
	for ; ; n++ {
		r, err := records.ReadRecord()
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		for _, b := range []protocol.Bytes{r.Key, r.Value} {
			if b != nil {
				_ = b.Close() // of memory
			}
		}
		if r.Offset >= from {
			read(r)
		}
	}
}

// spool is the spool that our events come from.
func (l *lane) spool() string { return l.pending[0].delivery.Spool }

// backInRange moves a lane to where the partition begins, if it was before that, or behind the end. In the latter case
// the partition knows nothing of the lane's numbers either.
func (l *lane) backInRange(ctx context.Context, leader string) error {
	first, err := l.offset(ctx, leader, kafkago.FirstOffset)
	if err != nil {
		return err
	}
	before := l.at.offset
	l.at.offset = first
	if first >= before {
		return nil
	}
	l.checked = false
	if err := l.checkIfDue(ctx, leader); err != nil {
		return err
	}
	l.index = newIndex()
	l.p.log.Error("the partition ends before what it had stored: the topic was made anew, or a Kafka broker lost it; see 'The bus lost data' in deploy/README.md",
		"topic", l.topic.name, "partition", l.partition, "stored_to", before)
	return l.renew(ctx, leader)
}
