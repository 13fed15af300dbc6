package spool

import (
	"errors"
	"fmt"
	"iter"
	"os"
	"slices"
)

// ErrGap means that sequences have no record, and that no bytes are there in its place.
var ErrGap = errors.New("no records")

// Damage is a part of the spool that gives no record.
type Damage struct {
	Segment       string
	Offset, Bytes int64
	From, To      uint64 // the sequences that have no record; From is above To if there is none
	Err           error  // ErrDamaged, ErrGap or that of a Fault
}

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

func (d *Damage) Unwrap() error { return d.Err }

// Inspect reads a spool as it is now, without taking part in it: a process may have it open meanwhile, append to it and
// remove its oldest segments. Use it with ReadDir. Its error is that the directory cannot be read.
func Inspect(fs FS) (*View, error) {
	// Only an attempt tells whether the lock is free. A process that wants it at this very moment tries again.
	lock, err := fs.Lock(lockName)
	if err == nil {
		err = lock.Close()
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, ErrLocked) {
		return nil, err
	}
	return load(fs, errors.Is(err, ErrLocked))
}

// Repair quarantines each file that Open refuses, and returns the spool without them. It returns ErrLocked if a process has
// the spool open. The function moves one file out of the directory; the move must survive a crash when it returns.
func Repair(fs FS, quarantine func(Fault) error) (*View, error) {
	lock, err := fs.Lock(lockName)
	if err != nil {
		return nil, err
	}
	v, err := repair(fs, quarantine)
	return v, errors.Join(err, lock.Close())
}

func repair(fs FS, quarantine func(Fault) error) (*View, error) {
	for {
		v, err := load(fs, false)
		if err != nil {
			return nil, err
		}
		f, refused := v.firstRefused()
		if !refused {
			return v, nil
		}
		// The fence is durable before a segment goes: only the segment has its sequences.
		if err := v.fence(); err != nil {
			return nil, err
		}
		if err := quarantine(f); err != nil {
			return nil, err
		}
	}
}

// fence has the log go on behind every sequence that the unusable segments at its end may hold: an empty segment is made
// there. A bus may have seen these sequences, and would take other records with them for repeats; or it sees them later,
// if somebody publishes what is quarantined. A crash behind the fence leaves a spool that needs none.
func (v *View) fence() error {
	if !v.hasID {
		return nil // the next spool has another id
	}
	first := uint64(0)
	for _, g := range slices.Backward(v.Segments) {
		if g.err == nil {
			break
		}
		if !errors.Is(g.err, ErrForeign) {
			first = max(first, g.First+1, g.First+uint64(g.Bytes)/recordHeaderLen) // no record is shorter
		}
	}
	if first == 0 {
		return nil
	}
	for slices.ContainsFunc(v.Segments, func(g SegmentInfo) bool { return g.First == first }) {
		first++ // the name of another spool's
	}
	f, err := newSegment(v.fs, v.id, first)
	if err != nil {
		return err
	}
	return f.Close()
}

// Records yields the records that were there when the view was loaded, oldest first, each with its checksum verified, and
// what gives none as a *Damage, after which it goes on. What a process is writing, was killed in the middle of writing, or
// has removed meanwhile is no damage. A payload is valid until the next step. Memory does not grow with the spool; damage
// takes as much as there is of its segment behind it.
func (v *View) Records() iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		w := walk{v: v, yield: yield, buffer: reuseBuffer()}
		for i := range v.Segments {
			if !w.segment(&v.Segments[i]) {
				return
			}
		}
	}
}

// walk is one pass over the records. Its methods return false once the caller wants no more.
type walk struct {
	v      *View
	yield  func(Record, error) bool
	buffer func(int64) []byte
	next   uint64  // the sequence that comes next; 0 before the first
	gap    *Damage // what did not check, until the sequence behind it is known
}

func (w *walk) segment(g *SegmentInfo) bool {
	if w.next != 0 && !w.advance(g, g.First) {
		return false
	}
	w.next = g.First
	err := g.err
	if !errors.Is(err, ErrForeign) && !errors.Is(err, ErrNewer) && !errors.Is(err, ErrLostID) {
		var more bool
		if more, err = w.records(g); !more {
			return false
		}
	}
	if errors.Is(err, os.ErrNotExist) {
		w.next = g.Last + 1
	} else if err != nil {
		w.gap = &Damage{Segment: g.Name, Bytes: g.Bytes, Err: err}
	}
	return w.advance(g, g.Last+1)
}

// records yields the records of a segment, and its torn end. The error is that the rest cannot be read.
func (w *walk) records(g *SegmentInfo) (more bool, err error) {
	f, err := w.v.fs.Open(g.Name)
	if err != nil {
		return true, err
	}
	defer f.Close()
	end := g.Bytes
	if g == w.v.tail {
		end = w.v.recovered.end
	}
	r := &segmentReader{id: w.v.id, file: f, next: g.First, offset: segmentHeaderLen, buffer: w.buffer}
	for r.offset < end {
		start := r.offset
		sequence, payload, err := r.record(end, g.Last)
		switch {
		case err == nil:
			if !w.advance(g, sequence) || !w.yield(Record{Sequence: sequence, Payload: payload}, nil) {
				return false, nil
			}
			w.next = sequence + 1
		case errors.Is(err, ErrDamaged):
			damage, _, err := r.resync(end, g.Last)
			if err != nil {
				return true, err
			}
			w.gap = &Damage{Segment: g.Name, Offset: start, Bytes: int64(len(damage)), Err: ErrDamaged}
		default:
			return true, err
		}
	}
	if torn := w.v.recovered; g == w.v.tail && torn.highest > torn.last && !w.v.InUse {
		w.gap = &Damage{Segment: g.Name, Offset: torn.end, Bytes: torn.tornBytes, Err: ErrDamaged}
		return w.advance(g, torn.highest+1), nil
	}
	return true, nil
}

// advance reports the sequences that are missing before one.
func (w *walk) advance(g *SegmentInfo, sequence uint64) bool {
	d := w.gap
	w.gap = nil
	if d == nil {
		if w.next >= sequence {
			return true
		}
		d = &Damage{Segment: g.Name, Err: ErrGap}
	}
	d.From, d.To = w.next, sequence-1
	w.next = max(w.next, sequence)
	return w.yield(Record{}, d)
}
