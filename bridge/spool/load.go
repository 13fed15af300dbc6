package spool

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
)

// View is the state of a spool as its files show it at one moment. Open, Inspect and Repair begin by loading one,
// which changes nothing.
type View struct {
	// ID is the spool's id, 8 hex digits; empty if neither the id file nor a segment header has it.
	ID string
	// InUse reports that a process had the spool open; files may have changed since.
	InUse bool
	// Segments are all segments, oldest first, without the empty ones that version 1 created ahead.
	Segments []SegmentInfo
	// Cursors are the saved positions that are valid, sorted by bus.
	Cursors []CursorInfo
	// Faults are the files that cannot be used as they are.
	Faults []Fault
	// Next is the sequence of the next record; no bus has seen it or a later one.
	Next uint64

	fs               FS // for Records, which opens the segments again
	id               spoolID
	hasID            bool              // id is valid
	idStored         bool              // id is that of the id file
	tail             *SegmentInfo      // the last segment that can be used; nil if there is none
	recovered        recovered         // the scan of tail
	highWater        map[string]uint64 // valid high-water marks by bus
	leftovers        []string          // files without a use, which Open removes
	tailSize         int64             // size of the file of tail
	quarantinedBytes int64             // total size of the .bad files
}

// SegmentInfo describes one segment. Bytes is the size of its file, for the last one the end of its last record.
// Last is the sequence before the next segment, or in the last segment that of the last record; First-1
// without records.
type SegmentInfo struct {
	Name        string
	First, Last uint64
	Bytes       int64

	version       uint32  // in its header; 0 if that is damaged
	id            spoolID // in its header
	headerDamaged bool    // its header is invalid
	err           error   // why the segment cannot be used
}

// CursorInfo is the saved position of one bus. That of a running process may be ahead of it.
type CursorInfo struct {
	Bus       string
	Committed uint64

	position position
}

// Fault is a file that cannot be used as it is.
type Fault struct {
	File string
	Err  error // wraps ErrDamaged, ErrForeign, ErrLostID, ErrNewer or the error of the disk
}

// Refused reports whether Open fails because of the file. Open repairs or skips every other fault.
func (f Fault) Refused() bool { return !errors.Is(f.Err, ErrDamaged) }

// Errors of a Fault.
var (
	// ErrDamaged means that a checksum or a format is invalid.
	ErrDamaged = errDamaged
	// ErrForeign means that a file has the id of another spool.
	ErrForeign = errors.New("belongs to another spool")
	// ErrLostID means that neither the id file nor any segment header has a valid id.
	ErrLostID = errors.New("the spool's id is lost, and without it no record can be verified")
)

// load reads the small files, the headers of the segments, and the last segment. It returns an error only if the
// directory cannot be listed; an unusable file is a Fault.
func load(fs FS, inUse bool) (*View, error) {
	files, err := fs.List()
	if err != nil {
		return nil, err
	}
	// Names sort like sequences, so the segments come in the order of the log.
	slices.SortFunc(files, func(a, b FileInfo) int { return cmp.Compare(a.Name, b.Name) })
	v := &View{InUse: inUse, Next: 1, fs: fs, highWater: map[string]uint64{}}
	var (
		idFile  []byte
		idErr   error
		cursors []FileInfo
	)
	for _, f := range files {
		first, isSegment := parseSegmentName(f.Name)
		switch {
		case strings.HasSuffix(f.Name, tmpSuffix), strings.HasPrefix(f.Name, markPrefix1):
			v.leftovers = append(v.leftovers, f.Name)
		case strings.HasSuffix(f.Name, badSuffix):
			v.quarantinedBytes += f.Size
		case isSegment:
			v.loadHeader(f, first)
		case f.Name == idName:
			idFile, idErr = readFile(fs, f.Name, math.MaxInt64)
		case strings.HasPrefix(f.Name, cursorPrefix):
			cursors = append(cursors, f)
		}
	}
	// The order matters: the id verifies headers and records, they tell which segment is the tail, and a cursor may
	// raise the Next that the tail gives.
	v.findID(idFile, idErr)
	v.dropUnused()
	v.checkHeaders()
	v.scanTail()
	// Last, because the id verifies them.
	for _, f := range cursors {
		if err := v.loadCursor(f); err != nil {
			v.fault(f.Name, err)
		}
	}
	return v, nil
}

// dropUnused leaves out the empty segments that version 1 created ahead. If all are empty, the last one counts, because
// its name tells where the sequences continue.
func (v *View) dropUnused() {
	all := v.Segments
	v.Segments = slices.DeleteFunc(slices.Clone(all), func(g SegmentInfo) bool {
		if g.Bytes == 0 {
			v.leftovers = append(v.leftovers, g.Name)
			return true
		}
		return false
	})
	if n := len(all); n > 0 && len(v.Segments) == 0 {
		v.Segments, v.leftovers = all[n-1:], v.leftovers[:len(v.leftovers)-1]
	}
	for i := 1; i < len(v.Segments); i++ {
		// The range of a segment ends where the next one begins, whatever its records are.
		v.Segments[i-1].Last = v.Segments[i].First - 1
	}
}

