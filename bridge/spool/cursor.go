package spool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"
)

// Record is one record of the log, or stands for missing ones.
type Record struct {
	// Sequence identifies the record in this spool for ever. The first is 1.
	Sequence uint64
	// Lost is how many sequences directly before this one have no record: it is damaged, was removed before this bus
	// was configured, or never existed.
	Lost uint64
	// Payload is what was appended; nil if Sequence itself is missing, too. It is read-only, and valid until the
	// record, or one after it, is committed.
	Payload []byte
	// Redelivered reports that Next may have returned the record before, in an earlier run or before a Rewind; false
	// guarantees that it did not, unless an error was logged. Without a valid high-water mark it is true for every
	// record that exists at Open.
	Redelivered bool

	end int64 // position in the log after the record, in bytes since the spool was opened
}

// Cursor is the position of one bus in the log. Next and Rewind belong to one goroutine; the other methods may be
// called from any.
//
// Four sequences describe it, in this order:
//
//	saved      in the cursor's file: segments up to here may be removed, and a restart continues here
//	committed  published on the bus, in memory only: a crash returns to saved
//	next       not returned yet; the records between committed and next are in flight
//	highWater  in the cursor's file: a restart reports records up to here as Redelivered
//
// After a restart a record between saved and highWater is returned again, with Redelivered set, whether or not the bus
// has it. A record above highWater was never returned, so it need not be looked up.
type Cursor struct {
	s    *Spool
	name string
	wake chan struct{} // holds a token when there may be more to read

	// Owned by the goroutine that calls Next. Always committed < next, and no record at or above next was returned
	// since Open or Rewind.
	redelivered    uint64   // highest sequence that may have been returned before
	next           uint64   // lowest sequence not returned yet
	segment        *segment // the segment that reader reads; nil while none is open
	limit          int64    // how many bytes of segment may be read, as last checked
	last           uint64   // highest sequence before limit
	reader         segmentReader
	buffer         []byte           // the memory that payloads share; nil if each payload is a copy
	scratch        []byte           // the memory that payloads are copied from; allocated when needed
	retained       []retainedBuffer // earlier buffers whose payloads may be in use, oldest first
	retainedBytes  int64            // their total size; at most maxRetained
	highWaterCheck uint64           // up to this sequence Next need not check the mark; at most highWater

	// Guarded by s.mu. Always saved <= committed, and, unless the disk refuses the mark, every sequence that Next
	// returned is at most highWater.
	committed    uint64    // every sequence up to this one is published on this bus
	waitingSince time.Time // see WaitingSince
	committedEnd int64     // position in the log after committed, or, until Next has read it, the start of its segment
	state        []byte    // the state in the file at Open; opaque
	snapshot     func() (committed uint64, state []byte)
	dirty        bool          // the current position and state are neither saved nor in unsaved
	unsaved      []pendingSave // positions to save, oldest first; each waits for CursorDelay
	saved        uint64        // committed in the file; zero from Rewind until the file is written again
	rewinds      uint64        // counts Rewind, so that a save that began before one is recognized
	reached      uint64        // the sequence for which Next last requested a higher mark
	highWater    uint64        // high-water mark in the file: highest sequence that Next may return

	// Guarded by s.files.
	file   File     // with the slots; nil without a file of version 2, and after a failure
	inFile position // what is in force in it, or was at Open
}

// retainedBuffer is a read buffer whose payloads may be in use until every record in it is committed. Buffers of
// readAhead bytes are reused, because allocating them is a large part of the cost of a drain; of others only the size
// is kept, to count them.
type retainedBuffer struct {
	buffer []byte
	size   int64
	end    int64 // position in the log after its last record
}

// maxRetained limits the bytes of retained buffers. One uncommitted record retains all buffers after its own, whatever
// else is committed. Above the limit each payload is a copy, which is freed with its record.
const maxRetained = 32 << 20

// pendingSave is a position to save, once it is CursorDelay old.
type pendingSave struct {
	at        time.Time // not before the last commit that it contains
	committed uint64
	state     []byte
}

