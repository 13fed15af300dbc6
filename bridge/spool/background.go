package spool

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"time"
)

// preallocatedSegment is a segment created before it is needed, so that no commit waits for the directory, and filled
// or used before, so that none waits for the file system to extend it. What a crash finds of it depends on how far it
// came:
//
//	removed segment renamed     that segment, which is removed again, or nextName, which Open removes
//	created, filled             nothing, or nextName
//	renamed                     a file without a header, which Open removes if there is another segment
//	header written by rotate    the same, or a header, whole or torn, which Open writes again; no records are lost
//	first record synced         an ordinary segment
type preallocatedSegment struct {
	first uint64        // immutable; above every sequence in the pending batch when it was chosen
	size  int64         // immutable; 0 if it grows with each record
	ready chan struct{} // closed once file is set
	file  File          // nil if it could not be renamed, or once the writer has taken it

	// Guarded by Spool.mu.
	atOnce bool // the writer moves to it although the segment before it has space
	taken  bool // the writer moves to it
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
			s.dropNext()
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
		// Checked again under files; here only so that mu is free during the disk operation.
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
		s.free = free + s.preallocatedBytes() - (s.accepted - written)
		s.mu.Unlock()
	}
	return err
}

// preallocate gives the log its next segment, if it is due.
func (s *Spool) preallocate() {
	s.mu.Lock()
	g, p := s.segments[len(s.segments)-1], s.preallocated
	size, when := s.preallocationDue()
	if when == atOnce && p != nil {
		p.atOnce = true
		signal(s.work)
	}
	create := size > 0 && s.nextSize == 0
	s.mu.Unlock()
	if when == notDue || p != nil || s.paused {
		return
	}
	if create {
		// A crash from here on leaves this file, perhaps in part.
		f, err := s.fs.Create(nextName)
		if err = s.prepareNext(f, err, 0, size); err != nil {
			s.mu.Lock()
			g.fillFailed = !errors.Is(err, errUseless)
			s.mu.Unlock()
			return
		}
	}
	s.mu.Lock()
	// planFirst and the assignment below are one critical section: no record at or above first is appended in between.
	if _, when = s.preallocationDue(); when == notDue {
		s.mu.Unlock() // the log has moved on meanwhile
		return
	}
	p = &preallocatedSegment{
		first: s.planFirst(when), size: s.nextSize, atOnce: when == atOnce, ready: make(chan struct{}),
	}
	// The writer now switches at p.first and waits for ready, so the segment is never created twice.
	s.preallocated, s.nextSize = p, 0
	s.mu.Unlock()
	f, err := s.nameNext(p)
	if err != nil {
		_ = s.fs.Remove(nextName)
		_ = s.fs.Remove(segmentName(p.first))
		s.retryLater("cannot preallocate a segment of the spool", segmentName(p.first), err)
	}
	p.file = f
	close(p.ready)
	signal(s.work)
}

// prepareNext fills the file nextName from an offset to size, unless opening it failed with err or it is not to be used
// any more, and has the log use it next.
func (s *Spool) prepareNext(f File, err error, from, size int64) error {
	useless := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.closed || s.err != nil || !s.mayPreallocate(size)
	}
	if err == nil {
		if err = fill(f, from, size, useless); err == nil {
			err = f.Sync()
		}
		if err == nil && useless() {
			err = errUseless
		}
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		_ = s.fs.Remove(nextName)
		if !errors.Is(err, errUseless) {
			s.retryLater("cannot preallocate a segment of the spool", nextName, err)
		}
		return err
	}
	s.mu.Lock()
	s.nextSize = size
	s.mu.Unlock()
	return nil
}

// reuse has the log use a segment again that was removed from it, and is called nextName now. Its records stay: they
// have lower sequences, and are behind every end mark that will be written there.
func (s *Spool) reuse(g *segment, size int64) {
	// A crash before SyncDir may bring the segment back, so its header must still be there.
	var f File
	err := s.fs.SyncDir()
	if err == nil {
		f, err = s.fs.Open(nextName)
	}
	if err == nil {
		if _, err = f.WriteAt(bytes.Repeat([]byte{filling}, segmentHeaderLen), 0); err != nil {
			err = errors.Join(err, f.Close())
		}
	}
	_ = s.prepareNext(f, err, g.size, size) // logged by prepareNext
}

// dropNext removes the file nextName if records need its space.
func (s *Spool) dropNext() {
	s.mu.Lock()
	drop := s.nextSize > 0 && s.space() < s.reserved()
	if drop {
		s.nextSize = 0
	}
	s.mu.Unlock()
	if drop {
		_ = s.fs.Remove(nextName)
	}
}

// nameNext gives the file nextName, which it creates if it is not preallocated, the name of a segment, durably, and
// opens it.
func (s *Spool) nameNext(p *preallocatedSegment) (File, error) {
	if p.size == 0 {
		f, err := s.fs.Create(nextName)
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			return nil, err
		}
	}
	return s.nameSegment(nextName, p.first)
}

// nameSegment gives a file, which must not be open, the name of a segment, durably, and opens it.
func (s *Spool) nameSegment(from string, first uint64) (File, error) {
	if err := s.fs.Rename(from, segmentName(first)); err != nil {
		return nil, err
	}
	if err := s.fs.SyncDir(); err != nil {
		return nil, err
	}
	return s.fs.Open(segmentName(first))
}

// due is when the log needs its next segment.
type due int

const (
	notDue due = iota
	ahead      // before the last segment is full
	atOnce     // the log moves to it although the last segment has space
)

