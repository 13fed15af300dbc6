package spool

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// View is a spool as its files show it. Open, Inspect and Repair all begin with loading one, which changes nothing.
type View struct {
	// ID is the spool's id; empty if neither its file nor the header of a segment has it.
	ID string
	// InUse reports that a process had the spool open.
	InUse bool
	// Segments are the segments, oldest first.
	Segments []SegmentInfo
	// Cursors are the cursors that can be read, by name.
	Cursors []CursorInfo
	// Faults are the files that cannot be used as they are.
	Faults []Fault
	// Next is the sequence of the next record: no bus has seen it.
	Next uint64

	fs               FS
	id               spoolID
	hasID            bool         // the id is
	idStored         bool         // the id file has it
	tail             *SegmentInfo // the last segment that can be used; nil if there is none
	recovered        recovered    // what tail holds
	highWater        map[string]uint64
	leftovers        []string // files that a crash kept from being used: Open removes them
	quarantinedBytes int64    // of .bad files
}

// SegmentInfo is one file of the log.
type SegmentInfo struct {
	Name        string
	First, Last uint64 // Last is First-1 if it holds no record
	Bytes       int64

	id            spoolID // in its header
	headerDamaged bool    // the header does not check
	err           error   // why the segment cannot be used
}

// CursorInfo is the position of one bus, as its file has it: a running process may be ahead of that.
type CursorInfo struct {
	Bus       string
	Committed uint64

	state []byte
}

// Fault is a file that cannot be used as it is.
type Fault struct {
	File string
	Err  error // ErrDamaged, ErrForeign, ErrLostID, ErrNewer or what the disk returns
}

// Refused reports whether Open fails because of the file. Any other fault it repairs or steps over by itself.
func (f Fault) Refused() bool { return !errors.Is(f.Err, ErrDamaged) }

// Errors of a Fault.
var (
	// ErrDamaged means that a checksum does not match.
	ErrDamaged = errDamaged
	// ErrForeign means that a file belongs to another spool.
	ErrForeign = errors.New("belongs to another spool")
	// ErrLostID means that no file has the id of the spool.
	ErrLostID = errors.New("the spool's id is lost, and without it no record can be verified")
)

// load reads the small files, the headers of the segments and the last segment. Its error is that the directory cannot be
// listed; what is wrong with one file is a Fault.
func load(fs FS, inUse bool) (*View, error) {
	files, err := fs.List()
	if err != nil {
		return nil, err
	}
	slices.SortFunc(files, func(a, b FileInfo) int { return cmp.Compare(a.Name, b.Name) })
	v := &View{InUse: inUse, Next: 1, fs: fs, highWater: map[string]uint64{}}
	var (
		idFile    []byte
		idErr     error
		positions []FileInfo
	)
	for _, f := range files {
		first, isSegment := parseSegmentName(f.Name)
		switch {
		case strings.HasSuffix(f.Name, tmpSuffix), isPreallocated(f, files):
			v.leftovers = append(v.leftovers, f.Name)
		case strings.HasSuffix(f.Name, badSuffix):
			v.quarantinedBytes += f.Size
		case isSegment:
			v.loadHeader(f, first)
		case f.Name == idName:
			idFile, idErr = readFile(fs, f)
		case strings.HasPrefix(f.Name, cursorPrefix), strings.HasPrefix(f.Name, highWaterPrefix):
			positions = append(positions, f)
		}
	}
	v.findID(idFile, idErr)
	v.checkHeaders()
	v.scanTail()
	for _, f := range positions {
		if err := v.loadPosition(f); err != nil {
			v.fault(f.Name, err)
		}
	}
	return v, nil
}

// madeAhead reports whether the file is a segment that was made ahead of need, and perhaps left behind by the log when
// it could not be removed: an empty one, beside one that is not. If all are empty the last was not: its name says where
// the numbers go on.
func isPreallocated(f FileInfo, files []FileInfo) bool {
	_, ok := parseSegmentName(f.Name)
	return ok && f.Size == 0 && slices.ContainsFunc(files, func(other FileInfo) bool {
		_, ok := parseSegmentName(other.Name)
		return ok && (other.Size > 0 || other.Name > f.Name)
	})
}

