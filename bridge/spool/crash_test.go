package spool_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postbridge/postbridge/bridge/spool"
	"github.com/postbridge/postbridge/bridge/spool/crashfs"
)

// TestCrash appends, reads and commits in many goroutines, simulates a power loss or a kill at a random disk operation,
// opens the remaining files and continues, several times. In some runs an operation fails before the crash. The buses
// run on the same machine: they acknowledge at once, sync within CursorDelay, and lose power together with the spool.
func TestCrash(t *testing.T) {
	seeds := 300
	if testing.Short() {
		seeds = 40
	}
	const shards = 4
	for shard := range shards {
		t.Run(fmt.Sprint(shard), func(t *testing.T) {
			t.Parallel()
			for seed := shard; seed < seeds && !t.Failed(); seed += shards {
				synctest.Test(t, func(t *testing.T) { // does not return if the test fails
					defer func() {
						if t.Failed() {
							t.Logf("seed %d", seed)
						}
					}()
					newStory(t, uint64(seed)).run()
				})
			}
		})
	}
}

// story is one spool through several crashes, with the results that its callers saw.
type story struct {
	t *testing.T
	o spool.Options

	rng       *rand.Rand // of the main goroutine
	fs        *crashfs.FS
	syncFails bool // records read between a failed sync and the power loss may be lost, though a bus has seen them

	unnoted atomic.Bool // a warning was logged that the high-water mark could not be saved

	lost map[uint64]bool // sequences without a record, as of the last check

	mu     sync.Mutex  // held during the crash
	dice   *rand.Rand  // decides which unsynced data survives the crash
	known              // in the life of the current process
	left   *crashfs.FS // the disk after the crash
	killed bool        // the crash was a kill, not a power loss
	atEnd  known       // known at the crash; later results do not count
}

// known holds the results that callers saw.
type known struct {
	acked     map[uint64]string // records for which Wait returned, by sequence
	attempted map[string]bool   // payloads passed to Append
	seen      map[uint64]string // records that any cursor returned, by sequence
	offered   map[offer]bool    // records that each cursor returned
	committed map[string]uint64 // highest committed sequence, by cursor
	held      holdings          // records that the buses acknowledged and still have
}

// holdings holds the time at which a bus syncs an acknowledged record, by record and bus.
type holdings map[offer]time.Time

// crash removes unsynced records, each with probability 1-keep.
func (h holdings) crash(dice *rand.Rand, keep float64) {
	now := time.Now()
	offers := slices.SortedFunc(maps.Keys(h), func(a, b offer) int {
		return cmp.Or(cmp.Compare(a.cursor, b.cursor), cmp.Compare(a.sequence, b.sequence))
	})
	for _, o := range offers {
		if h[o].After(now) && dice.Float64() >= keep {
			delete(h, o)
		}
	}
}

// sync syncs the records that a bus acknowledged, up to a sequence.
func (h holdings) sync(cursor string, upTo uint64) {
	for o, at := range h {
		if now := time.Now(); o.cursor == cursor && o.sequence <= upTo && at.After(now) {
			h[o] = now
		}
	}
}

// offer identifies a record that a cursor returned.
type offer struct {
	cursor   string
	sequence uint64
}

func (k known) clone() known {
	return known{
		maps.Clone(k.acked), maps.Clone(k.attempted), maps.Clone(k.seen),
		maps.Clone(k.offered), maps.Clone(k.committed), maps.Clone(k.held),
	}
}

func newStory(t *testing.T, seed uint64) *story {
	o := options()
	o.MaxBytes = 48 << 10
	o.Cursors = []string{"a", "b"}
	rng := rand.New(rand.NewPCG(seed, 1))
	o.Keep = []time.Duration{0, 300 * time.Millisecond, time.Hour}[rng.IntN(3)]
	o.CursorDelay = []time.Duration{0, 300 * time.Millisecond, time.Second}[rng.IntN(3)]
	st := &story{
		t: t, rng: rng, fs: crashfs.New(t), o: o,
		known: known{
			map[uint64]string{}, map[string]bool{}, map[uint64]string{},
			map[offer]bool{}, map[string]uint64{}, holdings{},
		},
	}
	st.o.Log = slog.New(slog.NewTextHandler(st, nil))
	return st
}

