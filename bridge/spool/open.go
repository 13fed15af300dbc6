package spool

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Open opens the spool in a directory, makes it if there is none, and recovers it if it was not closed. It reads the
// last segment and the headers of the others. ErrLocked means that another process has it open, for the caller to
// wait; ErrNewer is wrapped if a file is of a format that this version does not know.
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
		return nil, errors.Join(fmt.Errorf("cannot open the spool: %w", err), lock.Close())
	}
	s.finished.Add(3)
	go s.runWriter()
	go s.runSaver()
	go s.runBackground()
	signal(s.background)
	return s, nil
}

// open changes nothing unless every file can be used.
func (s *Spool) open() error {
	v, err := load(s.fs, false)
	if err != nil {
		return err
	}
	if f, refused := v.firstRefused(); refused {
		return fmt.Errorf("%s: %w ('postbridge spool repair' quarantines the file)", f.File, f.Err)
	}
	for _, name := range v.leftovers {
		if err := s.fs.Remove(name); err != nil {
			return err
		}
	}
	if err := s.openID(v); err != nil {
		return err
	}
	if err := s.openSegments(v); err != nil {
		return err
	}
	if err := s.openCursors(v); err != nil {
		return err
	}
	if err := s.measureFree(); err != nil {
		return err
	}
	return s.skipUsedSequences()
}

// openID takes the id of the spool, or makes that of a new one, and sees to it that its file has it.
func (s *Spool) openID(v *View) error {
	s.id = v.id
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

// openSegments takes the segments, and makes the last one ready to be written to.
func (s *Spool) openSegments(v *View) error {
	s.bytes = v.quarantinedBytes
	for _, g := range v.Segments {
		s.addSegment(g.First, g.Bytes)
	}
	if v.tail == nil {
		return s.startSegment(1)
	}
	return s.recoverLast(v)
}

// startSegment makes a segment from which on the numbers are used.
func (s *Spool) startSegment(first uint64) error {
	f, err := newSegment(s.fs, s.id, first)
	if err != nil {
		return err
	}
	s.file, s.end, s.next, s.durable = f, segmentHeaderLen, first, first-1
	s.addSegment(first, segmentHeaderLen)
	return nil
}

// recoverLast keeps what the last segment holds and cuts off a torn end.
func (s *Spool) recoverLast(v *View) error {
	g, found := s.segments[len(s.segments)-1], v.recovered
	f, err := s.fs.Open(g.name())
	if err != nil {
		return err
	}
	s.file = f
	if found.tornBytes > 0 {
		s.logTruncation(g, found)
		if err := f.Truncate(found.end); err != nil {
			return err
		}
	}
	if v.tail.headerDamaged { // a crash came before it was whole
		if _, err := f.WriteAt(s.id.appendSegmentHeader(nil, g.first), 0); err != nil {
			return err
		}
	}
	// The process before this one perhaps never came to sync what it wrote.
	if err := errors.Join(f.Sync(), s.fs.SyncDir()); err != nil {
		return err
	}
	s.bytes += found.end - g.size
	g.size, g.last = found.end, found.last
	s.end, s.next, s.durable = found.end, found.highest+1, found.last
	return nil
}

// logTorn logs what is cut off. What a process leaves that is killed while it writes is nothing to worry about; what a
// loss of power leaves cannot be told from damage to what was acknowledged.
func (s *Spool) logTruncation(g *segment, found recovered) {
	if found.highest == found.last {
		s.o.Log.Info("cut off the end of a write that was not finished", "segment", g.name(), "bytes", found.tornBytes)
		return
	}
	s.o.Log.Warn("cut off the end of the spool, which does not check; its numbers are not used again",
		"segment", g.name(), "bytes", found.tornBytes, "from", found.last+1, "to", found.highest)
}

// openCursors sets each cursor to the position that its file has, or else to the oldest record.
func (s *Spool) openCursors(v *View) error {
	s.next = v.Next
	for _, name := range s.o.Cursors {
		c := &Cursor{
			s: s, name: name, wake: make(chan struct{}, 1),
			committed: s.segments[0].first - 1, waitingSince: time.Now(),
		}
		// Without the file of the high-water mark, the bus may have been offered all there is.
		c.redelivered, c.highWater = s.next-1, s.next-1
		if offered, ok := v.highWater[name]; ok {
			c.redelivered, c.highWater = min(offered, c.redelivered), offered
		}
		s.cursors = append(s.cursors, c)
	}
	for _, saved := range v.Cursors {
		if c := s.Cursor(saved.Bus); c != nil {
			c.committed, c.saved, c.state = saved.Committed, saved.Committed, saved.state
		}
	}
	for _, f := range v.Faults {
		if err := s.recoverFault(f.File); err != nil {
			return err
		}
	}
	for _, c := range s.cursors {
		c.next = c.committed + 1
		c.committedEnd = s.segmentOf(c.next).base
	}
	return nil
}

// mend logs that a file is damaged, and keeps that of a cursor as evidence. The file of a bus that is not configured stays.
func (s *Spool) recoverFault(file string) error {
	if _, ok := parseSegmentName(file); ok {
		s.o.Log.Warn("the header of a segment is damaged; its records say what is needed", "segment", file)
	}
	if bus, ok := strings.CutPrefix(file, highWaterPrefix); ok && s.Cursor(bus) != nil {
		s.o.Log.Warn("cannot tell how far a bus was offered events; it is asked what it has of all that is there",
			"bus", bus, "file", file)
		s.Cursor(bus).highWater = 0 // so that the file is written anew
	}
	if bus, ok := strings.CutPrefix(file, cursorPrefix); ok && s.Cursor(bus) != nil {
		s.o.Log.Error("a cursor is damaged; the bus is offered again all that the spool still holds",
			"bus", bus, "kept_in", file+badSuffix)
		return s.fs.Rename(file, file+badSuffix)
	}
	return nil
}

// startBehind starts a new segment if numbers behind the last record are not to be used: its name tells the cursors and
// the next start. A disk that is full has to do without: then only this process knows, until the next record.
func (s *Spool) skipUsedSequences() error {
	if s.next == s.durable+1 {
		return nil
	}
	if s.free < minRecordSpace {
		s.durable = s.next - 1
		return nil
	}
	before := s.file
	if err := s.startSegment(s.next); err != nil {
		return err
	}
	return before.Close()
}