// capture adds the current position and state to unsaved, if they have changed. Needs s.files, and must not be called
// with s.mu: the snapshot function may block on a caller of Commit.
func (c *Cursor) capture() {
	c.s.mu.Lock()
	dirty, snapshot, committed, state, rewinds := c.dirty, c.snapshot, c.committed, c.state, c.rewinds
	// Reset before the snapshot: a Commit during it makes the cursor dirty again.
	c.dirty = false
	c.s.mu.Unlock()
	if !dirty {
		return
	}
	if snapshot != nil {
		committed, state = snapshot()
	}
	at := time.Now() // after every commit in the snapshot
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.rewinds == rewinds { // else the snapshot is of before a Rewind, which made the cursor dirty again
		c.unsaved = append(c.unsaved, pendingSave{at, committed, state})
	}
}

// popDue removes the positions that are not after the given time from unsaved, and returns the last of them. Needs
// s.mu.
func (c *Cursor) popDue(notAfter time.Time) (m pendingSave, ok bool) {
	for len(c.unsaved) > 0 && !c.unsaved[0].at.After(notAfter) {
		m, ok = c.unsaved[0], true
		c.unsaved = c.unsaved[1:]
	}
	return m, ok
}

// Committed returns the highest sequence up to which every record is published, and the state in the cursor's file at
// Open (nil for a new cursor).
func (c *Cursor) Committed() (sequence uint64, state []byte) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	return c.committed, c.state
}

// WaitingSince returns when the oldest uncommitted record began to wait for this bus: the latest of when it became
// durable, the last Commit, and Open. It is meaningless while no record is uncommitted. It has a monotonic clock
// reading.
func (c *Cursor) WaitingSince() time.Time {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	return c.waitingSince
}

// SetSnapshot sets the function that is called before each save, for the committed sequence and the state to write.
// Both must be of the same moment: they include every Commit that returned before the call, and no uncommitted record.
// The function may block on a caller of Commit, but must not call the spool. Until it is set, the state in the file is
// kept.
func (c *Cursor) SetSnapshot(snapshot func() (committed uint64, state []byte)) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.snapshot = snapshot
}

// Commit records that every record up to and including r is published on this bus. It does not wait for the disk:
// after a crash the cursor may be at an earlier Commit.
func (c *Cursor) Commit(r Record) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	// A crash before the next save leaves the older position in the file: records after it are returned again, with
	// Redelivered set.
	c.committed, c.committedEnd, c.waitingSince = r.Sequence, r.end, time.Now()
	c.markDirty()
}

// MarkDirty requests a save because the state has changed without a Commit.
func (c *Cursor) MarkDirty() {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.markDirty()
}

// markDirty is MarkDirty with s.mu held.
func (c *Cursor) markDirty() {
	c.dirty = true
	signal(c.s.save)
}

// Rewind moves the cursor back to the sequence, or to before the oldest retained record, and returns the new committed
// sequence. The snapshot function must block until the caller knows it. Payloads returned earlier become invalid, and
// their records must not be committed.
func (c *Cursor) Rewind(sequence uint64) uint64 {
	c.closeSegment()
	c.retained, c.retainedBytes = nil, 0 // not reused: deliveries in flight may still read them
	// What was returned in this run may be on the bus, too.
	c.redelivered = max(c.redelivered, c.next-1)
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	// A rewind never moves forward: a sequence above committed may be in flight.
	sequence = min(sequence, c.committed)
	// The start of a segment is a lower bound for the position until Next has read up to it.
	begin := c.s.retainedSegment(sequence + 1)
	// It had nothing to wait for before, so the wait begins now.
	if c.committed == c.s.durable {
		c.waitingSince = time.Now()
	}
	c.committed = min(c.committed, max(sequence, begin.first-1))
	c.committedEnd = begin.base
	c.next = c.committed + 1
	// saved is zero: the file is ahead of the cursor, so no segment may be removed until it is written again. A crash
	// before that finds the old file; the publisher state in it leads to the same rewind.
	// Positions captured before the rewind must not be saved after it.
	c.unsaved, c.saved = nil, 0
	c.rewinds++
	for _, g := range c.s.segments {
		if g.last > c.committed {
			g.publishedAt = time.Time{} // Options.Keep starts when it is published again
		}
	}
	c.markDirty()
	signal(c.wake)
	return c.committed
}

