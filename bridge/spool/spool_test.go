package spool_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postbridge/postbridge/bridge/spool"
	"github.com/postbridge/postbridge/bridge/spool/crashfs"
)

// options returns the options of most tests: segments of 8 KiB, published records kept, one bus.
func options() spool.Options {
	return spool.Options{
		MaxBytes: 64 << 10, Keep: time.Hour, Cursors: []string{"bus"}, Log: slog.New(slog.DiscardHandler),
	}
}

func open(t testing.TB, fs spool.FS, o spool.Options) *spool.Spool {
	t.Helper()
	s, err := spool.Open(fs, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func closeSpool(t testing.TB, s *spool.Spool) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// appendAll appends the payloads and waits for each.
func appendAll(t testing.TB, s *spool.Spool, payloads ...string) (last uint64) {
	t.Helper()
	for _, p := range payloads {
		ticket, err := s.Append([]byte(p))
		if err == nil {
			last, err = s.Wait(ticket)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return last
}

// drain returns all records after the cursor.
func drain(t testing.TB, c *spool.Cursor) (records []spool.Record) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for {
		r, err := c.Next(ctx)
		if errors.Is(err, context.Canceled) {
			return records
		}
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, r)
	}
}

// describe formats records as "1:a 2:b lost(3-4) 5:e".
func describe(records []spool.Record) string {
	var words []string
	for _, r := range records {
		first, last := r.Sequence-r.Lost, r.Sequence-1
		if r.Payload == nil {
			last = r.Sequence
		}
		if first <= last {
			words = append(words, fmt.Sprintf("lost(%d-%d)", first, last))
		}
		if r.Payload != nil {
			words = append(words, fmt.Sprintf("%d:%s", r.Sequence, r.Payload))
		}
	}
	return strings.Join(words, " ")
}

func wantRecords(t testing.TB, c *spool.Cursor, want string) []spool.Record {
	t.Helper()
	records := drain(t, c)
	if got := describe(records); got != want {
		t.Errorf("the bus gets %q, want %q", got, want)
	}
	return records
}

func TestAppendAndNext(t *testing.T) {
	s := open(t, crashfs.New(t), options())
	defer s.Close()
	if last := appendAll(t, s, "a", "", "c"); last != 3 {
		t.Errorf("the third record has number %d", last)
	}
	wantRecords(t, s.Cursor("bus"), "1:a 2: 3:c")
	wantRecords(t, s.Cursor("bus"), "")
	appendAll(t, s, "d")
	wantRecords(t, s.Cursor("bus"), "4:d")
	if s.Cursor("other") != nil {
		t.Error("there is a cursor for a bus that is not configured")
	}
}

func TestPayloadIsCopied(t *testing.T) {
	s := open(t, crashfs.New(t), options())
	defer s.Close()
	payload := []byte("mine")
	ticket, err := s.Append(payload)
	copy(payload, "xxxx")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Wait(ticket); err != nil {
		t.Fatal(err)
	}
	wantRecords(t, s.Cursor("bus"), "1:mine")
}

// TestPayloadLastsUntilCommit reads ahead of the committed record, by less and by more than one read buffer and across
// segments, and checks each payload just before its commit.
func TestPayloadLastsUntilCommit(t *testing.T) {
	const records = 6000 // of 1 KiB
	o := options()
	o.MaxBytes = 64 << 20
	s := open(t, crashfs.New(t), o)
	defer s.Close()
	text := func(n uint64) string { return strings.Repeat(fmt.Sprintf("%07d ", n), 128) }
	var all []string
	for n := range uint64(records) {
		all = append(all, text(n+1))
	}
	appendAll(t, s, all...)
	c := s.Cursor("bus")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var uncommitted []spool.Record
	for n := range records {
		r, err := c.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		uncommitted = append(uncommitted, r)
		keep := 1 + n%3*500
		if n == records-1 {
			keep = 1
		}
		for len(uncommitted) >= keep {
			r := uncommitted[0]
			uncommitted = uncommitted[1:]
			if string(r.Payload) != all[r.Sequence-1] {
				t.Fatalf("%d is %.20q before it is committed", r.Sequence, r.Payload)
			}
			c.Commit(r)
		}
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 4<<20 {
		t.Errorf("reading %d KiB allocated %d KiB", records, n>>10)
	}
}

func TestOrderOfAppendIsOrderOfLog(t *testing.T) {
	s := open(t, crashfs.New(t), options())
	defer s.Close()
	var tickets []spool.Ticket
	for i := range 100 {
		ticket, err := s.Append(fmt.Appendf(nil, "%d", i+1))
		if err != nil {
			t.Fatal(err)
		}
		tickets = append(tickets, ticket)
	}
	for i, ticket := range tickets {
		if n, err := s.Wait(ticket); err != nil || n != uint64(i+1) {
			t.Fatalf("Wait = %d, %v, want %d", n, err, i+1)
		}
	}
	for i, r := range drain(t, s.Cursor("bus")) {
		if want := fmt.Sprint(i + 1); string(r.Payload) != want || r.Sequence != uint64(i+1) || r.Lost != 0 {
			t.Fatalf("got %+v, want %s", r, want)
		}
	}
}

func TestRecordsOfAllSizes(t *testing.T) {
	fs, o := crashfs.New(t), options()
	o.MaxBytes = 1 << 20
	s := open(t, fs, o)
	var want []string
	// The segments of this spool have 128 KiB: a record fits exactly, just not, and not at all.
	for _, n := range []int{
		0, 1, 511, 128<<10 - 32 - recordHeaderLen, 128<<10 - 32 - recordHeaderLen + 1, 300 << 10, 0, 64 << 10,
	} {
		want = append(want, strings.Repeat("x", n))
	}
	appendAll(t, s, want...)
	for range 2 {
		records := drain(t, s.Cursor("bus"))
		if len(records) != len(want) {
			t.Fatalf("%d records, want %d", len(records), len(want))
		}
		for i, r := range records {
			if string(r.Payload) != want[i] || r.Lost != 0 {
				t.Errorf("record %d has %d bytes, want %d", i, len(r.Payload), len(want[i]))
			}
		}
		closeSpool(t, s)
		s = open(t, fs, o)
	}
	closeSpool(t, s)
}

// TestALargeRecordIsAlone in its segment, also if others are written with it.
func TestALargeRecordIsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := crashfs.New(t)
		s := open(t, fs, options())
		hold := make(chan struct{})
		fs.Before(func(op crashfs.Op) {
			if op == crashfs.Write {
				<-hold
			}
		})
		var last spool.Ticket
		for _, size := range []int{6, 6, 9000, 6, 6} { // the first is its own batch
			ticket, err := s.Append(make([]byte, size))
			if err != nil {
				t.Fatal(err)
			}
			last = ticket
			synctest.Wait()
		}
		close(hold)
		if _, err := s.Wait(last); err != nil {
			t.Fatal(err)
		}
		if !has(fs, segmentName(4)) { // which may be preallocated or not
			t.Error("the records behind the large one are with it")
		}
		for first, want := range map[uint64]int{1: 32 + 2*30, 3: 32 + 9000 + recordHeaderLen} {
			if got := len(fs.ReadFile(segmentName(first))); got != want {
				t.Errorf("the segment of %d has %d bytes, want %d", first, got, want)
			}
		}
		if r := drain(t, s.Cursor("bus")); len(r) != 5 {
			t.Errorf("the bus gets %d records, want 5", len(r))
		}
		closeSpool(t, s)
	})
}

