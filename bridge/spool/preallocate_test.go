package spool_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postbridge/postbridge/bridge/spool"
	"github.com/postbridge/postbridge/bridge/spool/crashfs"
)

// hookedFS calls functions at some operations, if they are not nil.
type hookedFS struct {
	*crashfs.FS
	created func(name string)
	renamed func(from string) error
	removed func(usedAgain bool)
	listed  func()
	opened  func(name string)
}

func (h *hookedFS) Open(name string) (spool.File, error) {
	if h.opened != nil {
		h.opened(name)
	}
	return h.FS.Open(name)
}

func (h *hookedFS) Remove(name string) error {
	if h.removed != nil {
		h.removed(false)
	}
	return h.FS.Remove(name)
}

func (h *hookedFS) Rename(from, to string) error {
	if h.removed != nil && to == "next.tmp" {
		h.removed(true)
	}
	if h.renamed != nil {
		if err := h.renamed(from); err != nil {
			return err
		}
	}
	return h.FS.Rename(from, to)
}

func (h *hookedFS) Create(name string) (spool.File, error) {
	f, err := h.FS.Create(name)
	if h.created != nil {
		h.created(name)
	}
	return f, err
}

func (h *hookedFS) List() ([]spool.FileInfo, error) {
	files, err := h.FS.List()
	if h.listed != nil {
		h.listed()
	}
	return files, err
}

// wantSize checks the limit on all files.
func wantSize(t *testing.T, fs *crashfs.FS, o spool.Options, when string) {
	t.Helper()
	if size := fs.Size(); size > o.MaxBytes {
		t.Errorf("%s: %d bytes on disk, %d more than the limit", when, size, size-o.MaxBytes)
	}
}

// TestSegmentSizes: a spool that is little used stays small, and a busy one has few large segments.
func TestSegmentSizes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, o := crashfs.New(t), options()
		o.MaxBytes = 128 << 20
		s := open(t, fs, o)
		appendAll(t, s, "a")
		if size := fs.Size(); size > 5<<20 {
			t.Errorf("the first record takes %d bytes of the disk", size)
		}
		var sizes []int
		for range 60 {
			appendAll(t, s, strings.Repeat("x", 1<<20))
			synctest.Wait()
		}
		for _, name := range fs.Names() {
			if strings.HasSuffix(name, ".seg") {
				sizes = append(sizes, len(fs.ReadFile(name))>>20)
			}
		}
		if want := []int{3, 7, 15, 15, 15, 16}; !slices.Equal(sizes, want) {
			t.Errorf("segments of %d MiB, want %d", sizes, want)
		}
		closeSpool(t, s)
	})
}

// TestAFullDiskWithPreallocation: other programs fill the disk. A segment without records is not started then, and what
// is preallocated can be used to the end.
func TestAFullDiskWithPreallocation(t *testing.T) {
	for _, published := range []bool{true, false} {
		for _, minFree := range []int64{0, 512 << 20} {
			for _, records := range []int{2, 100} {
				synctest.Test(t, func(t *testing.T) {
					fs, o := crashfs.New(t), options()
					o.MaxBytes, o.MinFree, o.Keep = 1<<20, minFree, 24*time.Hour
					fs.SetFree(10 << 30)
					s := open(t, fs, o)
					for range records {
						appendAll(t, s, string(thousand))
					}
					if published {
						publishAll(t, s.Cursor("bus"))
					}
					time.Sleep(2 * time.Second)
					fs.SetFree(0)
					for range 3 {
						time.Sleep(3 * time.Second)
						if n := fill(t, s); n > 0 && minFree > 0 {
							t.Errorf("%d records in the reserve", n)
						}
						if published {
							publishAll(t, s.Cursor("bus"))
						}
						time.Sleep(3 * time.Second)
						if err := s.Err(); err != nil {
							t.Errorf("published %v, reserve %d, %d records: %v", published, minFree, records, err)
						}
						_ = s.Close()
						s = open(t, fs, o)
					}
					closeSpool(t, s)
				})
			}
		}
	}
}

