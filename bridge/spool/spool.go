package spool

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"runtime"
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
	// offeredStep is how far ahead is noted what was offered, so that it is seldom written.
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
	closing  chan struct{} // closed by Close
	failed   chan struct{} // closed by the first failure
	finished sync.WaitGroup

	// Owned by the writer goroutine.
	file  File  // of the last segment
	end   int64 // where the next record goes in it
	blind bool  // the free space could not be measured

	// files is held while a file that is not a segment is replaced. It is taken before mu.
	files sync.Mutex

	mu       sync.Mutex
	room     sync.Cond // signalled when the writer has tried to make room
	wantRoom bool      // an Append waits for room
	stuck    bool      // the oldest segment could not be removed; the next housekeeping tries again
	full     bool      // what Append or Stats said last
	err      error     // sticky; wraps ErrFailed
	closed   bool
	filling  *batch // what is appended now
	writing  *batch // what the writer is making durable; nil if nothing
	spare    []byte // the buffer of a batch that is done
	next     uint64 // the sequence of the next record
	durable  uint64 // the highest sequence that is durable or will never be used
	segments []*segment
	bytes    int64 // in files, or promised to batches
	free     int64 // on the disk, as last measured, less what was promised since
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
func (s *Spool) Append(payload []byte) (Ticket, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := recordHeaderLen + int64(len(payload))
	if err := s.makeRoom(n); err != nil {
		return Ticket{}, err
	}
	b := s.filling
	b.buf = s.id.appendRecord(b.buf, s.next, payload)
	b.last = s.next
	s.next++
	s.bytes += n
	s.free -= n
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

// makeRoom returns nil if n bytes more may be written. What is done on every bus goes before anything is refused; the
// writer removes it while this waits. Needs mu.
func (s *Spool) makeRoom(n int64) error {
	for {
		refusal := s.refusal(n, 0)
		switch {
		case s.closed:
			return ErrClosed
		case s.err != nil:
			return s.err
		case refusal != nil && s.removable(s.segments[0]):
			s.wantRoom = true
			signal(s.work)
			s.room.Wait()
		default:
			s.full = refusal != nil
			return refusal
		}
	}
}

// refusal returns why a record of n bytes would not be taken if there were so many bytes more; nil if it would. A spool
// that was full takes nothing, however small, before there is some slack: or else it would be full and not full in turn.
// Needs mu.
func (s *Spool) refusal(n, more int64) error {
	need := max(n, ordinaryRecord)
	if s.full {
		need = max(need, min(s.o.MaxBytes/64, maxSlack))
	}
	switch {
	case s.bytes-more+need > s.o.MaxBytes-overhead:
		return fmt.Errorf("%w: %d bytes of %d wait for a bus", ErrFull, s.waitingBytes(), s.o.MaxBytes)
	case s.free+more-need < s.o.MinFree:
		return fmt.Errorf("%w: the disk has only %d bytes more than the reserve", ErrFull, max(0, s.free-s.o.MinFree))
	}
	return nil
}

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
		st.Full = s.refusal(0, s.removableBytes())
		s.full = st.Full != nil
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
	s.room.Broadcast()
	s.mu.Unlock()
	if again {
		return ErrClosed
	}
	close(s.closing)
	s.finished.Wait()
	for _, c := range s.cursors {
		c.leave()
	}
	err := errors.Join(s.file.Close(), s.lock.Close())
	if !told {
		err = errors.Join(s.Err(), err)
	}
	return err
}