func TestCursorsAreIndependent(t *testing.T) {
	fs, o := crashfs.New(t), options()
	o.Cursors = []string{"nats", "kafka"}
	s := open(t, fs, o)
	appendAll(t, s, "a", "b", "c")
	nats := drain(t, s.Cursor("nats"))
	busOf(s.Cursor("nats")).commit(nats[1], "state")
	closeSpool(t, s)

	s = open(t, fs, o)
	wantCommitted(t, s.Cursor("nats"), 2, "state")
	wantCommitted(t, s.Cursor("kafka"), 0, "")
	wantRecords(t, s.Cursor("kafka"), "1:a 2:b 3:c")
	wantRecords(t, s.Cursor("nats"), "3:c")
	closeSpool(t, s)
}

// TestSave writes the publisher state to disk at once, even before the first commit.
func TestSave(t *testing.T) {
	fs, o := crashfs.New(t), options()
	o.CursorDelay = time.Hour
	s := open(t, fs, o)
	defer s.Close()
	c := s.Cursor("bus")
	bus := busOf(c)
	bus.set(0, "first")
	if err := c.Save(); err != nil || !bytes.Contains(fs.ReadFile("cursor-bus"), []byte("\nfirst")) {
		t.Errorf("saved %q, %v", fs.ReadFile("cursor-bus"), err)
	}
	appendAll(t, s, "a")
	bus.commit(drain(t, c)[0], "second")
	bus.set(1, "third")
	if err := c.Save(); err != nil || !bytes.Contains(fs.ReadFile("cursor-bus"), []byte("\nthird")) {
		t.Errorf("saved %q, %v", fs.ReadFile("cursor-bus"), err)
	}
	again := open(t, fs.CrashClone(nil, 0), o)
	defer again.Close()
	wantCommitted(t, again.Cursor("bus"), 1, "third")
}

