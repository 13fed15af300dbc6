package spool

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
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
		work: make(chan struct{}, 1), save: make(chan struct{}, 1), chores: make(chan struct{}, 1),
		closing: make(chan struct{}), failed: make(chan struct{}),
		filling: newBatch(nil),
	}
	if err := s.load(); err != nil {
		if s.file != nil {
			err = errors.Join(err, s.file.Close())
		}
		return nil, errors.Join(fmt.Errorf("cannot open the spool: %w", err), lock.Close())
	}
	s.finished.Add(3)
	go s.write()
	go s.saveMoved()
	go s.upkeep()
	signal(s.chores)
	return s, nil
}

func (s *Spool) load() error {
	files, err := s.fs.List()
	if err != nil {
		return err
	}
	slices.SortFunc(files, func(a, b FileInfo) int { return cmp.Compare(a.Name, b.Name) })
	if files, err = s.removeUnfinished(files); err != nil {
		return err
	}
	if err := s.loadID(files); err != nil {
		return err
	}
	if err := s.loadSegments(files); err != nil {
		return err
	}
	if err := s.loadCursors(files); err != nil {
		return err
	}
	if err := s.measure(); err != nil {
		return err
	}
	return s.startBehind()
}

// removeUnfinished removes the files that a crash kept from being used, those that were to replace others and segments
// made ahead, and returns the rest.
func (s *Spool) removeUnfinished(files []FileInfo) (rest []FileInfo, err error) {
	for _, f := range files {
		if !strings.HasSuffix(f.Name, tmpSuffix) && !madeAhead(f, files) {
			rest = append(rest, f)
		} else if err := s.fs.Remove(f.Name); err != nil {
			return nil, err
		}
	}
	return rest, nil
}

// madeAhead reports whether the file is a segment that was made ahead of need, and perhaps left behind by the log when
// it could not be removed: an empty one, beside one that is not. If all are empty the last was not: its name says where
// the numbers go on.
func madeAhead(f FileInfo, files []FileInfo) bool {
	_, ok := parseSegmentName(f.Name)
	return ok && f.Size == 0 && slices.ContainsFunc(files, func(other FileInfo) bool {
		_, ok := parseSegmentName(other.Name)
		return ok && (other.Size > 0 || other.Name > f.Name)
	})
}

// loadID reads the spool's id. A lost or damaged id file is written anew from what the segments say.
func (s *Spool) loadID(files []FileInfo) (err error) {
	var b []byte
	if i := slices.IndexFunc(files, func(f FileInfo) bool { return f.Name == idName }); i >= 0 {
		if b, err = s.readStart(idName, files[i].Size); err != nil {
			return err
		}
	}
	s.id, err = parseID(b)
	if !errors.Is(err, errDamaged) {
		return nameFile(idName, err)
	}
	if s.id, err = s.idOfSegments(files); err != nil {
		return err
	}
	return replaceFile(s.fs, idName, s.id.formatID())
}

// idOfSegments returns the id in the header of some segment, or a new one if there are no segments.
func (s *Spool) idOfSegments(files []FileInfo) (spoolID, error) {
	found := false
	for _, f := range files {
		if _, ok := parseSegmentName(f.Name); !ok {
			continue
		}
		found = true
		if id, err := s.readHeader(f); !errors.Is(err, errDamaged) {
			return id, err
		}
	}
	if found {
		return 0, errors.New("the spool's id is lost, and without it its segments cannot be read: move them away")
	}
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	return spoolID(binary.LittleEndian.Uint32(b[:])), nil
}

