package kafka

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// position is how far a partition was written.
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

// replacedBy returns the position of a new producer. A recovery scan still begins where p says, or at the new position
// if the partition now ends before p.
func (p position) replacedBy(at position) position {
	at.offset = min(p.offset, at.offset)
	return at
}

// savedState is the publisher state of all partitions: what the next run needs in order to store no event twice. Its
// text names the cluster and has a line for each partition that was written:
//
//	cluster <id>
//	<topic> <partition> <producer id> <producer epoch> <next sequence number> <offset>
type savedState struct {
	mu sync.Mutex
	// Guarded by mu.
	cluster    string
	partitions []*savedPartition
}

// savedPartition holds the positions of one partition, with the spool sequence up to which everything has to be
// committed before each counts. Sequences grow. The first position counts already: it is the one to be saved.
type savedPartition struct {
	topic     string
	partition int
	reached   []reachedPosition
}

type reachedPosition struct {
	sequence uint64
	at       position
}

// parse reads the state that an earlier run saved.
func (s *savedState) parse(text []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for line := range strings.Lines(string(text)) {
		if cluster, ok := strings.CutPrefix(line, "cluster "); ok {
			s.cluster = strings.TrimSpace(cluster)
			continue
		}
		sp, at := new(savedPartition), position{}
		_, err := fmt.Sscanf(line, "%s %d %d %d %d %d",
			&sp.topic, &sp.partition, &at.producer.id, &at.producer.epoch, &at.next, &at.offset)
		sp.reached = []reachedPosition{{at: at}}
		if err != nil || sp.line() != line {
			s.partitions = nil
			return errors.New("a line of it is not one of six fields")
		}
		s.partitions = append(s.partitions, sp)
	}
	return nil
}

// setCluster sets the cluster and reports whether it is still the same. The positions in another one are dropped.
func (s *savedState) setCluster(cluster string) (same bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	same = s.cluster == cluster || s.cluster == ""
	if !same {
		s.partitions = nil
	}
	s.cluster = cluster
	return same
}

// rewind prepares the state for the publisher that follows a loss: the recovery scans of it begin at the first
// offset, as events behind the saved ones are published again. Producers are kept, since their batches may still
// land, except those of the partitions that lost events, which do not know their sequence numbers either.
func (s *savedState) rewind(lost map[string]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.partitions = slices.DeleteFunc(s.partitions, func(sp *savedPartition) bool {
		return lost[partitionName(sp.topic, sp.partition)]
	})
	for _, sp := range s.partitions {
		sp.reached = sp.reached[:1]
		sp.reached[0].at.offset = 0
	}
}

// clusterID returns the cluster that the positions are of; empty until one is known.
func (s *savedState) clusterID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cluster
}

// position returns the saved position of a partition.
func (s *savedState) position(topic string, partition int) (at position, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sp := s.find(topic, partition); sp != nil {
		return sp.reached[0].at, true
	}
	return position{}, false
}

// find returns the positions of a partition; nil if it was not written. It needs mu.
func (s *savedState) find(topic string, partition int) *savedPartition {
	i := slices.IndexFunc(s.partitions, func(sp *savedPartition) bool {
		return sp.topic == topic && sp.partition == partition
	})
	if i < 0 {
		return nil
	}
	return s.partitions[i]
}

// setProducer records a producer that is new to a partition, before it writes. It counts at once.
func (s *savedState) setProducer(topic string, partition int, at position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sp := s.find(topic, partition)
	if sp == nil {
		sp = &savedPartition{topic: topic, partition: partition, reached: []reachedPosition{{at: at}}}
		s.partitions = append(s.partitions, sp)
	}
	for i := range sp.reached {
		sp.reached[i].at = sp.reached[i].at.replacedBy(at)
	}
}

// advance records the position that a partition writer reached. It counts once every event up to the sequence, which
// is the highest one that was stored or found on the way, is committed.
func (s *savedState) advance(topic string, partition int, sequence uint64, at position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sp := s.find(topic, partition)
	if sp == nil {
		return // the cluster is another one now
	}
	// Dead letters come in any order, so the sequence may be lower than one before.
	sequence = max(sequence, sp.reached[len(sp.reached)-1].sequence)
	sp.reached = append(sp.reached, reachedPosition{sequence, at})
}

// encode returns the text of the state as of when every event up to committed was done.
func (s *savedState) encode(committed uint64) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := fmt.Appendf(nil, "cluster %s\n", s.cluster)
	for _, sp := range s.partitions {
		for len(sp.reached) > 1 && sp.reached[1].sequence <= committed {
			sp.reached = sp.reached[1:]
		}
		text = append(text, sp.line()...)
	}
	return text
}

// line returns the first position as a line of the state.
func (sp *savedPartition) line() string {
	p := sp.reached[0].at
	return fmt.Sprintf("%s %d %d %d %d %d\n", sp.topic, sp.partition, p.producer.id, p.producer.epoch, p.next, p.offset)
}
