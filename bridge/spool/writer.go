package spool

import (
	"cmp"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"
)

// batch is the group commit: all records that one write and one fsync make durable.
type batch struct {
	buf  []byte        // encoded records with consecutive sequences, up to last
	last uint64        // sequence of the last record
	done chan struct{} // closed once the batch is durable or has failed
	err  error         // set before done is closed, not changed after
}

// newBatch returns an empty batch that appends into buf's memory.
func newBatch(buf []byte) *batch { return &batch{buf: buf, done: make(chan struct{})} }

// runWriter is the writer goroutine, the only one that writes to segments. It ends at Close, or at the first failure:
// the state of the file is unknown then, and must not be written to again.
func (s *Spool) runWriter() {
	defer s.finished.Done()
	for s.Err() == nil {
		select {
		case <-s.work:
			// Yield so that runnable callers of Append join this batch: one more fsync costs more than the wait.
			runtime.Gosched()
		case <-s.closing:
			s.flush()
			return
		}
		s.flush()
		s.moveOn()
	}
}

// flush makes the pending batch durable, or fails the spool.
func (s *Spool) flush() {
	s.mu.Lock()
	b := s.pending
	if len(b.buf) == 0 {
		s.mu.Unlock()
		return
	}
	// Callers append to a new batch while this one is written: the next group commit.
	s.pending, s.flushing = newBatch(s.spare), b
	s.spare = nil
	s.mu.Unlock()

	err := s.writeBatch(b)

	s.mu.Lock()
	// Reset under the same lock as a failure is recorded: Wait finds each sequence durable, in a batch, or failed.
	s.flushing = nil
	if err != nil {
		s.fail(err)
		b.err = s.err
	}
	// A burst must not retain its buffer for ever.
	if cap(b.buf) <= maxSpareBuffer {
		s.spare = b.buf[:0]
	}
	s.mu.Unlock()
	// Only now are the records acknowledged. A crash before this line leaves records that no caller knows of; they are
	// published as well.
	close(b.done)
}

// writeBatch appends a batch to the log, in as many segments as it needs, and syncs each. On an error, some records
// may be durable and others not; recovery decides.
func (s *Spool) writeBatch(b *batch) error {
	for buf := b.buf; len(buf) > 0; {
		n := s.id.recordsFitting(buf, s.capacity-s.end-endMarkLen)
		// The next record does not fit.
		if n == 0 && s.end > segmentHeaderLen {
			if err := s.rotate(recordSequence(buf)); err != nil {
				return err
			}
			continue
		}
		if n == 0 {
			n, _ = s.id.recordLen(buf) // larger than a segment: it gets a segment to itself
		}
		write, last := buf[:n], b.last
		// The rest of the batch goes into another segment; only what is synced is durable.
		if buf = buf[n:]; len(buf) > 0 {
			write, last = slices.Clip(write), recordSequence(buf)-1
		}
		// A crash from here to the end of Sync leaves any part of these bytes: a torn tail, or records nobody
		// acknowledged.
		if _, err := s.file.WriteAt(s.id.appendEndMark(write, last+1), s.end); err != nil {
			return fmt.Errorf("cannot write: %w", err)
		}
		if err := s.file.Sync(); err != nil {
			return fmt.Errorf("cannot sync: %w", err)
		}
		// Commit point: a crash after Sync finds these records. Cursors read them from advanceDurable on, never
		// before.
		s.end += n
		s.advanceDurable(last)
	}
	return nil
}

// segmentSize is the largest size in bytes of a segment.
func (s *Spool) segmentSize() int64 { return min(s.o.MaxBytes/8, maxSegment) }

// advanceDurable publishes to the cursors what was synced in the last segment, up to the sequence last.
func (s *Spool) advanceDurable(last uint64) {
	s.mu.Lock()
	g := s.segments[len(s.segments)-1]
	for _, c := range s.cursors {
		if c.committed == s.durable { // this bus had nothing to do until now
			c.waitingSince = time.Now()
		}
	}
	s.written += s.end - g.size
	// One critical section: a cursor sees size and last of the same commit, and Wait agrees with them.
	g.size, g.last, s.durable = s.end, last, last
	// The background goroutine sees the same state under mu and decides what is due.
	if _, due := s.preallocationDue(); due || s.spaceLow() {
		signal(s.background)
	}
	s.mu.Unlock()
	s.wakeCursors()
}

// wakeCursors has every cursor check the log again. It must be called after the change, without mu.
func (s *Spool) wakeCursors() {
	for _, c := range s.cursors {
		signal(c.wake)
	}
}

// moveOn makes the next segment the last one if that is due although no record needs it yet.
func (s *Spool) moveOn() {
	s.mu.Lock()
	first, due := s.durable+1, s.moveDue()
	s.nextTaken = due && s.nextSize > 0 // or the background goroutine could drop it now
	s.mu.Unlock()
	if !due {
		return
	}
	if err := s.rotate(first); err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.fail(err)
	}
}