// Write receives the log.
func (st *story) Write(line []byte) (int, error) {
	if bytes.Contains(line, []byte("it may store some twice")) {
		st.unnoted.Store(true)
	}
	return len(line), nil
}

func (st *story) run() {
	for generation := 0; generation < 4 && !st.t.Failed(); generation++ {
		st.plan()
		if s, err := spool.Open(st.fs, st.o); err == nil {
			st.work(s, generation)
			st.closeBuses()
			_ = s.Close() // an error if the spool failed
		}
		st.losePower()
		st.fs, st.known = st.left, st.atEnd
		st.check()
	}
}

// plan chooses an operation that fails, and the operation at which the crash happens.
func (st *story) plan() {
	st.left, st.dice = nil, rand.New(rand.NewPCG(st.rng.Uint64(), 4))
	if st.rng.IntN(3) == 0 {
		ops := []crashfs.Op{
			crashfs.Create, crashfs.Open, crashfs.Rename, crashfs.Remove, crashfs.SyncDir, crashfs.Free,
			crashfs.Read, crashfs.Write, crashfs.Truncate, crashfs.Sync, crashfs.Close,
		}
		op := ops[st.rng.IntN(len(ops))]
		st.syncFails = st.syncFails || op == crashfs.Sync
		outcomes := []crashfs.Outcome{crashfs.Failed, crashfs.Happened, crashfs.Half}
		st.fs.Inject(crashfs.Fault{
			Op: op, Nth: 1 + st.rng.IntN(40),
			Outcome: outcomes[st.rng.IntN(len(outcomes))], Sticky: st.rng.IntN(2) == 0,
		})
	}
	var count atomic.Int64
	at := int64(1 + st.rng.IntN(1000))
	st.fs.Before(func(crashfs.Op) {
		if count.Add(1) == at {
			st.losePower()
		}
	})
}

// losePower saves the disk as a power loss or a kill would leave it now. Only the first call in the life of a process
// counts.
func (st *story) losePower() {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.left != nil {
		return
	}
	st.atEnd = st.clone()
	if st.killed = !st.syncFails && st.dice.IntN(4) == 0; st.killed {
		st.left = st.fs.Kill(st.dice)
		return
	}
	keep := []float64{0, 0.3, 0.7, 1}[st.dice.IntN(4)]
	st.left = st.fs.CrashClone(st.dice, keep)
	st.atEnd.held.crash(st.dice, keep)
}

// closeBuses syncs the buses, as an embedded server does before the spool is closed.
func (st *story) closeBuses() {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, name := range st.o.Cursors {
		st.held.sync(name, math.MaxUint64)
	}
}

// work runs writers and buses until the writers are done.
func (st *story) work(s *spool.Spool, generation int) {
	ctx, cancel := context.WithCancel(st.t.Context())
	var writers, buses sync.WaitGroup
	for w := range 4 {
		rng := rand.New(rand.NewPCG(st.rng.Uint64(), 2))
		writers.Go(func() { st.write(s, rng, fmt.Sprintf("%d/%d", generation, w)) })
	}
	for _, name := range st.o.Cursors {
		rng := rand.New(rand.NewPCG(st.rng.Uint64(), 3))
		buses.Go(func() { st.consume(ctx, s.Cursor(name), name, rng) })
	}
	writers.Wait()
	time.Sleep(time.Duration(st.rng.IntN(2)) * time.Second)
	cancel()
	buses.Wait()
}

// write appends a few records at a time. Each payload begins with its number in the order of this writer.
func (st *story) write(s *spool.Spool, rng *rand.Rand, name string) {
	for i := 0; i < 30; {
		tickets := map[spool.Ticket]string{}
		for range 1 + rng.IntN(4) {
			size := rng.IntN(300)
			if rng.IntN(10) == 0 {
				size = rng.IntN(6000)
			}
			payload := fmt.Sprintf("%s/%d/%s", name, i, strings.Repeat("x", size))
			ticket, err := st.append(s, payload)
			if err != nil {
				return
			}
			tickets[ticket] = payload
			i++
		}
		for ticket, payload := range tickets {
			sequence, err := s.Wait(ticket)
			if err != nil {
				continue
			}
			st.mu.Lock()
			st.acked[sequence] = payload
			st.mu.Unlock()
		}
	}
}

