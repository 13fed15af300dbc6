package spool_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postbridge/postbridge/bridge/spool"
	"github.com/postbridge/postbridge/bridge/spool/crashfs"
)

// countSegments returns how many segments hold records.
func countSegments(fs *crashfs.FS) (n int) {
	for _, name := range fs.Names() {
		if b := fs.ReadFile(name); strings.HasSuffix(name, ".seg") && len(b) > 32 && b[0] != 0xff {
			n++
		}
	}
	return n
}

// TestSegmentsAreKeptSideBySide: Keep starts for each segment when it is published, not when the previous one is
// removed.
func TestSegmentsAreKeptSideBySide(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, o := crashfs.New(t), options()
		o.MaxBytes = 512 << 10
		s := open(t, fs, o)
		defer s.Close()
		for range 200 {
			appendAll(t, s, string(thousand))
			synctest.Wait()
		}
		records := drain(t, s.Cursor("bus"))
		s.Cursor("bus").Commit(records[149])
		time.Sleep(o.Keep / 2)
		s.Cursor("bus").Commit(records[199])
		time.Sleep(o.Keep/2 - time.Second)
		if n := countSegments(fs); n != 4 {
			t.Errorf("before the first are kept for long enough there are %d segments, want 4", n)
		}
		time.Sleep(4 * time.Second)
		if n := countSegments(fs); n != 2 {
			t.Errorf("after that there are %d segments, want the one published later and the last", n)
		}
		time.Sleep(o.Keep / 2)
		if n := countSegments(fs); n != 1 {
			t.Errorf("when all are kept for long enough there are %d segments, want the last", n)
		}
	})
}

// TestKeptSegmentsLeaveTheDiskFree: published segments are removed before Keep is over when the disk has less free
// space than twice its reserve, and not more of them than that takes.
func TestKeptSegmentsLeaveTheDiskFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, o := crashfs.New(t), options()
		o.MaxBytes, o.MinFree, o.Keep = 512<<10, 1<<20, 24*time.Hour
		fs.SetFree(2<<20 + 250<<10)
		s := open(t, fs, o)
		defer s.Close()
		for range 300 {
			appendAll(t, s, string(thousand))
			publishAll(t, s.Cursor("bus"))
		}
		time.Sleep(time.Minute)
		if free := s.Stats().Free; free < 2*o.MinFree {
			t.Errorf("the disk has %d bytes free, less than twice the reserve of %d", free, o.MinFree)
		}
		if n := countSegments(fs); n < 2 {
			t.Errorf("%d segments are left", n)
		}
	})
}

// TestSegmentsOutlastCursorDelay: records that a bus may lose in a power loss are not removed, even for lack of space.
func TestSegmentsOutlastCursorDelay(t *testing.T) {
	for _, c := range []struct {
		name  string
		short func(*spool.Options, *crashfs.FS) // leaves no space
		keep  time.Duration
	}{
		{"Keep is zero", func(*spool.Options, *crashfs.FS) {}, 0},
		{"the limit", func(o *spool.Options, _ *crashfs.FS) { o.MaxBytes = 26 << 10 }, time.Hour},
		{"the reserve", func(o *spool.Options, fs *crashfs.FS) { fs.SetFree(o.MinFree + 9<<10) }, time.Hour},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fs, o := crashfs.New(t), options()
				o.Keep, o.CursorDelay, o.MinFree = c.keep, 3*time.Second, 1<<20
				c.short(&o, fs)
				s := open(t, fs, o)
				for range 6 {
					appendAll(t, s, string(thousand))
				}
				time.Sleep(time.Second)
				publishAll(t, s.Cursor("bus"))
				for range 28 {
					time.Sleep(100 * time.Millisecond)
					if ticket, err := s.Append(thousand); err == nil {
						_, _ = s.Wait(ticket)
					} else if !errors.Is(err, spool.ErrFull) {
						t.Fatal(err)
					}
				}
				left := open(t, fs.CrashClone(nil, 0), o)
				records := drain(t, left.Cursor("bus"))
				if len(records) < 6 || records[0].Sequence != 1 || records[0].Lost > 0 {
					t.Errorf("2.8 s after they were acknowledged, %q are offered again", describe(records))
				}
				closeSpool(t, left)
				time.Sleep(time.Second)
				drain(t, s.Cursor("bus")) // closes the removed file
				time.Sleep(2 * time.Second)
				if _, err := s.Append(thousand); err != nil {
					t.Errorf("when the bus has them for good: %v", err)
				}
				closeSpool(t, s)
			})
		})
	}
}

// TestRewindBeginsKeepAnew: Keep starts again for records that are published again.
func TestRewindBeginsKeepAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, o := crashfs.New(t), options()
		o.CursorDelay = 3 * time.Second
		s := keeps(t, fs, o)
		defer s.Close()
		c := s.Cursor("bus")
		time.Sleep(o.Keep - time.Minute)
		c.Rewind(0)
		time.Sleep(2 * o.Keep) // the bus is away
		publishAll(t, c)
		time.Sleep(o.Keep - time.Second)
		if !has(fs, segmentName(1)) {
			t.Error("gone before it was kept for long enough")
		}
		time.Sleep(10 * time.Second)
		if has(fs, segmentName(1)) {
			t.Error("kept for too long")
		}
	})
}

// TestRewindWhileTheFileIsWritten: a cursor that is rewound while its file is written allows no removal.
func TestRewindWhileTheFileIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, o := crashfs.New(t), options()
		o.Keep = 0
		s := open(t, fs, o)
		defer s.Close()
		for range 9 {
			appendAll(t, s, string(thousand))
			synctest.Wait()
		}
		c := s.Cursor("bus")
		records := drain(t, c)
		synctest.Wait() // for the high-water mark: a goroutine that waits for a mutex is not idle for synctest
		hold := make(chan struct{})
		fs.Before(func(op crashfs.Op) {
			if op == crashfs.Write {
				<-hold
			}
		})
		c.Commit(records[8])
		synctest.Wait()
		c.Rewind(0)
		close(hold)
		time.Sleep(time.Minute)
		if records := drain(t, c); len(records) != 9 || records[0].Lost > 0 {
			t.Errorf("published again is %q", describe(records))
		}
	})
}