// bus reads from a cursor and has a publisher state.
type bus struct {
	cursor *spool.Cursor

	mu        sync.Mutex
	committed uint64
	state     string
}

func busOf(c *spool.Cursor) *bus {
	committed, state := c.Committed()
	b := &bus{cursor: c, committed: committed, state: string(state)}
	c.SetSnapshot(func() (uint64, []byte) {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.committed, []byte(b.state)
	})
	return b
}

func (b *bus) commit(r spool.Record, state string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.committed, b.state = r.Sequence, state
	b.cursor.Commit(r)
}

// rewind rewinds the cursor, and saves its position in the state.
func (b *bus) rewind(to uint64) uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.committed = b.cursor.Rewind(to)
	b.state = fmt.Sprint(b.committed)
	return b.committed
}

func (b *bus) set(committed uint64, state string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.committed, b.state = committed, state
}

func wantCommitted(t testing.TB, c *spool.Cursor, sequence uint64, state string) {
	t.Helper()
	if n, b := c.Committed(); n != sequence || string(b) != state {
		t.Errorf("committed are %d with state %q, want %d with %q", n, b, sequence, state)
	}
}

func TestCommitIsSavedAMomentLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := crashfs.New(t)
		s := open(t, fs, options())
		defer s.Close()
		appendAll(t, s, "a", "b", "c", "d")
		records := drain(t, s.Cursor("bus"))
		saves := fs.Count(crashfs.Write)
		bus := busOf(s.Cursor("bus"))
		for _, r := range records {
			bus.commit(r, fmt.Sprint(r.Sequence))
			synctest.Wait()
		}
		if n := fs.Count(crashfs.Write) - saves; n != 1 {
			t.Errorf("four commits at one moment were saved %d times at that moment, want once", n)
		}
		time.Sleep(time.Second)
		if n := fs.Count(crashfs.Write) - saves; n != 2 {
			t.Errorf("four commits were saved %d times, want twice", n)
		}
		again := open(t, fs.CrashClone(nil, 0), options())
		defer again.Close()
		wantCommitted(t, again.Cursor("bus"), 4, "4")
	})
}

func TestNextWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, crashfs.New(t), options())
		defer s.Close()
		got := make(chan spool.Record)
		go func() {
			r, err := s.Cursor("bus").Next(t.Context())
			if err != nil {
				t.Error(err)
			}
			got <- r
		}()
		synctest.Wait()
		appendAll(t, s, "a")
		if r := <-got; string(r.Payload) != "a" {
			t.Errorf("got %+v", r)
		}
	})
}

func TestNextEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, crashfs.New(t), options())
		defer s.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if r, err := s.Cursor("bus").Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Next = %+v, %v", r, err)
		}
		appendAll(t, s, "a")
		wantRecords(t, s.Cursor("bus"), "1:a")
	})
}

func TestOnlyDurableRecordsAreRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := crashfs.New(t)
		s := open(t, fs, options())
		hold := make(chan struct{})
		fs.Before(func(op crashfs.Op) {
			if op == crashfs.Sync {
				<-hold
			}
		})
		ticket, err := s.Append([]byte("a"))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		wantRecords(t, s.Cursor("bus"), "")
		if st := s.Stats(); st.Last != 0 {
			t.Errorf("a record that is not durable counts: %+v", st)
		}
		close(hold)
		if _, err := s.Wait(ticket); err != nil {
			t.Fatal(err)
		}
		wantRecords(t, s.Cursor("bus"), "1:a")
		closeSpool(t, s)
	})
}

