package spool

import (
	"errors"
	"os"
	"time"
)

// runBackground is the background goroutine, for directory operations that no caller should wait for. It preallocates
// the next segment, raises the high-water marks early, and removes segments that were published for Options.Keep, or
// earlier if space is low, or makes their files the next segment. It ends at Close or with the first failure of the
// writer.
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
			s.dropNext()
			s.preallocate()
			s.raiseHighWaterMarks()
			more = s.removeOldest()
			s.requestMove()
		}
	}
}

// raiseHighWaterMarks raises each high-water mark of which half a step is used up.
func (s *Spool) raiseHighWaterMarks() {
	for _, c := range s.cursors {
		s.mu.Lock()
		// Checked again under files; here only so that mu is free during the disk operation.
		_, due := c.nextHighWater()
		s.mu.Unlock()
		if due {
			s.raiseHighWater(c)
		}
	}
}

// requestMove has the writer move to the next segment, if that is due.
func (s *Spool) requestMove() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.moveDue() {
		signal(s.work)
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
		s.free = free + s.preallocatedBytes() - (s.accepted - written)
		s.mu.Unlock()
	}
	return err
}

// The next segment is preallocated before it is needed, so that no commit waits for the file system to extend it. Its
// file, nextName, belongs to the background goroutine until the writer takes it. A crash leaves it, perhaps in part,
// and Open removes it; or undoes the rename of a segment that is reused, which is then removed again.

// preallocate creates the next segment, if it is due.
func (s *Spool) preallocate() {
	s.mu.Lock()
	g := s.segments[len(s.segments)-1]
	size, due := s.preallocationDue()
	s.mu.Unlock()
	if !due || s.paused {
		return
	}
	create := func() (File, error) { return s.fs.Create(nextName) }
	if err := s.prepareNext(create, 0, size); err != nil && !errors.Is(err, errUseless) {
		s.mu.Lock()
		g.fillFailed = true
		s.mu.Unlock()
	}
}

// reuse makes the file of a removed segment, already renamed to nextName, the next segment. Its old records have lower
// sequences and stay, behind the end mark.
func (s *Spool) reuse(g *segment, size int64) {
	open := func() (File, error) {
		// A crash before SyncDir returns may bring the segment back, which must be as it was then.
		if err := s.fs.SyncDir(); err != nil {
			return nil, err
		}
		return s.fs.Open(nextName)
	}
	_ = s.prepareNext(open, g.size, size) // logged by prepareNext
}

// prepareNext fills nextName from an offset to size and makes it the next segment, or removes it if that fails or the
// space is needed. The bytes before the offset count in bytes until then.
func (s *Spool) prepareNext(open func() (File, error), from, size int64) error {
	useless := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.closed || s.err != nil || !s.mayPreallocate(size-from)
	}
	f, err := open()
	if err == nil {
		err = errors.Join(fill(f, from, size, useless), f.Close())
	}
	s.mu.Lock()
	if err == nil && !s.mayPreallocate(size-from) {
		err = errUseless
	}
	if err == nil {
		s.nextSize = size
		s.bytes -= from
		s.free += from
	}
	s.mu.Unlock()
	if err == nil {
		return nil
	}
	_ = s.fs.Remove(nextName)
	s.mu.Lock()
	s.bytes -= from
	s.mu.Unlock()
	if !errors.Is(err, errUseless) {
		s.retryLater("cannot preallocate a segment of the spool", nextName, err)
	}
	return err
}

// dropNext removes the file nextName if records need its space.
func (s *Spool) dropNext() {
	s.mu.Lock()
	drop := s.nextSize > 0 && !s.nextTaken && s.space() < s.reserved()
	if drop {
		s.nextSize = 0
	}
	s.mu.Unlock()
	if drop {
		_ = s.fs.Remove(nextName)
	}
}

// preallocationDue returns the size of the next segment, and whether to create it now: once the last one is half full,
// or at once if that grows with each record. Needs mu.
func (s *Spool) preallocationDue() (size int64, due bool) {
	g := s.segments[len(s.segments)-1]
	size = s.preallocationSize()
	due = s.err == nil && s.nextSize == 0 && !g.fillFailed && g.size >= g.preallocated/2
	return size, due && s.mayPreallocate(size)
}

