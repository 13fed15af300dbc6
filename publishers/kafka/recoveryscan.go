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
	// fetchBytes is how much of a partition one fetch reads. fetchTimeout is how long that may take: after a restart
	// many partition writers fetch at once, perhaps over a slow line.
	fetchBytes   = 512 << 10
	fetchTimeout = 10 * time.Second
	// clockMargin is how far a record's time may lie before the time when its event was received: the clocks of
	// brokers differ from ours, and ours may have been set back in between. Beyond that, an event is stored twice
	// after its offset was lost.
	clockMargin = 24 * time.Hour
)

// locate finds the position to go on at: the saved one, or the first offset at which an earlier run may have stored a
// pending event.
func (w *partitionWriter) locate(ctx context.Context, leader string) (writerEvent, error) {
	if len(w.pending) == 0 {
		return eventDone, nil
	}
	w.cluster, w.index = w.p.saved.clusterID(), newIndex()
	w.at, w.unfenced = w.p.saved.position(w.name())
	known, redelivered := w.unfenced, w.pending[0].delivery.Redelivered
	event, err := eventSaved, error(nil)
	switch {
	case !known && !redelivered:
		event = eventFresh
		w.at.offset, err = w.offset(ctx, leader, kafkago.LastOffset)
	case !known:
		event, err = eventUnsaved, w.skipAhead(ctx, leader)
	case w.at.offset == 0 || !redelivered:
		err = w.skipAhead(ctx, leader)
	default: // all that an earlier run sent lies behind the saved offset, by any clock
	}
	if err != nil {
		return eventFailed, err
	}
	return event, nil
}

// register makes the partition writer a new producer, and saves that before it sends anything. Any broker gives out
// producer ids.
func (w *partitionWriter) register(ctx context.Context, leader string) (writerEvent, error) {
	answering, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	resp, err := w.p.client.InitProducerID(answering,
		&kafkago.InitProducerIDRequest{Addr: kafkago.TCP(leader), ProducerID: -1, ProducerEpoch: -1})
	if err == nil {
		err = resp.Error // with an id of -1, for which brokers do not check sequence numbers
	}
	if err != nil {
		return eventFailed, fmt.Errorf("cannot get a producer id: %w", advised(Plain(err), registerAdvice()))
	}
	w.at.producer = producer{int64(resp.Producer.ProducerID), int16(resp.Producer.ProducerEpoch)}
	w.at.next, w.mismatched = 0, time.Time{}
	w.p.saved.setProducer(w.name(), w.at)
	if err := w.p.saveState(); err != nil {
		return eventFailed, err
	}
	return eventDone, nil
}

// offset asks the leader for an offset of the partition; see OffsetAt.
func (w *partitionWriter) offset(ctx context.Context, leader string, at int64) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return OffsetAt(ctx, w.p.client, leader, w.topic.name, w.partition, at)
}

// skipAhead moves the position to the first record whose time is at most clockMargin before the arrival of the first
// pending event. It is used when no saved offset bounds where earlier runs stored pending events, or when they sent
// none: other clients may have written much since. It may skip too much, because a dead letter may come late and an
// event may have been in another partition: that event may be stored twice, and the sequence numbers behind it make the
// first answer a mismatch.
func (w *partitionWriter) skipAhead(ctx context.Context, leader string) error {
	since := w.pending[0].delivery.ReceivedAt.Add(-clockMargin)
	offset, err := w.offset(ctx, leader, since.UnixMilli())
	if err == nil && offset == NoOffset {
		offset, err = w.offset(ctx, leader, kafkago.LastOffset)
	}
	if err != nil {
		return err
	}
	w.at.offset = max(w.at.offset, offset)
	return nil
}

// scan is the recovery scan: it reads the partition from the position to the end, indexes our events, and finds our
// next sequence number. If a fetch fails, the next attempt goes on behind the last record that was read.
func (w *partitionWriter) scan(ctx context.Context, leader string) (writerEvent, error) {
	if first := w.firstPending(); first > w.index.high {
		w.index.open(first, w.pending[0].delivery.Sequence)
	}
	for {
		end, err := w.scanOnce(ctx, leader)
		switch {
		case errors.Is(err, kafkago.OffsetOutOfRange):
			if truncated, err := w.backInRange(ctx, leader); err != nil {
				return eventFailed, err
			} else if truncated {
				return eventTruncated, nil
			}
		case errors.Is(err, kafkago.TopicAuthorizationFailed):
			w.topic.logUnread(err)
			// The old producer may not go on: the broker would acknowledge new events as a repeat of stored ones
			// that have the same sequence numbers, and they would be lost.
			w.unfenced = false
			return eventDenied, nil
		case err != nil:
			return eventFailed, err
		case w.at.offset >= end:
			w.p.saved.advance(w.name(), w.index.high, w.at)
			return eventDone, nil
		}
	}
}

// firstPending returns the lowest sequence that is pending.
func (w *partitionWriter) firstPending() uint64 {
	first := w.pending[0].delivery.Sequence
	for _, e := range w.pending {
		first = min(first, e.delivery.Sequence)
	}
	return first
}

