package spool

import (
	"errors"
	"os"
	"time"
)

// ahead is a segment that is made before it is needed, so that no Append waits for the directory. Its file stays empty
// until the writer takes it: an empty file holds nothing, and Open removes it.
type preallocatedSegment struct {
	first uint64
	ready chan struct{} // closed once file is set
	file  File          // nil if it could not be made
}

// upkeep is the goroutine for what the directory takes long to do and nobody waits for: it makes the next segment and
// raises the high-water marks ahead of need, and removes what has been published for long enough, or for less time if
// space gets low.
func (s *Spool) runBackground() {
	defer s.finished.Done()
	tick := time.NewTicker(backgroundInterval)
	defer tick.Stop()
	for {
		select {
		case <-s.background:
		case <-tick.C:
			_ = s.measureFree() // said once
			s.paused = false
		case <-s.failed:
			return
		case <-s.closing:
			return
		}
		for more := true; more; {
			s.preallocate()
			s.raiseHighWaterMarks()
			more = s.removeOldest()
		}
	}
}

// raiseMarks raises the high-water marks that will be reached next.
func (s *Spool) raiseHighWaterMarks() {
	for _, c := range s.cursors {
		s.mu.Lock()
		_, due := c.nextHighWater()
		s.mu.Unlock()
		if due {
			s.raiseHighWater(c)
		}
	}
}

// complain leaves the directory alone until the next housekeeping. Only the first error since a removal is logged: it is
// tried again every second.
func (s *Spool) retryLater(what, segment string, err error) {
	if !s.logged {
		s.o.Log.Error(what+"; it is tried again every second", "segment", segment, "error", err)
	}
	s.paused, s.logged = true, true
}

// measure looks how much space the disk has. If that cannot be told, what was known before holds.
func (s *Spool) measureFree() error {
	s.mu.Lock()
	written := s.written
	s.mu.Unlock()
	free, err := s.fs.Free()
	if err != nil && !s.freeUnknown {
		s.o.Log.Error("cannot measure the free space of the spool's disk", "error", err)
	}
	if s.freeUnknown = err != nil; !s.freeUnknown {
		s.mu.Lock()
		s.free = free - (s.accepted - written) // of which some may be written by now
		s.mu.Unlock()
	}
	return err
}

// makeAhead makes the segment that will be needed next.
func (s *Spool) preallocate() {
	s.mu.Lock()
	first, due := s.planPreallocation()
	if !due || s.paused {
		s.mu.Unlock()
		return
	}
	a, before := &preallocatedSegment{first: first, ready: make(chan struct{})}, s.preallocated
	s.preallocated = a
	s.mu.Unlock()
	if before != nil {
		s.discard(before)
	}
	f, err := createSegment(s.fs, first)
	if err != nil {
		s.retryLater("cannot make a segment of the spool ahead of need", segmentName(first), err)
	}
	a.file = f
	close(a.ready)
	signal(s.work)
}

// plan returns the first sequence of the segment that is to be made now. Needs mu.
func (s *Spool) planPreallocation() (first uint64, due bool) {
	g := s.segments[len(s.segments)-1]
	switch {
	case s.err != nil || g.last < g.first: // an empty one need not be followed by another, of the same name even
		return 0, false
	case s.preallocated == nil && s.nearlyFull(g):
		// About as many records as will fit. If fewer do, the writer makes one in between.
		left := max(0, s.segmentSize()-g.size-(s.accepted-s.written))
		fit := uint64(left) * (g.last + 1 - g.first) / uint64(g.size)
		return s.next + fit - fit/8, true
	case len(s.segments) == 1 && s.space() < max(s.slack(), s.refusedBytes) && (s.preallocated == nil || s.preallocated.first > s.next):
		// The last segment has to go, too, once another has taken over; and there is space for that one.
		return s.next, s.published(g) && s.free >= minRecordSpace
	}
	return 0, false
}

// nearlyFull reports whether it is time to make the segment behind this one. Needs mu.
func (s *Spool) nearlyFull(g *segment) bool { return g.size >= s.segmentSize()/4*3 }

// aheadFirst returns the first sequence of the segment made ahead; zero if all up to last is before it.
func (s *Spool) preallocatedFirst(last uint64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.preallocated == nil || s.preallocated.first > last {
		return 0
	}
	return s.preallocated.first
}

// takeFile returns the file of the segment that the writer starts: the one made ahead, unless that begins later or
// could not be made.
func (s *Spool) nextFile(first uint64) (f File, err error) {
	s.mu.Lock()
	a := s.preallocated
	s.mu.Unlock()
	if a != nil && a.first == first {
		<-a.ready
		f, a.file = a.file, nil
	}
	if f == nil {
		f, err = createSegment(s.fs, first)
	}
	return f, err
}

// takeOver has the writer go on with the segment made ahead if nothing is missing before it: the one before it is
// complete then, and may go.
func (s *Spool) switchToPreallocated() {
	s.mu.Lock()
	a := s.preallocated
	due := s.err == nil && a != nil && a.first == s.durable+1 && s.free >= minRecordSpace
	s.mu.Unlock()
	if !due {
		return
	}
	if <-a.ready; a.file == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.preallocated = nil // another is made later, or when it is needed
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
func (s *Spool) discard(a *preallocatedSegment) {
	if a.file != nil {
		_ = a.file.Close()
		_ = s.fs.Remove(segmentName(a.first))
		_ = s.fs.SyncDir()
	}
}

// doneSegment reports whether the file of every cursor is past the segment. The file is as far behind as the bus may
// lose with the power; and a crash must not take a cursor back to before what is left: that would look like a loss.
// Needs mu.
func (s *Spool) published(g *segment) bool {
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
	g, due := s.removable(time.Now())
	if !due || s.paused {
		s.mu.Unlock()
		return false
	}
	g.removing = true // for good: after an error the file may be gone all the same
	s.mu.Unlock()
	if err := s.fs.Remove(g.name()); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.retryLater("cannot remove a published segment of the spool", g.name(), err)
		return false
	}
	s.logged = false
	s.mu.Lock()
	s.segments = s.segments[1:]
	s.bytes -= g.size
	s.mu.Unlock()
	_ = s.measureFree() // said once
	return true
}

// expendable returns the oldest segment, and whether it may go now. The last one is never removed. Needs mu.
func (s *Spool) removable(now time.Time) (*segment, bool) {
	for _, g := range s.segments {
		if g.next == nil || !s.published(g) {
			break
		}
		if g.publishedAt.IsZero() {
			g.publishedAt = now
		}
	}
	g := s.segments[0]
	due := s.err == nil && !s.closed && !g.publishedAt.IsZero() && (now.Sub(g.publishedAt) >= s.o.Keep || s.spaceLow())
	if !due && (s.preallocated == nil || s.preallocated.first > s.next) {
		s.refusedBytes = 0 // there is nothing more to remove for it
	}
	return g, due
}
