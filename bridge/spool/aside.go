package spool

import (
	"errors"
	"io"
	"slices"
	"strings"
)

// Hold takes the lock of a spool, so that nobody opens it, and looks at it. It returns ErrLocked if another has it open.
func Hold(fs FS) (*View, io.Closer, error) {
	lock, err := fs.Lock(lockName)
	if err != nil {
		return nil, nil, err
	}
	v := &View{fs: fs}
	if err := v.load(); err != nil {
		return nil, nil, errors.Join(err, lock.Close())
	}
	return v, lock, nil
}

// Leftovers are the files that Open removes: what a crash kept from replacing others.
func (v *View) Leftovers() (names []string, err error) {
	files, err := v.fs.List()
	for _, f := range files {
		if strings.HasSuffix(f.Name, tmpSuffix) {
			names = append(names, f.Name)
		}
	}
	slices.Sort(names)
	return names, err
}

// TornEnd is what Open cuts off once the files that are at fault are gone: the bytes behind the last record of the last
// segment. It returns none if there are none.
func (v *View) TornEnd() (segment string, offset, bytes int64) {
	i := v.lastUsable()
	if i < 0 {
		return "", 0, 0
	}
	return v.Segments[i].Name, v.tail, max(0, v.Segments[i].Bytes-v.tail)
}

// NumbersAside is the first number that may be used again if the segments of this spool that are at fault are moved away; 0
// if what is left says it. A bus may have seen numbers of theirs, and would take another record of the same number for one
// that it has; and so would it, the other way round, if they are published later.
func (v *View) NumbersAside() (first uint64) {
	if !v.known {
		return 0 // the next spool has another id
	}
	last := uint64(0)
	if i := v.lastUsable(); i >= 0 {
		last = v.Segments[i].Last
	}
	for _, f := range v.Faults {
		if f.Aside && f.first > last {
			first = max(first, f.first+uint64(f.bytes)/recordHeaderLen) // no record is shorter
		}
	}
	if first <= last+1 {
		return 0
	}
	for slices.ContainsFunc(v.Segments, func(g SegmentInfo) bool { return g.First == first }) {
		first++ // the name of another spool's
	}
	return first
}

// GoOnFrom has the log go on with that number, also beside the segments that are at fault: it is called before they are moved,
// as nothing says their numbers in between. The caller has the lock.
func (v *View) GoOnFrom(first uint64) error {
	f, err := newSegment(v.fs, v.id, first)
	if err != nil {
		return err
	}
	return f.Close()
}
