package spool

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// View is a spool as it lies on disk, seen from outside: looking takes no part in it and changes nothing, and a process
// may have it open meanwhile, append to it and remove its oldest segments. It shows what was there at the time of Look.
type View struct {
	// ID is the spool's id; empty if neither its file nor a segment says it.
	ID string
	// Open says that a process had the spool open.
	Open bool
	// Segments are the segments, oldest first.
	Segments []SegmentInfo
	// Cursors are the cursors that can be read, by name.
	Cursors []CursorInfo
	// Faults are the files that cannot be used as they are.
	Faults []Fault

	fs    FS
	id    spoolID
	known bool  // the id is
	tail  int64 // where in the last segment that can be used its records end
}

// SegmentInfo is one file of the log.
type SegmentInfo struct {
	Name        string
	First, Last uint64 // Last is First-1 if it holds no record
	Bytes       int64

	unusable bool // there is a Fault of it
}

// CursorInfo is how far a bus has come, as its file says: what was done in the last moments may be missing.
type CursorInfo struct {
	Bus                string
	Committed, Waiting uint64
}

// Fault is a file that cannot be used as it is.
type Fault struct {
	File string
	Err  error
	// Aside says that the file is of no use to this spool: moved away, it is missed by nobody who can read it.
	Aside bool

	first uint64 // of a segment of this spool: its first number
	bytes int64  // of it
}

// Errors of faults and of damages.
var (
	// ErrForeign means that a file is of another spool.
	ErrForeign = errors.New("belongs to another spool")
	// ErrDamaged means that bytes do not check.
	ErrDamaged = errDamaged
	// ErrLostID means that nothing says the id of the spool.
	ErrLostID = errors.New("the spool's id is lost, and without it no record can be read")
	// ErrWriting means that the end of the last segment is being written.
	ErrWriting = errors.New("still being written")
	// ErrCutOff means that bytes at the very end do not check, which Open cuts off.
	ErrCutOff = errors.New("damaged at the very end")
	// ErrUnfinished means that the last segment ends with a write that was not finished, of which nobody was told.
	ErrUnfinished = errors.New("the end of a write that was not finished")
	// ErrRemoved means that the process beside removed a segment since the look: every bus has it.
	ErrRemoved = errors.New("removed meanwhile, as every bus has it")
	// ErrGap means that there are numbers without a record, and nothing where it could be.
	ErrGap = errors.New("numbers that no record has")
)

// Damage is a part of the spool that gives no record.
type Damage struct {
	Segment       string
	Offset, Bytes int64
	From, To      uint64 // the numbers that have no record; From is above To if there is none
	Err           error  // ErrDamaged, ErrWriting, ErrCutOff, ErrUnfinished, ErrRemoved, ErrGap, one of a Fault, or what the disk says
}

func (d *Damage) Error() string {
	text := fmt.Sprintf("%s, offset %d, %d bytes: %v", d.Segment, d.Offset, d.Bytes, d.Err)
	if d.From <= d.To {
		text += fmt.Sprintf("; events %d to %d", d.From, d.To)
	}
	return text
}

func (d *Damage) Unwrap() error { return d.Err }

// ReadDir is the FS of a directory for Look alone: it makes nothing, and files are opened only to read them.
func ReadDir(dir string) (FS, error) {
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		err = &os.PathError{Op: "read", Path: dir, Err: syscall.ENOTDIR}
	}
	if err != nil {
		return nil, err
	}
	return readDir{osDir(dir)}, nil
}

type readDir struct{ osDir }

func (d readDir) Open(name string) (File, error) { return osFile(os.Open(d.path(name))) }

// Lock takes a lock that others may share, of a file that is there.
func (d readDir) Lock(name string) (io.Closer, error) {
	f, err := os.Open(d.path(name))
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, ErrLocked
		}
		return nil, &os.PathError{Op: "flock", Path: f.Name(), Err: err}
	}
	return f, nil
}