// Save writes the file now and without CursorDelay, because what is committed must survive a loss of power from here
// on. Its error is that of the disk; the save is retried in the background.
func (c *Cursor) Save() error {
	c.MarkDirty()
	return c.s.saveCursor(c, 0)
}

// Next returns the next durable record, and blocks until there is one. Its error is ctx's, or that of reading the
// disk; then Next may be called again. Damage is not an error: see Record.Lost.
func (c *Cursor) Next(ctx context.Context) (Record, error) {
	for {
		r, ok, err := c.tryNext()
		if ok || err != nil {
			return r, err
		}
		select {
		case <-c.wake:
		case <-ctx.Done():
			return Record{}, ctx.Err()
		}
	}
}

// tryNext returns the next record; false if there is none yet.
func (c *Cursor) tryNext() (Record, bool, error) {
	for c.segment == nil {
		g := c.s.segmentOf(c.next)
		if err := c.openSegment(g); err != nil && g == c.s.segmentOf(c.next) {
			return Record{}, false, err
		} // or else the log has moved on, and the segment was removed
	}
	for {
		var following *segment
		if c.reader.offset >= c.limit {
			c.limit, c.last, following = c.s.extent(c.segment)
		}
		// The sequences between the previous segment and this one have no record.
		if c.next < c.segment.first {
			return c.lostRecord(c.segment.first-1, c.segment.base), true, nil
		}
		if c.reader.offset >= c.limit {
			// End of the log: the writer wakes the cursor after the next commit.
			if following == nil {
				return Record{}, false, nil
			}
			if err := c.openSegment(following); err != nil {
				return Record{}, false, err
			}
			continue
		}
		r, ok, err := c.readRecord(c.limit, c.last)
		if ok || err != nil {
			return r, ok, err
		}
	}
}

// readRecord returns the next record of the segment at or after next, or one for the sequences lost at the segment's
// end. It returns false, and is called again, if it skipped a record or damage.
func (c *Cursor) readRecord(limit int64, last uint64) (Record, bool, error) {
	sequence, payload, err := c.reader.record(limit, last)
	switch {
	case errors.Is(err, errDamaged) && c.next > last:
		// All of the segment is committed, so it may be removed by now and its file in use for other records.
		c.reader.buf, c.reader.offset = nil, limit
		return Record{}, false, nil
	case errors.Is(err, errDamaged):
		// Damage in the middle costs only its own records: reading continues at the next valid one.
		found, err := c.skipDamage(limit, last)
		if err != nil || found {
			return Record{}, false, err
		}
		return c.lostRecord(last, c.segment.base+limit), true, nil
	case err != nil:
		return Record{}, false, fmt.Errorf("cannot read the spool: %w", err)
	}
	end := c.segment.base + c.reader.offset
	// Committed before the segment was opened.
	if sequence < c.next {
		c.s.advanceCommittedEnd(c, end)
		return Record{}, false, nil
	}
	// The mark must be durable before the bus can see the record: a crash in between would report a record that the
	// bus has as new.
	if sequence > c.highWaterCheck {
		c.ensureHighWater(sequence)
	}
	if c.buffer == nil {
		payload = bytes.Clone(payload)
	}
	r := Record{
		Sequence: sequence, Lost: sequence - c.next, Payload: payload, Redelivered: sequence <= c.redelivered, end: end,
	}
	c.next = sequence + 1
	return r, true, nil
}

