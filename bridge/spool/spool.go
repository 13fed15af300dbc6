package spool

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Errors of Append.
var (
	// ErrFull means that the record was refused before anything was written: MaxBytes or MinFree would be violated.
	ErrFull = errors.New("the spool is full")
	// ErrFailed means that a write or an fsync failed, now or earlier. It is permanent; a new Open recovers.
	ErrFailed = errors.New("the spool failed")
	// ErrClosed means that Close was called.
	ErrClosed = errors.New("the spool is closed")
)

// Options are the limits of a spool.
type Options struct {
	// MaxBytes limits the total size of all files, in bytes. A segment is at most an eighth of it.
	MaxBytes int64
	// MinFree is how many bytes of the disk are reserved for others.
	MinFree int64
	// Keep is how long a published segment is retained, as long as there is space.
	Keep time.Duration
	// CursorDelay is how far the saved cursors lag behind the committed ones, until Close. It is for a bus on this
	// machine that acknowledges before it syncs: after a loss of power the cursor must not be ahead of what the bus
	// still has.
	CursorDelay time.Duration
	// Cursors are the names of the buses. A segment is removed only when all of them have published it.
	Cursors []string
	// Log gets what the spool repairs, skips, or retries by itself.
	Log *slog.Logger
}

const (
	// maxSegment is the largest size of a segment. It bounds what Open reads after a crash.
	maxSegment = 64 << 20
	// overhead is the part of MaxBytes reserved for files that are not segments.
	overhead = 16 << 10
	// minRecordSpace is the space required for any record, however small, so that Stats agrees with Append.
	minRecordSpace = 4 << 10
	// minPreallocation is the size of the first segment, if MaxBytes allows.
	minPreallocation = 4 << 20
	// fillAtOnce is how much of a segment is filled and then synced, while the syncs of records wait for the disk.
	fillAtOnce = 256 << 10
	// maxSlack bounds the space required to accept records again after the spool was full.
	maxSlack = 1 << 20
	// maxSpareBuffer is the largest batch buffer that is reused.
	maxSpareBuffer = 1 << 20
	// backgroundInterval is how often free space is measured and a failed background operation is retried.
	backgroundInterval = time.Second
	// saveInterval is the minimum time between two saves of the cursors.
	saveInterval = 200 * time.Millisecond
	// highWaterStep is how many sequences the high-water mark is set ahead, so that it is rarely written.
	highWaterStep = 1 << 14
)

// Spool is an open log. Its methods may be called from any goroutine.
//
// Three goroutines share the work, so that Append never waits for the disk and a commit waits for nothing but its own
// write and sync, and once in a segment for the name of the next one:
//
//	writer      writes and syncs batches, and switches segments; it alone changes the content of segments
//	saver       writes the files of the cursors
//	background  preallocates, removes and reuses segments, raises high-water marks, measures free space
//
// A cursor reads in the goroutine of its bus, and only what the writer has synced.
type Spool struct {
	// Immutable after Open. The channels work, save and background hold at most one token: it means that there may be
	// something to do, and its receiver checks the state under mu.
	fs   FS
	o    Options
	id   spoolID
	lock io.Closer

	work       chan struct{} // to the writer: a batch is pending, or the log moves on
	save       chan struct{} // to the saver: a cursor is dirty or has unsaved positions
	background chan struct{} // to the background goroutine: a segment or a high-water mark may be due
	closing    chan struct{} // closed by Close
	failed     chan struct{} // closed by the first failure, together with err
	finished   sync.WaitGroup

	// Owned by the writer goroutine. All bytes of file before end are durable.
	file     File  // the last segment
	end      int64 // position of the next record in file
	capacity int64 // end does not exceed it, unless one record does

	// Owned by the background goroutine once Open has returned.
	freeUnknown bool // the last measurement of free space failed
	paused      bool // creating or removing a segment failed; retried after backgroundInterval
	logged      bool // that failure is logged

	// files serializes writes to files other than segments. It is acquired before mu, never while mu is held.
	files sync.Mutex

	// mu guards the fields below, except that cursors is immutable after Open. It is never held during a disk
	// operation. Always, unless err is set:
	//	 - durable < next; each sequence above durable is in flushing or, after those, in pending
	//	 - segments is not empty, and its last element is the one whose file the writer appends to
	//	 - bytes and free include records that are not written yet, so that what was accepted fits
	mu           sync.Mutex
	full         bool  // the last Append was refused for lack of space
	refusedBytes int64 // size of the largest record refused since there was last nothing to remove for it
	err          error // sticky; wraps ErrFailed
	closed       bool
	pending      *batch     // collects appended records
	flushing     *batch     // the writer is making it durable; nil if none
	spare        []byte     // the buffer of an earlier batch, for reuse
	next         uint64     // sequence of the next record
	durable      uint64     // highest sequence that is durable or will never be used
	segments     []*segment // oldest first
	nextSize     int64      // size of the file nextName, the next segment; 0 if there is none or it is not ready
	nextTaken    bool       // the writer is giving that file its name
	bytes        int64      // of all records, headers and .bad files, also of records not yet written
	free         int64      // bytes of the disk free or preallocated, as measured, less what was accepted since
	accepted     int64      // bytes of records appended since Open
	written      int64      // bytes of records synced since Open; at most accepted
	cursors      []*Cursor
}