// TestFreeCountsWhatIsPreallocated: at Open, too, and no more than it is while the log moves on.
func TestFreeCountsWhatIsPreallocated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, o := crashfs.New(t), options()
		o.MaxBytes, o.MinFree = 1<<20, 50_000
		fs.SetFree(10 << 20)
		s := open(t, fs, o)
		appendAll(t, s, string(thousand))
		closeSpool(t, s)
		fs.SetFree(50_000)
		s = open(t, fs, o)
		defer s.Close()
		first := s.Stats().Free
		time.Sleep(2 * time.Second)
		if later := s.Stats().Free; first != later || first <= 50_000 {
			t.Errorf("at Open %d bytes are free, and then %d", first, later)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		fs, o := crashfs.New(t), options()
		o.MaxBytes = 4 << 20 // segments of 512 KiB
		fs.SetFree(20 << 20)
		s := open(t, fs, o)
		defer s.Close()
		for range 300 {
			appendAll(t, s, string(thousand))
		}
		measuring, leave := false, make(chan struct{})
		fs.Before(func(op crashfs.Op) {
			if op == crashfs.Free && !measuring {
				measuring = true
				<-leave
			}
		})
		time.Sleep(1100 * time.Millisecond)
		appendAll(t, s, strings.Repeat("x", 400_000)) // does not fit: the log moves on
		close(leave)
		synctest.Wait()
		first := s.Stats().Free
		time.Sleep(2 * time.Second)
		if later := s.Stats().Free; first > later {
			t.Errorf("%d bytes are free, and in truth %d", first, later)
		}
	})
}

// TestMaxBytesWithPreallocation: what is preallocated counts, whatever else needs space.
func TestMaxBytesWithPreallocation(t *testing.T) {
	t.Run("the spool fills up while a segment is created", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			fs, o := &hookedFS{FS: crashfs.New(t)}, options()
			o.MaxBytes = 4 << 20
			s := open(t, fs, o)
			hold, held := make(chan struct{}), false
			for s.Stats().Bytes < 5<<19 {
				appendAll(t, s, string(thousand))
				synctest.Wait()
			}
			fs.created = func(name string) {
				if name == "next.tmp" {
					held = true
					<-hold
				}
			}
			fill(t, s)
			close(hold)
			time.Sleep(2 * time.Second)
			wantSize(t, fs.FS, o, "full")
			if !held {
				t.Error("no segment was created")
			}
			closeSpool(t, s)
		})
	})
	t.Run("damage is quarantined", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			fs, o := crashfs.New(t), options()
			o.MaxBytes = 1 << 20
			s := open(t, fs, o)
			for s.Stats().Bytes < 700_000 {
				appendAll(t, s, strings.Repeat("x", 30_000))
				synctest.Wait()
			}
			closeSpool(t, s)
			for _, name := range fs.Names() {
				if b := fs.ReadFile(name); strings.HasSuffix(name, ".seg") && b[len(b)-1] == 'x' { // not the last
					for offset := 100; offset < 60_000; offset += 30_024 {
						flip(fs, name, offset)
					}
				}
			}
			s = open(t, fs, o)
			for range 5 {
				appendAll(t, s, string(thousand))
				time.Sleep(time.Second)
			}
			drain(t, s.Cursor("bus"))
			wantSize(t, fs, o, "with .bad files")
			closeSpool(t, s)
		})
	})
	t.Run("a cursor is ahead of the log", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			fs, o := crashfs.New(t), options()
			o.MaxBytes, o.Cursors = 1<<20, []string{"bus", "other"}
			fs.WriteFile("spool", idFile(1, testID))
			s := open(t, fs, o)
			appendAll(t, s, "a", "b")
			closeSpool(t, s)
			fs.WriteFile("cursor-bus", cursorSlots(cursorSlot(2, testID, 1, 50, 90, ""), nil))
			s = open(t, fs, o)
			fill(t, s)
			time.Sleep(time.Second)
			wantSize(t, fs, o, "full")
			closeSpool(t, s)
		})
	})
	t.Run("the limit is lower than before", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			fs, o := crashfs.New(t), options()
			o.MaxBytes = 64 << 20
			s := open(t, fs, o)
			appendAll(t, s, "a")
			closeSpool(t, s)
			o.MaxBytes = 1 << 20
			s = open(t, fs, o)
			appendAll(t, s, "b")
			time.Sleep(2 * time.Second)
			wantSize(t, fs, o, "with two records")
			closeSpool(t, s)
		})
	})
}

