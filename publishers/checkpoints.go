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
	// keep limits the checkpoints of a stream, all of which are written a few times a second. Five reach back over
	// 100,000 events in steps that grow by a factor of about 18.
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
	streams map[string]*Stream
}

// Stream is a JetStream stream or a Kafka partition with its checkpoints. Checkpoints.mu guards its fields.
type Stream struct {
	name  string
	saved []Checkpoint // in the state, oldest first
	// last is that of the stored event with the highest position; zero if none is known. Its Committed is 0 until it
	// is saved, if it was stored now.
	last Checkpoint

	lookup  func(Checkpoint) (Presence, error) // of the last session with the bus; nil before
	intact  uint64                             // the position up to which the last check found the stream intact
	outcome outcome                            // of the last check
	since   time.Time                          // every check since has had this outcome
}

type outcome struct{ failed, lost bool }

// LoadCheckpoints reads the checkpoints in a publisher state, and returns its other lines. blindFor is BlindFor
// except in tests.
func LoadCheckpoints(state []byte, blindFor time.Duration, log *slog.Logger) (c *Checkpoints, rest []byte) {
	c = &Checkpoints{blindFor: blindFor, log: log, streams: make(map[string]*Stream)}
	for line := range bytes.Lines(state) {
		var word, name string
		var k Checkpoint
		_, err := fmt.Sscan(string(line), &word, &name, &k.Identity, &k.Position, &k.Sequence, &k.Committed)
		if err != nil || word != "checkpoint" && word != "landmark" {
			rest = append(rest, line...)
			continue
		}
		s := c.stream(name)
		s.last = k
		s.add(k)
	}
	return c, rest
}

// stream returns the stream of a name, new if there is none. Needs mu.
func (c *Checkpoints) stream(name string) *Stream {
	if c.streams[name] == nil {
		c.streams[name] = &Stream{name: name, intact: math.MaxUint64}
	}
	return c.streams[name]
}

// NewStream begins a session with a stream, whose name has no spaces. lookup looks up the event of a checkpoint; an
// error means that the bus did not answer.
func (c *Checkpoints) NewStream(name string, lookup func(Checkpoint) (Presence, error)) *Stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stream(name)
	s.lookup, s.since = lookup, time.Time{}
	return s
}

// Stored records that an event was stored now. False means that the stream had stored an event at or behind the
// position before, so it has lost events and must be checked.
func (c *Checkpoints) Stored(stream, identity string, position, sequence uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stream(stream)
	if s.last.Identity == identity && s.last.Position >= position {
		return false
	}
	s.last = Checkpoint{Identity: identity, Position: position, Sequence: sequence}
	return true
}

// Found records that a lookup found an event stored earlier. It proves no more than the checkpoint before it about
// other events, which may have been stored behind it, and is ignored without one.
func (c *Checkpoints) Found(stream, identity string, position, sequence uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.stream(stream); s.last.Identity == identity && s.last.Position < position {
		s.last.Position, s.last.Sequence = position, sequence
	}
}

// State returns the lines of the publisher state when every event up to committed is done.
func (c *Checkpoints) State(committed uint64) (lines []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(c.streams)) {
		s := c.streams[name]
		s.save(committed)
		for _, k := range s.saved {
			lines = fmt.Appendf(lines, "checkpoint %s %s %d %d %d\n",
				name, k.Identity, k.Position, k.Sequence, k.Committed)
		}
	}
	return lines
}

// save adds the last checkpoint to the state. While nothing is committed, no rewind needs one.
func (s *Stream) save(committed uint64) {
	n := len(s.saved)
	if s.last == (Checkpoint{}) || n > 0 && s.saved[n-1] == s.last || committed == 0 {
		return
	}
	if s.last.Committed == 0 {
		s.last.Committed = committed
	}
	s.add(s.last)
}

// add evicts the most redundant checkpoint above the limit: the one whose neighbors are closest to each other in
// proportion to how much a rewind to them would publish again. So their distances grow exponentially.
func (s *Stream) add(k Checkpoint) {
	s.saved = append(s.saved, k)
	if len(s.saved) <= keep {
		return
	}
	distance := func(i int) float64 { return float64(k.Committed) - float64(s.saved[i].Committed) + 1 }
	evict := 1
	for i := 2; i < keep; i++ {
		if distance(i-1)/distance(i+1) < distance(evict-1)/distance(evict+1) {
			evict = i
		}
	}
	s.saved = slices.Delete(s.saved, evict, evict+1)
}

// Check looks up the checkpoints of a stream. On an error, events must wait and the check must be repeated. It
// returns a loss that has persisted for confirmFor, and nil if no loss is known or the check has failed for
// blindFor: a stream that cannot be read must not block writes.
func (c *Checkpoints) Check(s *Stream) (*Loss, error) {
	loss, err := c.lookupAll(s)
	c.mu.Lock()
	if now := (outcome{err != nil, loss != nil}); s.since.IsZero() || s.outcome != now {
		s.outcome, s.since = now, time.Now()
	}
	age := time.Since(s.since)
	c.mu.Unlock()
	switch {
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
	checkpoints, lookup := slices.Clone(s.saved), s.lookup
	if s.last != (Checkpoint{}) {
		checkpoints = append(checkpoints, s.last)
	}
	c.mu.Unlock()
	var present Checkpoint // the last one
	intact := uint64(math.MaxUint64)
	for _, k := range slices.Compact(checkpoints) {
		presence, err := lookup(k)
		if err != nil {
			return nil, err
		}
		if presence == Present {
			present = k
		}
		if presence == Missing {
			intact = present.Position
			cause := fmt.Errorf("%s no longer has event %d at %d", s.name, k.Sequence, k.Position)
			loss = &Loss{present.Committed, cause}
			break
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s.intact = intact
	return loss, nil
}

// RewindTo returns the sequence to rewind to after a loss. It checks the other streams too, so that one rewind
// covers all; a stream that does not answer is left to the next publisher.
func (c *Checkpoints) RewindTo(loss *Loss) uint64 {
	c.mu.Lock()
	all := slices.DeleteFunc(slices.Collect(maps.Values(c.streams)), func(s *Stream) bool { return s.lookup == nil })
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

// Rewind drops the checkpoints of lost events, and returns the streams that lost some. Until then they stay in the
// state, so that a run which starts from it finds the loss again. All others stay: a stream that did not answer may
// have lost older events.
func (c *Checkpoints) Rewind() (lost map[string]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	lost = make(map[string]bool)
	for name, s := range c.streams {
		lost[name] = s.intact < math.MaxUint64
		s.last = Checkpoint{}
		s.saved = slices.DeleteFunc(s.saved, func(k Checkpoint) bool { return k.Position > s.intact })
	}
	return lost
}

// Forget drops all checkpoints, since they belong to another bus.
func (c *Checkpoints) Forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.streams {
		s.saved, s.last = nil, Checkpoint{}
	}
}