// Look looks at the spool in a directory. It reads the small files, the headers of the segments and the last segment. What
// is wrong with a file is a Fault; an error is that the directory cannot be read.
func Look(fs FS) (*View, error) {
	// Whether somebody has the lock can be told only by trying; who wants it at this very moment tries again.
	lock, err := fs.Lock(lockName)
	switch {
	case err == nil:
		err = lock.Close()
	case errors.Is(err, os.ErrNotExist):
		err = nil
	}
	if err != nil && !errors.Is(err, ErrLocked) {
		return nil, err
	}
	v := &View{fs: fs, Open: errors.Is(err, ErrLocked)}
	return v, v.load()
}

func (v *View) load() error {
	files, err := v.fs.List()
	if err != nil {
		return err
	}
	slices.SortFunc(files, func(a, b FileInfo) int { return cmp.Compare(a.Name, b.Name) })
	headers := v.loadSegments(files)
	v.loadID(files, headers)
	v.judgeSegments(headers)
	v.loadLast()
	v.loadCursors(files)
	return nil
}

// header is what the header of a segment says.
type header struct {
	id  spoolID
	err error
}

func (v *View) loadSegments(files []FileInfo) (headers []header) {
	for _, f := range files {
		first, ok := parseSegmentName(f.Name)
		if !ok || madeAhead(f, files) {
			continue
		}
		b, err := v.readStart(f.Name, min(f.Size, segmentHeaderLen))
		if errors.Is(err, os.ErrNotExist) {
			continue // removed just now
		}
		h := header{err: err}
		if err == nil {
			h.id, h.err = parseSegmentHeader(b)
		}
		headers = append(headers, h)
		if n := len(v.Segments); n > 0 {
			v.Segments[n-1].Last = first - 1
		}
		v.Segments = append(v.Segments, SegmentInfo{Name: f.Name, First: first, Last: first - 1, Bytes: f.Size})
	}
	return headers
}

// loadID finds the id: that of its file, unless all segments say another.
func (v *View) loadID(files []FileInfo, headers []header) {
	err := error(os.ErrNotExist)
	if i := slices.IndexFunc(files, func(f FileInfo) bool { return f.Name == idName }); i >= 0 {
		var b []byte
		if b, err = v.readStart(idName, files[i].Size); err == nil {
			v.id, err = parseID(b)
		}
	}
	said := func(h header) bool { return h.err == nil }
	ours := func(h header) bool { return said(h) && h.id == v.id }
	if err == nil && slices.ContainsFunc(headers, said) && !slices.ContainsFunc(headers, ours) {
		err = ErrForeign
	}
	v.known = err == nil
	if i := slices.IndexFunc(headers, said); !v.known && i >= 0 {
		v.id, v.known = headers[i].id, true
	}
	if v.known {
		v.ID = v.id.String()
	}
	switch {
	case err == nil || len(files) == 0:
	case errors.Is(err, os.ErrNotExist) && v.known:
		v.Faults = append(v.Faults, Fault{File: idName, Err: errors.New("missing; the segments say the id")})
	case errors.Is(err, os.ErrNotExist) && len(headers) > 0:
		v.Faults = append(v.Faults, Fault{File: idName, Err: ErrLostID})
	case !errors.Is(err, os.ErrNotExist):
		v.addFault(idName, err)
	}
}

// addFault adds a file that is of no use, but for one that only this user cannot read.
func (v *View) addFault(file string, err error) {
	v.Faults = append(v.Faults, Fault{File: file, Err: err, Aside: !errors.Is(err, os.ErrPermission)})
}

// judgeSegments finds the segments that cannot be used.
func (v *View) judgeSegments(headers []header) {
	for i := range v.Segments {
		g, h := &v.Segments[i], headers[i]
		switch {
		case h.err == nil && h.id == v.id:
			continue
		case h.err == nil:
			h.err = ErrForeign
		case errors.Is(h.err, errDamaged) && v.known:
			// The records say what is needed; and the last one may not have got its header yet.
			if i < len(v.Segments)-1 {
				v.Faults = append(v.Faults, Fault{File: g.Name, Err: errors.New("the header does not check; the records say what is needed")})
			}
			continue
		case errors.Is(h.err, errDamaged):
			h.err = ErrLostID
		}
		g.unusable = true
		v.addFault(g.Name, h.err)
		if !errors.Is(h.err, ErrForeign) {
			f := &v.Faults[len(v.Faults)-1]
			f.first, f.bytes = g.First, g.Bytes
		}
	}
}

