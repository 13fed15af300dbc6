package spool

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Open opens the spool in a directory, creates it if there is none, and recovers it after a crash. It reads the last
// segment and the headers of the others. It returns ErrLocked if another process has the spool open (retry), and an
// error that wraps ErrNewer, ErrForeign or ErrLostID, before changing anything, if a file cannot be used.
func Open(fs FS, o Options) (*Spool, error) {
	lock, err := fs.Lock(lockName)
	if err != nil {
		return nil, err
	}
	s := &Spool{
		fs: fs, o: o, lock: lock,
		work: make(chan struct{}, 1), save: make(chan struct{}, 1), background: make(chan struct{}, 1),
		closing: make(chan struct{}), failed: make(chan struct{}),
		pending: newBatch(nil),
	}
	if err := s.open(); err != nil {
		if s.file != nil {
			err = errors.Join(err, s.file.Close())
		}
		for _, c := range s.cursors {
			c.closeFile()
		}
		return nil, errors.Join(fmt.Errorf("cannot open the spool: %w", err), lock.Close())
	}
	// Everything is recovered; from here on each goroutine owns its fields.
	s.finished.Add(3)
	go s.runWriter()
	go s.runSaver()
	go s.runBackground()
	signal(s.background)
	return s, nil
}

// open recovers the spool. Nothing is changed before every file was found usable. A crash after any step leaves a
// spool that the next Open recovers to the same records:
//
//	leftovers removed   the same spool without them
//	id written          the id of the segments, or a new spool without segments
//	tail truncated      the same records; if a torn tail may have been acknowledged, see DESIGN.md, Limitations
//	cursor quarantined  a bus without a cursor, which starts at the oldest record, as with a damaged one
//	segment started     an empty last segment, whose name says where the sequences continue
func (s *Spool) open() error {
	// load only reads. Up to the first Remove a failed Open leaves the directory as it was, also for an older version.
	v, err := load(s.fs, false)
	if err != nil {
		return err
	}
	if refused := v.Refused(); len(refused) > 0 {
		return fmt.Errorf("%s: %w ('postbridge spool repair' quarantines the file)", refused[0].File, refused[0].Err)
	}
	// Neither a .tmp file nor an empty segment that version 1 created ahead has content that anything refers to.
	for _, name := range v.leftovers {
		if err := s.fs.Remove(name); err != nil {
			return err
		}
	}
	if err := s.openID(v); err != nil {
		return err
	}
	// Before a segment is started, which must not write to a full disk.
	if err := s.measureFree(); err != nil {
		return err
	}
	if err := s.openSegments(v); err != nil {
		return err
	}
	// After the segments, because a cursor without a file starts at the oldest one.
	if err := s.openCursors(v); err != nil {
		return err
	}
	return s.skipUsedSequences()
}

// openID sets the id, generates one for a new spool, and writes the id file if it has no valid id. The id is durable
// before any record that its checksum seeds.
func (s *Spool) openID(v *View) error {
	s.id = v.id
	// Without an id there are no segments, because Open refuses those (ErrLostID): nothing was written with another id.
	if !v.hasID {
		var b [4]byte
		_, _ = rand.Read(b[:]) // never fails
		s.id = spoolID(binary.LittleEndian.Uint32(b[:]))
	}
	if v.idStored {
		return nil
	}
	return replaceFile(s.fs, idName, s.id.formatID())
}

// openSegments builds the list of segments and prepares the last one for appending.
func (s *Spool) openSegments(v *View) error {
	// Evidence counts in MaxBytes, so that an operator who leaves it there loses space, not the disk.
	s.bytes = v.quarantinedBytes
	for _, g := range v.Segments {
		s.addSegment(g.First, g.Bytes, 0)
	}
	// A new spool, also one whose creation a crash interrupted after the id file.
	if v.tail == nil {
		return s.startSegment(1)
	}
	return s.recoverLast(v)
}

// startSegment creates a durable segment whose first sequence is the next one to use. It is preallocated, if there is
// space, so that the first records need not wait for the file system either.
func (s *Spool) startSegment(first uint64) error {
	size := s.preallocationSize()
	if !s.mayPreallocate(size) {
		size = 0
	}
	f, err := newSegment(s.fs, s.id, first, size)
	if err != nil {
		return err
	}
	s.next, s.durable = first, first-1
	// Commit point of the skip: no sequence below first is used by this or a later process.
	s.addSegment(first, segmentHeaderLen, size)
	s.appendTo(f)
	return nil
}

