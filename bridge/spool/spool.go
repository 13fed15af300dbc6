package spool

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"
)

// Errors of Append.
var (
	// ErrFull means that the record was refused before anything was written, because of the limit or of the reserve.
	ErrFull = errors.New("the spool is full")
	// ErrFailed means that a write or fsync failed, now or before. Nothing is taken any more; opening anew recovers.
	ErrFailed = errors.New("the spool failed")
	// ErrClosed means that Close was called.
	ErrClosed = errors.New("the spool is closed")
)

// Options are the limits of a spool.
type Options struct {
	// MaxBytes is the limit of the files on disk. No segment is larger than an eighth of it.
	MaxBytes int64
	// MinFree is how many bytes stay free on the disk.
	MinFree int64
	// Keep is how long records that are done on every bus stay, if there is room.
	Keep time.Duration
	// CursorDelay is how far the files of the cursors stay behind, until Close: what a bus acknowledged it may still
	// lose with the power, if it is on this machine and syncs its own files later.
	CursorDelay time.Duration
	// Cursors names the buses. Only these hold records back from removal.
	Cursors []string
	Log     *slog.Logger
}

const (
	// maxSegment is the size of a segment if the limit does not ask for less: what has to be read after a crash.
	maxSegment = 64 << 20
	// overhead is set aside from the limit for the files that are not segments.
	overhead = 16 << 10
	// ordinaryRecord is room that there must be for any record, so that Stats can say whether one will be taken.
	minRecordSpace = 4 << 10
	// maxSlack is the room that there must be, at most, before a spool that was full takes records again.
	maxSlack = 1 << 20
	// spareBuffer is the largest buffer that is used again.
	maxSpareBuffer = 1 << 20
	// housekeeping is how often free space is measured and segments are looked at for removal.
	backgroundInterval = time.Second
	// saveInterval is how often a cursor that moves is written, at most.
	saveInterval = 200 * time.Millisecond
	// offeredStep is how far ahead the high-water mark of what was offered is set, so that it is seldom written.
	highWaterStep = 1 << 14
)

// Spool is an open log. Its methods may be called from any goroutine.
type Spool struct {
	// Immutable after Open.
	fs   FS
	o    Options
	id   spoolID
	lock io.Closer

	work       chan struct{} // holds a token when the writer has something to do
	save       chan struct{} // holds a token when a cursor moved
	background chan struct{} // holds a token when there may be upkeep to do
	closing    chan struct{} // closed by Close
	failed     chan struct{} // closed by the first failure
	finished   sync.WaitGroup

	// Owned by the writer goroutine.
	file File  // of the last segment
	end  int64 // where the next record goes in it

	// Owned by the upkeep goroutine.
	freeUnknown bool // the free space could not be measured
	paused      bool // a segment could not be made or removed; the next housekeeping tries again
	// complained is set while that is logged already.
	logged bool

	// files is held while a file that is not a segment is replaced. It is taken before mu.
	files sync.Mutex

	mu           sync.Mutex
	full         bool  // the last Append was refused for want of space
	refusedBytes int64 // bytes of the largest record that was refused since upkeep last found nothing to remove
	err          error // sticky; wraps ErrFailed
	closed       bool
	pending      *batch // what is appended now
	flushing     *batch // what the writer is making durable; nil if nothing
	spare        []byte // the buffer of a batch that is done
	next         uint64 // the sequence of the next record
	durable      uint64 // the highest sequence that is durable or will never be used
	segments     []*segment
	preallocated *preallocatedSegment // the segment that will follow the last one; nil if none was made yet
	bytes        int64                // in files, or promised to batches
	free         int64                // on the disk, as last measured, less what was promised since
	accepted     int64                // bytes of records appended since Open
	written      int64                // bytes of records that are on disk since Open
	cursors      []*Cursor
}

// Ticket is a place in the log that is not durable yet. Only Wait makes a sequence of it.
type Ticket struct{ sequence uint64 }

// Append takes the record into the next batch; the order of calls is the order of the log. Nothing is durable, and
// nothing may be said to anybody, before Wait has returned. It returns an error that wraps ErrFull, ErrFailed or
// ErrClosed, and then the record is not taken. After ErrFull none is until there is some slack. The payload is copied.
// Append never waits for the disk: space is made ahead of need, by upkeep.
func (s *Spool) Append(payload []byte) (Ticket, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := recordHeaderLen + int64(len(payload))
	if err := s.admit(n); err != nil {
		return Ticket{}, err
	}
	b := s.pending
	b.buf = s.id.appendRecord(b.buf, s.next, payload)
	b.last = s.next
	s.next++
	s.bytes += n
	s.free -= n
	s.accepted += n
	signal(s.work)
	return Ticket{b.last}, nil
}

// Wait returns the sequence of the record once it is durable, or an error that wraps ErrFailed: then it may or may not
// be in the log after a restart.
func (s *Spool) Wait(t Ticket) (sequence uint64, err error) {
	s.mu.Lock()
	var b *batch
	switch {
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
		<-b.done
		err = b.err
	}
	return t.sequence, err
}

