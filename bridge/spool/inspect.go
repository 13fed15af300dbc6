package spool

import (
	"errors"
	"fmt"
	"iter"
	"os"
	"slices"
)

// ErrGap means that sequences have no record and no damaged bytes in their place.
var ErrGap = errors.New("no records")

// Damage is a part of the spool without valid records.
type Damage struct {
	Segment       string
	Offset, Bytes int64
	From, To      uint64 // the sequences without a record; From > To if there is none
	Err           error  // wraps ErrDamaged, ErrGap or the error of a Fault
}

// Error names the segment, the cause, and the bytes and sequences concerned.
func (d *Damage) Error() string {
	text := fmt.Sprintf("%s: %v", d.Segment, d.Err)
	if d.Bytes > 0 {
		text += fmt.Sprintf(" (%d bytes at offset %d)", d.Bytes, d.Offset)
	}
	if d.From <= d.To {
		text += fmt.Sprintf("; events %d to %d are missing", d.From, d.To)
	}
	return text
}

// Unwrap returns Err.
func (d *Damage) Unwrap() error { return d.Err }

// Inspect loads a spool without changing it. A process may have it open, append to it and remove its oldest segments
// meanwhile. Use it with ReadDir. It returns an error only if the directory cannot be read.
func Inspect(fs FS) (*View, error) {
	// Only acquiring the lock shows whether it is free. A process that opens the spool at this moment gets ErrLocked
	// and retries.
	lock, err := fs.Lock(lockName)
	if err == nil {
		err = lock.Close()
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, ErrLocked) {
		return nil, err
	}
	return load(fs, errors.Is(err, ErrLocked))
}

// Repair quarantines each file that Open refuses, and returns the spool without them. It returns ErrLocked if a
// process has the spool open. The callback moves one file out of the directory; the move must be durable when it
// returns.
func Repair(fs FS, quarantine func(Fault) error) (v *View, err error) {
	// The lock is held throughout: no process may append behind the fence while files are moved.
	lock, err := fs.Lock(lockName)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	// The spool is loaded anew after each file: without it, others may be usable or refused.
	for {
		v, err := load(fs, false)
		if err != nil {
			return nil, err
		}
		refused := v.Refused()
		if len(refused) == 0 {
			return v, nil
		}
		// The fence must be durable before a segment is moved: without either, its sequences would be used again.
		// A crash after this line leaves every file in place: the next repair finds the fence and moves the same
		// files.
		if err := v.fence(); err != nil {
			return nil, err
		}
		// A crash after this line leaves a spool with one refused file less.
		if err := quarantine(refused[0]); err != nil {
			return nil, err
		}
	}
}

// fence creates an empty segment after every sequence that the unusable segments at the end of the log may contain. A
// bus may have seen these sequences and would drop new records that have them as duplicates; or it sees them later, if
// the quarantined events are published. A crash after the fence leaves a spool whose last segment is usable, so that
// no second fence is made.
func (v *View) fence() error {
	if !v.hasID {
		return nil // the next spool has another id, so its sequences are not compared with these
	}
	first := uint64(0)
	// Only the unusable segments at the end matter: the sequences of any other are below those of a usable one.
	for _, g := range slices.Backward(v.Segments) {
		if g.err == nil {
			break
		}
		if !errors.Is(g.err, ErrForeign) {
			// A record has at least a header, which bounds how many sequences the file can contain.
			first = max(first, g.First+1, g.First+uint64(g.Bytes)/recordHeaderLen)
		}
	}
	if first == 0 {
		return nil
	}
	for slices.ContainsFunc(v.Segments, func(g SegmentInfo) bool { return g.First == first }) {
		first++ // the segment of another spool has this name
	}
	// Commit point of the fence: its name and header are durable on return.
	f, err := newSegment(v.fs, v.id, first, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// Records yields the records that existed when the view was loaded, oldest first and verified, and each missing part
// as a *Damage. What a process is writing, was killed while writing, or has removed since is not damage. A payload is
// valid until the next iteration. Memory use does not depend on the size of the spool, except that damage is read to
// the end of its segment.
func (v *View) Records() iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		// One buffer serves all segments, so memory does not grow with their number.
		w := walk{v: v, yield: yield, buffer: reuseBuffer()}
		for i := 0; i < len(v.Segments) && !w.stopped; i++ {
			w.segment(&v.Segments[i])
		}
	}
}

