package spool

import (
	"errors"
	"os"
	"time"
)

// ahead is a segment that is made before it is needed, so that no Append waits for the directory. Its file stays empty
// until the writer takes it: an empty file holds nothing, and Open removes it.
type ahead struct {
	first uint64
	made  chan struct{} // closed once file is set
	file  File          // nil if it could not be made
}

// upkeep is the goroutine for what the directory takes long to do and nobody waits for: it makes the next segment and
// raises the high-water marks ahead of need, and removes what has been published for long enough, or for less time if
// space gets low.
func (s *Spool) upkeep() {
	defer s.finished.Done()
	tick := time.NewTicker(housekeeping)
	defer tick.Stop()
	for {
		select {
		case <-s.chores:
		case <-tick.C:
			_ = s.measure() // said once
			s.stuck = false
		case <-s.failed:
			return
		case <-s.closing:
			return
		}
		for more := true; more; {
			s.makeAhead()
			s.raiseMarks()
			more = s.removeOldest()
		}
	}
}

// raiseMarks raises the high-water marks that will be reached next.
func (s *Spool) raiseMarks() {
	for _, c := range s.cursors {
		s.mu.Lock()
		_, due := c.higherMark()
		s.mu.Unlock()
		if due {
			s.raiseOffered(c)
		}
	}
}

// complain leaves the directory alone until the next housekeeping. Only the first error since a removal is logged: it is
// tried again every second.
func (s *Spool) complain(what, segment string, err error) {
	if !s.complained {
		s.o.Log.Error(what+"; it is tried again every second", "segment", segment, "error", err)
	}
	s.stuck, s.complained = true, true
}

// measure looks how much space the disk has. If that cannot be told, what was known before holds.
func (s *Spool) measure() error {
	s.mu.Lock()
	written := s.written
	s.mu.Unlock()
	free, err := s.fs.Free()
	if err != nil && !s.blind {
		s.o.Log.Error("cannot measure the free space of the spool's disk", "error", err)
	}
	if s.blind = err != nil; !s.blind {
		s.mu.Lock()
		s.free = free - (s.promised - written) // of which some may be written by now
		s.mu.Unlock()
	}
	return err
}

// makeAhead makes the segment that will be needed next.
func (s *Spool) makeAhead() {
	s.mu.Lock()
	first, due := s.plan()
	if !due || s.stuck {
		s.mu.Unlock()
		return
	}
	a, before := &ahead{first: first, made: make(chan struct{})}, s.ahead
	s.ahead = a
	s.mu.Unlock()
	if before != nil {
		s.drop(before)
	}
	f, err := createSegment(s.fs, first)
	if err != nil {
		s.complain("cannot make a segment of the spool ahead of need", segmentName(first), err)
	}
	a.file = f
	close(a.made)
	signal(s.work)
}

// plan returns the first sequence of the segment that is to be made now. Needs mu.
func (s *Spool) plan() (first uint64, due bool) {
	g := s.segments[len(s.segments)-1]
	switch {
	case s.err != nil || g.last < g.first: // an empty one need not be followed by another, of the same name even
		return 0, false
	case s.ahead == nil && s.nearlyFull(g):
		// About as many records as will fit. If fewer do, the writer makes one in between.
		left := max(0, s.segmentSize()-g.size-(s.promised-s.written))
		fit := uint64(left) * (g.last + 1 - g.first) / uint64(g.size)
		return s.next + fit - fit/8, true
	case len(s.segments) == 1 && s.space() < max(s.slack(), s.wanted) && (s.ahead == nil || s.ahead.first > s.next):
		// The last segment has to go, too, once another has taken over; and there is space for that one.
		return s.next, s.doneSegment(g) && s.free >= ordinaryRecord
	}
	return 0, false
}

// nearlyFull reports whether it is time to make the segment behind this one. Needs mu.
func (s *Spool) nearlyFull(g *segment) bool { return g.size >= s.segmentSize()/4*3 }

// aheadFirst returns the first sequence of the segment made ahead; zero if all up to last is before it.
func (s *Spool) aheadFirst(last uint64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ahead == nil || s.ahead.first > last {
		return 0
	}
	return s.ahead.first
}

// takeFile returns the file of the segment that the writer starts: the one made ahead, unless that begins later or
// could not be made.
func (s *Spool) takeFile(first uint64) (f File, err error) {
	s.mu.Lock()
	a := s.ahead
	s.mu.Unlock()
	if a != nil && a.first == first {
		<-a.made
		f, a.file = a.file, nil
	}
	if f == nil {
		f, err = createSegment(s.fs, first)
	}
	return f, err
}

// takeOver has the writer go on with the segment made ahead if nothing is missing before it: the one before it is
// complete then, and may go.
func (s *Spool) takeOver() {
	s.mu.Lock()
	a := s.ahead
	due := s.err == nil && a != nil && a.first == s.durable+1 && s.free >= ordinaryRecord
	s.mu.Unlock()
	if !due {
		return
	}
	if <-a.made; a.file == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ahead = nil // another is made later, or when it is needed
		return
	}
	err := s.rotate(a.first)
	if err == nil {
		err = s.file.Sync() // an empty segment has to say where the numbers go on
	}
	if err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.fail(err)
	}
}

// drop removes a segment that was made ahead and is not used. If it stays, it does no harm: it is empty.
func (s *Spool) drop(a *ahead) {
	if a.file != nil {
		_ = a.file.Close()
		_ = s.fs.Remove(segmentName(a.first))
		_ = s.fs.SyncDir()
	}
}

// doneSegment reports whether the file of every cursor is past the segment. The file is as far behind as the bus may
// lose with the power; and a crash must not take a cursor back to before what is left: that would look like a loss.
// Needs mu.
func (s *Spool) doneSegment(g *segment) bool {
	for _, c := range s.cursors {
		if c.saved < g.last {
			return false
		}
	}
	return true
}

// removeOldest removes the oldest segment if it is time, and reports whether it did.
func (s *Spool) removeOldest() bool {
	s.mu.Lock()
	g, due := s.expendable(time.Now())
	if !due || s.stuck {
		s.mu.Unlock()
		return false
	}
	g.going = true // for good: after an error the file may be gone all the same
	s.mu.Unlock()
	if err := s.fs.Remove(g.name()); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.complain("cannot remove a published segment of the spool", g.name(), err)
		return false
	}
	s.complained = false
	s.mu.Lock()
	s.segments = s.segments[1:]
	s.bytes -= g.size
	s.mu.Unlock()
	_ = s.measure() // said once
	return true
}

// expendable returns the oldest segment, and whether it may go now. The last one is never removed. Needs mu.
func (s *Spool) expendable(now time.Time) (*segment, bool) {
	for _, g := range s.segments {
		if g.next == nil || !s.doneSegment(g) {
			break
		}
		if g.done.IsZero() {
			g.done = now
		}
	}
	g := s.segments[0]
	due := s.err == nil && !s.closed && !g.done.IsZero() && (now.Sub(g.done) >= s.o.Keep || s.low())
	if !due && (s.ahead == nil || s.ahead.first > s.next) {
		s.wanted = 0 // there is nothing more to remove for it
	}
	return g, due
}
