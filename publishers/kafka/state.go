package kafka

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// position describes how far a partition was written.
type position struct {
	producer producer
	next     int32 // the producer's sequence number for the next record
	offset   int64 // where a recovery scan begins: each of our events before it is stored and completed
}

// producer identifies an idempotent producer.
type producer struct {
	id    int64
	epoch int16
}

// savedState holds the publisher state of all partitions, with which the next run stores no event twice. Its text names
// the cluster and has a line for each partition that was written:
//
//	cluster <id>
//	<topic> <partition> <producer id> <producer epoch> <next sequence number> <offset>
type savedState struct {
	mu sync.Mutex
	// Guarded by mu.
	cluster    string
	partitions map[string][]reachedPosition // by partitionName
}

// reachedPosition is a position of a partition, and the spool sequence up to which everything has to be committed
// before it counts. In a partition, sequences grow. The first position counts already: it is the one to be saved.
type reachedPosition struct {
	sequence uint64
	at       position
}

// parse reads the state that an earlier run saved.
func (s *savedState) parse(text []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.partitions = make(map[string][]reachedPosition)
	for line := range strings.Lines(string(text)) {
		if cluster, ok := strings.CutPrefix(line, "cluster "); ok {
			s.cluster = strings.TrimSpace(cluster)
			continue
		}
		var topic string
		var partition int
		var at position
		_, err := fmt.Sscanf(line, "%s %d %d %d %d %d",
			&topic, &partition, &at.producer.id, &at.producer.epoch, &at.next, &at.offset)
		name := partitionName(topic, partition)
		if err != nil || stateLine(name, at) != line {
			clear(s.partitions)
			return errors.New("a line of it does not have six fields")
		}
		s.partitions[name] = []reachedPosition{{at: at}}
	}
	return nil
}

// stateLine returns the line of a partition.
func stateLine(name string, at position) string {
	return fmt.Sprintf("%s %d %d %d %d\n",
		strings.Replace(name, "/", " ", 1), at.producer.id, at.producer.epoch, at.next, at.offset)
}

// encode returns the text of the state as of when every event up to committed was done.
func (s *savedState) encode(committed uint64) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := fmt.Appendf(nil, "cluster %s\n", s.cluster)
	for _, name := range slices.Sorted(maps.Keys(s.partitions)) {
		reached := s.partitions[name]
		for len(reached) > 1 && reached[1].sequence <= committed {
			reached = reached[1:]
		}
		s.partitions[name] = reached
		text = append(text, stateLine(name, reached[0].at)...)
	}
	return text
}

// setCluster sets the cluster and reports whether it is still the same. The positions in another one are dropped.
func (s *savedState) setCluster(cluster string) (same bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	same = s.cluster == cluster || s.cluster == ""
	if !same {
		clear(s.partitions)
	}
	s.cluster = cluster
	return same
}

// clusterID returns the cluster that the positions are of; empty until one is known.
func (s *savedState) clusterID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cluster
}

// rewind prepares the state for the publisher that follows a loss: the recovery scans of it begin at the first
// offset, as events behind the saved ones are published again. Producers are kept, since their batches may still
// land, except those of the partitions that lost events, which do not know their sequence numbers either.
func (s *savedState) rewind(lost map[string]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.partitions, func(name string, _ []reachedPosition) bool { return lost[name] })
	for name, reached := range s.partitions {
		reached[0].at.offset = 0
		s.partitions[name] = reached[:1]
	}
}

// position returns the saved position of a partition; ok is false if it was not written.
func (s *savedState) position(name string) (at position, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if reached := s.partitions[name]; len(reached) > 0 {
		return reached[0].at, true
	}
	return position{}, false
}

// setProducer records a producer that is new to a partition, before it writes. It counts at once. A recovery scan still
// begins where it did, or at the new position if the partition now ends before.
func (s *savedState) setProducer(name string, at position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.partitions[name] == nil {
		s.partitions[name] = []reachedPosition{{at: at}}
	}
	for i := range s.partitions[name] {
		p := &s.partitions[name][i].at
		*p = position{at.producer, at.next, min(p.offset, at.offset)}
	}
}

// advance records the position that a partition writer reached. It counts once every event up to the sequence, which
// is the highest one that was stored or found on the way, is committed.
func (s *savedState) advance(name string, sequence uint64, at position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	reached := s.partitions[name]
	if reached == nil {
		return // the cluster is another one now
	}
	// Dead letters come in any order, so the sequence may be lower than one before.
	sequence = max(sequence, reached[len(reached)-1].sequence)
	s.partitions[name] = append(reached, reachedPosition{sequence, at})
}
