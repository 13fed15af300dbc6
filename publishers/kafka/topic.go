package kafka

import (
	"cmp"
	"slices"
	"sync"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers"
)

// topic writes the copies of one destination. Publisher.mu guards the fields that change, except unread and sending.
type topic struct {
	p    *Publisher
	name string

	writers    []*partitionWriter // by partition; nil until the topic is known
	partitions []int              // the indexes of writers
	leaders    []string
	waiting    []*entry // without a writer: the topic is not known yet, or the writers change

	// wanted is the new number of partitions while it differs from len(writers), else 0. The writers end, one after the
	// other, and new ones begin once the last has ended.
	wanted int
	ended  int       // number of writers that have ended
	fewer  time.Time // since when the topic seems to have fewer partitions; zero if it does not

	failing publishers.Condition[*partitionWriter] // blocks writers
	made    int                                    // creations begun; changed while holding sending, too
	unread  sync.Once                              // logs that we may not read it

	// sending is locked for reading from the check of the checkpoints to the answer to a batch.
	sending sync.RWMutex
}

// shrinkAfter is how long the metadata must have fewer partitions before they count as removed. A broker that just
// started may not know all of them yet.
const shrinkAfter = 5 * time.Second

func newTopic(p *Publisher, dest bridge.Destination) *topic {
	name := topicName(p.cfg.Prefix, dest)
	report := func(name string, err error) { p.report(name, publishers.WithRemedy(err, produceRemedy(err))) }
	failing := publishers.Condition[*partitionWriter]{Name: "publishing to " + name, Report: report}
	return &topic{p: p, name: name, failing: failing}
}

func topicName(prefix string, dest bridge.Destination) string {
	if prefix == "" {
		return string(dest)
	}
	return prefix + "." + string(dest)
}

// push queues the event at the writer of its partition; without writers it waits. Needs mu, as do all functions below
// that do not lock it.
func (t *topic) push(e *entry) {
	if t.writers == nil || t.wanted > 0 {
		t.waiting = append(t.waiting, e)
		return
	}
	t.writerOf(e.key).push(e)
}

// writerOf chooses the partition of a key as Java clients do.
func (t *topic) writerOf(key string) *partitionWriter {
	return t.writers[kafkago.Murmur2Balancer{}.Balance(kafkago.Message{Key: []byte(key)}, t.partitions...)]
}

// checkPartitions updates the partitions, and logs a warning if their number changed. It is called without mu.
func (t *topic) checkPartitions(m kafkago.Topic) {
	t.p.mu.Lock()
	before := t.update(m)
	t.p.mu.Unlock()
	if before > 0 {
		t.p.log.Warn("the number of partitions changed: orders go to other partitions than before, "+
			"and consumers that count on them see an order in two",
			"topic", t.name, "before", before, "now", len(m.Partitions))
	}
}

// update updates the partitions and their leaders. It returns the former number of partitions if it changed, else 0.
func (t *topic) update(m kafkago.Topic) (before int) {
	leaders := make([]string, len(m.Partitions))
	for _, part := range m.Partitions {
		if part.ID < len(leaders) {
			leaders[part.ID] = HostPort(part.Leader)
		}
	}
	before = t.resize(len(leaders))
	old := t.leaders
	t.leaders = leaders
	for i, w := range t.writers {
		if i < len(leaders) && leaders[i] != "" && (i >= len(old) || leaders[i] != old[i]) {
			signal(w.wake)
		}
	}
	return before
}

// resize sets the number of partitions, and returns the one before if it changed, else 0. A change moves keys to other
// partitions: the writers end first, so that an order's next event is sent when the one before it is stored.
func (t *topic) resize(n int) (before int) {
	now := max(t.wanted, len(t.writers))
	switch {
	case n == now:
		t.fewer = time.Time{}
	case t.writers == nil:
		t.begin(n)
	case t.wanted > 0: // one change at a time
	case n < now && t.fewer.IsZero():
		t.fewer = time.Now()
	case n < now && time.Since(t.fewer) < t.p.limits.shrinkAfter:
	default:
		t.wanted, t.ended, t.fewer = n, 0, time.Time{}
		for _, w := range t.writers {
			signal(w.wake)
		}
		return now
	}
	return 0
}

// begin starts the writers and queues the waiting events.
func (t *topic) begin(n int) {
	t.writers, t.partitions, t.wanted = make([]*partitionWriter, n), make([]int, n), 0
	for i := range t.writers {
		t.writers[i], t.partitions[i] = newPartitionWriter(t, i), i
	}
	waiting := t.waiting
	t.waiting = nil
	slices.SortStableFunc(waiting, func(a, b *entry) int {
		return cmp.Compare(a.delivery.Sequence, b.delivery.Sequence)
	})
	for _, e := range waiting {
		t.push(e)
	}
	for _, w := range t.writers {
		t.p.running.Go(w.run)
	}
}

// end collects the events that a writer has not stored, for the next writers.
func (t *topic) end(left []*entry) {
	t.waiting = append(t.waiting, left...)
	t.ended++
	if t.ended == len(t.writers) {
		t.begin(t.wanted)
	}
}

// logUnread warns, once for a topic, that there is no permission to read it.
func (t *topic) logUnread(err error) {
	t.unread.Do(func() {
		t.p.log.Warn("no permission to read what the topic holds: events may be stored twice after a crash; "+
			"allow Read on it", "topic", t.name, "error", Plain(err))
	})
}
