package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/postbridge/postbridge/bridge"
)

const (
	// landmarksEach is how many landmarks are kept of a partition: there may be many partitions, and the note is short.
	landmarksEach = 3
	// landmarkLook is how often they are looked at by a lane that has nothing to do, or that goes on and on.
	landmarkLook = 30 * time.Second
	// blindFor is how long a lane waits that cannot look.
	blindFor = 30 * time.Second
	// oneRecord is asked for when one is looked at; a broker gives the whole batch all the same.
	oneRecord = 1
)

// identity stands for that of every partition: Kafka's own, of the topic, is not in what kafka-go reads.
const identity = "-"

// name is the partition in landmarks.
func (l *lane) name() string { return partitionName(l.topic.name, l.partition) }

func partitionName(topic string, partition int) string { return fmt.Sprintf("%s/%d", topic, partition) }

// landmark notes where the last of what was just stored is. If something was further on already, that is gone.
func (l *lane) landmark(last *entry, offset int64) {
	if !l.p.landmarks.Stored(l.name(), identity, spot(offset), last.delivery.Sequence) {
		l.looked = visit{}
	}
}

// spot is an offset in landmarks, which count from 1.
func spot(offset int64) uint64 { return uint64(offset) + 1 }

// visit is a stay at a leader of the partition, in one session with the cluster, between two times that the topic was made.
type visit struct {
	session, made int
	leader        string
}

// visit is the one now.
func (l *lane) visit(leader string) visit {
	l.p.mu.Lock()
	defer l.p.mu.Unlock()
	return visit{l.p.session, l.topic.made, leader}
}

// lookIfDue looks at the landmarks in each visit before anything is published, and now and then.
func (l *lane) lookIfDue(ctx context.Context, leader string) error {
	select {
	case <-l.due.C:
		l.looked = visit{}
	default:
	}
	now := l.visit(leader)
	if l.looked == now {
		return nil
	}
	if err := l.checkLandmarks(ctx, leader); err != nil {
		return err
	}
	l.looked = now
	return ctx.Err()
}

// checkLandmarks looks whether the partition still holds what it has stored. If it does not, the publisher is to be opened
// anew, and nothing more goes into the partition.
func (l *lane) checkLandmarks(ctx context.Context, leader string) error {
	loss, err := l.checkAt(ctx, leader)
	if errors.Is(err, kafkago.TopicAuthorizationFailed) {
		l.p.sayUnread(l.topic, err)
		err = nil
	}
	if err != nil {
		return l.unseen(ctx, leader, fmt.Errorf("cannot look whether it still holds what it stored: %w", err))
	}
	l.blind = time.Time{}
	if loss != nil {
		l.lose(loss)
		l.p.checkAll(ctx)
		l.p.rewound(l.lose(loss), loss.Why)
		<-l.p.ctx.Done()
	}
	return nil
}

// unseen is the error of a look, until a broker that can be reached has not let us look for long: what nobody can read, be
// it damaged, must not hold up what could be written.
func (l *lane) unseen(ctx context.Context, leader string, err error) error {
	if !fromBroker(err) {
		if _, away := l.offset(ctx, leader, kafkago.LastOffset); away != nil {
			return err
		}
	}
	if l.blind.IsZero() {
		l.blind = time.Now()
	}
	if time.Since(l.blind) < l.p.limits.blindFor {
		return err
	}
	l.p.log.Warn("going on without", "topic", l.topic.name, "partition", l.partition, "error", Plain(err))
	return nil
}

// checkAt may be called by other lanes, too.
func (l *lane) checkAt(ctx context.Context, leader string) (*bridge.Loss, error) {
	return l.p.landmarks.Check(l.name(), func() (bridge.Place, error) {
		return bridge.Place{Identity: identity, Look: func(m bridge.Landmark) (bridge.Sighting, error) {
			return l.sight(ctx, leader, m)
		}}, nil
	})
}

// checkAll looks at the landmarks of all partitions when one has lost events, so that all that is lost is published again
// at once.
func (p *Publisher) checkAll(ctx context.Context) {
	p.mu.Lock()
	leaders := make(map[*lane]string)
	for _, t := range p.topics {
		for i, l := range t.lanes {
			if i < len(t.leaders) && t.leaders[i] != "" {
				leaders[l] = t.leaders[i]
			}
		}
	}
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	for l, leader := range leaders {
		if loss, err := l.checkAt(ctx, leader); err != nil {
			p.log.Debug("cannot look whether the partition still holds what it stored", "partition", l.name(), "error", Plain(err))
		} else if loss != nil {
			l.lose(loss)
		}
	}
}

// lose notes what the partition has lost, and returns how far the bus holds what it stored in all partitions.
func (l *lane) lose(loss *bridge.Loss) (back uint64) {
	l.p.mu.Lock()
	l.p.lost[l.name()] = true
	l.p.mu.Unlock()
	return l.p.landmarks.Lose(l.name(), loss)
}

// sight looks at one landmark. A record that is not there may have been removed by retention or compaction; one at or
// behind the end of the partition was lost.
func (l *lane) sight(ctx context.Context, leader string, m bridge.Landmark) (bridge.Sighting, error) {
	at := int64(m.Position) - 1
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	resp, err := l.p.client.Fetch(ctx, &kafkago.FetchRequest{
		Addr: kafkago.TCP(leader), Topic: l.topic.name, Partition: l.partition, Offset: at, MaxBytes: oneRecord,
	})
	if err == nil {
		err = resp.Error
	}
	switch {
	case err == nil && resp.HighWatermark > at:
		return l.sightIn(resp.Records, at, m.Number)
	case err != nil && !errors.Is(err, kafkago.OffsetOutOfRange):
		return bridge.Unknown, err
	}
	end, err := l.offset(ctx, leader, kafkago.LastOffset)
	switch {
	case errors.Is(err, offsetNotAvailable):
		return bridge.Unknown, nil // a new leader does not know how far the others are
	case err != nil:
		return bridge.Unknown, err
	case end <= at:
		return bridge.Lost, nil
	default:
		return bridge.Unknown, nil
	}
}

// offsetNotAvailable is an error that kafka-go has no name for.
const offsetNotAvailable kafkago.Error = 78

// sightIn looks for the event of that number at an offset. What is read may begin before it.
func (l *lane) sightIn(records kafkago.RecordReader, at int64, number uint64) (bridge.Sighting, error) {
	for {
		r, err := records.ReadRecord()
		if errors.Is(err, io.EOF) {
			return bridge.Unknown, nil
		}
		if err != nil {
			return bridge.Unknown, fmt.Errorf("cannot read the record at offset %d: %w", at, err)
		}
		for _, b := range []protocol.Bytes{r.Key, r.Value} {
			if b != nil {
				_ = b.Close() // of memory
			}
		}
		switch {
		case r.Offset < at:
		case r.Offset > at:
			return bridge.Unknown, nil
		default:
			if n, ok := ours(r.Headers, l.p.spool); ok && n == number {
				return bridge.Held, nil
			}
			return bridge.Lost, nil
		}
	}
}

// keepLandmarks has the last landmarks before a pause kept.
func (p *Publisher) keepLandmarks() {
	if p.landmarks.Due() {
		p.takeNote()
	}
}
