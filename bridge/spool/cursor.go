package spool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"
)

// Record is one record of the log, or the loss of some.
type Record struct {
	// Sequence is the record's number in this spool, from 1 on.
	Sequence uint64
	// Lost is how many numbers just before this one have no record: damaged, removed before this bus came, or never
	// used.
	Lost uint64
	// Payload is what was appended, and nobody may change it; nil if Sequence itself is the last of the lost numbers.
	// It is gone once the record, or one behind it, is committed.
	Payload []byte
	// Redelivered says that Next may have returned the record before, in another run or before Rewind. What it does not
	// say that of never was; a file of the bus keeps that, and without it, it is said of all that is there when the spool
	// is opened.
	Redelivered bool

	end int64 // where the log goes on behind it, in bytes since the spool was opened
}

// Cursor is how far one bus has come. Next belongs to one goroutine; Commit may be called from another.
type Cursor struct {
	s    *Spool
	name string
	wake chan struct{} // holds a token when there may be more to read

	// Owned by the goroutine that calls Next.
	redelivered    uint64 // the highest sequence that may have been returned before
	next           uint64 // the lowest sequence not returned yet
	segment        *segment
	limit          int64  // of what may be read of segment, as it was last asked for: there may be more by now
	last           uint64 // the last sequence before limit
	reader         segmentReader
	buffer         []byte           // that reader reads from; nil if payloads are copied from it
	scratch        []byte           // the buffer that payloads are copied from; nil before it is needed
	retained       []retainedBuffer // the buffers before it, oldest first
	retainedBytes  int64            // their bytes
	highWaterCheck uint64           // the sequence behind which the high-water mark is to be looked at

	// Guarded by s.mu.
	committed    uint64    // all up to here are done on this bus
	waitingSince time.Time // see WaitingSince
	committedEnd int64     // where the log goes on behind committed; the start of its segment until Next has been there
	state        []byte    // as it was in the file; the package does not look into it
	snapshot     func() (committed uint64, state []byte)
	dirty        bool          // what snapshot returns now is neither saved nor in unsaved
	unsaved      []pendingSave // what is to be saved, oldest first
	saved        uint64        // what the file says; zero from Rewind on until it is written again
	rewinds      uint64
	reached      uint64 // how far Next had come when it last asked for a higher mark
	highWater    uint64 // the high-water mark: the highest sequence that Next may have returned, as the file says
}

// lent is a buffer with payloads that may be in use until all up to its end is committed. Those of readAhead bytes
// are used again, since fresh memory for each is a large part of what a drain costs; of others there is only the
// size.
type retainedBuffer struct {
	buffer []byte
	size   int64
	end    int64 // in the log
}

// maxLent is how many bytes of buffers may be lent. One record that is not committed holds all buffers behind its own,
// however much of them is done. Beyond this limit each payload is a copy, which is gone with its record.
const maxRetained = 32 << 20

// mark is how far a cursor was at a time.
type pendingSave struct {
	at        time.Time
	committed uint64
	content   []byte // of the file
}

// mark asks how far the bus is, if it is further than it was, for that to be saved. Needs s.files, and not s.mu: whoever
// is asked may be about to commit.
func (c *Cursor) capture() {
	c.s.mu.Lock()
	dirty, snapshot, committed, state, rewinds := c.dirty, c.snapshot, c.committed, c.state, c.rewinds
	c.dirty = false
	c.s.mu.Unlock()
	if !dirty {
		return
	}
	if snapshot != nil {
		committed, state = snapshot()
	}
	at := time.Now() // no commit is later
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.rewinds == rewinds { // or else another snapshot is due
		c.unsaved = append(c.unsaved, pendingSave{at, committed, c.s.id.formatCursor(committed, state)})
	}
}

// due returns the last of what is to be saved that is no younger than the time. Needs s.mu.
func (c *Cursor) popDue(upTo time.Time) (m pendingSave, ok bool) {
	for len(c.unsaved) > 0 && !c.unsaved[0].at.After(upTo) {
		m, ok = c.unsaved[0], true
		c.unsaved = c.unsaved[1:]
	}
	return m, ok
}

// Committed returns how far the bus has come, and the state that its file had when the spool was opened, nil for a new
// cursor.
func (c *Cursor) Committed() (sequence uint64, state []byte) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	return c.committed, c.state
}

// WaitingSince returns a time since which the first record that is not committed waits for this bus: the latest of when
// it became durable, of the last Commit, and of when the spool was opened. The record itself may be older. The time
// means nothing while there is no such record. It does not follow the wall clock.
func (c *Cursor) WaitingSince() time.Time {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	return c.waitingSince
}

// SetSnapshot sets the function that returns the committed sequence and the state to save with it, called before the
// file is written. Both must be as of one moment: they cover every Commit that returned before the call, and no record
// that is not committed. The function may block on a caller of Commit, and must call nothing of the spool. Until
// SetSnapshot is called, the state in the file is kept.
func (c *Cursor) SetSnapshot(snapshot func() (committed uint64, state []byte)) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.snapshot = snapshot
}

// Commit says that everything up to and including the record is done on this bus. It returns at once: the file is
// written a moment later, so that a crash may take the cursor back to an earlier Commit.
func (c *Cursor) Commit(r Record) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.committed, c.committedEnd, c.waitingSince = r.Sequence, r.end, time.Now()
	c.markDirty()
}

// MarkDirty has the cursor saved because its state has changed, although nothing was committed.
func (c *Cursor) MarkDirty() {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.markDirty()
}

// markDirty needs s.mu.
func (c *Cursor) markDirty() {
	c.dirty = true
	signal(c.s.save)
}