// fault records why a file cannot be used. A file that is gone was removed by the process that has the spool open.
func (v *View) fault(file string, err error) {
	if !v.InUse || !errors.Is(err, os.ErrNotExist) {
		v.Faults = append(v.Faults, Fault{file, err})
	}
}

// refused returns the first fault because of which Open fails.
func (v *View) firstRefused() (Fault, bool) {
	i := slices.IndexFunc(v.Faults, Fault.Refused)
	if i < 0 {
		return Fault{}, false
	}
	return v.Faults[i], true
}

func (v *View) loadHeader(f FileInfo, first uint64) {
	g := SegmentInfo{Name: f.Name, First: first, Last: first - 1, Bytes: f.Size}
	b, err := readFile(v.fs, FileInfo{f.Name, min(f.Size, segmentHeaderLen)})
	if err == nil {
		g.id, err = parseSegmentHeader(b)
	}
	g.err = err
	if n := len(v.Segments); n > 0 {
		v.Segments[n-1].Last = first - 1
	}
	v.Segments = append(v.Segments, g)
}

// findID takes the id from its file or, if that is lost, damaged or of another spool than all segments, from the header of
// a segment.
func (v *View) findID(file []byte, err error) {
	if err == nil {
		v.id, err = parseID(file)
	}
	sound := slices.DeleteFunc(slices.Clone(v.Segments), func(g SegmentInfo) bool { return g.err != nil })
	if err == nil && len(sound) > 0 && !slices.ContainsFunc(sound, func(g SegmentInfo) bool { return g.id == v.id }) {
		err = ErrForeign
	}
	v.idStored = err == nil
	v.hasID = v.idStored || len(sound) > 0
	if !v.idStored && v.hasID {
		v.id = sound[0].id
	}
	if v.hasID {
		v.ID = v.id.String()
	}
	if err != nil && (len(v.Segments) > 0 || !errors.Is(err, ErrDamaged)) { // a new directory has no id
		v.fault(idName, err)
	}
}

// checkHeaders finds the segments that cannot be used. One whose header is damaged can, if the id is known: its name and its
// records have the rest. The last one may not have got its header before a crash.
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
			if i < len(v.Segments)-1 {
				v.fault(g.Name, fmt.Errorf("header: %w", ErrDamaged))
			}
		}
		if g.err != nil {
			v.fault(g.Name, g.err)
		}
	}
}

// scanTail reads the last segment that can be used, for where the log ends.
func (v *View) scanTail() {
	for i := len(v.Segments) - 1; i >= 0 && v.tail == nil; i-- {
		g := &v.Segments[i]
		if g.err != nil {
			continue
		}
		if v.recovered, g.err = v.recover(g); g.err != nil {
			v.fault(g.Name, g.err)
			continue
		}
		v.tail, v.Next = g, v.recovered.highest+1
		if i == len(v.Segments)-1 {
			g.Last = v.recovered.last
		}
	}
}

func (v *View) recover(g *SegmentInfo) (recovered, error) {
	f, err := v.fs.Open(g.Name)
	if err != nil {
		return recovered{}, err
	}
	defer f.Close()
	return recoverSegment(v.id, f, g.First, g.Bytes)
}

// loadPosition reads the file of a cursor or of a high-water mark. No number up to a cursor is used again, even if its
// record is gone: the bus has seen it.
func (v *View) loadPosition(f FileInfo) error {
	b, err := readFile(v.fs, f)
	if err != nil {
		return err
	}
	if bus, ok := strings.CutPrefix(f.Name, cursorPrefix); ok {
		sequence, state, err := v.id.parseCursor(b)
		if err == nil {
			v.Cursors = append(v.Cursors, CursorInfo{bus, sequence, state})
			v.Next = max(v.Next, sequence+1)
		}
		return err
	}
	offered, err := v.id.parseHighWater(b)
	if err == nil {
		v.highWater[strings.TrimPrefix(f.Name, highWaterPrefix)] = offered
	}
	return err
}

// readFile returns the content of a file, up to its size in f.
func readFile(fs FS, f FileInfo) ([]byte, error) {
	file, err := fs.Open(f.Name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	b := make([]byte, f.Size)
	n, err := file.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return b[:n], nil
}
