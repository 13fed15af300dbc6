package spool

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"slices"
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
	ordinaryRecord = 4 << 10
	// maxSlack is the room that there must be, at most, before a spool that was full takes records again.
	maxSlack = 1 << 20
	// spareBuffer is the largest buffer that is used again.
	spareBuffer = 1 << 20
	// housekeeping is how often free space is measured and segments are looked at for removal.
	housekeeping = time.Second
	// saveInterval is how often a cursor that moves is written, at most.
	saveInterval = 200 * time.Millisecond
	// offeredStep is how far ahead the high-water mark of what was offered is set, so that it is seldom written.
	offeredStep = 1 << 14
)

// Spool is an open log. Its methods may be called from any goroutine.
type Spool struct {
	// Immutable after Open.
	fs   FS
	o    Options
	id   spoolID
	lock io.Closer

	work     chan struct{} // holds a token when the writer has something to do
	save     chan struct{} // holds a token when a cursor moved
	chores   chan struct{} // holds a token when there may be upkeep to do
	closing  chan struct{} // closed by Close
	failed   chan struct{} // closed by the first failure
	finished sync.WaitGroup

	// Owned by the writer goroutine.
	file File  // of the last segment
	end  int64 // where the next record goes in it

	// Owned by the upkeep goroutine.
	blind bool // the free space could not be measured
	stuck bool // a segment could not be made or removed; the next housekeeping tries again
	// complained is set while that is logged already.
	complained bool

	// files is held while a file that is not a segment is replaced. It is taken before mu.
	files sync.Mutex

	mu       sync.Mutex
	full     bool  // the last Append was refused for want of space
	wanted   int64 // bytes of the largest record that was refused since upkeep last found nothing to remove
	err      error // sticky; wraps ErrFailed
	closed   bool
	filling  *batch // what is appended now
	writing  *batch // what the writer is making durable; nil if nothing
	spare    []byte // the buffer of a batch that is done
	next     uint64 // the sequence of the next record
	durable  uint64 // the highest sequence that is durable or will never be used
	segments []*segment
	ahead    *ahead // the segment that will follow the last one; nil if none was made yet
	bytes    int64  // in files, or promised to batches
	free     int64  // on the disk, as last measured, less what was promised since
	promised int64  // bytes of records appended since Open
	written  int64  // bytes of records that are on disk since Open
	cursors  []*Cursor
}

// batch is what one write and one fsync make durable.
type batch struct {
	buf  []byte
	last uint64        // sequence of its last record
	done chan struct{} // closed when it is durable or failed
	err  error         // set before done is closed
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
	b := s.filling
	b.buf = s.id.appendRecord(b.buf, s.next, payload)
	b.last = s.next
	s.next++
	s.bytes += n
	s.free -= n
	s.promised += n
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
	case s.writing != nil && t.sequence <= s.writing.last:
		b = s.writing
	case s.err != nil:
		err = s.err
	default:
		b = s.filling
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
		s.wanted = max(s.wanted, n)
		signal(s.chores)
	}
	return refusal
}

// refusal returns why a record of n bytes would not be taken; nil if it would. A spool that was full takes nothing,
// however small, before there is some slack: or else it would be full and not full in turn. Needs mu.
func (s *Spool) refusal(n int64) error {
	need := max(n, ordinaryRecord)
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
func (s *Spool) slack() int64 { return max(ordinaryRecord, min(s.o.MaxBytes/64, maxSlack)) }

// space is how many bytes more there may be. Needs mu.
func (s *Spool) space() int64 { return min(s.o.MaxBytes-overhead-s.bytes, s.free-s.o.MinFree) }

// low reports whether published segments are to go before Keep is over: as much as a segment holds has to fit, so that
// they go before an Append needs their space. Needs mu.
func (s *Spool) low() bool { return s.space() < max(s.segmentSize(), s.slack(), s.wanted) }

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
		c.leave()
	}
	if s.ahead != nil {
		s.drop(s.ahead)
	}
	err := errors.Join(s.file.Close(), s.lock.Close())
	if !told {
		err = errors.Join(s.Err(), err)
	}
	return err
}

// write is the writer goroutine: it alone writes to segments, and it ends with the first failure.
func (s *Spool) write() {
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
		s.takeOver()
	}
}

// flush makes durable what was appended so far.
func (s *Spool) flush() {
	s.mu.Lock()
	b := s.filling
	if len(b.buf) == 0 {
		s.mu.Unlock()
		return
	}
	s.filling, s.writing = newBatch(s.spare), b
	s.spare = nil
	s.mu.Unlock()

	err := s.writeBatch(b)

	s.mu.Lock()
	s.writing = nil
	if err != nil {
		s.fail(err)
		b.err = s.err
	}
	if cap(b.buf) <= spareBuffer {
		s.spare = b.buf[:0]
	}
	s.mu.Unlock()
	close(b.done)
}