// append retries for a while if the spool is full.
func (st *story) append(s *spool.Spool, payload string) (spool.Ticket, error) {
	st.mu.Lock()
	st.attempted[payload] = true
	st.mu.Unlock()
	for tries := 0; ; tries++ {
		ticket, err := s.Append([]byte(payload))
		if !errors.Is(err, spool.ErrFull) || tries == 30 {
			return ticket, err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// consume simulates a bus: it reads records and commits some of them. Sometimes it loses records.
func (st *story) consume(ctx context.Context, c *spool.Cursor, name string, rng *rand.Rand) {
	start, _ := c.Committed() // a crash may have left holes before it, where only some removed segments came back
	last, bus := start, busOf(c)
	var taken []offer // not yet acknowledged
	for {
		if rng.IntN(60) == 0 {
			var saved bool
			if last, saved = st.rewind(bus, name, start+uint64(rng.Int64N(int64(last-start)+1))); !saved {
				return // no record may be published again before the rewind
			}
			taken = nil
		}
		r, err := c.Next(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		st.mu.Lock()
		st.see(name, last, r)
		last = r.Sequence
		taken = append(taken, offer{name, r.Sequence})
		commit := rng.IntN(3) > 0
		if commit {
			st.committed[name] = max(st.committed[name], r.Sequence)
			for _, o := range taken {
				st.held[o] = time.Now().Add(time.Duration(rng.Int64N(int64(st.o.CursorDelay) + 1)))
			}
			taken = nil
		}
		st.mu.Unlock()
		if commit {
			bus.commit(r, fmt.Sprint(r.Sequence))
		}
		if rng.IntN(4) == 0 {
			time.Sleep(time.Duration(rng.IntN(100)) * time.Millisecond)
		}
	}
}

// rewind restores a bus without the records after the sequence. It returns the position of the cursor, and whether its
// file has that position.
func (st *story) rewind(bus *bus, name string, to uint64) (stands uint64, saved bool) {
	st.mu.Lock()
	st.held.sync(name, to)
	st.mu.Unlock()
	stands = bus.rewind(to)
	if bus.cursor.Save() != nil {
		return stands, false // after a crash the bus has to detect the loss again
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	maps.DeleteFunc(st.held, func(o offer, _ time.Time) bool { return o.cursor == name && o.sequence > stands })
	return stands, true
}

// see checks a record that a cursor returned after the given sequence, and remembers it. Needs mu.
func (st *story) see(name string, after uint64, r spool.Record) {
	if r.Sequence-r.Lost != after+1 {
		st.t.Errorf("after %d comes %d with %d lost", after, r.Sequence, r.Lost)
	}
	for n := after + 1; n <= r.Sequence; n++ {
		if payload, ok := st.acked[n]; ok && (n < r.Sequence || r.Payload == nil) {
			st.t.Errorf("%d was acknowledged and is lost: %.20s", n, payload)
		}
	}
	if r.Payload == nil {
		return
	}
	payload := string(r.Payload)
	if !st.attempted[payload] {
		st.t.Errorf("%d was never appended: %.20s", r.Sequence, payload)
	}
	if before, ok := st.seen[r.Sequence]; ok && before != payload {
		st.t.Errorf("%d was %.20s and is now %.20s", r.Sequence, before, payload)
	}
	st.seen[r.Sequence] = payload
	o := offer{name, r.Sequence}
	if st.offered[o] && !r.Redelivered && !st.unnoted.Load() {
		st.t.Errorf("%s gets %d again as if it were new", name, r.Sequence)
	}
	st.offered[o] = true
}

// check opens the remaining files and compares them with what was known.
func (st *story) check() {
	o := st.o
	o.Cursors = append([]string{"audit"}, o.Cursors...)
	s, err := spool.Open(st.fs, o)
	if err != nil {
		st.t.Errorf("cannot open what the crash left: %v", err)
		return
	}
	least := st.checkCursors(s)
	records := drain(st.t, s.Cursor("audit"))
	st.checkRecords(records, least)
	st.checkLost(records)
	if err := s.Close(); err != nil {
		st.t.Error(err)
	}
	if names := st.fs.OpenFiles(); names != nil {
		st.t.Errorf("left open: %q", names)
	}
}

// checkCursors returns the lowest committed sequence of the cursors.
func (st *story) checkCursors(s *spool.Spool) uint64 {
	least := uint64(math.MaxUint64)
	for _, name := range st.o.Cursors {
		committed, state := s.Cursor(name).Committed()
		if committed > st.committed[name] {
			st.t.Errorf("%s has committed %d and stands at %d", name, st.committed[name], committed)
		}
		if state != nil && string(state) != fmt.Sprint(committed) {
			st.t.Errorf("%s stands at %d with the state of %s", name, committed, state)
		}
		after := committed
		for _, r := range drain(st.t, s.Cursor(name)) {
			st.see(name, after, r)
			after = r.Sequence
		}
		if last := s.Stats().Last; after != last {
			st.t.Errorf("%s comes to %d of %d", name, after, last)
		}
		for sequence := range st.acked {
			if _, held := st.held[offer{name, sequence}]; !held && sequence <= committed {
				st.t.Errorf("%s stands at %d, and the bus has lost %d", name, committed, sequence)
			}
		}
		least = min(least, committed)
	}
	return least
}

// checkRecords checks that each acknowledged record that some bus has not committed is present once, in the order of
// its writer.
func (st *story) checkRecords(records []spool.Record, least uint64) {
	found := map[uint64]string{}
	times := map[string]int{}
	order := map[string]int{}
	for _, r := range records {
		if r.Payload == nil {
			continue
		}
		payload := string(r.Payload)
		found[r.Sequence] = payload
		if times[payload]++; times[payload] > 1 || !st.attempted[payload] {
			st.t.Errorf("%d: %.20s is there %d times; appended: %v",
				r.Sequence, payload, times[payload], st.attempted[payload])
		}
		words := strings.Split(payload, "/")
		writer := words[0] + "/" + words[1]
		i, _ := strconv.Atoi(words[2])
		if before, ok := order[writer]; ok && i <= before {
			st.t.Errorf("%s has appended %d before %d", writer, before, i)
		}
		order[writer] = i
	}
	for sequence, payload := range st.acked {
		if got, ok := found[sequence]; got != payload && (ok || sequence > least) {
			st.t.Errorf("%d was acknowledged as %.20s and is %.20s", sequence, payload, got)
		}
	}
}

// checkLost checks that a kill loses no sequence.
func (st *story) checkLost(records []spool.Record) {
	lost := map[uint64]bool{}
	for _, r := range records {
		for n := r.Sequence - r.Lost; n < r.Sequence || n == r.Sequence && r.Payload == nil; n++ {
			lost[n] = true
			if st.killed && !st.lost[n] {
				st.t.Errorf("%d is lost, and the process was only killed", n)
			}
		}
	}
	st.lost = lost
}

// TestFailedSyncThatIsSeenAllTheSame: after a failed fsync the next process reads data that never reaches the disk. No
// record acknowledged after it is lost in a later power loss.
func TestFailedSyncThatIsSeenAllTheSame(t *testing.T) {
	fs := crashfs.New(t)
	s := open(t, fs, options())
	appendAll(t, s, "a")
	fs.Inject(crashfs.Fault{Op: crashfs.Sync, Nth: 1, Outcome: crashfs.Failed})
	ticket, err := s.Append([]byte("never on disk"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Wait(ticket); !errors.Is(err, spool.ErrFailed) {
		t.Fatal(err)
	}
	_ = s.Close()

	fs = fs.Restart()
	s = open(t, fs, options())
	appendAll(t, s, "c", "d")
	wantRecords(t, s.Cursor("bus"), "1:a 2:never on disk 3:c 4:d")

	left := fs.CrashClone(nil, 0)
	after := open(t, left, options())
	wantRecords(t, after.Cursor("bus"), "1:a lost(2-2) 3:c 4:d")
	closeSpool(t, after)
	closeSpool(t, s)
}
