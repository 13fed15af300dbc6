package spool_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postbridge/postbridge/bridge/spool"
	"github.com/postbridge/postbridge/bridge/spool/crashfs"
)

// thousand is the payload of a record of 1000 bytes.
var thousand = make([]byte, 1000-recordHeaderLen)

// fill appends records of 1000 bytes until the spool is full, and returns their number. The background goroutine keeps
// up.
func fill(t testing.TB, s *spool.Spool) (n int) {
	t.Helper()
	for {
		synctest.Wait()
		ticket, err := s.Append(thousand)
		if errors.Is(err, spool.ErrFull) {
			return n
		}
		if err == nil {
			_, err = s.Wait(ticket)
		}
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
}

// saved is the time after which cursors are saved and published segments removed.
const saved = time.Second

// publishAll commits all records of the bus.
func publishAll(t testing.TB, c *spool.Cursor) {
	t.Helper()
	records := drain(t, c)
	if len(records) > 0 {
		c.Commit(records[len(records)-1])
	}
}

func TestFullAndRoomAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, crashfs.New(t), options())
		defer s.Close()
		// 48 KiB are for segments, which must have space for an ordinary record of 4 KiB.
		if n := fill(t, s); n != 45 {
			t.Errorf("there was room for %d records, want 45", n)
		}
		if st := s.Stats(); !errors.Is(st.Full, spool.ErrFull) || st.WaitingBytes != st.Bytes {
			t.Errorf("a full spool: %+v", st)
		}
		if err := s.Err(); err != nil {
			t.Errorf("a full spool failed: %v", err)
		}
		records := drain(t, s.Cursor("bus"))
		s.Cursor("bus").Commit(records[6])
		time.Sleep(saved)
		if n := fill(t, s); n != 0 {
			t.Errorf("there is room for %d records, although the oldest segment is not done", n)
		}
		s.Cursor("bus").Commit(records[7]) // the last of the oldest segment
		time.Sleep(saved)
		if st := s.Stats(); st.Full != nil {
			t.Errorf("Stats reports a full spool after it freed space: %v", st.Full)
		}
		if n := fill(t, s); n != 8 {
			t.Errorf("there was room for %d records again, want 8", n)
		}
		publishAll(t, s.Cursor("bus"))
		time.Sleep(saved)
		if n := fill(t, s); n != 40 { // the active segment holds five committed records
			t.Errorf("with all done there was room for %d records, want 40", n)
		}
	})
}

// wantTaken checks that an ordinary record is accepted, or refused, and that Stats agrees.
func wantTaken(t *testing.T, s *spool.Spool, want bool, when string) {
	t.Helper()
	full := s.Stats().Full
	ticket, err := s.Append(thousand)
	if err == nil {
		_, err = s.Wait(ticket)
	}
	if err != nil && !errors.Is(err, spool.ErrFull) {
		t.Fatal(err)
	}
	if (full == nil) != want || (err == nil) != want {
		t.Errorf("%s: Stats reports %v, and Append %v", when, full, err)
	}
}

// TestFullUntilThereIsSlack: a full spool accepts records again only after a 64th of the limit is free, so that it does
// not flap near its limit.
func TestFullUntilThereIsSlack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, o := crashfs.New(t), options()
		o.MaxBytes = 1 << 20
		s := open(t, fs, o)
		defer s.Close()
		appendAll(t, s, "small", strings.Repeat("large", 30_000)) // each in a segment of its own
		room := func() int64 { return o.MaxBytes - 16<<10 - s.Stats().Bytes }
		for room() > 10_000 {
			appendAll(t, s, string(thousand))
		}
		wantTaken(t, s, true, "near the limit")
		if _, err := s.Append(make([]byte, room())); !errors.Is(err, spool.ErrFull) {
			t.Errorf("Append of more than there is room for: %v", err)
		}
		wantTaken(t, s, false, "after a large record was refused")
		records := drain(t, s.Cursor("bus"))
		s.Cursor("bus").Commit(records[0])
		time.Sleep(saved)
		wantTaken(t, s, false, "with a little done")
		if has(fs, segmentName(1)) {
			t.Error("a record was refused before a published segment was removed")
		}
		s.Cursor("bus").Commit(records[1])
		time.Sleep(saved)
		wantTaken(t, s, true, "with much done")
		if n := fill(t, s); n < 16 {
			t.Errorf("there was room for %d records", n)
		}
		wantTaken(t, s, false, "at the limit")
	})
}