func TestCloseMakesDurableWhatWasAppended(t *testing.T) {
	fs := crashfs.New(t)
	s := open(t, fs, options())
	ticket, err := s.Append([]byte("a"))
	if err != nil {
		t.Fatal(err)
	}
	closeSpool(t, s)
	if n, err := s.Wait(ticket); n != 1 || err != nil {
		t.Errorf("Wait after Close = %d, %v", n, err)
	}
	if _, err := s.Append(nil); !errors.Is(err, spool.ErrClosed) {
		t.Errorf("Append after Close: %v", err)
	}
	if err := s.Close(); !errors.Is(err, spool.ErrClosed) {
		t.Errorf("a second Close: %v", err)
	}
	if names := fs.OpenFiles(); names != nil {
		t.Errorf("Close leaves open %q", names)
	}
	s = open(t, fs.CrashClone(nil, 0), options())
	defer s.Close()
	wantRecords(t, s.Cursor("bus"), "1:a")
}

func TestStatsAreExact(t *testing.T) {
	fs, o := crashfs.New(t), options()
	o.Cursors = []string{"nats", "kafka"}
	s := open(t, fs, o)
	want := func(last uint64, bytes, waiting int64) {
		t.Helper()
		if st := s.Stats(); st.Last != last || st.Bytes != bytes || st.WaitingBytes != waiting || st.Full != nil {
			t.Errorf("got %+v, want %d, %d, %d", st, last, bytes, waiting)
		}
	}
	want(0, 32, 0)
	appendAll(t, s, "123456") // each record takes 30 bytes
	want(1, 62, 62)
	appendAll(t, s, "123456", "123456")
	nats, kafka := drain(t, s.Cursor("nats")), drain(t, s.Cursor("kafka"))
	s.Cursor("nats").Commit(nats[2])
	want(3, 122, 122)
	s.Cursor("kafka").Commit(kafka[0])
	want(3, 122, 60)
	s.Cursor("kafka").Commit(kafka[2])
	want(3, 122, 0)
	appendAll(t, s, "123456")
	want(4, 152, 30)
	closeSpool(t, s)

	s = open(t, fs, o)
	want(4, 152, 152) // until the cursors have found their positions
	drain(t, s.Cursor("nats"))
	drain(t, s.Cursor("kafka"))
	want(4, 152, 30)
	closeSpool(t, s)
}

func TestStatsAcrossSegments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := crashfs.New(t)
		s := open(t, fs, options())
		defer s.Close()
		for range 5 { // four in a segment
			appendAll(t, s, strings.Repeat("x", 2000-recordHeaderLen))
			synctest.Wait()
		}
		for i, r := range drain(t, s.Cursor("bus")) {
			s.Cursor("bus").Commit(r)
			waiting := int64(4-i)*2000 + 32 // plus the header of the second segment
			if i == 4 {
				waiting = 0
			}
			if st := s.Stats(); st.Bytes != 5*2000+64 || st.WaitingBytes != waiting {
				t.Errorf("with %d done: %+v, want %d waiting", i+1, st, waiting)
			}
		}
	})
}

func TestSpoolID(t *testing.T) {
	fs := crashfs.New(t)
	s := open(t, fs, options())
	id := s.ID()
	closeSpool(t, s)
	s = open(t, fs, options())
	defer s.Close()
	if len(id) != 8 || s.ID() != id {
		t.Errorf("the spool is %s, and when opened again %s", id, s.ID())
	}
	other := open(t, crashfs.New(t), options())
	defer other.Close()
	if other.ID() == id {
		t.Error("two spools have one id")
	}
}

func TestSecondOpenIsLockedOut(t *testing.T) {
	osDir, err := spool.OSDir(t.TempDir() + "/data/spool")
	if err != nil {
		t.Fatal(err)
	}
	for _, fs := range []spool.FS{crashfs.New(t), osDir} {
		s := open(t, fs, options())
		appendAll(t, s, "a")
		if _, err := spool.Open(fs, options()); !errors.Is(err, spool.ErrLocked) {
			t.Errorf("a second Open: %v", err)
		}
		appendAll(t, s, "b")
		closeSpool(t, s)
		s = open(t, fs, options())
		wantRecords(t, s.Cursor("bus"), "1:a 2:b")
		closeSpool(t, s)
	}
}