// TestTheLogMovesOnEarly: the space of the only segment is needed, while the next one is there already or is being
// created. No segment takes the place of another.
func TestTheLogMovesOnEarly(t *testing.T) {
	for _, before := range []int{40, 70, 100} { // records, of some 130 in a segment
		synctest.Test(t, func(t *testing.T) {
			fs, o := crashfs.New(t), options()
			o.MaxBytes, o.Keep = 1<<20, 0
			s := open(t, fs, o)
			last := uint64(0)
			for range before {
				last = appendAll(t, s, string(thousand))
			}
			publishAll(t, s.Cursor("bus"))
			time.Sleep(saved)
			for range 100 {
				if _, err := s.Append(make([]byte, 1<<20)); !errors.Is(err, spool.ErrFull) {
					t.Fatal(err)
				}
				last = appendAll(t, s, string(thousand))
				if last%7 == 0 {
					publishAll(t, s.Cursor("bus"))
					time.Sleep(100 * time.Millisecond)
				}
			}
			time.Sleep(saved)
			after := open(t, fs.Restart(), o)
			for _, r := range drain(t, after.Cursor("bus")) {
				if r.Lost > 0 || r.Payload == nil {
					t.Errorf("%d are lost before %d", r.Lost, r.Sequence)
				}
			}
			if n := after.Stats().Last; n != last {
				t.Errorf("after a restart the last record is %d, want %d", n, last)
			}
			closeSpool(t, after)
			closeSpool(t, s)
		})
	}
}

// TestNextWhileTheLogMovesOn: the segment that a cursor is about to open, and has read before a restart, is removed.
func TestNextWhileTheLogMovesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, o := &hookedFS{FS: threeSegments(t)}, options()
		kinds["growing"](fs.FS)
		fs.WriteFile("cursor-bus", cursorFile(1, testID, 9, ""))
		o.Keep = 0
		reading, opening := make(chan struct{}), false
		fs.created = func(name string) {
			if name == "next.tmp" {
				<-reading // the segment that the log moves to at once
			}
		}
		s := open(t, fs, o)
		fs.opened = func(name string) {
			if name == segmentName(7) && !opening {
				opening = true
				close(reading)
				time.Sleep(5 * time.Second)
			}
		}
		c := s.Cursor("bus")
		time.AfterFunc(10*time.Second, func() { appendAll(t, s, "new") })
		if r, err := c.Next(t.Context()); err != nil || r.Sequence != 10 || !opening || has(fs.FS, segmentName(7)) {
			t.Errorf("Next returns %d, %v", r.Sequence, err)
		}
		closeSpool(t, s)
	})
}

// TestInspectWhileTheLogMovesOn: between listing the files and reading them, segments are renamed, truncated and
// removed.
func TestInspectWhileTheLogMovesOn(t *testing.T) {
	for _, records := range []int{2, 90, 110} { // of some 130 in a segment
		for name, change := range map[string]func(*spool.Spool){
			"closed": func(s *spool.Spool) { _ = s.Close() },
			"used": func(s *spool.Spool) {
				for range 10 { // into the next segment, and no further
					appendAll(t, s, strings.Repeat("x", 10_000))
				}
			},
		} {
			synctest.Test(t, func(t *testing.T) {
				fs, o := &hookedFS{FS: crashfs.New(t)}, options()
				o.MaxBytes = 1 << 20
				s := open(t, fs, o)
				for range records {
					appendAll(t, s, string(thousand))
				}
				synctest.Wait()
				fs.listed = func() { change(s); synctest.Wait() }
				v, err := spool.Inspect(fs)
				if err != nil || len(v.Faults) > 0 {
					t.Errorf("%s: %+v, %v", name, v, err)
				}
				for _, err := range v.Records() {
					if err != nil {
						t.Errorf("%s, %d records: %v", name, records, err)
					}
				}
				_ = s.Close()
			})
		}
	}
}