// recoverLast truncates a torn tail of the last segment and makes durable what remains.
func (s *Spool) recoverLast(v *View) error {
	g, found := s.segments[len(s.segments)-1], v.recovered
	f, err := s.fs.Open(g.name())
	if err != nil {
		return err
	}
	s.file = f
	// None of these bytes is a record of the log: an unfinished write, damage, or an earlier use of the file. A crash
	// before the truncation is durable finds them again and decides the same.
	if found.torn > 0 {
		s.logTruncation(g, found)
		if err := f.Truncate(found.end); err != nil {
			return err
		}
	}
	// A segment that has its name has its header: an invalid one is damaged, or of version 1 after a crash.
	if v.tail.headerDamaged {
		if _, err := f.WriteAt(s.id.appendSegmentHeader(nil, g.first), 0); err != nil {
			return err
		}
	}
	// The previous process may have died between write and sync. Until this sync its records must not be published: a
	// loss of power could still take them.
	if err := errors.Join(f.Sync(), s.fs.SyncDir()); err != nil {
		return err
	}
	// Commit point of the recovery: what the segment holds now is durable, and cursors may publish it. Sequences from
	// last to highest may have been acknowledged; skipUsedSequences skips them.
	g.last = found.last
	if found.torn == 0 && v.tailSize > found.end+endMarkLen {
		// The limit may be lower now.
		g.preallocated = min(v.tailSize, max(found.end+endMarkLen, s.segmentSize()))
		if g.preallocated < v.tailSize {
			if err := f.Truncate(g.preallocated); err != nil {
				return err
			}
		}
		s.free += s.preallocatedBytes()
	}
	s.next, s.durable = found.highest+1, found.last
	s.appendTo(f)
	return nil
}

// logTruncation logs what is truncated. What kill -9 leaves of a write is expected. What a loss of power leaves cannot
// be distinguished from damage to acknowledged records, so that is a warning.
func (s *Spool) logTruncation(g *segment, found recovered) {
	if found.highest == found.last {
		s.o.Log.Info("truncated an unfinished write at the end of the spool", "segment", g.name(), "at", found.end)
		return
	}
	s.o.Log.Warn("truncated a damaged tail of the spool; its sequences are not used again",
		"segment", g.name(), "bytes", found.torn, "from", found.last+1, "to", found.highest)
}

// openCursors sets each cursor to its saved position, or else to before the oldest record.
func (s *Spool) openCursors(v *View) error {
	// A saved cursor may be ahead of the log. Its bus has seen these sequences.
	s.next = v.Next
	for _, name := range s.o.Cursors {
		c := &Cursor{
			s: s, name: name, wake: make(chan struct{}, 1),
			committed: s.segments[0].first - 1, waitingSince: time.Now(),
		}
		// Without a high-water mark every existing record may have been returned.
		c.redelivered, c.highWater = s.next-1, s.next-1
		if offered, ok := v.highWater[name]; ok {
			// Records appended from now on were returned to no bus, even if the mark is above them.
			c.redelivered, c.highWater = min(offered, c.redelivered), offered
		}
		s.cursors = append(s.cursors, c)
	}
	for _, saved := range v.Cursors {
		// The cursor of a bus that is not configured stays in its file and holds no segment back. One at 0 has only a
		// high-water mark.
		c := s.Cursor(saved.Bus)
		if c == nil {
			continue
		}
		c.state = saved.position.state
		if saved.Committed > 0 {
			c.committed, c.saved = saved.Committed, saved.Committed
		}
		if c.inFile = saved.position; c.inFile.generation == 0 {
			continue // version 1
		}
		c.openFile()
		if _, ok := v.highWater[c.name]; !ok {
			s.o.Log.Warn("a slot of a cursor is damaged; all unpublished events of its bus are looked up there",
				"bus", c.name)
		}
	}
	for _, f := range v.Faults {
		if err := s.recoverFault(f.File); err != nil {
			return err
		}
	}
	for _, c := range s.cursors {
		// The exact position is known once Next has read up to it; the start of the segment is a safe lower bound.
		c.next = c.committed + 1
		c.committedEnd = s.segmentOf(c.next).base
	}
	return nil
}

// recoverFault logs that a file is damaged, and quarantines a cursor as a .bad file. Files of buses that are not
// configured stay as they are. A crash after the rename leaves a bus without cursor, which starts at the oldest record
// all the same.
func (s *Spool) recoverFault(file string) error {
	if _, ok := parseSegmentName(file); ok {
		s.o.Log.Warn("the header of a segment is damaged; its records are still read", "segment", file)
	}
	if bus, ok := strings.CutPrefix(file, cursorPrefix); ok && s.Cursor(bus) != nil {
		s.o.Log.Error("a cursor is damaged; all events in the spool are published to the bus again",
			"bus", bus, "kept_in", file+badSuffix)
		return s.fs.Rename(file, file+badSuffix)
	}
	return nil
}

// skipUsedSequences starts a new segment if sequences after the last record may have been used: its name tells the
// cursors and the next Open. On a full disk only this process knows, until the log moves.
func (s *Spool) skipUsedSequences() error {
	if s.next == s.durable+1 {
		return nil
	}
	// Cursors return the skipped sequences as lost with the next record.
	if s.unusedDisk() < minRecordSpace {
		s.durable = s.next - 1
		return nil
	}
	// A crash before the segment is durable finds the same tail truncated, and may use its sequences again: see
	// DESIGN.md.
	before, end := s.file, s.end
	if err := s.startSegment(s.next); err != nil {
		return err
	}
	return errors.Join(before.Truncate(end), before.Close())
}