// TestSegmentOnAnotherDisk: a symbolic link may stand for a segment that was moved to free space. A broken link is not
// treated as a removed segment: its disk may return.
func TestSegmentOnAnotherDisk(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	fs, err := spool.OSDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, fs, options())
	appendAll(t, s, strings.Repeat("a", 9000), "b") // two segments
	closeSpool(t, s)
	for _, name := range []string{segmentName(1), segmentName(2)} {
		if err := os.Rename(filepath.Join(dir, name), filepath.Join(other, name)); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join(other, name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, fs, options())
	appendAll(t, s, "c")
	wantRecords(t, s.Cursor("bus"), "1:"+strings.Repeat("a", 9000)+" 2:b 3:c")
	closeSpool(t, s)

	if err := os.Rename(other, other+".unmounted"); err != nil {
		t.Fatal(err)
	}
	if _, err := spool.Open(fs, options()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Open without the other disk: %v", err)
	}
}

func TestAFailedOpenLetsGoOfTheLock(t *testing.T) {
	fs := crashfs.New(t)
	fs.Inject(crashfs.Fault{Op: crashfs.List, Nth: 1, Outcome: crashfs.Failed})
	if _, err := spool.Open(fs, options()); err == nil {
		t.Fatal("Open succeeds without a list of the files")
	}
	closeSpool(t, open(t, fs, options()))
}

// lines counts the warnings and errors of a log.
type lines struct{ n atomic.Int64 }

func (l *lines) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

func (l *lines) count() int64 { return l.n.Load() }

func (l *lines) Write(b []byte) (int, error) {
	l.n.Add(1)
	return len(b), nil
}

// TestAllAtOnce is for the race detector, on a real disk: appends, two buses, commits, Stats and Close run
// concurrently.
func TestAllAtOnce(t *testing.T) {
	fs, err := spool.OSDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	o := options()
	o.MaxBytes, o.Keep, o.Cursors = 256<<10, 0, []string{"nats", "kafka"}
	s := open(t, fs, o)
	ctx, cancel := context.WithCancel(t.Context())
	var writers, buses sync.WaitGroup
	acked := make(chan uint64, 10_000)
	for range 8 {
		writers.Go(func() {
			for {
				ticket, err := s.Append(make([]byte, 300))
				if errors.Is(err, spool.ErrFull) {
					continue
				}
				if errors.Is(err, spool.ErrClosed) {
					return
				}
				n, err := s.Wait(ticket)
				if err != nil {
					t.Error(err)
					return
				}
				acked <- n
			}
		})
	}
	for _, name := range o.Cursors {
		buses.Go(func() {
			for c := s.Cursor(name); ; {
				r, err := c.Next(ctx)
				if err != nil {
					return
				}
				if r.Lost > 0 {
					t.Errorf("%d lost before %d", r.Lost, r.Sequence)
				}
				c.Commit(r)
				_, _ = c.Committed()
				_ = s.Stats()
			}
		})
	}
	highest := uint64(0)
	for range 3000 {
		highest = max(highest, <-acked)
	}
	cancel()
	buses.Wait()
	closed := make(chan error)
	go func() { closed <- s.Close() }()
	writers.Wait()
	if err := <-closed; err != nil {
		t.Error(err)
	}
	close(acked)
	for n := range acked {
		highest = max(highest, n)
	}
	s = open(t, fs, o)
	if last := s.Stats().Last; last < highest {
		t.Errorf("%d was acknowledged, and the last is %d", highest, last)
	}
	closeSpool(t, s)
}

// TestSavesDoNotMeet: the writer saves a cursor before it removes a segment, while the saver may be saving it.
func TestSavesDoNotMeet(t *testing.T) {
	fs := crashfs.New(t)
	s := open(t, fs, options())
	c := s.Cursor("bus")
	appendAll(t, s, "a")
	r := drain(t, c)[0]
	var savers sync.WaitGroup
	for range 4 {
		savers.Go(func() {
			for range 200 {
				c.Commit(r)
				if err := c.Save(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	savers.Wait()
	closeSpool(t, s)
}