// TestRewoundCursorDamaged: after a Rewind no slot has the position before it, so that damage skips no record.
func TestRewoundCursorDamaged(t *testing.T) {
	fs := threeSegments(t)
	s := open(t, fs, options())
	c := s.Cursor("bus")
	for range 2 {
		publishAll(t, c)
		if err := c.Save(); err != nil {
			t.Fatal(err)
		}
	}
	c.Rewind(1)
	if err := c.Save(); err != nil {
		t.Fatal(err)
	}
	for offset := range len(fs.ReadFile("cursor-bus")) {
		left := fs.Restart()
		flip(left, "cursor-bus", offset)
		after, err := spool.Open(left, options())
		if errors.Is(err, spool.ErrNewer) {
			continue // the flipped bit is in the version
		}
		if err != nil {
			t.Fatal(err)
		}
		if n := len(drain(t, after.Cursor("bus"))); n < 8 {
			t.Errorf("damage at %d: %d records are returned again, want 8 at least", offset, n)
		}
		closeSpool(t, after)
	}
	closeSpool(t, s)
}

// TestCloseStopsFilling: a stop does not wait until a segment is filled.
func TestCloseStopsFilling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, o := crashfs.New(t), options()
		o.MaxBytes = 256 << 20
		s := open(t, fs, o)
		large := strings.Repeat("x", 1<<20)
		for range 30 { // half of the segment after those of 4, 8 and 16 MiB
			appendAll(t, s, large)
			synctest.Wait()
		}
		fs.Before(func(op crashfs.Op) {
			if op == crashfs.Sync {
				time.Sleep(100 * time.Millisecond)
			}
		})
		for !has(fs, "next.tmp") {
			appendAll(t, s, large)
		}
		begin := time.Now()
		closeSpool(t, s)
		if took := time.Since(begin); took > time.Second { // of the bubble's clock
			t.Errorf("it takes %v, the time of %d parts", took, took/(100*time.Millisecond))
		}
	})
}

// TestFillingFails: the next segment grows with each record, and is not tried to be filled again.
func TestFillingFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, o := &hookedFS{FS: crashfs.New(t)}, options()
		var log lines
		o.MaxBytes, o.Log = 1<<20, log.logger()
		s := open(t, fs, o)
		failed := false
		fs.created = func(name string) {
			if name == "next.tmp" && !failed {
				failed = true
				fs.Inject(crashfs.Fault{Op: crashfs.Write, Nth: 1, Outcome: crashfs.Failed})
			}
		}
		for range 300 {
			appendAll(t, s, string(thousand))
			synctest.Wait()
			time.Sleep(time.Second)
		}
		if n := fs.Count(crashfs.Create); n > 10 || log.count() == 0 {
			t.Errorf("%d files were created, and %d lines logged", n, log.count())
		}
		if n := len(drain(t, s.Cursor("bus"))); n != 300 {
			t.Errorf("%d records are returned", n)
		}
		closeSpool(t, s)
	})
}

// TestSegmentsAreUsedAgain: the files of removed segments become the next ones, and no crash finds a record of an
// earlier use in the place of another.
func TestSegmentsAreUsedAgain(t *testing.T) {
	for name, keep := range map[string]time.Duration{"not kept": 0, "kept until the space is needed": time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			fs, o := crashfs.New(t), options()
			o.MaxBytes, o.Keep = 1<<20, keep // segments of 128 KiB
			s := open(t, fs, o)
			dice, crashes := rand.New(rand.NewPCG(1, 1)), rand.New(rand.NewPCG(2, 2))
			var last atomic.Uint64
			work := func(records int) {
				for range records {
					last.Store(appendAll(t, s, strings.Repeat("x", dice.IntN(2000))))
					synctest.Wait()
					publishAll(t, s.Cursor("bus"))
					if last.Load()%10 == 0 {
						time.Sleep(saved)
					}
				}
			}
			work(2000)
			created, truncated := fs.Count(crashfs.Create), fs.Count(crashfs.Truncate)
			work(2000) // some 15 changes of segment
			created, truncated = fs.Count(crashfs.Create)-created, fs.Count(crashfs.Truncate)-truncated
			if truncated < 10 || created > 1 {
				t.Errorf("%s: %d new files in %d changes of segment", name, created, truncated)
			}
			wantSize(t, fs, o, name)
			left := map[*crashfs.FS]uint64{} // by what was acknowledged before the kill or the loss of power
			var mu sync.Mutex
			fs.Before(func(crashfs.Op) {
				mu.Lock()
				defer mu.Unlock()
				if acknowledged := last.Load(); acknowledged%100 == 0 {
					left[fs.Kill(crashes)], left[fs.CrashClone(crashes, 0.5)] = acknowledged, acknowledged
				}
			})
			work(2000)
			fs.Before(nil)
			closeSpool(t, s)
			for fs, acknowledged := range left {
				if v, err := spool.Inspect(fs); err != nil || len(v.Faults) > 0 {
					t.Fatalf("%s: %+v, %v", name, v.Faults, err)
				}
				after := open(t, fs, o)
				if n := after.Stats().Last; n < acknowledged {
					t.Fatalf("%s: %d records were acknowledged, and a restart has %d", name, acknowledged, n)
				}
				for _, r := range drain(t, after.Cursor("bus")) {
					if r.Sequence-r.Lost <= acknowledged && (r.Lost > 0 || r.Payload == nil) {
						t.Fatalf("%s: %d are lost before %d, of %d", name, r.Lost, r.Sequence, acknowledged)
					}
				}
				closeSpool(t, after)
			}
			if has(fs, "next.tmp") {
				t.Error("a file for the next segment is left")
			}
		})
	}
}

