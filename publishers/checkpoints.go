package publishers

import (
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"sync"
	"time"
)

const (
	// keep limits the checkpoints of a stream. A bus may have hundreds of partitions, and all checkpoints are written a
	// few times a second. Five reach back over 100,000 events in steps that grow by a factor of about 18.
	keep = 5
	// confirmFor is how long a loss must persist: a newly elected leader may answer before it has applied its log.
	confirmFor = 3 * time.Second
	// BlindFor is how long a failing check blocks events.
	BlindFor = 30 * time.Second
	// checkOthersFor limits the checks of the other streams after a loss.
	checkOthersFor = 5 * time.Second
)

// Checkpoint records where a bus stored an event. A stream that no longer has the event there has lost every event
// stored since: it was restored from an older copy, or deleted and created again.
type Checkpoint struct {
	// Identity tells a stream from a later one of the same name. It has no spaces.
	Identity string
	// Position is that of the event in the stream, from 1 on, and Sequence is its number in the spool.
	Position, Sequence uint64
	// Committed is a sequence up to which every event of the stream is stored at Position or before.
	Committed uint64
}

// Presence is the result of the lookup of a checkpoint.
type Presence int

const (
	// Present means that the event is at its position.
	Present Presence = iota
	// Missing means that another event is at the position, or that the stream ends before it.
	Missing
	// Unknown means that retention, compaction or a purge may have removed it, or that the answering node may lag.
	Unknown
)

// Stream is a JetStream stream or a Kafka partition in one session with the bus.
type Stream struct {
	name   string
	lookup func(Checkpoint) (Presence, error)
	last   outcome   // of the last check
	since  time.Time // every check since has had the last outcome
}

type outcome struct{ failed, lost bool }

// Loss reports that a stream lost events with a spool sequence above RewindTo. Cause names the first missing
// checkpoint.
type Loss struct {
	RewindTo uint64
	Cause    error
}

// Checkpoints holds the checkpoints of all streams of a bus. They are part of the publisher state, one line each,
// those of a stream from the oldest to the newest:
//
//	checkpoint <stream> <identity> <position> <sequence> <committed>
//
// Earlier releases wrote "landmark" for checkpoint, and a time at the end, which is ignored.
type Checkpoints struct {
	blindFor time.Duration
	log      *slog.Logger

	mu      sync.Mutex
	streams map[string]*history
}

// history holds the checkpoints of one stream.
type history struct {
	saved []Checkpoint // in the state, oldest first
	last  Checkpoint   // of the stored event with the highest position; zero if none is known
	// appended says that this run stored an event. Until then it has found only what an earlier run had stored, and
	// events that were found as well, and committed, may lie behind the last.
	appended bool
	// intact is the position up to which the last check found the stream intact.
	intact uint64
	stream *Stream // of the last session; nil before
}

// LoadCheckpoints reads the checkpoints in a publisher state, and returns its other lines. blindFor is BlindFor
// except in tests.
func LoadCheckpoints(state []byte, blindFor time.Duration, log *slog.Logger) (c *Checkpoints, rest []byte) {
	c = &Checkpoints{blindFor: blindFor, log: log, streams: make(map[string]*history)}
	for line := range bytes.Lines(state) {
		var word, stream string
		var k Checkpoint
		_, err := fmt.Sscan(string(line), &word, &stream, &k.Identity, &k.Position, &k.Sequence, &k.Committed)
		if err != nil || word != "checkpoint" && word != "landmark" {
			rest = append(rest, line...)
			continue
		}
		h := c.history(stream)
		h.last = k
		h.add(k)
	}
	return c, rest
}

// history returns the history of a stream, new if there is none. Guarded by mu.
func (c *Checkpoints) history(stream string) *history {
	h := c.streams[stream]
	if h == nil {
		h = &history{intact: math.MaxUint64}
		c.streams[stream] = h
	}
	return h
}

// Stored records that an event was stored now. False means that the stream had stored an event at or behind the
// position before, so it has lost events and must be checked.
func (c *Checkpoints) Stored(stream, identity string, position, sequence uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.history(stream)
	if h.last.Identity == identity && h.last.Position >= position {
		return false
	}
	h.last, h.appended = Checkpoint{Identity: identity, Position: position, Sequence: sequence}, true
	return true
}

// Found records that a lookup found an event stored earlier. Without a checkpoint before it, it is ignored: it does not
// prove that earlier events are stored.
func (c *Checkpoints) Found(stream, identity string, position, sequence uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h := c.history(stream); h.last.Identity == identity && h.last.Position < position {
		h.last = Checkpoint{Identity: identity, Position: position, Sequence: sequence}
	}
}

// State returns the lines of the publisher state when every event up to committed is done.
func (c *Checkpoints) State(committed uint64) (lines []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, stream := range slices.Sorted(maps.Keys(c.streams)) {
		h := c.streams[stream]
		h.save(committed)
		for _, k := range h.saved {
			lines = fmt.Appendf(lines, "checkpoint %s %s %d %d %d\n",
				stream, k.Identity, k.Position, k.Sequence, k.Committed)
		}
	}
	return lines
}

