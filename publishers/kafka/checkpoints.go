package kafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/postbridge/postbridge/publishers"
)

const (
	// checkInterval is how often the checkpoints of a partition are checked while its leader stays the same.
	checkInterval = 30 * time.Second
	// identity stands for that of every partition: kafka-go does not read that of a topic.
	identity = "-"
	// oneRecord is fetched to look up a checkpoint; a broker returns the whole batch all the same.
	oneRecord = 1
	// offsetNotAvailable is an error that kafka-go has no name for.
	offsetNotAvailable kafkago.Error = 78
)

// name is the partition in checkpoints, whose positions are offsets counted from 1.
func (w *partitionWriter) name() string { return partitionName(w.topic.name, w.partition) }

func partitionName(topic string, partition int) string { return fmt.Sprintf("%s/%d", topic, partition) }

// visit is a stay at a leader of the partition, in one session with the cluster, between two times that the topic was
// made.
type visit struct {
	session, made int
	leader        string
}

// checkIfDue checks whether the partition still has what it stored: in each visit before anything is published, after
// each failure, and now and then. If it has not, nothing more goes into the partition, and another publisher goes on.
func (w *partitionWriter) checkIfDue(ctx context.Context, leader string) error {
	w.p.mu.Lock()
	now := visit{w.p.session, w.topic.made, leader}
	w.p.mu.Unlock()
	if w.visit != now {
		w.visit, w.checked = now, false
		w.stream = w.p.checkpoints.NewStream(w.name(), func(k publishers.Checkpoint) (publishers.Presence, error) {
			return w.lookUp(ctx, leader, k)
		})
	}
	select {
	case <-w.due.C:
		w.checked = false
	default:
	}
	if w.checked {
		return nil
	}
	loss, err := w.p.checkpoints.Check(w.stream)
	switch {
	case errors.Is(err, kafkago.TopicAuthorizationFailed):
		w.p.sayUnread(w.topic, err)
	case err != nil:
		return err
	case loss != nil:
		w.p.rewound(w.p.checkpoints.RewindTo(loss), loss.Cause)
		<-w.p.ctx.Done()
	}
	w.checked = true
	return ctx.Err()
}

// lookUp looks up a checkpoint at the leader of the partition.
func (w *partitionWriter) lookUp(ctx context.Context, leader string, k publishers.Checkpoint) (publishers.Presence, error) {
	at := int64(k.Position) - 1
	found := publishers.Unknown // retention or compaction removed the record
	end, err := w.fetch(ctx, leader, at, oneRecord, func(r *protocol.Record) {
		if r.Offset == at {
			found = publishers.Missing
			if n, ok := ownSequence(r.Headers, w.p.spool); ok && n == k.Sequence {
				found = publishers.Present
			}
		}
	}, nil)
	switch {
	case err == nil && end > at:
		return found, nil
	case err != nil && !errors.Is(err, kafkago.OffsetOutOfRange):
		return publishers.Unknown, Plain(err)
	}
	end, err = w.offset(ctx, leader, kafkago.LastOffset)
	switch {
	case errors.Is(err, offsetNotAvailable):
		return publishers.Unknown, nil // a new leader does not know how far the others are
	case err != nil:
		return publishers.Unknown, Plain(err)
	case end <= at:
		return publishers.Missing, nil
	default:
		return publishers.Unknown, nil
	}
}