// TestReuseFails: a segment whose file could not be used again is gone all the same, and the log goes on without.
func TestReuseFails(t *testing.T) {
	ops := []crashfs.Op{
		crashfs.Rename, crashfs.SyncDir, crashfs.Open, crashfs.Write, crashfs.Sync, crashfs.Close,
	}
	for _, op := range ops {
		for _, outcome := range []crashfs.Outcome{crashfs.Failed, crashfs.Happened, crashfs.Half} {
			synctest.Test(t, func(t *testing.T) {
				fs, o := &hookedFS{FS: crashfs.New(t)}, options()
				o.MaxBytes, o.Keep = 1<<20, 0
				failed := false
				fs.removed = func(usedAgain bool) {
					if usedAgain && !failed {
						failed = true
						time.Sleep(50 * time.Millisecond) // until the writer is idle: it must not get the fault
						fs.Inject(crashfs.Fault{Op: op, Nth: 1, Outcome: outcome})
					}
				}
				s := open(t, fs, o)
				for range 1000 {
					appendAll(t, s, string(thousand))
					synctest.Wait()
					publishAll(t, s.Cursor("bus"))
					time.Sleep(100 * time.Millisecond)
				}
				if n := s.Stats().Last; n != 1000 || !failed {
					t.Errorf("%v: the log ends with %d", op, n)
				}
				wantSize(t, fs.FS, o, "at the end")
				closeSpool(t, s)
			})
		}
	}
}

// TestTheNextFileGivesWay: what is preallocated for later does not take the space of a record that fits.
func TestTheNextFileGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, o := crashfs.New(t), options()
		o.MaxBytes, o.Keep = 1<<20, 0
		s := open(t, fs, o)
		for range 500 {
			appendAll(t, s, string(thousand))
			synctest.Wait()
			publishAll(t, s.Cursor("bus"))
			time.Sleep(saved)
		}
		if !has(fs, "next.tmp") {
			t.Fatal("no file is there for later")
		}
		size := o.MaxBytes - 16<<10 - s.Stats().Bytes - 5000
		if _, err := s.Append(make([]byte, size)); err != nil { // alone in the segment that is ready
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		wantSize(t, fs, o, "with a large record")
		fill(t, s)
		time.Sleep(2 * time.Second)
		wantSize(t, fs, o, "full")
		closeSpool(t, s)
	})
}

// TestInspectWhileASegmentIsUsedAgain: a reader that has a removed segment open sees other records in it, and reports
// no damage.
func TestInspectWhileASegmentIsUsedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, o := crashfs.New(t), options()
		o.MaxBytes, o.Keep = 8<<20, 0 // segments of 1 MiB, of which a reader holds a part
		s := open(t, fs, o)
		for range 2500 {
			appendAll(t, s, string(thousand))
			synctest.Wait()
		}
		v, err := spool.Inspect(fs)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, err := range v.Records() {
			if err != nil {
				t.Fatalf("after %d records: %v", n, err)
			}
			if n++; n == 1 {
				for range 4000 {
					appendAll(t, s, string(thousand))
					synctest.Wait()
					publishAll(t, s.Cursor("bus"))
				}
				time.Sleep(saved)
			}
		}
		closeSpool(t, s)
	})
}