// Rewind takes the cursor back to behind the sequence, or to where the spool begins by now, and returns where it stands;
// the snapshot function has to wait until that is known. It belongs to the goroutine of Next. Nobody may use a
// payload any more that Next returned before, nor commit what it returned.
func (c *Cursor) Rewind(sequence uint64) uint64 {
	c.closeSegment()
	c.retained, c.retainedBytes = nil, 0 // the buffers may still be read from
	c.redelivered = max(c.redelivered, c.next-1)
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	sequence = min(sequence, c.committed)
	begin := c.s.retainedSegment(sequence + 1)
	if c.committed == c.s.durable {
		c.waitingSince = time.Now()
	}
	c.committed = min(c.committed, max(sequence, begin.first-1))
	c.committedEnd = begin.base
	c.next = c.committed + 1
	c.unsaved, c.saved = nil, 0
	c.rewinds++
	for _, g := range c.s.segments {
		if g.last > c.committed {
			g.publishedAt = time.Time{} // Keep begins anew when it is published again
		}
	}
	c.markDirty()
	signal(c.wake)
	return c.committed
}

// Save writes the file now, with the state as it is now, and without CursorDelay: what is committed must not be lost
// with the power any more. Its error is the disk's; it is tried again by itself.
func (c *Cursor) Save() error {
	c.MarkDirty()
	return c.s.saveCursor(c, 0)
}

// Next returns the next record, in order, and waits until there is one. Only durable records are returned. An error
// that is not ctx's is one of reading the disk; Next may be called again.
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

// read returns the next record if there is one.
func (c *Cursor) tryNext() (Record, bool, error) {
	if c.segment == nil {
		if err := c.openSegment(c.s.segmentOf(c.next)); err != nil {
			return Record{}, false, err
		}
	}
	for {
		var following *segment
		if c.reader.offset >= c.limit {
			c.limit, c.last, following = c.s.extent(c.segment)
		}
		if c.next < c.segment.first {
			return c.lostRecord(c.segment.first-1, c.segment.base), true, nil
		}
		if c.reader.offset >= c.limit {
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

// readIn returns the next record of the segment that is not behind the cursor, or what was lost at the segment's end.
func (c *Cursor) readRecord(limit int64, last uint64) (Record, bool, error) {
	sequence, payload, err := c.reader.record(limit, last)
	switch {
	case errors.Is(err, errDamaged):
		found, err := c.skipDamage(limit, last)
		if err != nil || found || c.next > last {
			return Record{}, false, err
		}
		return c.lostRecord(last, c.segment.base+limit), true, nil
	case err != nil:
		return Record{}, false, fmt.Errorf("cannot read the spool: %w", err)
	}
	end := c.segment.base + c.reader.offset
	if sequence < c.next {
		c.s.advanceCommittedEnd(c, end)
		return Record{}, false, nil
	}
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

// raise sees to it that the high-water mark is not below the sequence. Half a step before it is, upkeep raises it;
// here it is raised only if that comes late.
func (c *Cursor) ensureHighWater(sequence uint64) {
	c.s.mu.Lock()
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
	if c.highWaterCheck = c.highWater; sequence+highWaterStep/2 <= c.highWater {
		c.highWaterCheck -= highWaterStep / 2
	}
}

// higherMark returns what the high-water mark is to be raised to, and whether it is time. Needs s.mu.
func (c *Cursor) nextHighWater() (offered uint64, due bool) {
	return c.reached + highWaterStep, c.reached > 0 && c.reached+highWaterStep/2 > c.highWater
}

// lose makes the record that stands for the numbers from next up to last.
func (c *Cursor) lostRecord(last uint64, end int64) Record {
	r := Record{Sequence: last, Lost: last - c.next, end: end}
	c.next = last + 1
	return r
}

// skipDamage steps over bytes that do not check, keeps them in a file of their own and says so.
func (c *Cursor) skipDamage(limit int64, last uint64) (found bool, err error) {
	start := c.reader.offset
	damage, found, err := c.reader.resync(limit, last)
	if err != nil {
		return false, fmt.Errorf("cannot read the spool: %w", err)
	}
	name := fmt.Sprintf("%020d-%d%s", c.segment.first, start, badSuffix)
	told, err := c.s.quarantine(name, damage)
	if !told {
		c.s.o.Log.Error("part of the spool is damaged and is skipped; compare the broker's order book with the bus",
			"segment", c.segment.name(), "offset", start, "bytes", len(damage), "kept_in", name)
	}
	if err != nil {
		c.s.o.Log.Error("cannot keep the damaged part of the spool", "file", name, "error", err)
	}
	return found, nil
}

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

// takeBuffer gives the reader another buffer: one to lend, or if too much is lent, one that payloads are copied from.
func (c *Cursor) nextBuffer(n int64) []byte {
	c.retainBuffer()
	end := c.s.committedEnd(c)
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
		return make([]byte, n)
	default:
		if c.scratch == nil {
			c.scratch = make([]byte, readAhead)
		}
		return c.scratch[:n]
	}
	return c.buffer
}

// retire lends what was read to whoever has the payloads.
func (c *Cursor) retainBuffer() {
	if c.buffer == nil {
		return
	}
	l := retainedBuffer{size: int64(len(c.buffer)), end: c.segment.base + c.reader.offset}
	if l.size == readAhead {
		l.buffer = c.buffer
	}
	c.retained, c.retainedBytes, c.buffer = append(c.retained, l), c.retainedBytes+l.size, nil
}

func (c *Cursor) closeSegment() {
	if c.segment != nil {
		c.retainBuffer()
		_ = c.reader.file.Close() // only read from
		c.segment = nil
	}
}