// moveDue reports whether the log moves to the next segment although the last one has space: because that grows with
// each record, and the next one is preallocated; or because it is the only one, is published, and its space is needed,
// so that it can be removed. Needs mu.
func (s *Spool) moveDue() bool {
	g := s.segments[len(s.segments)-1]
	switch {
	case s.err != nil || g.last < g.first: // after a segment without records the next one would have the same name
		return false
	case g.preallocated == 0 && s.nextSize > 0:
		return true
	}
	// Without space for one record the new segment would be as full as the old one.
	return len(s.segments) == 1 && s.space() < max(s.slack(), s.refusedBytes) && s.published(g) &&
		(s.nextSize > 0 || s.unusedDisk() >= minRecordSpace)
}

// unusedDisk is how many bytes of the disk are free and not preallocated. Needs mu, except in Open.
func (s *Spool) unusedDisk() int64 { return s.free - s.preallocatedBytes() }

// preallocationSize is the size of the next segment: twice that of the last one, so that a spool that is little used
// stays small. Needs mu, except in Open.
func (s *Spool) preallocationSize() int64 {
	size := int64(minPreallocation)
	if n := len(s.segments); n > 0 {
		size = max(size, 2*s.segments[n-1].preallocated)
	}
	return min(size, s.segmentSize())
}

// mayPreallocate reports whether there is space for a segment of the size beside everything else, and the disk keeps
// twice its reserve. Needs mu, except in Open.
func (s *Spool) mayPreallocate(size int64) bool {
	return s.bytes+s.reserved()+size <= s.o.MaxBytes-overhead && s.unusedDisk()-size >= 2*s.o.MinFree
}

// reserved is how many preallocated bytes no accepted record will use. Needs mu, except in Open.
func (s *Spool) reserved() int64 { return max(0, s.preallocatedBytes()-(s.accepted-s.written)) }

// preallocatedBytes is how many bytes of the disk are preallocated and not written yet. Needs mu, except in Open.
func (s *Spool) preallocatedBytes() (bytes int64) {
	if n := len(s.segments); n > 0 {
		bytes = max(0, s.segments[n-1].preallocated-s.segments[n-1].size-endMarkLen)
	}
	return bytes + s.nextSize
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

// removeOldest removes the oldest segment if it may be removed now, and reports whether another may be due at once. Not
// if only the disk was low: some file systems free space later, and all that is kept would go before.
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
	size := s.preallocationSize()
	reuse := s.reusable(g, size)
	s.mu.Unlock()
	if reuse && s.fs.Rename(g.name(), nextName) != nil {
		reuse = false
		_ = s.fs.Remove(nextName) // it may have happened all the same
	}
	if !reuse {
		if err := s.fs.Remove(g.name()); err != nil && !errors.Is(err, os.ErrNotExist) {
			s.retryLater("cannot remove a published segment of the spool", g.name(), err)
			return false
		}
	}
	// The removal worked: a later failure is logged again.
	s.logged = false
	s.mu.Lock()
	// A crash before the directory is synced may bring the file back: every record in it is below all cursors, and it
	// is removed again.
	s.segments = s.segments[1:]
	if !reuse {
		s.bytes -= g.size
	}
	s.mu.Unlock()
	if reuse {
		s.reuse(g, size)
	}
	_ = s.measureFree() // logged by measureFree
	return again
}

// reusable reports whether the file of a segment that is removed becomes the next one, of the size: if there is none,
// at most half of it has to be filled, no record was refused, and the limits hold. Needs mu.
func (s *Spool) reusable(g *segment, size int64) bool {
	return s.nextSize == 0 && s.refusedBytes == 0 && g.size >= size/2 && g.size <= size && s.mayPreallocate(size-g.size)
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
	if !due && !s.moveDue() {
		s.refusedBytes = 0 // nothing more can be removed for it
	}
	return g, due
}