// rotate makes the segment with the given first sequence the last one. Everything in the segment before it is durable,
// so at each moment only the last segment can have a torn tail: that is why Open scans no other.
func (s *Spool) rotate(first uint64) error {
	s.mu.Lock()
	size := s.nextSize
	s.nextTaken = size > 0
	s.mu.Unlock()
	// A commit waits for this once in a segment.
	from := nextName
	var err error
	if size == 0 {
		from, err = createSegment(s.fs, first, 0) // there was no space for a preallocated one, or no time
	}
	var f File
	if err == nil {
		f, err = nameSegment(s.fs, s.id, from, first)
	}
	if err != nil {
		return err
	}
	before, end := s.file, s.end
	s.mu.Lock()
	s.addSegment(first, segmentHeaderLen, size)
	if s.nextTaken {
		s.nextSize, s.nextTaken = 0, false
	}
	s.appendTo(f)
	s.mu.Unlock()
	signal(s.background) // the previous segment may be removable now
	s.wakeCursors()      // an open file of a removed segment would keep its disk space in use
	// Readers stop at the last record; only the disk space depends on this.
	if err := before.Truncate(end); err != nil {
		s.o.Log.Error("cannot truncate a full segment of the spool; its end takes space", "error", err)
	}
	return before.Close() // already synced; its error is reported, because it can mean lost data
}

// appendTo makes the file of the last segment the one that the writer appends to. Needs mu, except in Open.
func (s *Spool) appendTo(f File) {
	g := s.segments[len(s.segments)-1]
	// end is behind the header or the last record, where the end mark is.
	s.file, s.end, s.capacity = f, g.size, cmp.Or(g.preallocated, s.segmentSize())
}

// addSegment appends a segment of size bytes to the list and closes the range of the one before it. Needs mu, except
// in Open.
func (s *Spool) addSegment(first uint64, size, preallocated int64) {
	g := &segment{first: first, last: first - 1, size: size, preallocated: preallocated}
	if n := len(s.segments); n > 0 {
		before := s.segments[n-1]
		// The previous segment does not grow any more, so base is final.
		g.base = before.base + before.size
		before.next, before.last = g, first-1
	}
	s.segments = append(s.segments, g)
	s.bytes += size
}

// errUseless means that fill was stopped.
var errUseless = errors.New("it is not needed any more")

// fill preallocates a file from an offset to size and syncs it, in parts, so that the sync of a record waits for no
// more than one of them. It stops between two if useless returns true.
func fill(f File, from, size int64, useless func() bool) error {
	part := make([]byte, min(size, fillAtOnce))
	for at := from; at < size; at += fillAtOnce {
		if useless() {
			return errUseless
		}
		if _, err := f.WriteAt(part[:min(size-at, fillAtOnce)], at); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
	}
	return nil
}

// createSegment creates the file of a segment under a temporary name, which it returns.
func createSegment(fs FS, first uint64, size int64) (name string, err error) {
	name = segmentName(first) + tmpSuffix
	f, err := fs.Create(name)
	if err == nil {
		err = errors.Join(fill(f, 0, size, func() bool { return false }), f.Close())
	}
	if err != nil {
		return "", fmt.Errorf("cannot create a segment: %w", err)
	}
	return name, nil
}

// nameSegment makes a file a durable segment without records: its name alone keeps sequences below first from being
// used again. A crash before it returns leaves a file with a temporary name, or the segment.
func nameSegment(fs FS, id spoolID, from string, first uint64) (f File, err error) {
	f, err = fs.Open(from)
	if err == nil {
		_, err = f.WriteAt(id.appendEndMark(id.appendSegmentHeader(nil, first), first), 0)
		if err == nil {
			err = f.Sync()
		}
		err = errors.Join(err, f.Close()) // closed, so that Windows can rename it
	}
	if err == nil {
		err = fs.Rename(from, segmentName(first))
	}
	// Commit point of the name, so that the sync of a record is all that a commit needs.
	if err == nil {
		err = fs.SyncDir()
	}
	if err == nil {
		f, err = fs.Open(segmentName(first))
	}
	if err != nil {
		return nil, fmt.Errorf("cannot start a segment: %w", err)
	}
	return f, nil
}

// newSegment creates a durable segment.
func newSegment(fs FS, id spoolID, first uint64, preallocated int64) (File, error) {
	name, err := createSegment(fs, first, preallocated)
	if err != nil {
		return nil, err
	}
	return nameSegment(fs, id, name, first)
}

// fail makes an error permanent and fails the pending batch; the caller fails the one being flushed. Needs mu. It is
// called at most once, by the writer, which then ends.
func (s *Spool) fail(err error) {
	// err is set before the channels are closed, so that a caller that one of them wakes sees it.
	s.err = fmt.Errorf("%w: %w", ErrFailed, err)
	s.pending.err = s.err
	close(s.pending.done)
	close(s.failed)
}