// Ticket identifies a record that is not durable yet. Wait turns it into a sequence.
type Ticket struct{ sequence uint64 }

// Append adds a copy of the payload to the pending batch. The order of calls is the order of the log. The record is
// not durable and must not be acknowledged before Wait has returned. On an error, which wraps ErrFull, ErrFailed or
// ErrClosed, the record is not added. After ErrFull every record is refused until there is slack, up to 1 MiB of
// space. Append never waits for the disk: the background goroutine makes space before it is needed.
func (s *Spool) Append(payload []byte) (Ticket, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := recordHeaderLen + int64(len(payload))
	if err := s.admit(n); err != nil {
		return Ticket{}, err
	}
	// From here on the space is accounted for: what is accepted is never refused later for lack of it.
	b := s.pending
	// With space for the end mark, so that the writer need not copy the batch to append it.
	b.buf = s.id.appendRecord(slices.Grow(b.buf, int(n)+endMarkLen), s.next, payload)
	b.last = s.next
	s.next++
	s.bytes += n
	s.free -= n
	s.accepted += n
	// A crash before the writer's Sync loses the record, or leaves it without a caller that knows of it. Both are
	// allowed: Wait has not returned.
	signal(s.work)
	return Ticket{b.last}, nil
}

// Wait blocks until the record is durable and returns its sequence. On an error, which wraps ErrFailed, the record may
// or may not be in the log after a restart.
func (s *Spool) Wait(t Ticket) (sequence uint64, err error) {
	s.mu.Lock()
	var b *batch
	switch {
	// The order matters: a record of a failed spool that is durable was committed before the failure.
	case t.sequence <= s.durable:
	case s.flushing != nil && t.sequence <= s.flushing.last:
		b = s.flushing
	case s.err != nil:
		err = s.err
	default:
		b = s.pending
	}
	s.mu.Unlock()
	if b != nil {
		// err is set before done is closed, so it may be read without mu.
		<-b.done
		err = b.err
	}
	return t.sequence, err
}

// admit returns nil if n more bytes may be appended. On a refusal it has the background goroutine remove published
// segments. Needs mu.
func (s *Spool) admit(n int64) error {
	if s.closed {
		return ErrClosed
	}
	if s.err != nil {
		return s.err
	}
	refusal := s.refusal(n)
	if s.full = refusal != nil; s.full {
		// The background goroutine removes published segments until a record of this size fits, and the caller's retry
		// succeeds.
		s.refusedBytes = max(s.refusedBytes, n)
		signal(s.background)
	}
	return refusal
}

// refusal returns why a record of n bytes, header included, is refused, or nil. After a refusal even a small record is
// refused until there is slack: otherwise the spool would refuse large records and accept small ones in turn. Needs
// mu.
func (s *Spool) refusal(n int64) error {
	need := max(n, minRecordSpace)
	if s.full {
		need = max(need, s.slack())
	}
	switch {
	case s.bytes+need > s.o.MaxBytes-overhead:
		return fmt.Errorf("%w: %d of %d bytes are unpublished", ErrFull, s.waitingBytes(), s.o.MaxBytes)
	case s.free-need < s.o.MinFree:
		return fmt.Errorf("%w: the disk has only %d bytes more than the reserve", ErrFull, max(0, s.free-s.o.MinFree))
	}
	return nil
}

// slack is the space in bytes required to accept records again after the spool was full.
func (s *Spool) slack() int64 { return max(minRecordSpace, min(s.o.MaxBytes/64, maxSlack)) }

// space is how many more bytes fit; negative if a limit is exceeded. Needs mu.
func (s *Spool) space() int64 { return min(s.o.MaxBytes-overhead-s.bytes, s.free-s.o.MinFree) }