// admit returns nil if n bytes more may be written. Needs mu.
func (s *Spool) admit(n int64) error {
	if s.closed {
		return ErrClosed
	}
	if s.err != nil {
		return s.err
	}
	refusal := s.refusal(n)
	if s.full = refusal != nil; s.full {
		s.refusedBytes = max(s.refusedBytes, n)
		signal(s.background)
	}
	return refusal
}

// refusal returns why a record of n bytes would not be taken; nil if it would. A spool that was full takes nothing,
// however small, before there is some slack: or else it would be full and not full in turn. Needs mu.
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

// slack is the space that there must be before a spool that was full takes records again.
func (s *Spool) slack() int64 { return max(minRecordSpace, min(s.o.MaxBytes/64, maxSlack)) }

// space is how many bytes more there may be. Needs mu.
func (s *Spool) space() int64 { return min(s.o.MaxBytes-overhead-s.bytes, s.free-s.o.MinFree) }

// low reports whether published segments are to go before Keep is over: as much as a segment holds has to fit, so that
// they go before an Append needs their space. Needs mu.
func (s *Spool) spaceLow() bool { return s.space() < max(s.segmentSize(), s.slack(), s.refusedBytes) }

// Stats is the state of a spool.
type Stats struct {
	// Last is the highest durable sequence.
	Last uint64
	// Bytes are on disk, WaitingBytes of them not yet done on every bus.
	Bytes, WaitingBytes int64
	// Free is what the disk has left in bytes, the reserve included, as it was measured last.
	Free int64
	// Full says that an ordinary record would be refused, and why; nil if not.
	Full error
}

// Stats returns the state now.
func (s *Spool) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{Last: s.durable, Bytes: s.bytes, WaitingBytes: s.waitingBytes(), Free: s.free}
	if s.err == nil {
		st.Full = s.refusal(0)
	}
	return st
}

// ID is the spool's name: 8 hex digits, made with the spool.
func (s *Spool) ID() string { return s.id.String() }

// Cursor returns the cursor of a bus in Options.Cursors.
func (s *Spool) Cursor(name string) *Cursor {
	for _, c := range s.cursors {
		if c.name == name {
			return c
		}
	}
	return nil
}

// Failed is closed when a write or fsync has failed; Err then says what.
func (s *Spool) Failed() <-chan struct{} { return s.failed }

// Err is nil as long as the spool takes records.
func (s *Spool) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Close takes no more records, makes durable what was appended, saves the cursors and lets go of the lock. Nothing may
// call Next any more. It returns an error that wraps ErrFailed if the spool fails only now, and ErrClosed the second
// time.
func (s *Spool) Close() error {
	s.mu.Lock()
	again, told := s.closed, s.err != nil
	s.closed = true
	s.mu.Unlock()
	if again {
		return ErrClosed
	}
	close(s.closing)
	s.finished.Wait()
	for _, c := range s.cursors {
		c.closeSegment()
	}
	if s.preallocated != nil {
		s.discard(s.preallocated)
	}
	err := errors.Join(s.file.Close(), s.lock.Close())
	if !told {
		err = errors.Join(s.Err(), err)
	}
	return err
}

// waitingBytes is what some bus has not done yet. Needs mu.
func (s *Spool) waitingBytes() int64 {
	last := s.segments[len(s.segments)-1]
	end := last.base + last.size
	least := end
	for _, c := range s.cursors {
		if c.committed < s.durable {
			least = min(least, c.committedEnd)
		}
	}
	return end - least
}

// segmentOf returns the segment that holds the sequence, or the oldest if it is gone.
func (s *Spool) segmentOf(sequence uint64) *segment {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := len(s.segments) - 1; i > 0; i-- {
		if s.segments[i].first <= sequence {
			return s.segments[i]
		}
	}
	return s.segments[0]
}

// kept returns the segment that holds the sequence, or else the oldest, without one that is being removed. Needs mu.
func (s *Spool) retainedSegment(sequence uint64) *segment {
	for i := len(s.segments) - 1; i > 0; i-- {
		if s.segments[i].first <= sequence || s.segments[i-1].removing {
			return s.segments[i]
		}
	}
	return s.segments[0]
}

// extent returns how much of a segment may be read, its last sequence, and the segment after it.
func (s *Spool) extent(g *segment) (size int64, last uint64, next *segment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return g.size, g.last, g.next
}

// committedEnd is where the log goes on behind what a cursor has committed.
func (s *Spool) committedEnd(c *Cursor) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return c.committedEnd
}

// place notes where the log goes on behind what a cursor has committed.
func (s *Spool) advanceCommittedEnd(c *Cursor, end int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.committedEnd = max(c.committedEnd, end)
}

// keep writes damaged bytes to a file of their own, if there is room, and reports whether that was done before.
func (s *Spool) quarantine(name string, damage []byte) (before bool, err error) {
	s.files.Lock()
	defer s.files.Unlock()
	if f, err := s.fs.Open(name); err == nil {
		return true, f.Close()
	}
	n := int64(len(damage))
	s.mu.Lock()
	room := s.bytes+n <= s.o.MaxBytes-overhead
	if room {
		s.bytes += n
	}
	s.mu.Unlock()
	if !room {
		return false, fmt.Errorf("%w: %d bytes more", ErrFull, n)
	}
	if err = replaceFile(s.fs, name, damage); err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.bytes -= n
	}
	return false, err
}

// signal puts a token into a channel that holds one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