// TestFullDiskUntilThereIsSlack: the same for the reserve of disk space, from the first refused record on.
func TestFullDiskUntilThereIsSlack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, o := crashfs.New(t), options()
		o.MaxBytes, o.MinFree = 4<<20, 100_000
		fs.SetFree(o.MinFree + 1_000)
		s := open(t, fs, o)
		defer s.Close()
		free := func(n int64) {
			fs.SetFree(o.MinFree + n)
			time.Sleep(1100 * time.Millisecond)
		}
		if st := s.Stats(); !errors.Is(st.Full, spool.ErrFull) {
			t.Errorf("a disk that was full at Open: %v", st.Full)
		}
		wantTaken(t, s, false, "with a disk that was full at Open")
		free(60_000)
		wantTaken(t, s, false, "with a little room")
		free(70_000)
		wantTaken(t, s, true, "with room")
		free(20_000)
		wantTaken(t, s, true, "with a little room left")
		if _, err := s.Append(make([]byte, 30_000)); !errors.Is(err, spool.ErrFull) {
			t.Errorf("Append of more than there is room for: %v", err)
		}
		free(60_000)
		wantTaken(t, s, false, "with a little room again")
		free(70_000)
		wantTaken(t, s, true, "with room again")
	})
}

func TestTheSegmentBeingWrittenGoesToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, o := crashfs.New(t), options()
		o.MaxBytes = 16<<10 + 5000
		s := open(t, fs, o)
		for i := range 20 {
			appendAll(t, s, strings.Repeat("x", 1500)) // a segment of 2600 bytes has space for one
			publishAll(t, s.Cursor("bus"))
			time.Sleep(saved)
			if last := s.Stats().Last; last != uint64(i+1) {
				t.Errorf("the last is %d, want %d", last, i+1)
			}
		}
		closeSpool(t, s)
		s = open(t, fs.CrashClone(nil, 0), o)
		defer s.Close()
		wantCommitted(t, s.Cursor("bus"), 20, "")
		time.Sleep(saved) // a restored segment is removed again
		if last := appendAll(t, s, "new"); last != 21 {
			t.Errorf("the next number is %d, want 21", last)
		}
	})
}

func TestMaxBytesIsNeverExceeded(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 5))
			fs, o := crashfs.New(t), options()
			o.Cursors = []string{"nats", "kafka"}
			s := open(t, fs, o)
			refused := 0
			for range 2000 {
				synctest.Wait()
				full := s.Stats().Full
				_, err := s.Append(make([]byte, rng.IntN(2500)))
				if errors.Is(err, spool.ErrFull) {
					refused++
				} else if err != nil {
					t.Fatal(err)
				}
				if (full == nil) != (err == nil) {
					t.Errorf("Stats reported %v, and Append %v", full, err)
				}
				if rng.IntN(40) == 0 {
					synctest.Wait()
					c := s.Cursor(o.Cursors[rng.IntN(2)])
					if records := drain(t, c); len(records) > 0 {
						busOf(c).commit(records[rng.IntN(len(records))], strings.Repeat("n", 1000))
					}
				}
				if rng.IntN(300) == 0 {
					time.Sleep(time.Second)
					closeSpool(t, s)
					s = open(t, fs, o)
				}
			}
			closeSpool(t, s)
			if fs.Peak() > o.MaxBytes || fs.Peak() < o.MaxBytes*2/3 || refused == 0 {
				t.Errorf("at most %d bytes of %d were used, and %d refused", fs.Peak(), o.MaxBytes, refused)
			}
			for _, name := range fs.Names() {
				if size := len(fs.ReadFile(name)); strings.HasSuffix(name, ".seg") && int64(size) > o.MaxBytes/8 {
					t.Errorf("%s has %d bytes", name, size)
				}
			}
		})
	}
}

func TestDamageIsNotKeptBeyondTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := crashfs.New(t)
		s := open(t, fs, options())
		fill(t, s)
		closeSpool(t, s)
		for nth := range 4 { // more than there is space for
			flip(fs, segmentName(1), 32+1000*nth)
		}
		s = open(t, fs, options())
		defer s.Close()
		if records := drain(t, s.Cursor("bus")); records[0].Sequence != 5 || records[0].Lost != 4 {
			t.Errorf("got %d first with %d lost", records[0].Sequence, records[0].Lost)
		}
		if bad := badFiles(fs); bad != nil || fs.Size() > options().MaxBytes {
			t.Errorf("%d bytes on disk with %q", fs.Size(), bad)
		}
	})
}

func TestReserveOfTheDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, o := crashfs.New(t), options()
		o.MinFree = 100_000
		fs.SetFree(o.MinFree + 20_700)
		s := open(t, fs, o)
		defer s.Close()
		n := fill(t, s)
		if free, _ := fs.Free(); n < 8 || free < o.MinFree {
			t.Errorf("%d records left %d bytes free", n, free)
		}
		if st := s.Stats(); !errors.Is(st.Full, spool.ErrFull) || !strings.Contains(st.Full.Error(), "reserve") {
			t.Errorf("a full disk: %v", st.Full)
		}
		// Published segments are removed before a record is refused.
		publishAll(t, s.Cursor("bus"))
		time.Sleep(saved)
		if n := fill(t, s); n < 8 {
			t.Errorf("with all done there was room for %d records", n)
		}
		// Another process frees space, which is measured a moment later.
		fs.SetFree(o.MinFree + 8_500)
		time.Sleep(1100 * time.Millisecond)
		if n := fill(t, s); n != 5 {
			t.Errorf("there was room for %d records, want 5", n)
		}
		if err := s.Err(); err != nil {
			t.Error(err)
		}
	})
}

// TestReserveCountsWhatIsPromised: space for appended, unwritten records does not count as free.
func TestReserveCountsWhatIsPromised(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, o := crashfs.New(t), options()
		o.MinFree = 100_000
		fs.SetFree(o.MinFree + 10_500)
		s := open(t, fs, o)
		measure, write := make(chan struct{}), make(chan struct{})
		fs.Before(func(op crashfs.Op) {
			switch op {
			case crashfs.Free:
				<-measure
			case crashfs.Write:
				<-write
			}
		})
		appendSome := func() {
			for range 8 {
				if _, err := s.Append(thousand); err != nil && !errors.Is(err, spool.ErrFull) {
					t.Fatal(err)
				}
			}
			synctest.Wait()
		}
		time.Sleep(1100 * time.Millisecond)
		appendSome()
		close(measure)
		synctest.Wait()
		appendSome()
		close(write)
		closeSpool(t, s)
		if free, _ := fs.Free(); free < o.MinFree {
			t.Errorf("%d bytes are free, less than the reserve", free)
		}
	})
}

// TestADiskThatCannotBeMeasured: the failure is logged once, and the last measured free space is used.
func TestADiskThatCannotBeMeasured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, o := crashfs.New(t), options()
		var log lines
		o.Log = log.logger()
		s := open(t, fs, o)
		defer s.Close()
		fs.Inject(crashfs.Fault{Op: crashfs.Free, Nth: 1, Outcome: crashfs.Failed, Sticky: true})
		time.Sleep(time.Minute)
		appendAll(t, s, "a")
		if n := log.count(); n != 1 {
			t.Errorf("logged %d times, want once", n)
		}
	})
}

// TestAFullDiskIsNoFailure: the active segment stays active if there is no space for the next one.
func TestAFullDiskIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, o := crashfs.New(t), options()
		s := open(t, fs, o)
		defer s.Close()
		appendAll(t, s, "a")
		publishAll(t, s.Cursor("bus"))
		time.Sleep(time.Second)
		fs.SetFree(10)
		time.Sleep(2 * time.Second)
		if n := fill(t, s); n > 8 || s.Err() != nil { // what is preallocated can be used
			t.Errorf("a full disk had room for %d records; the spool: %v", n, s.Err())
		}
	})
}

