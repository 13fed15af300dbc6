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
func (l *lane) name() string { return partitionName(l.topic.name, l.partition) }

func partitionName(topic string, partition int) string { return fmt.Sprintf("%s/%d", topic, partition) }

// visit is a stay at a leader of the partition, in one session with the cluster, between two times that the topic was
// made.
type visit struct {
	session, made int
	leader        string
}

// checkIfDue checks whether the partition still has what it stored: in each visit before anything is published, after
// each failure, and now and then. If it has not, nothing more goes into the partition, and another publisher goes on.
func (l *lane) checkIfDue(ctx context.Context, leader string) error {
	l.p.mu.Lock()
	now := visit{l.p.session, l.topic.made, leader}
	l.p.mu.Unlock()
	if l.visit != now {
		l.visit, l.checked = now, false
		l.stream = l.p.checkpoints.NewStream(l.name(), func(k publishers.Checkpoint) (publishers.Presence, error) {
			return l.lookUp(ctx, leader, k)
		})
	}
	select {
	case <-l.due.C:
		l.checked = false
	default:
	}
	if l.checked {
		return nil
	}
	loss, err := l.p.checkpoints.Check(l.stream)
	switch {
	case errors.Is(err, kafkago.TopicAuthorizationFailed):
		l.p.sayUnread(l.topic, err)
	case err != nil:
		return err
	case loss != nil:
		l.p.rewound(l.p.checkpoints.RewindTo(loss), loss.Cause)
		<-l.p.ctx.Done()
	}
	l.checked = true
	return ctx.Err()
}

// lookUp looks up a checkpoint at the leader of the partition.
func (l *lane) lookUp(ctx context.Context, leader string, k publishers.Checkpoint) (publishers.Presence, error) {
	at := int64(k.Position) - 1
	found := publishers.Unknown // retention or compaction removed the record
	end, err := l.fetch(ctx, leader, at, oneRecord, func(r *protocol.Record) {
		if r.Offset == at {
			found = publishers.Missing
			if n, ok := ours(r.Headers, l.p.spool); ok && n == k.Sequence {
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
	end, err = l.offset(ctx, leader, kafkago.LastOffset)
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