// walk is one iteration over the records.
type walk struct {
	v       *View
	yield   func(Record, error) bool
	stopped bool // yield has returned false
	buffer  func(int64) []byte
	next    uint64  // the sequence that comes next; 0 before the first
	damage  *Damage // its range ends at a sequence not known yet; nil if none
}

// emit yields a record or a missing part, unless the iteration is stopped.
func (w *walk) emit(r Record, err error) { w.stopped = w.stopped || !w.yield(r, err) }

// segment yields the records of one segment, and the missing parts before and after them.
func (w *walk) segment(g *SegmentInfo) {
	if w.next != 0 {
		w.advance(g, g.First)
	}
	// Sequences before First belong to the previous segment, and advance has reported those that are missing.
	w.next = g.First
	err := g.err
	// The records of other spools and versions cannot be verified. Any other unusable segment is read as far as
	// possible.
	if !errors.Is(err, ErrForeign) && !errors.Is(err, ErrNewer) && !errors.Is(err, ErrLostID) {
		err = w.records(g)
	}
	// Removed since the view was loaded: its records were published, so they are not missing.
	if errors.Is(err, os.ErrNotExist) {
		w.next = g.Last + 1
	} else if err != nil {
		w.damage = &Damage{Segment: g.Name, Bytes: g.Bytes, Err: err}
	}
	w.advance(g, g.Last+1)
}

// records yields the records of a segment and its torn tail. It returns an error if the rest cannot be read.
func (w *walk) records(g *SegmentInfo) error {
	f, err := w.v.fs.Open(g.Name)
	if err != nil {
		return err
	}
	defer f.Close()
	// The tail ends at its last valid record; after that only what may have been acknowledged counts as damage.
	end, torn := g.Bytes, w.v.recovered
	if g == w.v.tail {
		end = torn.end
	}
	r := &segmentReader{id: w.v.id, file: f, next: g.First, offset: segmentHeaderLen, buffer: w.buffer}
	for r.offset < end && !w.stopped {
		start := r.offset
		sequence, payload, err := r.record(end, g.Last)
		if errors.Is(err, ErrDamaged) {
			damage, found, err := r.resync(end, g.Last)
			if err == nil && w.v.InUse {
				err = w.stillThere(g) // its file may be in use for other records now
			}
			if err != nil {
				return err
			}
			// Nothing, if the file was truncated since it was listed; an end mark, as in Cursor.skipDamage.
			if found || len(damage) > 0 && !w.v.id.isEndMark(damage, r.next) {
				w.damage = &Damage{Segment: g.Name, Offset: start, Bytes: int64(len(damage)), Err: ErrDamaged}
			}
			continue
		}
		if err != nil {
			return err
		}
		w.advance(g, sequence)
		w.emit(Record{Sequence: sequence, Payload: payload}, nil)
		// The next record must be above this one; advance reports what is missing between them.
		w.next = sequence + 1
	}
	// With a process at work the tail may be a write in progress. Without one it is damage only if it may have been
	// acknowledged; Open will report the same sequences as lost.
	if g == w.v.tail && torn.highest > torn.last && !w.v.InUse {
		w.damage = &Damage{Segment: g.Name, Offset: torn.end, Bytes: torn.torn, Err: ErrDamaged}
		w.advance(g, torn.highest+1)
	}
	return nil
}

// stillThere returns an error that wraps os.ErrNotExist if a segment was removed since the view was loaded.
func (w *walk) stillThere(g *SegmentInfo) error {
	f, err := w.v.fs.Open(g.Name)
	if err == nil {
		err = f.Close()
	}
	return err
}

// advance yields the pending damage, or a gap, if sequences before the given one are missing.
func (w *walk) advance(g *SegmentInfo, sequence uint64) {
	d := w.damage
	w.damage = nil
	if d == nil {
		if w.next >= sequence {
			return
		}
		d = &Damage{Segment: g.Name, Err: ErrGap}
	}
	// From > To is possible: damaged bytes without a missing sequence, such as a stale record.
	d.From, d.To = w.next, sequence-1
	w.next = max(w.next, sequence)
	w.emit(Record{}, d)
}