func TestAFullDiskStillOpens(t *testing.T) {
	for name, tail := range map[string][]byte{
		"closed": nil, "not finished": record(testID, 10, "j")[:15],
		"a little damage": append(make([]byte, 30), endMark(11)...),
		"damage":          append(make([]byte, 300), endMark(11)...),
	} {
		synctest.Test(t, func(t *testing.T) {
			fs := threeSegments(t)
			kinds["growing"](fs)
			change(fs, segmentName(7), func(b []byte) []byte { return slices.Concat(b, tail) })
			fs.SetFree(0)
			s := open(t, fs, options())
			if n := fs.Count(crashfs.Write); n != 0 {
				t.Errorf("%s: a full disk was written to %d times", name, n)
			}
			wantRecords(t, s.Cursor("bus"), all)
			publishAll(t, s.Cursor("bus"))
			if _, err := s.Append([]byte("x")); !errors.Is(err, spool.ErrFull) || s.Err() != nil {
				t.Errorf("%s: Append on a full disk: %v", name, err)
			}
			fs.SetFree(1 << 20)
			time.Sleep(1100 * time.Millisecond)
			last := appendAll(t, s, "new")
			want, wantGets := uint64(10), "10:new"
			if len(tail) >= recordHeaderLen {
				want, wantGets = 11, "lost(10-10) 11:new"
			}
			gets := describe(drain(t, s.Cursor("bus")))
			if last != want || gets != wantGets {
				t.Errorf("%s: the next record is %d, and the bus gets %q", name, last, gets)
			}
			closeSpool(t, s)
		})
	}
}

// TestAFullDiskThatLies: without a reserve, a write that fails with ENOSPC is a failure, and reopening recovers.
func TestAFullDiskThatLies(t *testing.T) {
	fs := crashfs.New(t)
	s := open(t, fs, options())
	appendAll(t, s, "a")
	fs.SetFree(25)
	ticket, err := s.Append(make([]byte, 8<<10)) // more than is preallocated
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Wait(ticket); !errors.Is(err, spool.ErrFailed) {
		t.Errorf("Wait for what did not fit: %v", err)
	}
	closeSpool(t, s)
	fs = fs.Restart()
	s = open(t, fs, options())
	wantRecords(t, s.Cursor("bus"), "1:a")
	if _, err := s.Append(make([]byte, 8<<10)); !errors.Is(err, spool.ErrFull) {
		t.Errorf("Append on the full disk: %v", err)
	}
	closeSpool(t, s)
}

// TestAFullDiskAtTheStartOfASegment: the spool can be opened afterwards.
func TestAFullDiskAtTheStartOfASegment(t *testing.T) {
	fs, o := crashfs.New(t), options()
	o.MinFree = 8_000
	fs.SetFree(20_000) // too little to preallocate
	s := open(t, fs, o)
	appendAll(t, s, strings.Repeat("x", 6000))
	fs.SetFree(10)
	ticket, err := s.Append(make([]byte, 3000))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Wait(ticket); !errors.Is(err, spool.ErrFailed) {
		t.Errorf("Wait for what did not fit: %v", err)
	}
	closeSpool(t, s)
	fs = fs.Restart()
	fs.SetFree(0)
	s = open(t, fs, options())
	if r := drain(t, s.Cursor("bus")); len(r) != 1 {
		t.Errorf("%d records are left, want 1", len(r))
	}
	closeSpool(t, s)
}

// TestNumbersSkippedOnAFullDisk: sequences stay skipped when the segment is removed before the next record.
func TestNumbersSkippedOnAFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := threeSegments(t)
		change(fs, segmentName(7), func(b []byte) []byte { return slices.Concat(b, make([]byte, 30), endMark(11)) })
		fs.SetFree(0)
		s := open(t, fs, options())
		publishAll(t, s.Cursor("bus"))
		fs.SetFree(1 << 20)
		time.Sleep(2 * time.Second)
		_, _ = s.Append(make([]byte, 1<<20)) // starts a new segment
		time.Sleep(saved)
		publishAll(t, s.Cursor("bus"))
		time.Sleep(saved)
		evictAll(t, s)
		closeSpool(t, s)
		s = open(t, fs, options())
		if last := appendAll(t, s, "new"); last != 11 {
			t.Errorf("the next record is %d, want 11", last)
		}
		closeSpool(t, s)
	})
}

