package spool

import (
	"errors"
	"os"
	"time"
)

// preallocatedSegment is a segment created before it is needed, so that no commit waits for the directory. What a
// crash finds of it depends on how far it came:
//
//	created, name not durable   nothing, or an empty file
//	name durable                an empty file, which Open removes if there is another segment
//	header written by rotate    an empty file or a header, whole or torn, which Open writes again; no records are lost
//	first record synced         an ordinary segment
type preallocatedSegment struct {
	first uint64        // immutable; above every sequence in the pending batch when it was chosen
	ready chan struct{} // closed once file is set
	file  File          // nil if it could not be created, or once the writer has taken it
}

// runBackground is the background goroutine, for directory operations that no caller should wait for. It preallocates
// the next segment, raises the high-water marks early, and removes segments that were published for Options.Keep, or
// earlier if space is low. It ends at Close or with the first failure of the writer.
func (s *Spool) runBackground() {
	defer s.finished.Done()
	tick := time.NewTicker(backgroundInterval)
	defer tick.Stop()
	for {
		select {
		case <-s.background:
		case <-tick.C:
			_ = s.measureFree() // logged by measureFree
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

// raiseHighWaterMarks raises each high-water mark of which half a step is used up.
func (s *Spool) raiseHighWaterMarks() {
	for _, c := range s.cursors {
		s.mu.Lock()
		// Checked again by saveHighWater under files; here only so that mu is free during the disk operation.
		_, due := c.nextHighWater()
		s.mu.Unlock()
		if due {
			s.raiseHighWater(c)
		}
	}
}

// retryLater pauses the creation and removal of segments for backgroundInterval. Only the first error since a removal
// is logged.
func (s *Spool) retryLater(message, segment string, err error) {
	if !s.logged {
		s.o.Log.Error(message+"; retried every second", "segment", segment, "error", err)
	}
	// Reset by the ticker alone, not by the token: a failing directory is not retried in a loop.
	s.paused, s.logged = true, true
}

// measureFree updates the free space of the disk. On an error the last value remains in use.
func (s *Spool) measureFree() error {
	s.mu.Lock()
	// Read before the measurement: a record written during it is subtracted twice, which errs on the safe side.
	written := s.written
	s.mu.Unlock()
	free, err := s.fs.Free()
	if err != nil && !s.freeUnknown {
		s.o.Log.Error("cannot measure the free space of the spool's disk", "error", err)
	}
	if s.freeUnknown = err != nil; !s.freeUnknown {
		s.mu.Lock()
		s.free = free - (s.accepted - written)
		s.mu.Unlock()
	}
	return err
}

// preallocate creates the next segment, if it is due.
func (s *Spool) preallocate() {
	s.mu.Lock()
	// planPreallocation and the assignment below are one critical section: no record at or above first is appended in
	// between.
	first, due := s.planPreallocation()
	if !due || s.paused {
		s.mu.Unlock()
		return
	}
	p, unused := &preallocatedSegment{first: first, ready: make(chan struct{})}, s.preallocated
	// The writer now switches at p.first and waits for ready, so the file is never created twice.
	s.preallocated = p
	s.mu.Unlock()
	if unused != nil {
		s.discard(unused)
	}
	// A crash from here on leaves an empty file beside the last segment.
	f, err := createSegment(s.fs, first)
	if err != nil {
		s.retryLater("cannot preallocate a segment of the spool", segmentName(first), err)
	}
	p.file = f
	close(p.ready)
	signal(s.work)
}

// planPreallocation returns the first sequence of the segment to create now. Needs mu.
func (s *Spool) planPreallocation() (first uint64, due bool) {
	g := s.segments[len(s.segments)-1]
	switch {
	case s.err != nil || g.last < g.first: // after an empty segment the next one could have the same name
		return 0, false
	case s.preallocated == nil && s.nearlyFull(g):
		// The first sequence is about as far ahead as records still fit, by their average size so far, less an eighth.
		// If fewer fit, the writer creates a segment in between.
		// Bytes left in the segment after every record that was appended so far.
		left := max(0, s.segmentSize()-g.size-(s.accepted-s.written))
		fit := uint64(left) * (g.last + 1 - g.first) / uint64(g.size)
		return s.next + fit - fit/8, true
	case len(s.segments) == 1 && s.space() < max(s.slack(), s.refusedBytes) &&
		(s.preallocated == nil || s.preallocated.first > s.next):
		// The only segment is published and its space is needed: the log moves to a new one, so that it can be
		// removed.
		// Without space for one record the new segment would be as full as the old one.
		return s.next, s.published(g) && s.free >= minRecordSpace
	}
	return 0, false
}

// nearlyFull reports whether the segment after g should be preallocated. Needs mu.
func (s *Spool) nearlyFull(g *segment) bool { return g.size >= s.segmentSize()/4*3 }

// preallocatedFirst returns the first sequence of the preallocated segment; zero if there is none or it is above last.
func (s *Spool) preallocatedFirst(last uint64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	// A segment preallocated after this call starts above last: see planPreallocation.
	if s.preallocated == nil || s.preallocated.first > last {
		return 0
	}
	return s.preallocated.first
}

// nextFile returns the empty file of the segment that the writer starts: the preallocated one, unless that has another
// first sequence or could not be created.
func (s *Spool) nextFile(first uint64) (f File, err error) {
	s.mu.Lock()
	p := s.preallocated
	s.mu.Unlock()
	if p != nil && p.first == first {
		<-p.ready
		f, p.file = p.file, nil
	}
	if f == nil {
		f, err = createSegment(s.fs, first)
	}
	return f, err
}

// switchToPreallocated makes the preallocated segment the last one if it starts at the next sequence, although no
// record needs it yet: the segment before it is then complete and may be removed.
func (s *Spool) switchToPreallocated() {
	s.mu.Lock()
	p := s.preallocated
	due := s.err == nil && p != nil && p.first == s.durable+1 && s.free >= minRecordSpace
	s.mu.Unlock()
	if !due {
		return
	}
	if <-p.ready; p.file == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.preallocated = nil // created again later, or by the writer when needed
		return
	}
	err := s.rotate(p.first)
	if err == nil {
		// The segment must survive without records: once the previous one is removed, only it tells a restart where
		// the sequences continue. A crash before Sync leaves its durable name, which is enough.
		err = s.file.Sync()
	}
	if err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.fail(err)
	}
}

// discard removes a preallocated segment that is not used. A failure is harmless: the file is empty and Open removes
// it.
func (s *Spool) discard(p *preallocatedSegment) {
	if p.file != nil {
		// Closed first: Windows does not remove an open file.
		_ = p.file.Close()
		_ = s.fs.Remove(segmentName(p.first))
		_ = s.fs.SyncDir()
	}
}

// published reports whether the saved cursor of every bus is past the segment. The committed position is not enough:
// after a crash a cursor starts from its file, and must not find that its next record was removed, which would be
// reported as lost. Needs mu.
func (s *Spool) published(g *segment) bool {
	for _, c := range s.cursors {
		if c.saved < g.last {
			return false
		}
	}
	return true
}

// removeOldest removes the oldest segment if it may be removed now, and reports whether another may be due at once. Not if
// only the disk was low: some file systems free space later, and all that is kept would go before.
func (s *Spool) removeOldest() bool {
	s.mu.Lock()
	// removing is set in the same critical section, so that a Rewind either sees it or makes the segment not
	// removable.
	g, due := s.removable(time.Now())
	if !due || s.paused {
		s.mu.Unlock()
		return false
	}
	g.removing = true // never reset: after an error the file may be gone all the same
	again := s.expired(g, time.Now()) || s.spaceLow()
	s.mu.Unlock()
	if err := s.fs.Remove(g.name()); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.retryLater("cannot remove a published segment of the spool", g.name(), err)
		return false
	}
	// The removal worked: a later failure is logged again.
	s.logged = false
	s.mu.Lock()
	// A crash before the directory is synced may bring the file back: every record in it is below all cursors, and it
	// is removed again.
	s.segments = s.segments[1:]
	s.bytes -= g.size
	s.mu.Unlock()
	_ = s.measureFree() // logged by measureFree
	return again
}

// expired reports whether a published segment has been kept for long enough.
func (s *Spool) expired(g *segment, now time.Time) bool { return now.Sub(g.publishedAt) >= s.o.Keep }

// removable returns the oldest segment and whether it may be removed now. It also stamps the segments that are newly
// published. The last segment is never removed: the writer appends to it. Needs mu.
func (s *Spool) removable(now time.Time) (*segment, bool) {
	for _, g := range s.segments {
		if g.next == nil || !s.published(g) {
			break
		}
		// Stamped in order, and only once: Options.Keep counts from when the files of the cursors were past it.
		if g.publishedAt.IsZero() {
			g.publishedAt = now
		}
	}
	g := s.segments[0]
	// After a failure the state of the disk is unknown, so nothing is removed before the next Open.
	due := s.err == nil && !s.closed && !g.publishedAt.IsZero() &&
		(s.expired(g, now) || s.spaceLow() || s.diskLow())
	if !due && (s.preallocated == nil || s.preallocated.first > s.next) {
		s.refusedBytes = 0 // nothing more can be removed for it
	}
	return g, due
}
