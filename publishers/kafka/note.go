package kafka

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// position is how far a lane came in its partition.
type position struct {
	producer producer
	next     int32 // the number of the next record
	offset   int64 // all that we wrote before it is done
}

// producer is an idempotent producer, as Kafka names it.
type producer struct {
	id    int64
	epoch int16
}

// with is the position of another producer, which begins at a place: there, if p is behind it, in a partition that ended
// before p.
func (p position) with(at position) position {
	at.offset = min(p.offset, at.offset)
	return at
}

// place is what is noted of one partition. Guarded by notes.mu.
type place struct {
	topic     string
	partition int

	// noted is the lane's position when all up to some event was done that is not beyond the cursor. What the lane
	// stored since then, marks has by the number of the event, which grows.
	noted position
	marks []mark
}

type mark struct {
	number uint64
	at     position
}

// notes is what the next start has to know of the partitions, so that it does not store again what is stored. As text it
// is a line that names the cluster, and a line for each partition that was written to:
//
//	cluster <id>
//	<topic> <partition> <producer id> <producer epoch> <next number> <offset>
type notes struct {
	mu sync.Mutex
	// Guarded by mu.
	cluster string
	places  []*place
}

// parse takes what was noted by the run before.
func (n *notes) parse(text []byte) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for line := range strings.Lines(string(text)) {
		pl := new(place)
		_, err := fmt.Sscanf(line, "%s %d %d %d %d %d", &pl.topic, &pl.partition,
			&pl.noted.producer.id, &pl.noted.producer.epoch, &pl.noted.next, &pl.noted.offset)
		switch cluster, ok := strings.CutPrefix(line, "cluster "); {
		case ok:
			n.cluster = strings.TrimSpace(cluster)
		case err != nil || pl.line() != line:
			n.places = nil
			return errors.New("a line of it is not one of six fields")
		default:
			n.places = append(n.places, pl)
		}
	}
	return nil
}

// adopt takes the cluster that there is. False says that it is another than the one that the notes are of, which are gone
// now.
func (n *notes) adopt(cluster string) (same bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	same = n.cluster == cluster || n.cluster == ""
	if !same {
		n.places = nil
	}
	n.cluster = cluster
	return same
}

// rewind is for the next publisher after the bus lost events, which offers again what is behind them: it has to look for that
// from further back than is noted here. Who wrote to a partition it has to know still, as a batch may be on its way there,
// but not of one that is lost, which does not know the numbers either.
func (n *notes) rewind(lost map[string]bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.places = slices.DeleteFunc(n.places, func(pl *place) bool { return lost[partitionName(pl.topic, pl.partition)] })
	for _, pl := range n.places {
		pl.noted.offset, pl.marks = 0, nil
	}
}

// clusterID is the cluster that there is.
func (n *notes) clusterID() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cluster
}

// find returns the noted position of a partition.
func (n *notes) find(topic string, partition int) (position, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if pl := n.place(topic, partition); pl != nil {
		return pl.noted, true
	}
	return position{}, false
}

// place needs mu.
func (n *notes) place(topic string, partition int) *place {
	for _, pl := range n.places {
		if pl.topic == topic && pl.partition == partition {
			return pl
		}
	}
	return nil
}

// begin notes a producer that is new to the partition, before it writes. Where there was another, all up to there that
// is not done can be found in the partition.
func (n *notes) begin(topic string, partition int, at position) {
	n.mu.Lock()
	defer n.mu.Unlock()
	pl := n.place(topic, partition)
	if pl == nil {
		pl = &place{topic: topic, partition: partition, noted: at}
		n.places = append(n.places, pl)
	}
	pl.noted = pl.noted.with(at)
	for i := range pl.marks {
		pl.marks[i].at = pl.marks[i].at.with(at)
	}
}

// stored notes that the lane came to a position, by storing events up to the number, which is one that is not done.
func (n *notes) stored(topic string, partition int, number uint64, at position) {
	n.mu.Lock()
	defer n.mu.Unlock()
	pl := n.place(topic, partition)
	if pl == nil {
		return // of another cluster
	}
	if len(pl.marks) > 0 {
		// Dead letters come late. What counts is when all of them are done.
		number = max(number, pl.marks[len(pl.marks)-1].number)
	}
	pl.marks = append(pl.marks, mark{number, at})
}

// asOf is the text as of the time when all up to that event was done.
func (n *notes) asOf(committed uint64) []byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	text := fmt.Appendf(nil, "cluster %s\n", n.cluster)
	for _, pl := range n.places {
		pl.pass(committed)
		text = append(text, pl.line()...)
	}
	return text
}

// pass takes the marks over that are up to that event.
func (pl *place) pass(committed uint64) {
	for len(pl.marks) > 0 && pl.marks[0].number <= committed {
		pl.noted, pl.marks = pl.marks[0].at, pl.marks[1:]
	}
}

// line is noted, as text.
func (pl *place) line() string {
	p := pl.noted
	return fmt.Sprintf("%s %d %d %d %d %d\n", pl.topic, pl.partition, p.producer.id, p.producer.epoch, p.next, p.offset)
}
