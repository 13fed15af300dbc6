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
	// identity is the same for every partition, as kafka-go does not read the id of a topic.
	identity = "-"
	// oneRecord is the size of the fetch of a checkpoint, in bytes; a broker returns a whole batch all the same.
	oneRecord = 1
	// offsetNotAvailable is OFFSET_NOT_AVAILABLE, which kafka-go has no name for.
	offsetNotAvailable kafkago.Error = 78
)

// name returns the name of the partition in checkpoints, whose positions are offsets counted from 1.
func (w *partitionWriter) name() string { return partitionName(w.topic.name, w.partition) }

func partitionName(topic string, partition int) string { return fmt.Sprintf("%s/%d", topic, partition) }

// visit identifies a period with one leader of the partition, in one session with the cluster, until the topic is
// created again.
type visit struct {
	session, made int
	leader        string
}

// checkIfDue checks the checkpoints of the partition: in each visit before anything is published, after each
// failure, and every checkInterval. After a loss it asks for a rewind and waits until the publisher is closed:
// nothing more may be stored in the partition before.
func (w *partitionWriter) checkIfDue(ctx context.Context, leader string) error {
	w.p.mu.Lock()
	now := visit{w.p.session, w.topic.made, leader}
	w.p.mu.Unlock()
	if w.visit != now {
		w.visit, w.checkAt = now, time.Time{}
		w.stream = w.p.checkpoints.NewStream(w.name(), func(k publishers.Checkpoint) (publishers.Presence, error) {
			return w.lookUp(ctx, leader, k)
		})
	}
	if time.Now().Before(w.checkAt) {
		return nil
	}
	loss, err := w.p.checkpoints.Check(w.stream)
	switch {
	case errors.Is(err, kafkago.TopicAuthorizationFailed):
		w.topic.logUnread(err)
	case err != nil:
		return err
	case loss != nil:
		w.p.rewound(w.p.checkpoints.RewindTo(loss), loss.Cause)
		<-w.p.ctx.Done()
	}
	w.checkAt = time.Now().Add(w.p.limits.checkInterval)
	return ctx.Err()
}

// lookUp looks up a checkpoint at the leader of the partition.
func (w *partitionWriter) lookUp(
	ctx context.Context, leader string, k publishers.Checkpoint,
) (publishers.Presence, error) {
	at := int64(k.Position) - 1
	found := publishers.Unknown // retention or compaction removed the record
	end, err := w.fetch(ctx, leader, at, oneRecord, func(r *protocol.Record) {
		if r.Offset == at {
			found = publishers.Missing
			if n, _, ok := ownEvent(r.Headers, w.p.spool); ok && n == k.Sequence {
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
		return publishers.Unknown, nil // a new leader does not know the high watermark yet
	case err != nil:
		return publishers.Unknown, Plain(err)
	case end <= at:
		return publishers.Missing, nil
	default:
		return publishers.Unknown, nil
	}
}
