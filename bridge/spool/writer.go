package spool

import (
	"errors"
	"fmt"
	"runtime"
	"time"
)

// batch is what one write and one fsync make durable.
type batch struct {
	buf  []byte
	last uint64        // sequence of its last record
	done chan struct{} // closed when it is durable or failed
	err  error         // set before done is closed
}

func newBatch(buf []byte) *batch { return &batch{buf: buf, done: make(chan struct{})} }

// write is the writer goroutine: it alone writes to segments, and it ends with the first failure.
func (s *Spool) runWriter() {
	defer s.finished.Done()
	for s.Err() == nil {
		select {
		case <-s.work:
			// Whoever is about to append comes along: an fsync costs more than letting them run first.
			runtime.Gosched()
		case <-s.closing:
			s.flush()
			return
		}
		s.flush()
		s.switchToPreallocated()
	}
}

// flush makes durable what was appended so far.
func (s *Spool) flush() {
	s.mu.Lock()
	b := s.pending
	if len(b.buf) == 0 {
		s.mu.Unlock()
		return
	}
	s.pending, s.flushing = newBatch(s.spare), b
	s.spare = nil
	s.mu.Unlock()

	err := s.writeBatch(b)

	s.mu.Lock()
	s.flushing = nil
	if err != nil {
		s.fail(err)
		b.err = s.err
	}
	if cap(b.buf) <= maxSpareBuffer {
		s.spare = b.buf[:0]
	}
	s.mu.Unlock()
	close(b.done)
}

// writeBatch writes the records of a batch, into as many segments as it takes, and syncs them.
func (s *Spool) writeBatch(b *batch) error {
	until := s.preallocatedFirst(b.last)
	for buf := b.buf; len(buf) > 0; {
		n := s.id.recordsFitting(buf, s.segmentSize()-s.end, until)
		if n == 0 && (s.end > segmentHeaderLen || recordSequence(buf) == until) {
			if err := s.rotate(recordSequence(buf)); err != nil {
				return err
			}
			if recordSequence(buf) == until {
				until = 0
			}
			continue
		}
		if n == 0 {
			n, _ = s.id.recordLen(buf) // larger than a segment, it gets one of its own
		}
		if _, err := s.file.WriteAt(buf[:n], s.end); err != nil {
			return fmt.Errorf("cannot write: %w", err)
		}
		if err := s.file.Sync(); err != nil {
			return fmt.Errorf("cannot sync: %w", err)
		}
		// Commit point: these records survive a crash from here on.
		s.end += n
		buf = buf[n:]
		last := b.last
		if len(buf) > 0 {
			last = recordSequence(buf) - 1
		}
		s.advanceDurable(last)
	}
	return nil
}

func (s *Spool) segmentSize() int64 { return min(s.o.MaxBytes/8, maxSegment) }

// grown lets the cursors read what the last segment has got.
func (s *Spool) advanceDurable(last uint64) {
	s.mu.Lock()
	g := s.segments[len(s.segments)-1]
	for _, c := range s.cursors {
		if c.committed == s.durable {
			c.waitingSince = time.Now()
		}
	}
	s.written += s.end - g.size
	g.size, g.last, s.durable = s.end, last, last
	if s.spaceLow() || s.preallocated == nil && s.nearlyFull(g) {
		signal(s.background)
	}
	s.mu.Unlock()
	s.wakeCursors()
}

func (s *Spool) wakeCursors() {
	for _, c := range s.cursors {
		signal(c.wake)
	}
}

// rotate starts the segment of the given first sequence. What is in the one before it is durable.
func (s *Spool) rotate(first uint64) error {
	f, err := s.nextFile(first)
	if err == nil {
		err = writeHeader(s.fs, f, s.id, first)
	}
	if err != nil {
		return err
	}
	closed := s.file.Close() // synced already
	s.file, s.end = f, segmentHeaderLen
	s.mu.Lock()
	s.addSegment(first, segmentHeaderLen)
	if s.preallocated != nil && s.preallocated.first == first {
		s.preallocated = nil
	}
	s.mu.Unlock()
	signal(s.background) // the one before may go
	s.wakeCursors()  // so that none keeps the old one open, which would hold its bytes after it is removed
	return closed
}

// addSegment puts a segment behind the last one. Needs mu, except in Open.
func (s *Spool) addSegment(first uint64, size int64) {
	g := &segment{first: first, last: first - 1, size: size}
	if n := len(s.segments); n > 0 {
		before := s.segments[n-1]
		g.base = before.base + before.size
		before.next, before.last = g, first-1
	}
	s.segments = append(s.segments, g)
	s.bytes += size
}

// createSegment makes the file of a segment, empty, with a name that survives.
func createSegment(fs FS, first uint64) (File, error) {
	f, err := fs.Create(segmentName(first))
	if err == nil {
		if err = fs.SyncDir(); err == nil {
			return f, nil
		}
		// The error before these is the one to tell.
		_ = f.Close()
		_ = fs.Remove(segmentName(first))
	}
	return nil, fmt.Errorf("cannot make a segment: %w", err)
}

// writeHeader begins a segment. The header survives with the first record. A file that it cannot be written to is
// removed, so that a disk which is full can be opened.
func writeHeader(fs FS, f File, id spoolID, first uint64) error {
	if _, err := f.WriteAt(id.appendSegmentHeader(nil, first), 0); err != nil {
		_ = f.Close()
		_ = fs.Remove(segmentName(first))
		return fmt.Errorf("cannot make a segment: %w", err)
	}
	return nil
}

// newSegment makes a segment that survives without records.
func newSegment(fs FS, id spoolID, first uint64) (File, error) {
	f, err := createSegment(fs, first)
	if err == nil {
		err = writeHeader(fs, f, id, first)
	}
	if err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot make a segment: %w", err), f.Close())
	}
	return f, nil
}

// fail makes the failure sticky and tells all who wait for the batch that is being filled. Needs mu.
func (s *Spool) fail(err error) {
	s.err = fmt.Errorf("%w: %w", ErrFailed, err)
	s.pending.err = s.err
	close(s.pending.done)
	close(s.failed)
}