// loadLast reads how far the last segment goes that can be used.
func (v *View) loadLast() {
	i := v.lastUsable()
	if i < 0 {
		return
	}
	g := v.Segments[i]
	f, err := v.fs.Open(g.Name)
	if err != nil {
		v.tail = g.Bytes
		return // who reads the records finds out
	}
	defer f.Close()
	v.tail = segmentHeaderLen
	r := segmentReader{id: v.id, file: f, next: g.First, offset: segmentHeaderLen, take: reuse()}
	for r.offset < g.Bytes {
		sequence, _, err := r.record(g.Bytes, math.MaxUint64)
		if errors.Is(err, errDamaged) {
			_, _, err = r.resync(g.Bytes, math.MaxUint64)
			sequence = g.Last
		} else {
			v.tail = r.offset
		}
		if err != nil {
			return
		}
		g.Last = sequence
		if i == len(v.Segments)-1 {
			v.Segments[i].Last = sequence
		}
	}
}

// lastUsable is the index of the last segment that is not at fault; -1 if there is none.
func (v *View) lastUsable() int {
	for i := len(v.Segments) - 1; i >= 0; i-- {
		if !v.Segments[i].unusable {
			return i
		}
	}
	return -1
}

// reuse gives the same buffer again and again, to a reader whose payloads are not kept.
func reuse() (take func(n int64) []byte) {
	var buffer []byte
	return func(n int64) []byte {
		if n > readAhead {
			return make([]byte, n)
		}
		if buffer == nil {
			buffer = make([]byte, readAhead)
		}
		return buffer[:n]
	}
}

func (v *View) loadCursors(files []FileInfo) {
	last := uint64(0)
	if n := len(v.Segments); n > 0 {
		last = v.Segments[n-1].Last
	}
	for _, f := range files {
		bus, cursor := strings.CutPrefix(f.Name, cursorPrefix)
		if !cursor && !strings.HasPrefix(f.Name, offeredPrefix) || strings.HasSuffix(f.Name, badSuffix) || strings.HasSuffix(f.Name, tmpSuffix) {
			continue
		}
		b, err := v.readStart(f.Name, f.Size)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		var sequence uint64
		if err == nil {
			sequence, err = v.parseSmall(b, cursor)
		}
		switch {
		case err != nil:
			v.addFault(f.Name, err)
		case cursor:
			v.Cursors = append(v.Cursors, CursorInfo{bus, sequence, max(last, sequence) - sequence})
		}
	}
}

// parseSmall reads the number in the file of a cursor, or of what a bus was offered.
func (v *View) parseSmall(b []byte, cursor bool) (sequence uint64, err error) {
	parse := func(id spoolID) (uint64, error) {
		if cursor {
			sequence, _, err := id.parseCursor(b)
			return sequence, err
		}
		return id.parseOffered(b)
	}
	sequence, err = parse(v.id)
	if words := strings.Fields(string(b)); errors.Is(err, errDamaged) && len(words) > 2 {
		if id, notID := strconv.ParseUint(words[2], 16, 32); notID == nil {
			if _, other := parse(spoolID(id)); other == nil {
				err = ErrForeign
			}
		}
	}
	return sequence, err
}

func (v *View) readStart(name string, n int64) ([]byte, error) { return readStart(v.fs, name, n) }

// FirstRecord returns the first record of a segment that checks; ErrGap if there is none.
func (v *View) FirstRecord(g SegmentInfo) (Record, error) {
	one := *v
	one.Segments = []SegmentInfo{g}
	for r, err := range one.Records() {
		if err == nil {
			return Record{Sequence: r.Sequence, Payload: slices.Clone(r.Payload)}, nil
		}
	}
	return Record{}, ErrGap
}