// evictAll removes all published segments, by requesting more space than the limit.
func evictAll(t *testing.T, s *spool.Spool) {
	t.Helper()
	if _, err := s.Append(make([]byte, 1<<20)); !errors.Is(err, spool.ErrFull) {
		t.Errorf("Append of more than the limit: %v", err)
	}
	time.Sleep(saved)
	if st := s.Stats(); st.Bytes != 32 {
		t.Errorf("with all removed: %+v", st)
	}
}

// keeps creates a spool with two segments, the first of them published.
func keeps(t *testing.T, fs *crashfs.FS, o spool.Options) *spool.Spool {
	s := open(t, fs, o)
	for range 9 { // eight in a segment
		appendAll(t, s, string(thousand))
		synctest.Wait()
	}
	records := drain(t, s.Cursor(o.Cursors[0]))
	s.Cursor(o.Cursors[0]).Commit(records[7])
	return s
}

func has(fs *crashfs.FS, name string) bool { return slices.Contains(fs.Names(), name) }

func TestPublishedRecordsAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := crashfs.New(t)
		s := keeps(t, fs, options())
		defer s.Close()
		time.Sleep(time.Hour - time.Second)
		if !has(fs, segmentName(1)) {
			t.Error("a published segment is gone too early")
		}
		time.Sleep(4 * time.Second)
		if has(fs, segmentName(1)) {
			t.Error("a published segment is kept too long")
		}
		if !has(fs, segmentName(9)) {
			t.Error("the segment being written is gone, and nothing asks for room")
		}
		wantCommitted(t, s.Cursor("bus"), 8, "")
	})
}

func TestOnlyConfiguredBusesHoldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, o := crashfs.New(t), options()
		o.Keep = 0
		o.Cursors = []string{"nats", "kafka"}
		s := keeps(t, fs, o)
		time.Sleep(time.Minute)
		if !has(fs, segmentName(1)) {
			t.Error("a segment is gone that one bus has not done")
		}
		closeSpool(t, s)

		o.Cursors = []string{"nats"}
		s = open(t, fs, o)
		time.Sleep(time.Minute)
		if has(fs, segmentName(1)) {
			t.Error("a segment is kept for a bus that is not configured")
		}
		closeSpool(t, s)

		o.Cursors = []string{"kafka", "new"}
		s = open(t, fs, o)
		defer s.Close()
		for _, name := range o.Cursors {
			if r := drain(t, s.Cursor(name)); len(r) != 1 || r[0].Sequence != 9 {
				t.Errorf("%s gets %d records first %d", name, len(r), r[0].Sequence)
			}
		}
	})
}

// TestRemovedSegmentsAreLetGo: a bus that waits for the next record keeps no removed file open, which would occupy disk
// space.
func TestRemovedSegmentsAreLetGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := crashfs.New(t)
		s := open(t, fs, options())
		c := s.Cursor("bus")
		appendAll(t, s, "a")
		publishAll(t, c)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = c.Next(ctx)
		}()
		synctest.Wait()
		evictAll(t, s)
		synctest.Wait()
		for _, name := range fs.OpenFiles() {
			if !has(fs, name) {
				t.Errorf("%s is removed and still open", name)
			}
		}
		cancel()
		<-done
		closeSpool(t, s)
	})
}