// fault adds a Fault. A file that no longer exists was removed by the process that has the spool open.
func (v *View) fault(file string, err error) {
	// In a spool that is not in use, a file that was listed a moment ago does not disappear by itself.
	if !v.InUse || !errors.Is(err, os.ErrNotExist) {
		v.Faults = append(v.Faults, Fault{file, err})
	}
}

// Refused returns the faults for which Open fails.
func (v *View) Refused() []Fault {
	return slices.DeleteFunc(slices.Clone(v.Faults), func(f Fault) bool { return !f.Refused() })
}

// loadHeader adds a segment and reads its header. Segments must be added in the order of first.
func (v *View) loadHeader(f FileInfo, first uint64) {
	g := SegmentInfo{Name: f.Name, First: first, Last: first - 1, Bytes: f.Size}
	// Only the header: Open must not depend on how many records are unpublished.
	b, err := readFile(v.fs, f.Name, segmentHeaderLen)
	if err == nil {
		g.version, g.id, err = parseSegmentHeader(b)
	}
	if v.InUse && errors.Is(err, os.ErrNotExist) {
		return // removed since it was listed
	}
	g.err = err
	v.Segments = append(v.Segments, g)
}

// findID sets the id from the id file or, if that is missing, damaged, or not the id of any segment, from the header
// of the oldest segment with a valid one.
func (v *View) findID(file []byte, err error) {
	if err == nil {
		v.id, err = parseID(file)
	}
	// Segments with a valid header; each has the id of its spool.
	sound := slices.DeleteFunc(slices.Clone(v.Segments), func(g SegmentInfo) bool { return g.err != nil })
	if err == nil && len(sound) > 0 && !slices.ContainsFunc(sound, func(g SegmentInfo) bool { return g.id == v.id }) {
		err = ErrForeign
	}
	// If not, openID writes the id file again.
	v.idStored = err == nil
	v.hasID = v.idStored || len(sound) > 0
	if !v.idStored && v.hasID {
		v.id = sound[0].id
	}
	if v.hasID {
		v.ID = v.id.String()
	}
	// A new directory has no id file, or an incomplete one if a crash came before its rename was durable; neither is a
	// fault while there are no segments.
	if err != nil && (len(v.Segments) > 0 || !errors.Is(err, ErrDamaged)) {
		v.fault(idName, err)
	}
}

// checkHeaders records the segments that cannot be used. A segment with a damaged header can be, if the id is known:
// its name and its records have the rest.
func (v *View) checkHeaders() {
	for i := range v.Segments {
		g := &v.Segments[i]
		g.headerDamaged = errors.Is(g.err, ErrDamaged)
		switch {
		case g.err == nil && g.id != v.id:
			g.err = fmt.Errorf("%w (%v)", ErrForeign, g.id)
		case g.headerDamaged && !v.hasID:
			g.err = ErrLostID
		case g.headerDamaged:
			g.err = nil
			v.fault(g.Name, fmt.Errorf("header: %w", ErrDamaged))
		}
		if g.err != nil {
			v.fault(g.Name, g.err)
		}
	}
}

// scanTail scans the last usable segment for the end of the log.
func (v *View) scanTail() {
	for i := len(v.Segments) - 1; i >= 0 && v.tail == nil; i-- {
		g := &v.Segments[i]
		if g.err != nil {
			continue
		}
		// An unreadable file is not skipped by Open: it may be readable later.
		if v.recovered, g.err = recoverSegment(v.fs, v.id, *g); g.err != nil {
			v.fault(g.Name, g.err)
			continue
		}
		// Next is above every sequence that may have been acknowledged in the tail. Later segments, if any, are
		// refused.
		v.tail, v.Next = g, v.recovered.highest+1
		v.tailSize, g.Bytes = g.Bytes, v.recovered.end
		if i == len(v.Segments)-1 {
			g.Last = v.recovered.last
		}
	}
}

// loadCursor reads a cursor. One ahead of the log is trusted: the bus has seen these sequences, so they are not used
// again although their records are gone.
func (v *View) loadCursor(f FileInfo) error {
	b, err := readFile(v.fs, f.Name, math.MaxInt64)
	if err != nil {
		return err
	}
	p, intact, err := v.id.parseCursor(b)
	if err != nil {
		return err
	}
	bus := strings.TrimPrefix(f.Name, cursorPrefix)
	v.Cursors = append(v.Cursors, CursorInfo{bus, p.committed, p})
	v.Next = max(v.Next, p.committed+1) // also for a bus that is not configured: it may come back
	if intact {
		v.highWater[bus] = p.highWater
	}
	return nil
}

// readFile returns the first limit bytes of a file, or all if it is shorter. A file in use may have been replaced by
// one of another size since it was listed, so the size in the listing does not count.
func readFile(fs FS, name string, limit int64) ([]byte, error) {
	file, err := fs.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.NewSectionReader(file, 0, limit))
}