// Cursor returns how far a bus has come; false if no file says it.
func (v *View) Cursor(bus string) (c CursorInfo, ok bool) {
	i := slices.IndexFunc(v.Cursors, func(c CursorInfo) bool { return c.Bus == bus })
	if i < 0 {
		return c, false
	}
	return v.Cursors[i], true
}

// Records yields the records, oldest first, each with its checksum verified, and what gives none as a *Damage, after
// which it goes on. A payload is valid until the
// next step. Memory does not grow with the spool; damage takes as much as there is of its segment behind it.
func (v *View) Records() iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		w := walk{v: v, yield: yield, take: reuse()}
		for i, g := range v.Segments {
			if !w.segment(g, i == len(v.Segments)-1) {
				return
			}
		}
	}
}

// walk is one pass over the records. Its methods return false once nobody wants more.
type walk struct {
	v     *View
	yield func(Record, error) bool
	take  func(int64) []byte
	next  uint64  // the number that comes next; 0 before the first
	hole  *Damage // what did not check, until the number behind it is known
}

func (w *walk) segment(g SegmentInfo, last bool) bool {
	if w.next != 0 && !w.reach(g, g.First) {
		return false
	}
	w.next = g.First
	if g.unusable {
		i := slices.IndexFunc(w.v.Faults, func(f Fault) bool { return f.File == g.Name })
		return w.lose(g, w.v.Faults[i].Err)
	}
	f, err := w.v.fs.Open(g.Name)
	if errors.Is(err, os.ErrNotExist) {
		return w.lose(g, ErrRemoved)
	}
	if err != nil {
		return w.lose(g, err)
	}
	defer f.Close()
	r := &segmentReader{id: w.v.id, file: f, next: g.First, offset: segmentHeaderLen, take: w.take}
	highest := g.Last
	if last {
		highest = math.MaxUint64
	}
	for r.offset < g.Bytes {
		more, err := w.record(g, r, highest, last)
		if err != nil {
			return w.lose(g, err)
		}
		if !more {
			return false
		}
	}
	return last || w.reach(g, g.Last+1)
}

// record yields the next record, or steps over what does not check.
func (w *walk) record(g SegmentInfo, r *segmentReader, highest uint64, last bool) (more bool, err error) {
	start := r.offset
	sequence, payload, err := r.record(g.Bytes, highest)
	if err == nil {
		if !w.reach(g, sequence) {
			return false, nil
		}
		w.next = sequence + 1
		return w.yield(Record{Sequence: sequence, Payload: payload}, nil), nil
	}
	if !errors.Is(err, errDamaged) {
		return false, err
	}
	damage, found, err := r.resync(g.Bytes, highest)
	if err != nil {
		return false, err
	}
	d := &Damage{Segment: g.Name, Offset: start, Bytes: int64(len(damage)), Err: ErrDamaged}
	if found || !last {
		w.hole = d
		return true, nil
	}
	if len(damage) == 0 {
		return true, nil // cut off by a process that opened it just now
	}
	d.From, d.To, d.Err = w.next, w.v.id.highestNumber(damage, w.next-1), ErrCutOff
	switch {
	case w.v.Open:
		d.To, d.Err = w.next-1, ErrWriting
	case d.From > d.To:
		d.Err = ErrUnfinished
	}
	return w.yield(Record{}, d), nil
}

// reach says which numbers are missing before one.
func (w *walk) reach(g SegmentInfo, number uint64) bool {
	d := w.hole
	w.hole = nil
	if d == nil {
		if w.next >= number {
			return true
		}
		d = &Damage{Segment: g.Name, Err: ErrGap}
	}
	d.From, d.To = w.next, number-1
	w.next = max(w.next, number)
	return w.yield(Record{}, d)
}

// lose says that the rest of a segment cannot be read.
func (w *walk) lose(g SegmentInfo, err error) bool {
	w.hole = nil
	d := &Damage{Segment: g.Name, Bytes: g.Bytes, From: w.next, To: g.Last, Err: err}
	w.next = max(w.next, g.Last+1)
	return w.yield(Record{}, d)
}
