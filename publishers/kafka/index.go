package kafka

import (
	"cmp"
	"maps"
	"math"
	"slices"

	"github.com/postbridge/postbridge/bridge"
)

const (
	// maxIndexed is how many events of a partition are held in memory at a time: as many as the bridge has in flight.
	maxIndexed = 8192
	// maxChunks is how many chunks of a partition are told apart. At one fetch a chunk they cover 2 GiB; beyond that,
	// chunks are merged in pairs.
	maxChunks = 4096
)

// index tells which events of our spool a partition holds. It is bounded, however many that are: chunks say where in
// the partition which sequences may be, and only the events of one window of sequences are held.
//
// The recovery scan reads the partition once and fills the chunks. It opens the window at the events that are pending,
// and the window ends where memory does. When a pending event lies outside, the window moves there, and the chunks that
// overlap it are fetched again. Along a partition the sequences grow, as a rule: then each chunk is fetched twice, once
// by the scan and once by a window, or one time more if a window ends within it. Where sequences do not grow, a chunk
// is fetched by each window that overlaps it: this costs time, but the answer is the same.
type index struct {
	chunks    []chunk
	sealed    bool   // the next event begins a new chunk
	low, high uint64 // the least and the greatest sequence of all chunks; low > high without any
	seen      int    // events that were added, but for what was read again
	end       int64  // the offset behind the last of them

	// window holds the events with sequences from..to. One that is in this range and not in window is not stored, or
	// lies behind what was scanned.
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

// add takes an event that the partition holds. Offsets grow within a chunk.
func (x *index) add(sequence uint64, id string, offset int64) {
	if offset >= x.end { // or else a lane that reads the same again and again would seem to find something new
		x.seen, x.end = x.seen+1, offset+1
	}
	x.low, x.high = min(x.low, sequence), max(x.high, sequence)
	if x.sealed {
		x.sealed = false
		if len(x.chunks) == maxChunks {
			x.merge()
		}
		x.chunks = append(x.chunks, chunk{begin: offset, low: math.MaxUint64})
	}
	c := &x.chunks[len(x.chunks)-1]
	c.end, c.low, c.high = offset+1, min(c.low, sequence), max(c.high, sequence)
	x.hold(sequence, id, offset)
}

// seal ends a chunk: what one fetch returned.
func (x *index) seal() { x.sealed = true }

// merge makes one chunk of each two.
func (x *index) merge() {
	n := len(x.chunks) / 2
	for i := range n {
		a, b := x.chunks[2*i], x.chunks[2*i+1]
		x.chunks[i] = chunk{min(a.begin, b.begin), max(a.end, b.end), min(a.low, b.low), max(a.high, b.high)}
	}
	x.chunks = x.chunks[:n]
}

// hold puts an event into the window if its sequence is in there. If the window gets too large, it loses the half that
// the target is not in.
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

// covers reports whether the index can tell if the event of that sequence is stored.
func (x *index) covers(sequence uint64) bool {
	return sequence < x.low || sequence > x.high || x.from <= sequence && sequence <= x.to
}

// has reports whether the partition holds the event. Another one may have its sequence, if the spool was put back from
// an older copy.
func (x *index) has(d *bridge.Delivery) bool {
	e, ok := x.window[d.Sequence]
	return ok && e.id == d.ID
}

// open empties the window and opens it for the target, from a sequence on that is not greater. It returns the chunks
// that may overlap it, by their least sequence.
func (x *index) open(from, target uint64) []chunk {
	clear(x.window)
	x.from, x.to, x.target = from, math.MaxUint64, target
	overlap := slices.DeleteFunc(slices.Clone(x.chunks), func(c chunk) bool { return c.high < from })
	slices.SortFunc(overlap, func(a, b chunk) int { return cmp.Compare(a.low, b.low) })
	return overlap
}

// ends reports whether the window ends before a chunk, the next that open returned: it does if the chunk lies beyond
// it, and is made to as soon as it is half full and holds the target.
func (x *index) ends(next chunk) bool {
	if next.low > x.target && len(x.window) >= maxIndexed/2 {
		x.to = min(x.to, next.low-1)
	}
	return next.low > x.to
}