// ensureHighWater raises the high-water mark to at least the sequence before Next returns it. The background goroutine
// raises it half a step early; this one waits for the disk only if that is late.
func (c *Cursor) ensureHighWater(sequence uint64) {
	c.s.mu.Lock()
	// The background goroutine may be raising the mark at this moment; raiseHighWater checks again.
	late := sequence > c.highWater
	if sequence+highWaterStep/2 > c.highWater {
		c.reached = max(sequence, c.redelivered)
		signal(c.s.background)
	}
	c.s.mu.Unlock()
	if late {
		c.s.raiseHighWater(c)
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	// The next check is half a step before the mark, to request a higher one early, and then at the mark itself.
	if c.highWaterCheck = c.highWater; sequence+highWaterStep/2 <= c.highWater {
		c.highWaterCheck -= highWaterStep / 2
	}
}

// nextHighWater returns what to raise the high-water mark to, and whether it is due. Needs s.mu.
func (c *Cursor) nextHighWater() (highWater uint64, due bool) {
	return c.reached + highWaterStep, c.reached > 0 && c.reached+highWaterStep/2 > c.highWater
}

// lostRecord returns a record without payload for the sequences from next to last, which have no record.
func (c *Cursor) lostRecord(last uint64, end int64) Record {
	r := Record{Sequence: last, Lost: last - c.next, end: end}
	c.next = last + 1
	return r
}

// skipDamage skips invalid bytes, quarantines a copy of them and logs it once. found reports that a valid record
// follows.
func (c *Cursor) skipDamage(limit int64, last uint64) (found bool, err error) {
	start := c.reader.offset
	damage, found, err := c.reader.resync(limit, last)
	if err != nil {
		return false, fmt.Errorf("cannot read the spool: %w", err)
	}
	if !found && c.s.id.isEndMark(damage, c.reader.next) {
		return false, nil // a crash may undo that a segment was truncated when the log moved on
	}
	name := fmt.Sprintf("%020d-%d%s", c.segment.first, start, badSuffix)
	logged, err := c.s.quarantine(name, damage)
	if !logged {
		c.s.o.Log.Error("part of the spool is damaged and is skipped; compare the broker's order book with the bus",
			"segment", c.segment.name(), "offset", start, "bytes", len(damage), "kept_in", name)
	}
	if err != nil {
		c.s.o.Log.Error("cannot quarantine the damaged part of the spool", "file", name, "error", err)
	}
	return found, nil
}

// openSegment makes g the segment that the cursor reads, from its start: records before next are skipped.
func (c *Cursor) openSegment(g *segment) error {
	f, err := c.s.fs.Open(g.name())
	if err != nil {
		return fmt.Errorf("cannot read the spool: %w", err)
	}
	c.closeSegment()
	c.segment, c.limit = g, 0
	c.reader = segmentReader{id: c.s.id, file: f, next: g.first, offset: segmentHeaderLen, buffer: c.nextBuffer}
	return nil
}

// nextBuffer provides the reader with memory: a buffer that payloads may share, or above maxRetained one to copy from.
func (c *Cursor) nextBuffer(n int64) []byte {
	c.retainBuffer()
	end := c.s.committedEnd(c)
	// A buffer up to committedEnd has no payload in use, by the contract of Record.Payload.
	for c.buffer == nil && len(c.retained) > 0 && c.retained[0].end <= end {
		if n == readAhead {
			c.buffer = c.retained[0].buffer
		}
		c.retainedBytes -= c.retained[0].size
		c.retained = c.retained[1:]
	}
	switch {
	case c.buffer != nil:
	case c.retainedBytes+n <= maxRetained:
		c.buffer = make([]byte, n)
	case n > readAhead:
		// One large record: its memory is freed with the copy of its payload.
		return make([]byte, n)
	default:
		if c.scratch == nil {
			c.scratch = make([]byte, readAhead)
		}
		return c.scratch[:n]
	}
	return c.buffer
}

// retainBuffer counts the current buffer as retained, because its payloads may be in use.
func (c *Cursor) retainBuffer() {
	if c.buffer == nil {
		return
	}
	l := retainedBuffer{size: int64(len(c.buffer)), end: c.segment.base + c.reader.offset}
	// Larger buffers held one large record; the garbage collector frees them with it.
	if l.size == readAhead {
		l.buffer = c.buffer
	}
	// Once the last record read from the buffer is committed, no payload in it is in use.
	c.retained, c.retainedBytes, c.buffer = append(c.retained, l), c.retainedBytes+l.size, nil
}

// closeSegment closes the file. The next tryNext opens the segment of c.next.
func (c *Cursor) closeSegment() {
	if c.segment != nil {
		c.retainBuffer()
		_ = c.reader.file.Close() // read-only use: nothing can be lost
		c.segment = nil
	}
}