// save adds the last checkpoint to the state. While nothing is committed, no rewind needs one.
func (h *history) save(committed uint64) {
	n := len(h.saved)
	if h.last == (Checkpoint{}) || n > 0 && h.saved[n-1] == h.last || committed == 0 {
		return
	}
	if !h.appended {
		committed = h.saved[n-1].Committed
	}
	h.last.Committed = committed
	h.add(h.last)
}

// add evicts the most redundant checkpoint above the limit: the one whose neighbors are closest to each other in
// proportion to how much a rewind to them would publish again. So their distances grow exponentially.
func (h *history) add(k Checkpoint) {
	h.saved = append(h.saved, k)
	if len(h.saved) <= keep {
		return
	}
	distance := func(i int) float64 { return float64(k.Committed) - float64(h.saved[i].Committed) + 1 }
	evict := 1
	for i := 2; i < keep; i++ {
		if distance(i-1)/distance(i+1) < distance(evict-1)/distance(evict+1) {
			evict = i
		}
	}
	h.saved = slices.Delete(h.saved, evict, evict+1)
}

// NewStream begins a session with a stream, whose name has no spaces. lookup looks up the event of a checkpoint; an
// error means that the bus did not answer.
func (c *Checkpoints) NewStream(name string, lookup func(Checkpoint) (Presence, error)) *Stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &Stream{name: name, lookup: lookup}
	c.history(name).stream = s
	return s
}

// Check looks up the checkpoints of a stream. On an error, events must wait and the check must be repeated. It
// returns a loss that has persisted for confirmFor, and nil if no loss is known or the check has failed for
// blindFor: a stream that cannot be read must not block writes.
func (c *Checkpoints) Check(s *Stream) (*Loss, error) {
	loss, err := c.lookupAll(s)
	if now := (outcome{err != nil, loss != nil}); s.since.IsZero() || s.last != now {
		s.last, s.since = now, time.Now()
	}
	switch age := time.Since(s.since); {
	case err != nil && age < c.blindFor:
		return nil, fmt.Errorf("cannot check whether it still has what it stored: %w", err)
	case err != nil:
		c.log.Warn("cannot check whether the stream still has what it stored; going on without",
			"stream", s.name, "error", err)
		return nil, nil
	case loss != nil && age < confirmFor:
		return nil, fmt.Errorf("checking again whether it has lost events: %w", loss.Cause)
	}
	return loss, nil
}

// lookupAll looks up all checkpoints of a stream: one that is present proves nothing about those before it, as it
// may have been stored after the loss.
func (c *Checkpoints) lookupAll(s *Stream) (loss *Loss, err error) {
	c.mu.Lock()
	h := c.history(s.name)
	checkpoints := slices.Compact(append(slices.Clone(h.saved), h.last))
	c.mu.Unlock()
	intact, rewindTo := uint64(0), uint64(0)
	for _, k := range checkpoints {
		if k == (Checkpoint{}) {
			continue // nothing was stored
		}
		presence, err := s.lookup(k)
		if err != nil {
			return nil, err
		}
		if presence == Present {
			intact, rewindTo = k.Position, k.Committed
		}
		if presence == Missing {
			loss = &Loss{rewindTo, fmt.Errorf("%s no longer has event %d at %d", s.name, k.Sequence, k.Position)}
			break
		}
	}
	if loss == nil {
		intact = math.MaxUint64
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	h.intact = intact
	return loss, nil
}

// RewindTo returns the sequence to rewind to after a loss. It checks the other streams too, so that one rewind
// covers all; a stream that does not answer is left to the next publisher.
func (c *Checkpoints) RewindTo(loss *Loss) uint64 {
	c.mu.Lock()
	var all []*Stream
	for _, h := range c.streams {
		if h.stream != nil {
			all = append(all, h.stream)
		}
	}
	c.mu.Unlock()
	sequence, begin := loss.RewindTo, time.Now()
	for _, s := range all {
		if time.Since(begin) > checkOthersFor {
			break
		}
		if other, err := c.lookupAll(s); err == nil && other != nil {
			sequence = min(sequence, other.RewindTo)
		}
	}
	return sequence
}

// Rewind drops the checkpoints that are missing and those above committed, and returns the streams that lost events.
// Until then they stay in the state, so that a run which starts from it finds the loss again.
func (c *Checkpoints) Rewind(committed uint64) (lost map[string]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	lost = make(map[string]bool)
	for stream, h := range c.streams {
		lost[stream] = h.intact < math.MaxUint64
		h.last = Checkpoint{}
		h.saved = slices.DeleteFunc(h.saved, func(k Checkpoint) bool {
			return k.Position > h.intact || k.Committed > committed
		})
	}
	return lost
}

// Forget drops all checkpoints, since they belong to another bus.
func (c *Checkpoints) Forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.streams)
}