// TestAPublishedSegmentThatCannotBeRemoved: removal does not block appends, is retried, and is logged once.
func TestAPublishedSegmentThatCannotBeRemoved(t *testing.T) {
	removal, save := []crashfs.Op{crashfs.Remove, crashfs.Rename}, []crashfs.Op{crashfs.Write} // of its cursor
	for _, ops := range [][]crashfs.Op{removal, save} {
		synctest.Test(t, func(t *testing.T) {
			fs, o, log := crashfs.New(t), options(), new(lines)
			o.Log = log.logger()
			s := open(t, fs, o)
			defer s.Close()
			fill(t, s)
			records := drain(t, s.Cursor("bus"))
			for _, op := range ops {
				fs.Inject(crashfs.Fault{Op: op, Nth: 1, Outcome: crashfs.Failed, Sticky: true})
			}
			s.Cursor("bus").Commit(records[len(records)-1])
			time.Sleep(saved)
			if _, err := s.Append(thousand); !errors.Is(err, spool.ErrFull) {
				t.Errorf("Append with %v failing: %v", ops, err)
			}
			if st := s.Stats(); !errors.Is(st.Full, spool.ErrFull) {
				t.Errorf("Stats with %v failing: %+v", ops, st)
			}
			time.Sleep(time.Minute)
			if n := log.count(); n != 1 {
				t.Errorf("%d lines with %v failing", n, ops)
			}
			fs.Heal()
			time.Sleep(2 * time.Second)
			appendAll(t, s, string(thousand))
		})
	}
}

// TestWhatIsSavedIsEnough: a segment before the saved position of a cursor can be removed, even if the cursor cannot be
// saved now because the disk is full.
func TestWhatIsSavedIsEnough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := &hookedFS{FS: crashfs.New(t)}
		var failing atomic.Bool
		fs.renamed = func(from string) error {
			if failing.Load() && from == "cursor-bus.tmp" {
				return errors.ErrUnsupported
			}
			return nil
		}
		s := open(t, fs, options())
		defer s.Close()
		fill(t, s)
		records := drain(t, s.Cursor("bus"))
		bus := busOf(s.Cursor("bus"))
		bus.commit(records[7], "state")
		time.Sleep(time.Second)
		failing.Store(true)
		bus.commit(records[30], strings.Repeat("outgrown ", 1000))
		if n := fill(t, s); n != 8 {
			t.Errorf("there was room for %d records, want 8", n)
		}
	})
}

func TestASegmentRemovedBySomebodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := crashfs.New(t)
		s := open(t, fs, options())
		defer s.Close()
		fill(t, s)
		fs.Before(func(op crashfs.Op) {
			if op == crashfs.Remove {
				fs.RemoveFile(segmentName(1))
			}
		})
		publishAll(t, s.Cursor("bus"))
		time.Sleep(saved)
		appendAll(t, s, string(thousand))
	})
}

// TestAppendWaitsForNoRemoval: while the removal of a segment hangs, records are accepted as long as there is space,
// and then refused at once.
func TestAppendWaitsForNoRemoval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := &hookedFS{FS: crashfs.New(t)}
		s := open(t, fs, options())
		for range 30 {
			appendAll(t, s, string(thousand))
			synctest.Wait()
		}
		hold, removing := make(chan struct{}), false
		fs.removed = func(bool) {
			removing = true
			<-hold
		}
		publishAll(t, s.Cursor("bus"))
		time.Sleep(saved)
		if n := fill(t, s); n != 15 || !removing { // up to the limit
			t.Errorf("there was room for %d records, removing: %v", n, removing)
		}
		close(hold)
		if n := fill(t, s); n != 24 { // capacity of the three published segments
			t.Errorf("there was room for %d records, want 24", n)
		}
		closeSpool(t, s)
	})
}

// TestSegmentsGoAheadOfNeed: published segments are removed before their space is needed, and no more than needed.
func TestSegmentsGoAheadOfNeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := crashfs.New(t)
		s := open(t, fs, options())
		defer s.Close()
		for n := range 300 {
			appendAll(t, s, string(thousand)) // none is refused
			synctest.Wait()
			publishAll(t, s.Cursor("bus"))
			time.Sleep(saved)
			if room := options().MaxBytes - 16<<10 - s.Stats().Bytes; n > 45 && (room < 8<<10 || room > 25<<10) {
				t.Fatalf("after %d records there is room for %d bytes, want one segment to three", n+1, room)
			}
		}
	})
}