// loadSegments finds the segments and recovers the last one.
func (s *Spool) loadSegments(files []FileInfo) error {
	headerChecks := false // of the last one
	for _, f := range files {
		if strings.HasSuffix(f.Name, badSuffix) {
			s.bytes += f.Size
		}
		first, ok := parseSegmentName(f.Name)
		if !ok {
			continue
		}
		id, err := s.readHeader(f)
		headerChecks = err == nil
		switch {
		case errors.Is(err, errDamaged):
			s.o.Log.Warn("the header of a segment is damaged; its records say what is needed", "segment", f.Name)
		case err != nil:
			return err
		case id != s.id:
			return fmt.Errorf("%s belongs to spool %v and not to %v: move away what does not belong here", f.Name, id, s.id)
		}
		s.addSegment(first, f.Size)
	}
	if len(s.segments) == 0 {
		return s.startSegment(1)
	}
	return s.recoverLast(headerChecks)
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

// recoverLast makes the last segment ready to be written to: what it holds survives, a torn end is cut off.
func (s *Spool) recoverLast(headerChecks bool) error {
	g := s.segments[len(s.segments)-1]
	f, err := s.fs.Open(g.name())
	if err != nil {
		return err
	}
	s.file = f
	found, err := recoverSegment(s.id, f, g.first, g.size)
	if err != nil {
		return fmt.Errorf("%s: %w", g.name(), err)
	}
	if found.torn > 0 {
		s.sayTorn(g, found)
		if err := f.Truncate(found.end); err != nil {
			return err
		}
	}
	if !headerChecks { // a crash came before it was whole
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

// sayTorn says what is cut off. What a process leaves that is killed while it writes is nothing to worry about; what a
// loss of power leaves cannot be told from damage to what was acknowledged.
func (s *Spool) sayTorn(g *segment, found recovered) {
	if found.highest == found.last {
		s.o.Log.Info("cut off the end of a write that was not finished", "segment", g.name(), "bytes", found.torn)
		return
	}
	s.o.Log.Warn("cut off the end of the spool, which does not check; its numbers are not used again",
		"segment", g.name(), "bytes", found.torn, "from", found.last+1, "to", found.highest)
}

// loadCursors reads the cursors. No number that a bus may have seen is used again, even if its record is gone.
func (s *Spool) loadCursors(files []FileInfo) error {
	for _, name := range s.o.Cursors {
		c := &Cursor{
			s: s, name: name, wake: make(chan struct{}, 1),
			committed: s.segments[0].first - 1, waitingSince: time.Now(),
		}
		s.cursors = append(s.cursors, c)
	}
	for _, f := range files {
		name, ok := strings.CutPrefix(f.Name, cursorPrefix)
		if !ok || strings.HasSuffix(name, badSuffix) {
			continue
		}
		if err := s.loadCursor(f, s.Cursor(name)); err != nil {
			return nameFile(f.Name, err)
		}
	}
	if err := s.loadOffered(files); err != nil {
		return err
	}
	for _, c := range s.cursors {
		c.next = c.committed + 1
		c.committedEnd = s.segmentOf(c.next).base
	}
	return nil
}

// loadCursor reads the file of a cursor; c is nil if no bus has it now.
func (s *Spool) loadCursor(f FileInfo, c *Cursor) error {
	b, err := s.readStart(f.Name, f.Size)
	if err != nil {
		return err
	}
	sequence, note, err := s.id.parseCursor(b)
	if errors.Is(err, errDamaged) {
		if c == nil {
			return nil
		}
		s.o.Log.Error("a cursor is damaged; the bus is offered again all that the spool still holds",
			"bus", c.name, "kept_in", f.Name+badSuffix)
		return s.fs.Rename(f.Name, f.Name+badSuffix)
	}
	if err != nil {
		return err
	}
	s.next = max(s.next, sequence+1)
	if c != nil {
		c.committed, c.saved, c.note = sequence, sequence, note
	}
	return nil
}

// loadOffered reads how far the buses were offered records. Without its file, a bus may have been offered all there is.
func (s *Spool) loadOffered(files []FileInfo) error {
	there := s.next - 1
	for _, c := range s.cursors {
		c.redelivered, c.offered = there, there
		i := slices.IndexFunc(files, func(f FileInfo) bool { return f.Name == offeredPrefix+c.name })
		if i < 0 {
			continue
		}
		b, err := s.readStart(files[i].Name, files[i].Size)
		if err != nil {
			return err
		}
		offered, err := s.id.parseOffered(b)
		switch {
		case errors.Is(err, errDamaged):
			s.o.Log.Warn("cannot tell how far a bus was offered events; it is asked what it has of all that is there",
				"bus", c.name, "file", files[i].Name)
			c.offered = 0 // so that the file is written anew
		case err != nil:
			return nameFile(files[i].Name, err)
		default:
			c.redelivered, c.offered = min(offered, there), offered
		}
	}
	return nil
}

// startBehind starts a new segment if numbers behind the last record are not to be used: its name tells the cursors and
// the next start. A disk that is full has to do without: then only this process knows, until the next record.
func (s *Spool) startBehind() error {
	if s.next == s.durable+1 {
		return nil
	}
	if s.free < ordinaryRecord {
		s.durable = s.next - 1
		return nil
	}
	before := s.file
	if err := s.startSegment(s.next); err != nil {
		return err
	}
	return before.Close()
}

func (s *Spool) readHeader(f FileInfo) (spoolID, error) {
	b, err := s.readStart(f.Name, min(f.Size, segmentHeaderLen))
	if err != nil {
		return 0, err
	}
	id, err := parseSegmentHeader(b)
	return id, nameFile(f.Name, err)
}

func (s *Spool) readStart(name string, n int64) ([]byte, error) { return readStart(s.fs, name, n) }

func readStart(fs FS, name string, n int64) ([]byte, error) {
	f, err := fs.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, n)
	read, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return b[:read], nil
}

// nameFile says in which file the error is; nil stays nil.
func nameFile(name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", name, err)
}