// preallocationDue returns when the next segment is due, and the size to create it with. If there is one already, only
// the log can be due to move to it. Needs mu.
func (s *Spool) preallocationDue() (size int64, when due) {
	g, p := s.segments[len(s.segments)-1], s.preallocated
	switch size = s.preallocationSize(); {
	case s.err != nil || g.last < g.first: // after a segment without records the next one could have the same name
		return 0, notDue
	case len(s.segments) == 1 && s.space() < max(s.slack(), s.refusedBytes) && s.published(g) && s.canStart(p) &&
		(p == nil || p.first > s.next && !p.atOnce):
		// The only segment is published and its space is needed: the log moves to a new one, so that it can be
		// removed. Without space for one record the new segment would be as full as the old one.
		return 0, atOnce
	case p != nil:
		return 0, notDue
	case !g.fillFailed && (s.nextSize > 0 || s.mayPreallocate(size)):
		switch {
		case g.preallocated == 0:
			return size, atOnce
		case g.size >= g.preallocated/2:
			return size, ahead
		}
		return 0, notDue
	case s.nearlyFull(g):
		return 0, ahead
	}
	return 0, notDue
}

// canStart reports whether the disk has space for the first record of a segment: a preallocated one, or a new one if p
// is nil. Needs mu.
func (s *Spool) canStart(p *preallocatedSegment) bool {
	return p != nil && p.size > 0 || p == nil && s.nextSize > 0 || s.unusedDisk() >= minRecordSpace
}

// unusedDisk is how many bytes of the disk are free and not preallocated. Needs mu, except in Open.
func (s *Spool) unusedDisk() int64 { return s.free - s.preallocatedBytes() }

// planFirst returns the first sequence of the segment that was just created. Needs mu.
func (s *Spool) planFirst(when due) uint64 {
	g := s.segments[len(s.segments)-1]
	if when == atOnce {
		return s.next
	}
	// About as far ahead as records still fit behind those that were appended so far, by their average size, less an
	// eighth. If fewer fit, the writer moves on earlier.
	left := max(0, s.capacityOf(g)-g.size-(s.accepted-s.written))
	fit := uint64(left) * (g.last + 1 - g.first) / uint64(g.size)
	return s.next + fit - fit/8
}

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
		bytes = max(0, s.segments[n-1].preallocated-s.segments[n-1].size)
	}
	if s.preallocated != nil {
		bytes += s.preallocated.size
	}
	return bytes + s.nextSize
}

// capacityOf is the size in bytes at which a segment is full.
func (s *Spool) capacityOf(g *segment) int64 { return cmp.Or(g.preallocated, s.segmentSize()) }

// nearlyFull reports whether the segment after g is due even if it cannot be filled. Needs mu.
func (s *Spool) nearlyFull(g *segment) bool { return g.size >= s.capacityOf(g)/4*3 }

// preallocatedFirst returns the first sequence of the preallocated segment; zero if there is none or it is above last.
func (s *Spool) preallocatedFirst(last uint64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	// A segment preallocated after this call starts above last: see preallocate.
	if s.preallocated == nil || s.preallocated.first > last {
		return 0
	}
	return s.preallocated.first
}

// nextFile returns the file of the segment that the writer starts, and its preallocated size. It is the preallocated
// one, renamed if the log comes to its end earlier than planned; or an empty one, if that could not be created in time.
func (s *Spool) nextFile(first uint64) (File, int64, error) {
	s.mu.Lock()
	p := s.preallocated
	if p != nil {
		p.taken = true
	}
	s.mu.Unlock()
	if p != nil {
		<-p.ready
	}
	if p == nil || p.file == nil {
		f, err := createSegment(s.fs, first)
		return f, 0, err
	}
	f := p.file
	p.file = nil
	if p.first == first {
		return f, p.size, nil
	}
	err := f.Close()
	if err == nil {
		f, err = s.nameSegment(segmentName(p.first), first)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("cannot create a segment: %w", err)
	}
	return f, p.size, nil
}

// switchToPreallocated makes the preallocated segment the last one, although no record needs it yet, if it starts at
// the next sequence or is needed at once: the segment before it is then complete and may be removed.
func (s *Spool) switchToPreallocated() {
	s.mu.Lock()
	g, p, first := s.segments[len(s.segments)-1], s.preallocated, s.durable+1
	due := s.err == nil && p != nil && (p.first == first || p.atOnce) && g.last >= g.first && s.canStart(p)
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
	err := s.rotate(first)
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

// discard removes a preallocated segment that is not used. A failure is harmless: the file has no header and Open
// removes it.
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
	size, reuse := s.preallocationSize(), s.reusable(g)
	s.mu.Unlock()
	var err error
	if reuse {
		err = s.fs.Rename(g.name(), nextName)
	} else {
		err = s.fs.Remove(g.name())
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
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
	s.free += g.size
	s.mu.Unlock()
	if reuse && err == nil {
		s.reuse(g, size)
	}
	_ = s.measureFree() // logged by measureFree
	return again
}

// reusable reports whether the file of a segment that is removed becomes the next one: if there is none, at most half
// of it has to be filled, and the limits hold. For more than the next one no segment is removed early. Needs mu.
func (s *Spool) reusable(g *segment) bool {
	size := s.preallocationSize()
	return s.nextSize == 0 && (s.preallocated == nil || s.expired(g, time.Now())) &&
		s.refusedBytes == 0 && g.size >= size/2 && g.size <= size && s.mayPreallocate(size-g.size)
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
	if p := s.preallocated; !due && (p == nil || p.first > s.next && !p.atOnce) {
		s.refusedBytes = 0 // nothing more can be removed for it
	}
	return g, due
}