// write is the writer goroutine: it alone changes segments, and it ends with the first failure.
func (s *Spool) write() {
	defer s.finished.Done()
	tick := time.NewTicker(housekeeping)
	defer tick.Stop()
	for s.Err() == nil {
		select {
		case <-s.work:
			// Whoever is about to append comes along: an fsync costs more than letting them run first.
			runtime.Gosched()
		case <-tick.C:
			s.housekeep()
		case <-s.closing:
			s.flush()
			return
		}
		s.flush()
		s.answerRoom()
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
	for buf := b.buf; len(buf) > 0; {
		n := s.id.fitting(buf, s.segmentSize()-s.end)
		if n == 0 && s.end > segmentHeaderLen {
			if err := s.rotate(recordSequence(buf)); err != nil {
				return err
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

// fitting returns the length of the records at the start of buf that fit into space.
func (id spoolID) fitting(buf []byte, space int64) int64 {
	if int64(len(buf)) <= space {
		return int64(len(buf))
	}
	var fit int64
	for {
		n, _ := id.recordLen(buf[fit:])
		if fit+n > space {
			return fit
		}
		fit += n
	}
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
	g.size, g.last, s.durable = s.end, last, last
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
	f, err := createSegment(s.fs, s.id, first)
	if err != nil {
		return err
	}
	closed := s.file.Close() // synced already
	s.file, s.end = f, segmentHeaderLen
	s.mu.Lock()
	s.addSegment(first, segmentHeaderLen)
	s.mu.Unlock()
	s.wakeCursors() // so that none keeps the old one open, which would hold its bytes after it is removed
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

// createSegment makes a segment whose name survives. Its header does with the first record.
func createSegment(fs FS, id spoolID, first uint64) (File, error) {
	f, err := fs.Create(segmentName(first))
	if err != nil {
		return nil, fmt.Errorf("cannot make a segment: %w", err)
	}
	_, err = f.WriteAt(id.appendSegmentHeader(nil, first), 0)
	if err == nil {
		err = fs.SyncDir()
	}
	if err != nil {
		// The error before these is the one to tell.
		_ = f.Close()
		_ = fs.Remove(segmentName(first))
		return nil, fmt.Errorf("cannot make a segment: %w", err)
	}
	return f, nil
}

// fail makes the failure sticky and tells all who wait for the batch that is being filled. Needs mu.
func (s *Spool) fail(err error) {
	s.err = fmt.Errorf("%w: %w", ErrFailed, err)
	s.filling.err = s.err
	close(s.filling.done)
	s.room.Broadcast()
	close(s.failed)
}

// housekeep measures the disk and removes what has been done on every bus for long enough.
func (s *Spool) housekeep() {
	_ = s.measure() // said once
	s.mu.Lock()
	s.stuck = false
	s.mu.Unlock()
	now := time.Now()
	for {
		s.mu.Lock()
		g := s.segments[0]
		due := g.next != nil && s.doneSegment(g)
		if due && g.done.IsZero() {
			g.done = now
		}
		due = due && now.Sub(g.done) >= s.o.Keep
		s.mu.Unlock()
		if !due || !s.removeOldest() {
			return
		}
	}
}

// measure looks how much room the disk has. If that cannot be told, what was known before holds.
func (s *Spool) measure() error {
	free, err := s.fs.Free()
	if err != nil && !s.blind {
		s.o.Log.Error("cannot measure the free space of the spool's disk", "error", err)
	}
	if s.blind = err != nil; !s.blind {
		s.mu.Lock()
		s.free = free - int64(len(s.filling.buf))
		s.mu.Unlock()
	}
	return err
}

// answerRoom makes room for the Appends that wait for it.
func (s *Spool) answerRoom() {
	s.mu.Lock()
	try := s.wantRoom && s.err == nil && s.removable(s.segments[0])
	s.mu.Unlock()
	if try {
		s.removeOldest()
		_ = s.measure() // said once
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wantRoom = false
	s.room.Broadcast()
}

// removableBytes is the room that the removal of all that can be removed makes. Needs mu.
func (s *Spool) removableBytes() (n int64) {
	for _, g := range s.segments {
		if !s.removable(g) {
			break
		}
		n += g.size
		if g.next == nil {
			n -= segmentHeaderLen // of the one that takes over
		}
	}
	return n
}

// removable reports whether removing a segment, when it is the oldest, makes room: it is done on every bus, and if it is
// the one being written the disk has room for another. Needs mu.
func (s *Spool) removable(g *segment) bool {
	return !s.stuck && s.doneSegment(g) && g.last >= g.first && (g.next != nil || s.free >= ordinaryRecord)
}

// doneSegment reports whether every bus is past the segment. Needs mu.
func (s *Spool) doneSegment(g *segment) bool {
	for _, c := range s.cursors {
		if c.committed < g.last {
			return false
		}
	}
	return true
}

// removeOldest removes the oldest segment and reports whether it could.
func (s *Spool) removeOldest() bool {
	err := s.remove(s.segments[0]) // only this goroutine changes segments
	if err == nil {
		return true
	}
	s.o.Log.Error("cannot remove a published segment of the spool", "error", err)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stuck = true
	return false
}

// remove removes the oldest segment, for which another takes over first if it is the one being written.
func (s *Spool) remove(g *segment) error {
	// A crash must not take a cursor back to before what is left: that would look like a loss.
	for _, c := range s.cursors {
		if err := s.saveCursor(c, g.last, 0); err != nil {
			return err
		}
	}
	s.mu.Lock()
	if !s.doneSegment(g) { // a cursor was taken back
		s.mu.Unlock()
		return nil
	}
	g.going = true
	s.mu.Unlock()
	if g.next == nil {
		if err := s.rotate(s.durable + 1); err != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.fail(err)
			return err
		}
	}
	if err := s.fs.Remove(g.name()); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.mu.Lock()
		defer s.mu.Unlock()
		g.going = false
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.segments = s.segments[1:]
	s.bytes -= g.size
	return nil
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
			err = errors.Join(err, s.saveCursor(c, math.MaxUint64, ago))
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

// saveCursor writes what the cursor had committed that long ago, unless its file says already that all up to upTo is
// done.
func (s *Spool) saveCursor(c *Cursor, upTo uint64, ago time.Duration) error {
	s.files.Lock()
	defer s.files.Unlock()
	s.mu.Lock()
	saved := c.saved
	s.mu.Unlock()
	if saved >= upTo {
		return nil
	}
	c.mark()
	s.mu.Lock()
	m, ok := c.due(time.Now().Add(-ago))
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
	if err != nil {
		c.dirty = true
		signal(s.save)
		return fmt.Errorf("%s%s: %w", cursorPrefix, c.name, err)
	}
	c.saved = m.committed
	return nil
}

// saveOffered brings to disk how far the cursor has offered records, before it goes beyond that.
func (s *Spool) saveOffered(c *Cursor) {
	if err := s.replaceOffered(c); err != nil {
		s.o.Log.Error("cannot save how far a bus was offered events; after a crash it may store some twice",
			"bus", c.name, "error", err)
	}
}

// replaceOffered writes the file. Where the disk refuses, no file is better than one that says too little.
func (s *Spool) replaceOffered(c *Cursor) error {
	s.files.Lock()
	defer s.files.Unlock()
	name := offeredPrefix + c.name
	err := replaceFile(s.fs, name, s.id.formatOffered(c.offered))
	if err == nil {
		return nil
	}
	left := s.fs.Remove(name)
	if errors.Is(left, os.ErrNotExist) {
		left = nil
	}
	if left = errors.Join(left, s.fs.SyncDir()); left != nil {
		return errors.Join(err, left)
	}
	return nil
}

// signal puts a token into a channel that holds one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func newBatch(buf []byte) *batch { return &batch{buf: buf, done: make(chan struct{})} }
