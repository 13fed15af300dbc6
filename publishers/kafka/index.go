package kafka

import (
	"cmp"
	"maps"
	"math"
	"slices"

	"github.com/postbridge/postbridge/bridge"
)

// maxIndexed is how many events of a partition are in memory at a time: as many as the bridge has in flight.
const maxIndexed = 8192

// index records which events of our spool a partition holds. Chunks have the range of sequences in a range of offsets,
// and only the events of one window of sequences are in memory. A chunk of 32 bytes describes one fetch of half a MiB.
//
// The recovery scan reads the partition once and fills the chunks. It opens the window at the events that are
// pending, and the window ends where memory does. When a pending event lies outside, the window moves there, and the
// chunks that overlap it are fetched again. Along a partition the sequences grow, as a rule: then each chunk is
// fetched twice, once by the scan and once by a window, or one time more if a window ends within it. Where sequences
// do not grow, a chunk is fetched by each window that overlaps it, which costs time.
type index struct {
	chunks    []chunk
	sealed    bool   // the next event begins a new chunk
	low, high uint64 // the least and the greatest sequence of all chunks; low > high without any
	seen      int    // number of events that were added, each once
	end       int64  // the offset behind the last of them

	// window holds the events with sequences from..to. An event in this range that is not in window is not stored, or
	// lies behind the scanned offsets.
	window   map[uint64]indexed
	from, to uint64
	target   uint64 // the sequence that the window was opened for, and which never drops out of it
}

// indexed is an event in the window: the one at the highest offset, if several have its sequence.
type indexed struct {
	id     string
	offset int64
}

// chunk is a range of offsets [begin, end), and the sequences of our events there.
type chunk struct {
	begin, end int64
	low, high  uint64
}

func newIndex() *index {
	return &index{low: math.MaxUint64, to: math.MaxUint64, window: make(map[uint64]indexed), sealed: true}
}

// add records an event that the partition holds. Offsets grow within a chunk.
func (x *index) add(sequence uint64, id string, offset int64) {
	if offset >= x.end { // else it is scanned again
		x.seen, x.end = x.seen+1, offset+1
	}
	x.low, x.high = min(x.low, sequence), max(x.high, sequence)
	if x.sealed {
		x.sealed = false
		x.chunks = append(x.chunks, chunk{begin: offset, low: math.MaxUint64})
	}
	c := &x.chunks[len(x.chunks)-1]
	c.end, c.low, c.high = offset+1, min(c.low, sequence), max(c.high, sequence)
	x.hold(sequence, id, offset)
}

// seal ends a chunk, as one fetch ends.
func (x *index) seal() { x.sealed = true }

// hold adds an event to the window if its sequence is in the range. A window that gets too large loses the half
// without the target.
func (x *index) hold(sequence uint64, id string, offset int64) {
	if sequence < x.from || sequence > x.to || x.window[sequence].offset > offset {
		return
	}
	x.window[sequence] = indexed{id, offset}
	if len(x.window) <= maxIndexed {
		return
	}
	sorted := slices.Sorted(maps.Keys(x.window))
	if middle := sorted[len(sorted)/2]; x.target < middle {
		x.to = middle - 1
	} else {
		x.from = middle
	}
	maps.DeleteFunc(x.window, func(s uint64, _ indexed) bool { return s < x.from || s > x.to })
}

// covers reports whether the index knows if the event of that sequence is stored.
func (x *index) covers(sequence uint64) bool {
	return sequence < x.low || sequence > x.high || x.from <= sequence && sequence <= x.to
}

// has reports whether the partition holds the event. Another event may have its sequence, if the spool was restored
// from an older copy.
func (x *index) has(d *bridge.Delivery) bool {
	e, ok := x.window[d.Sequence]
	return ok && e.id == d.ID
}

// open empties the window and moves it to the target, from a sequence on that is not greater. It returns the chunks
// that may overlap it, ordered by their least sequence.
func (x *index) open(from, target uint64) []chunk {
	clear(x.window)
	x.from, x.to, x.target = from, math.MaxUint64, target
	overlap := slices.DeleteFunc(slices.Clone(x.chunks), func(c chunk) bool { return c.high < from })
	slices.SortFunc(overlap, func(a, b chunk) int { return cmp.Compare(a.low, b.low) })
	return overlap
}

// shut makes the window cover no sequence until it is opened again.
func (x *index) shut() { x.from, x.to = 1, 0 }

// ends reports whether the window ends before a chunk, the next of those that open returned. A window that is half
// full and holds the target is made to end there.
func (x *index) ends(next chunk) bool {
	if next.low > x.target && len(x.window) >= maxIndexed/2 {
		x.to = min(x.to, next.low-1)
	}
	return next.low > x.to
}
