package kafka

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/postbridge/postbridge/bridge"
)

const (
	// unsureFor is how long a broker may refuse our sequence numbers while a recovery scan does not show why. A record
	// shows once all replicas have it.
	unsureFor = 30 * time.Second
	// maxInvalid is how many events in a row may be rejected as invalid. Kafka itself accepts every event of ours, but
	// a schema validation on the topic may refuse all of them: that is an outage, and must not turn a backlog into dead
	// letters.
	maxInvalid = 3
)

// sentBatch is the batch of the first pending events that is being sent.
type sentBatch struct {
	set    []byte // encoded
	events int
	seen   int   // index.seen when it was encoded
	next   int32 // its first sequence number
	answer error // of the broker; nil is an acknowledgement
	offset int64 // where it is stored
}

// nextBatch completes the first pending events if they are stored, or else encodes the next batch.
func (w *partitionWriter) nextBatch(ctx context.Context, leader string) (writerEvent, error) {
	if w.cluster != w.p.saved.clusterID() {
		return eventMoved, nil
	}
	switch {
	case len(w.pending) == 0:
		return eventDone, nil
	case !w.index.covers(w.pending[0].delivery.Sequence):
		if err := w.moveWindow(ctx, leader); err != nil {
			return eventFailed, err
		}
		return eventDone, nil
	case w.skipStored():
		return eventDone, nil
	}
	n := w.fit()
	set := w.encoder.encode(w.pending[:n], w.at)
	w.sent = sentBatch{set: set, events: n, seen: w.index.seen, next: w.at.next}
	if w.unfenced {
		return eventUnfenced, nil
	}
	return eventBatched, nil
}

// skipStored completes the first pending events if they are stored, and reports whether there were any.
func (w *partitionWriter) skipStored() bool {
	n := 0
	for n < len(w.pending) && w.index.has(w.pending[n].delivery) {
		n++
	}
	w.complete(n, nil)
	return n > 0
}

// complete ends the first n pending events: stored, or refused for good.
func (w *partitionWriter) complete(n int, refused error) {
	w.p.complete(w.pending[:n], refused)
	clear(w.pending[:n])
	if w.pending = w.pending[n:]; len(w.pending) == 0 {
		w.pending = nil
	}
}

// fit returns how many of the pending events go into the next batch: at least one, within the limits, and up to the
// first that is stored or that the index does not cover.
func (w *partitionWriter) fit() int {
	bytes := 0
	for n, e := range w.pending {
		bytes += recordBytes(e.delivery)
		full := n == w.limit || bytes > batchBytes
		if n > 0 && (full || !w.index.covers(e.delivery.Sequence) || w.index.has(e.delivery)) {
			return n
		}
	}
	return len(w.pending)
}

// canLinger reports whether a batch would be small and its events are late already: after an outage brokers are
// busiest, and the cost of a batch hardly depends on its size.
func (w *partitionWriter) canLinger() bool {
	return w.fit() == len(w.pending) && time.Since(w.pending[0].delivery.ReceivedAt) > late
}

// send sends the batch and handles the answer. Until then the topic is not recreated, so that a new topic never
// takes a batch unchecked.
func (w *partitionWriter) send(ctx context.Context, leader string) (writerEvent, error) {
	w.topic.sending.RLock()
	defer w.topic.sending.RUnlock()
	if err := w.checkIfDue(ctx, leader); err != nil {
		return eventFailed, err
	}
	stamp(w.sent.set, time.Now())
	answering, cancel := context.WithTimeout(ctx, produceTimeout)
	defer cancel()
	resp, err := w.p.client.RawProduce(answering, &kafkago.RawProduceRequest{
		Addr:         kafkago.TCP(leader),
		Topic:        w.topic.name,
		Partition:    w.partition,
		RequiredAcks: kafkago.RequireAll,
		RawRecords:   protocol.RawRecordSet{Reader: bytes.NewReader(w.sent.set)},
	})
	if err == nil {
		err = resp.Error
	}
	w.sent.answer = err
	switch event := judge(err); event {
	case eventAcked:
		w.throttled = time.Now().Add(resp.Throttle)
		return w.acked(resp.BaseOffset), nil
	case eventUnanswered:
		w.checkAt = time.Time{} // the leader may come back with an older copy
		return event, err
	default:
		return event, nil
	}
}