// writeBatch writes the records of a batch, into as many segments as it takes, and syncs them.
func (s *Spool) writeBatch(b *batch) error {
	until := s.aheadFirst(b.last)
	for buf := b.buf; len(buf) > 0; {
		n := s.id.fitting(buf, s.segmentSize()-s.end, until)
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
		s.grown(last)
	}
	return nil
}

func (s *Spool) segmentSize() int64 { return min(s.o.MaxBytes/8, maxSegment) }

// grown lets the cursors read what the last segment has got.
func (s *Spool) grown(last uint64) {
	s.mu.Lock()
	g := s.segments[len(s.segments)-1]
	for _, c := range s.cursors {
		if c.committed == s.durable {
			c.waitingSince = time.Now()
		}
	}
	s.written += s.end - g.size
	g.size, g.last, s.durable = s.end, last, last
	if s.low() || s.ahead == nil && s.nearlyFull(g) {
		signal(s.chores)
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
	f, err := s.takeFile(first)
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
	if s.ahead != nil && s.ahead.first == first {
		s.ahead = nil
	}
	s.mu.Unlock()
	signal(s.chores) // the one before may go
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
	s.filling.err = s.err
	close(s.filling.done)
	close(s.failed)
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
func (s *Spool) kept(sequence uint64) *segment {
	for i := len(s.segments) - 1; i > 0; i-- {
		if s.segments[i].first <= sequence || s.segments[i-1].going {
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
func (s *Spool) place(c *Cursor, end int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.committedEnd = max(c.committedEnd, end)
}

// keep writes damaged bytes to a file of their own, if there is room, and reports whether that was done before.
func (s *Spool) keep(name string, damage []byte) (before bool, err error) {
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

// replaceFile puts a file in place of another of that name, at once and for good.
func replaceFile(fs FS, name string, content []byte) error {
	f, err := fs.Create(name + tmpSuffix)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(content, 0)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := fs.Rename(name+tmpSuffix, name); err != nil {
		return err
	}
	return fs.SyncDir()
}

// saveMoved is the goroutine that writes cursors: off the way of the records, at most once in saveInterval.
func (s *Spool) saveMoved() {
	defer s.finished.Done()
	failing := false
	ago := s.o.CursorDelay
	for open := true; open; {
		select {
		case <-s.save:
		case <-s.closing:
			open, ago = false, 0
		}
		var err error
		for _, c := range s.cursors {
			err = errors.Join(err, s.saveCursor(c, ago))
		}
		if err != nil && !failing {
			s.o.Log.Error("cannot save the cursors; after a crash more would be offered to the buses again", "error", err)
		}
		failing = err != nil
		select {
		case <-time.After(saveInterval):
		case <-s.closing:
		}
	}
}

// saveCursor writes what the cursor had committed that long ago, unless its file says so already.
func (s *Spool) saveCursor(c *Cursor, ago time.Duration) error {
	s.files.Lock()
	defer s.files.Unlock()
	c.mark()
	s.mu.Lock()
	m, ok := c.due(time.Now().Add(-ago))
	rewinds := c.rewinds
	if len(c.unsaved) > 0 {
		signal(s.save) // its time comes
	}
	s.mu.Unlock()
	if !ok {
		return nil
	}
	err := replaceFile(s.fs, cursorPrefix+c.name, m.content)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case c.rewinds != rewinds: // the file is ahead of the cursor, until it is saved again
	case err != nil:
		c.unsaved = slices.Insert(c.unsaved, 0, m)
		signal(s.save)
	default:
		c.saved = m.committed
		signal(s.chores)
	}
	if err != nil {
		return fmt.Errorf("%s%s: %w", cursorPrefix, c.name, err)
	}
	return nil
}

// raiseOffered brings to disk how far the cursor may offer records, before it goes beyond that.
func (s *Spool) raiseOffered(c *Cursor) {
	if err := s.replaceOffered(c); err != nil {
		s.o.Log.Error("cannot save how far a bus was offered events; after a crash it may store some twice",
			"bus", c.name, "error", err)
	}
}

// replaceOffered writes the file of the high-water mark, if it is time to raise it. Where the disk refuses, no file is
// better than one that says too little; the error says that there may be such a file.
func (s *Spool) replaceOffered(c *Cursor) (err error) {
	s.files.Lock()
	defer s.files.Unlock()
	s.mu.Lock()
	offered, due := c.higherMark()
	s.mu.Unlock()
	if !due {
		return nil // done meanwhile
	}
	name := offeredPrefix + c.name
	if failure := replaceFile(s.fs, name, s.id.formatOffered(offered)); failure != nil {
		left := s.fs.Remove(name)
		if errors.Is(left, os.ErrNotExist) {
			left = nil
		}
		if left = errors.Join(left, s.fs.SyncDir()); left != nil {
			err = errors.Join(failure, left)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c.offered = offered
	return err
}

// signal puts a token into a channel that holds one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func newBatch(buf []byte) *batch { return &batch{buf: buf, done: make(chan struct{})} }