// TestNextWhileItsSegmentIsUsedAgain: a cursor that skips what it has committed finds other records there, and no
// damage.
func TestNextWhileItsSegmentIsUsedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lines
		fs, o := crashfs.New(t), options()
		o.MaxBytes, o.Keep, o.Log = 8<<20, 0, log.logger() // segments of 1 MiB
		s := open(t, fs, o)
		for range 900 {
			appendAll(t, s, string(thousand))
		}
		publishAll(t, s.Cursor("bus"))
		closeSpool(t, s)
		// After a write that was not finished the log moves to another segment at once.
		last := segmentName(lastSegment(fs))
		b := fs.ReadFile(last)
		fs.WriteFile(last, b[:bytes.LastIndex(b, []byte("\xfepb\xff"))+10])
		s = open(t, fs, o)
		var reading atomic.Bool
		hold, read := make(chan struct{}), make(chan struct{})
		fs.Before(func(op crashfs.Op) {
			if op == crashfs.Read && reading.CompareAndSwap(false, true) {
				<-hold
			}
		})
		go func() {
			defer close(read)
			if r, err := s.Cursor("bus").Next(t.Context()); err != nil || r.Sequence != 901 {
				t.Errorf("Next returns %d, %v", r.Sequence, err)
			}
		}()
		for range 2200 {
			synctest.Wait()
			appendAll(t, s, string(thousand))
			time.Sleep(10 * time.Millisecond)
		}
		if !reading.Load() || has(fs, last) {
			t.Error("the segment was not used again")
		}
		close(hold)
		<-read
		if log.count() > 0 {
			t.Error("there are warnings")
		}
		closeSpool(t, s)
	})
}

// TestInspectATruncatedSegment: a segment that is truncated after it was listed has no damage.
func TestInspectATruncatedSegment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, o := &hookedFS{FS: crashfs.New(t)}, options()
		o.MaxBytes = 1 << 20
		s := open(t, fs, o)
		appendAll(t, s, string(thousand))
		fs.listed = func() {
			for fs.Count(crashfs.Truncate) == 0 {
				appendAll(t, s, string(thousand))
				synctest.Wait()
			}
		}
		v, err := spool.Inspect(fs)
		if err != nil || len(v.Faults) > 0 {
			t.Errorf("%+v, %v", v, err)
		}
		for _, err := range v.Records() {
			if err != nil {
				t.Error(err)
			}
		}
		closeSpool(t, s)
	})
}

// TestMaxBytesWhileASegmentIsUsedAgain: its file counts, also before it is the next segment.
func TestMaxBytesWhileASegmentIsUsedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, o := &hookedFS{FS: crashfs.New(t)}, options()
		o.MaxBytes, o.Keep = 4<<20, 0
		hold, held := make(chan struct{}), false
		fs.removed = func(again bool) {
			if again && !held {
				held = true
				fs.Before(func(op crashfs.Op) {
					if op == crashfs.SyncDir {
						fs.Before(nil)
						<-hold
					}
				})
			}
		}
		s := open(t, fs, o)
		for !held {
			appendAll(t, s, string(thousand))
			synctest.Wait()
			publishAll(t, s.Cursor("bus"))
			time.Sleep(saved)
		}
		for _, err := s.Append(make([]byte, 100_000)); err == nil; {
			_, err = s.Append(make([]byte, 100_000))
		}
		time.Sleep(2 * time.Second)
		if peak := fs.Peak(); peak > o.MaxBytes {
			t.Errorf("%d bytes are %d more than the limit", peak, peak-o.MaxBytes)
		}
		close(hold)
		closeSpool(t, s)
	})
}

// TestAFullDiskToTheLastByte: a record that is accepted fits, with the end mark behind it.
func TestAFullDiskToTheLastByte(t *testing.T) {
	for less := range 2 * recordHeaderLen {
		synctest.Test(t, func(t *testing.T) {
			fs, o := crashfs.New(t), options()
			o.MaxBytes, o.MinFree = 1<<20, 0
			fs.SetFree(10 << 30)
			s := open(t, fs, o)
			appendAll(t, s, string(thousand))
			fs.SetFree(0)
			time.Sleep(2 * time.Second)
			ticket, err := s.Append(make([]byte, s.Stats().Free-recordHeaderLen-int64(less)))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Wait(ticket); err != nil {
				t.Errorf("%d bytes less than are free: %v", less, err)
			}
			closeSpool(t, s)
		})
	}
}