// judge classifies the error of a batch. An event is not refused for an error that an operator can correct, except for
// the size limits of the topic.
func judge(err error) writerEvent {
	var code kafkago.Error
	switch {
	case err == nil:
		return eventAcked
	case !errors.As(err, &code):
		return eventUnanswered
	}
	switch code {
	case kafkago.MessageSizeTooLarge, kafkago.RecordListTooLarge, kafkago.InvalidRecord:
		return eventRefused
	case kafkago.OutOfOrderSequenceNumber, kafkago.DuplicateSequenceNumber,
		kafkago.InvalidProducerEpoch, kafkago.UnknownProducerId:
		return eventMismatched
	default:
		return eventUnanswered
	}
}

// acked handles the acknowledgement that the batch is stored at an offset.
func (w *partitionWriter) acked(offset int64) writerEvent {
	if offset < w.at.offset {
		// All before was scanned: the broker takes the batch for a repeat of another one with the same sequence
		// numbers, or the partition is a new one.
		w.sent.answer, w.checkAt = kafkago.DuplicateSequenceNumber, time.Time{}
		w.at.offset = max(0, offset)
		return eventMismatched
	}
	w.sent.offset = offset
	w.mismatched, w.invalid = time.Time{}, 0
	w.pace.Reset()
	w.unblock()
	w.limit = min(w.limit+1, batchRecords)
	return eventAcked
}

// settle completes the batch as stored. The publisher state has its position before its events are done.
func (w *partitionWriter) settle() writerEvent {
	n, highest := w.sent.events, uint64(0)
	for _, e := range w.pending[:n] {
		highest = max(highest, e.delivery.Sequence)
	}
	w.at.next = after(w.at.next, n)
	w.at.offset = w.sent.offset + int64(n)
	w.p.saved.advance(w.name(), highest, w.at)
	if !w.p.checkpoints.Stored(w.name(), identity, uint64(w.at.offset), w.pending[n-1].delivery.Sequence) {
		w.checkAt = time.Time{}
	}
	w.complete(n, nil)
	return eventDone
}

// verify scans the partition, because the answer does not prove whether the batch is stored.
func (w *partitionWriter) verify(ctx context.Context, leader string) (writerEvent, error) {
	event, err := w.scan(ctx, leader)
	if err != nil || event != eventDone {
		return event, err
	}
	answer := w.sent.answer
	if judge(answer) == eventMismatched && w.mismatched.IsZero() {
		w.mismatched = time.Now()
	}
	switch {
	case answer == nil:
		// The broker has moved on to our next sequence number, so that nothing sent earlier can land any more.
		w.unfenced = false
		return eventDone, nil
	case w.at.next != w.sent.next || w.index.seen != w.sent.seen: // something landed: the batch, or what was in its way
		w.mismatched = time.Time{}
		return eventDone, nil
	case judge(answer) == eventRefused:
		w.unfenced = true // an earlier attempt may still land
		return eventRefused, nil
	case errors.Is(answer, kafkago.OutOfOrderSequenceNumber) && time.Since(w.mismatched) < w.p.limits.unsureFor:
		w.block(Plain(answer))
		w.p.wait(10*firstRetry, nil)
		return eventDone, nil
	default:
		w.p.log.Warn("the broker no longer knows what this producer wrote; going on as a new one",
			"topic", w.topic.name, "partition", w.partition, "producer", w.at.producer.id, "why", Plain(answer).Error())
		return eventForgotten, nil
	}
}

// reject handles the answer that the broker can never accept the batch. One of several events is the cause, so they are
// sent again in smaller batches. A single one is completed as rejected, or kept if too many were invalid.
func (w *partitionWriter) reject() writerEvent {
	if w.sent.events > 1 {
		w.limit = w.sent.events / 2
		return eventDone
	}
	if errors.Is(w.sent.answer, kafkago.InvalidRecord) {
		if w.invalid == maxInvalid {
			w.block(Plain(w.sent.answer))
			w.p.wait(w.pace.NextBackOff(), nil)
			return eventDone
		}
		w.invalid++
	}
	w.complete(1, fmt.Errorf("%w: topic %s: %w", bridge.ErrRejected, w.topic.name, Plain(w.sent.answer)))
	return eventDone
}