// TestStatsChangesNothing: Stats on a nearly full disk does not change the results of Append.
func TestStatsChangesNothing(t *testing.T) {
	for _, looks := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			fs, o := crashfs.New(t), options()
			o.MaxBytes, o.MinFree = 64<<20, 1<<20
			fs.SetFree(o.MinFree + 100<<10) // too little to preallocate
			s := open(t, fs, o)
			defer s.Close()
			fs.SetFree(o.MinFree + 3<<10)
			time.Sleep(2 * time.Second)
			if looks && !errors.Is(s.Stats().Full, spool.ErrFull) {
				t.Error("Stats does not say that the disk is full")
			}
			fs.SetFree(o.MinFree + 100<<10)
			time.Sleep(2 * time.Second)
			wantTaken(t, s, true, fmt.Sprintf("looked at while it was full: %v", looks))
		})
	}
}

func TestALowerLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, o := crashfs.New(t), options()
		s := open(t, fs, o)
		n := fill(t, s)
		closeSpool(t, s)
		o.MaxBytes /= 2
		s = open(t, fs, o)
		defer s.Close()
		if more := fill(t, s); more != 0 {
			t.Errorf("there is room for %d records beyond the limit", more)
		}
		records := drain(t, s.Cursor("bus"))
		if len(records) != n {
			t.Errorf("%d records are left of %d", len(records), n)
		}
		s.Cursor("bus").Commit(records[len(records)-1])
		time.Sleep(saved)
		if more := fill(t, s); more != 13 {
			t.Errorf("with all done there was room for %d records, want 13", more)
		}
		if size := fs.Size(); size > o.MaxBytes {
			t.Errorf("%d bytes are on disk", size)
		}
	})
}

// TestALimitOfOneRecord: Stats predicts the space after the removal of all segments to the byte.
func TestALimitOfOneRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for room, want := range map[int64]bool{4<<10 - 1: false, 4 << 10: true} {
			fs, o := crashfs.New(t), options()
			s := open(t, fs, o)
			appendAll(t, s, string(thousand))
			publishAll(t, s.Cursor("bus"))
			closeSpool(t, s)
			o.MaxBytes = 16<<10 + 32 + room // the other files, and the header of the next segment
			s = open(t, fs, o)
			_, _ = s.Append(make([]byte, room)) // never fits with its header, but evicts all segments
			time.Sleep(saved)
			wantTaken(t, s, want, fmt.Sprintf("with room for %d bytes", room))
			closeSpool(t, s)
		}
	})
}

// TestCursorDelay: the file of a cursor lags by CursorDelay until Close; an idle cursor catches up.
func TestCursorDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := crashfs.New(t)
		o := spool.Options{
			MaxBytes: 1 << 20, CursorDelay: 3 * time.Second,
			Cursors: []string{"bus"}, Log: slog.New(slog.DiscardHandler),
		}
		s, err := spool.Open(fs, o)
		if err != nil {
			t.Fatal(err)
		}
		c := s.Cursor("bus")
		commit := func() {
			ticket, err := s.Append([]byte("x"))
			if err == nil {
				_, err = s.Wait(ticket)
			}
			if err != nil {
				t.Fatal(err)
			}
			r, err := c.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			c.Commit(r)
		}
		saved := func() string { return fmt.Sprint(savedPosition(fs)) }
		for range 10 {
			commit()
			time.Sleep(time.Second)
		}
		// The tenth was committed one second ago and the eighth three, so the file is two or three behind, or one
		// more if it is being written.
		if got := saved(); got != "8" && got != "7" && got != "6" {
			t.Errorf("saved %s of 10", got)
		}
		time.Sleep(4 * time.Second)
		if got := saved(); got != "10" {
			t.Errorf("idle, saved %s of 10", got)
		}
		writes := fs.Count(crashfs.Write)
		time.Sleep(time.Minute)
		if n := fs.Count(crashfs.Write); n != writes {
			t.Errorf("idle, and yet saved %d times", n-writes)
		}
		commit()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if got := saved(); got != "11" {
			t.Errorf("closed, saved %s of 11", got)
		}
	})
}