// scanOnce indexes the records of one fetch, and returns the high watermark.
func (w *partitionWriter) scanOnce(ctx context.Context, leader string) (end int64, err error) {
	w.index.seal()
	before := w.at.offset
	end, err = w.fetch(ctx, leader, before, fetchBytes, w.addRecord, func(b *protocol.RecordBatch, n int) {
		if (producer{b.ProducerID, b.ProducerEpoch}) == w.at.producer {
			w.at.next = after(b.BaseSequence, n)
		}
	})
	if err == nil && w.at.offset == before && before < end {
		w.at.offset++ // a gap, of compaction or a transaction
	}
	return end, err
}

// addRecord indexes a record if it is an event of ours, and moves the position behind it.
func (w *partitionWriter) addRecord(r *protocol.Record) {
	w.at.offset = r.Offset + 1
	if sequence, id, ok := ownEvent(r.Headers, w.p.spool); ok {
		w.index.add(sequence, id, r.Offset)
		w.p.checkpoints.Found(w.name(), identity, uint64(w.at.offset), sequence)
	}
}

// backInRange moves a position that is out of range to the first offset. If the partition ends before the position, it
// has been truncated: it knows neither the events that it stored nor our sequence numbers any more.
func (w *partitionWriter) backInRange(ctx context.Context, leader string) (truncated bool, err error) {
	first, err := w.offset(ctx, leader, kafkago.FirstOffset)
	if err != nil {
		return false, err
	}
	before := w.at.offset
	w.at.offset = first
	if first >= before {
		return false, nil
	}
	w.checkAt = time.Time{}
	if err := w.checkIfDue(ctx, leader); err != nil {
		return false, err
	}
	w.index = newIndex()
	w.p.log.Error("the partition ends before what it had stored: the topic was recreated, or a Kafka broker lost it; "+
		"see 'The bus lost data' in deploy/README.md",
		"topic", w.topic.name, "partition", w.partition, "stored_to", before)
	return true, nil
}

// moveWindow moves the window of the index to the first pending event, and fetches the chunks again that overlap it. If
// that fails, the index covers nothing of the window: an event that was not read may be stored all the same.
func (w *partitionWriter) moveWindow(ctx context.Context, leader string) (err error) {
	defer func() {
		if err != nil {
			w.index.shut()
		}
	}()
	for _, c := range w.index.open(w.firstPending(), w.pending[0].delivery.Sequence) {
		if w.index.ends(c) {
			return nil
		}
		for at := c.begin; at < c.end; {
			if at, err = w.rescan(ctx, leader, at, c.end); errors.Is(err, kafkago.TopicAuthorizationFailed) {
				w.topic.logUnread(err)
				w.index = newIndex() // the window is incomplete
				return nil
			} else if err != nil {
				return err
			}
		}
	}
	return nil
}

// rescan fetches some of the offsets at..end for the window, and returns the offset to go on at.
func (w *partitionWriter) rescan(ctx context.Context, leader string, at, end int64) (next int64, err error) {
	next = at
	highWatermark, err := w.fetch(ctx, leader, at, fetchBytes, func(r *protocol.Record) {
		next = r.Offset + 1
		if sequence, id, ok := ownEvent(r.Headers, w.p.spool); ok && r.Offset < end {
			w.index.hold(sequence, id, r.Offset)
		}
	}, nil)
	switch {
	case errors.Is(err, kafkago.OffsetOutOfRange), err == nil && next == at && highWatermark <= at:
		return w.nextInRange(ctx, leader, at, end)
	case err == nil && next == at:
		next++ // a gap
	}
	return next, err
}

// nextInRange returns the first of the offsets at..end that the partition still has; end if it has none. Events that
// retention removed can no longer be recognized as stored; events that were lost are not stored.
func (w *partitionWriter) nextInRange(ctx context.Context, leader string, at, end int64) (int64, error) {
	first, err := w.offset(ctx, leader, kafkago.FirstOffset)
	if err != nil {
		return at, err
	}
	last, err := w.offset(ctx, leader, kafkago.LastOffset) // fails while a new leader does not know the high watermark
	switch {
	case err != nil:
		return at, err
	case last <= at:
		return end, nil
	default:
		return min(max(first, at), end), nil
	}
}

// fetch reads records from an offset on, about maxBytes of them, and returns the high watermark. It calls record for
// each, and batch, if not nil, for each batch with its number of records.
func (w *partitionWriter) fetch(
	ctx context.Context, leader string, from, maxBytes int64,
	record func(*protocol.Record), batch func(b *protocol.RecordBatch, n int),
) (end int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	resp, err := w.p.client.Fetch(ctx, &kafkago.FetchRequest{
		Addr: kafkago.TCP(leader), Topic: w.topic.name, Partition: w.partition, Offset: from, MaxBytes: maxBytes,
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
		n, err := readAll(records, from, record)
		if err != nil {
			return 0, fmt.Errorf("cannot read what the partition holds from offset %d on: %w", from, err)
		}
		if b, ok := records.(*protocol.RecordBatch); ok && batch != nil {
			batch(b, n)
		}
	}
	return resp.HighWatermark, nil
}

// readAll reads a batch and returns its number of records. The batch may begin before the offset that was asked for.
func readAll(records protocol.RecordReader, from int64, record func(*protocol.Record)) (n int, err error) {
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
				_ = b.Close() // in memory
			}
		}
		if r.Offset >= from {
			record(r)
		}
	}
}