// spaceLow reports whether published segments are removed before Options.Keep: a whole segment must always fit, so
// that Append finds the space already there. Needs mu.
func (s *Spool) spaceLow() bool {
	need := max(s.slack(), s.refusedBytes)
	if s.nextSize == 0 {
		need = max(need, s.segmentSize())
	}
	return s.space()-s.reserved() < need
}

// diskLow reports whether the disk has less free space than twice its reserve and a segment. Then published segments
// are removed before Options.Keep, too: they must neither bring the disk to where the operator is alerted, nor take
// space that other programs need. Needs mu.
func (s *Spool) diskLow() bool { return s.free < 2*s.o.MinFree+s.segmentSize() }

// Stats is the state of a spool at one moment.
type Stats struct {
	// Last is the highest durable sequence.
	Last uint64
	// Bytes are used in files, or by records not yet written; WaitingBytes of the log are unpublished on some bus.
	Bytes, WaitingBytes int64
	// Free is how many bytes of the disk are free or preallocated, MinFree included, as last measured, less what was
	// accepted since.
	Free int64
	// Full is the error that Append would return for a small record; nil if it would accept one, or if the spool
	// failed.
	Full error
}

// Stats returns the current state. It does not change what the next Append returns.
func (s *Spool) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{Last: s.durable, Bytes: s.bytes, WaitingBytes: s.waitingBytes(), Free: s.free}
	if s.err == nil {
		st.Full = s.refusal(0)
	}
	return st
}

// ID returns the spool's id, 8 hex digits. It never changes.
func (s *Spool) ID() string { return s.id.String() }

// Cursor returns the cursor of a bus, or nil if Options.Cursors does not name it.
func (s *Spool) Cursor(name string) *Cursor {
	for _, c := range s.cursors {
		if c.name == name {
			return c
		}
	}
	return nil
}

// Failed returns a channel that is closed when a write or an fsync fails; Err then returns the cause.
func (s *Spool) Failed() <-chan struct{} { return s.failed }

// Err returns an error that wraps ErrFailed once the spool has failed, and nil before.
func (s *Spool) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Close makes durable what was appended, saves the cursors without CursorDelay and releases the lock. No Next may run
// or follow. It returns an error that wraps ErrFailed if the spool fails during Close, and ErrClosed if it was called
// before.
func (s *Spool) Close() error {
	s.mu.Lock()
	again, reported := s.closed, s.err != nil
	s.closed = true
	s.mu.Unlock()
	if again {
		return ErrClosed
	}
	close(s.closing) // the writer flushes once more, the saver saves once more
	// The writer has committed or failed every accepted record, and the saver has saved every position.
	s.finished.Wait()
	for _, c := range s.cursors {
		c.closeSegment()
		c.closeFile()
	}
	if s.nextSize > 0 {
		_ = s.fs.Remove(nextName) // Open removes it, too
	}
	err := errors.Join(s.file.Close(), s.lock.Close())
	if !reported {
		err = errors.Join(s.Err(), err)
	}
	return err
}

// waitingBytes is the size in bytes of the log from the position of the slowest bus on. Needs mu.
func (s *Spool) waitingBytes() int64 {
	last := s.segments[len(s.segments)-1]
	end := last.base + last.size
	// A cursor at durable waits for nothing, even where committedEnd is only the start of its segment.
	least := end
	for _, c := range s.cursors {
		if c.committed < s.durable {
			least = min(least, c.committedEnd)
		}
	}
	return end - least
}

// segmentOf is retainedSegment for callers without mu.
func (s *Spool) segmentOf(sequence uint64) *segment {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.retainedSegment(sequence)
}

// retainedSegment returns the segment whose range contains the sequence, or the oldest one if that was removed or is
// being removed: its file may be gone. Needs mu.
func (s *Spool) retainedSegment(sequence uint64) *segment {
	// From the newest on, where most cursors are.
	for i := len(s.segments) - 1; i > 0; i-- {
		if s.segments[i].first <= sequence || s.segments[i-1].removing {
			return s.segments[i]
		}
	}
	return s.segments[0]
}

// extent returns how many bytes of a segment may be read, its last sequence, and the segment after it. The three are
// consistent: if next is not nil, size and last do not change any more.
func (s *Spool) extent(g *segment) (size int64, last uint64, next *segment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return g.size, g.last, g.next
}

// committedEnd returns the position in the log after the last record that a cursor has committed.
func (s *Spool) committedEnd(c *Cursor) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return c.committedEnd
}

// advanceCommittedEnd raises the committed position of a cursor to end, once Next has read up to there.
func (s *Spool) advanceCommittedEnd(c *Cursor, end int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.committedEnd = max(c.committedEnd, end)
}

// signal puts a token into c unless it holds one. It never blocks.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
