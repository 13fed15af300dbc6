package kafka

import (
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	"github.com/postbridge/postbridge/bridge"
)

// partitionLog is a partition that an index is of: the sequences of our events by offset. Offsets between them are of
// others.
type partitionLog map[int64]uint64

// scan indexes a partition in fetches of so many offsets.
func (p partitionLog) scan(x *index, end, fetch int64) {
	for offset := range end {
		if offset%fetch == 0 {
			x.seal()
		}
		if sequence, ok := p[offset]; ok {
			x.add(sequence, p.id(offset), offset)
		}
	}
}

// id names the event at an offset.
func (p partitionLog) id(offset int64) string { return strconv.FormatInt(offset, 36) }

// moveWindow does what partitionWriter.moveWindow does, and counts the offsets that are read for it.
func (p partitionLog) moveWindow(x *index, from, target uint64) (read int64) {
	for _, c := range x.open(from, target) {
		if x.ends(c) {
			return read
		}
		for offset := c.begin; offset < c.end; offset++ {
			if read++; p[offset] > 0 {
				x.hold(p[offset], p.id(offset), offset)
			}
		}
	}
	return read
}

// TestIndex asks indexes of all kinds of partitions for each event that there is and some that there are not, in order
// or in none, and compares the answers with the partition.
func TestIndex(t *testing.T) {
	t.Parallel()
	const size = 3 * maxIndexed
	for name, shuffle := range map[string]func(rng *rand.Rand, all []uint64){
		"Growing": func(*rand.Rand, []uint64) {},
		"Rewound": func(_ *rand.Rand, all []uint64) { copy(all[size/2:], all[size/4:]) },
		"Twice":   func(_ *rand.Rand, all []uint64) { copy(all[size/2:], all[:size/2]) },
		"Falling": func(_ *rand.Rand, all []uint64) { slices.Reverse(all) },
		"Late": func(rng *rand.Rand, all []uint64) {
			for range size / 100 {
				i := rng.IntN(size - 1000)
				k := i + rng.IntN(1000)
				all[i], all[k] = all[k], all[i]
			}
		},
		"AnyOrder": func(rng *rand.Rand, all []uint64) {
			rng.Shuffle(size, func(i, k int) { all[i], all[k] = all[k], all[i] })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, 0))
			all := make([]uint64, size)
			for i := range all {
				all[i] = uint64(3*i + 1) // what is between is in other partitions
			}
			shuffle(rng, all)
			log, last := make(partitionLog), make(map[uint64]int64)
			end := int64(0)
			for _, sequence := range all {
				end += 1 + rng.Int64N(3)
				log[end-1], last[sequence] = sequence, end-1
			}
			x := newIndex()
			log.scan(x, end, 2000)
			read, moves := end, 0
			ask := func(sequence uint64) {
				t.Helper()
				if !x.covers(sequence) {
					moves++
					read += log.moveWindow(x, sequence-min(sequence, rng.Uint64N(100)), sequence)
				}
				if n := len(x.window); n > maxIndexed {
					t.Fatalf("%d events are held, want %d at most", n, maxIndexed)
				}
				offset, stored := last[sequence]
				if !x.covers(sequence) || x.has(&bridge.Delivery{Sequence: sequence, ID: log.id(offset)}) != stored {
					t.Fatalf("sequence %d at offset %d, stored: %v, is told otherwise", sequence, offset, stored)
				}
				if x.has(&bridge.Delivery{Sequence: sequence, ID: "another"}) {
					t.Fatalf("another event of sequence %d is told to be stored", sequence)
				}
			}
			for sequence := range uint64(3*size + 10) {
				ask(sequence)
			}
			t.Logf("read %d offsets for %d, in %d windows", read, end, moves)
			if name == "Growing" && read > 3*end {
				t.Errorf("read %d offsets for %d", read, end)
			}
			if most := end * int64(2+moves); read > most {
				t.Errorf("read %d offsets, want %d at most", read, most)
			}
			for range 20 {
				ask(rng.Uint64N(3 * size))
			}
		})
	}
}

// However large a partition is, the window of its index is not.
func TestIndexOfManyChunks(t *testing.T) {
	t.Parallel()
	x, log := newIndex(), make(partitionLog)
	const chunks = 20_481
	for i := range int64(chunks) {
		log[2*i] = uint64(i + 1)
	}
	log.scan(x, 2*chunks, 2)
	if len(x.window) > maxIndexed {
		t.Errorf("%d chunks, %d events", len(x.chunks), len(x.window))
	}
	for sequence := uint64(1); sequence <= chunks; sequence++ {
		if !x.covers(sequence) {
			log.moveWindow(x, sequence, sequence)
		}
		if !x.has(&bridge.Delivery{Sequence: sequence, ID: log.id(2 * int64(sequence-1))}) {
			t.Fatalf("%d is not found", sequence)
		}
	}
}
