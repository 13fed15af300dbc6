package spool_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postbridge/postbridge/bridge/spool"
	"github.com/postbridge/postbridge/bridge/spool/crashfs"
)

// TestRewind rewinds a cursor to an earlier position, in another segment or in the same, and to before the oldest
// record.
func TestRewind(t *testing.T) {
	for _, c := range []struct {
		name       string
		read       int // records read and committed before
		to, stands uint64
		want       string
	}{
		{"to the start", 9, 0, 0, all},
		{"within the last segment", 9, 7, 7, "8:h 9:i"},
		{"into another segment", 8, 4, 4, "5:e 6:f 7:g 8:h 9:i"},
		{"to where it is", 5, 5, 5, "6:f 7:g 8:h 9:i"},
		{"ahead of where it is", 2, 5, 2, "3:c 4:d 5:e 6:f 7:g 8:h 9:i"},
		{"before anything was read", 0, 0, 0, all},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := threeSegments(t)
			s := open(t, fs, options())
			cursor := s.Cursor("bus")
			bus := busOf(cursor)
			var records []spool.Record
			for range c.read {
				r, err := cursor.Next(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				records = append(records, r)
			}
			if c.read > 0 {
				bus.commit(records[c.read-1], "state")
			}
			if err := cursor.Save(); err != nil {
				t.Fatal(err)
			}
			if got := cursor.Rewind(c.to); got != c.stands {
				t.Errorf("it stands at %d, want %d", got, c.stands)
			}
			bus.set(c.stands, "another state")
			again := wantRecords(t, cursor, c.want)
			if n := redelivered(t, again); n != len(again) { // of an older version: all may have been
				t.Errorf("%d of %d may have been returned before", n, len(again))
			}
			closeSpool(t, s)
			s = open(t, fs, options())
			wantCommitted(t, s.Cursor("bus"), c.stands, "another state")
			wantRecords(t, s.Cursor("bus"), c.want)
			closeSpool(t, s)
		})
	}
}

// TestRewindRedelivers: records returned in this run are marked as redelivered, too; others are not.
func TestRewindRedelivers(t *testing.T) {
	s := open(t, crashfs.New(t), options())
	defer s.Close()
	appendAll(t, s, "a", "b", "c")
	c := s.Cursor("bus")
	records := drain(t, c)
	c.Commit(records[2])
	c.Rewind(1)
	appendAll(t, s, "d")
	again := wantRecords(t, c, "2:b 3:c 4:d")
	if n := redelivered(t, again); n != 2 {
		t.Errorf("%d may have been returned before, want 2", n)
	}
	c.Commit(again[2])
	wantRecords(t, c, "")
}

// TestRewindWhileSaved: a save that began before the rewind does not overwrite it.
func TestRewindWhileSaved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, o := crashfs.New(t), options()
		o.CursorDelay = time.Second
		s := open(t, fs, o)
		appendAll(t, s, "a", "b", "c")
		c := s.Cursor("bus")
		records := drain(t, c)
		asked, answer := make(chan struct{}), make(chan struct{})
		first := true
		c.SetSnapshot(func() (uint64, []byte) {
			if first {
				first = false
				close(asked)
				<-answer
				return 3, []byte("before")
			}
			return 1, []byte("after")
		})
		c.Commit(records[2])
		<-asked
		c.Rewind(1)
		close(answer)
		if err := c.Save(); err != nil {
			t.Fatal(err)
		}
		left := open(t, fs.CrashClone(nil, 0), o)
		wantCommitted(t, left.Cursor("bus"), 1, "after")
		closeSpool(t, left)
		time.Sleep(time.Minute)
		closeSpool(t, s)
		s = open(t, fs, o)
		wantCommitted(t, s.Cursor("bus"), 1, "after")
		closeSpool(t, s)
	})
}

// TestRewindHoldsSegments: segments to publish again are not removed, and removed ones are not waited for.
func TestRewindHoldsSegments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := options()
		o.Keep = 0
		fs := crashfs.New(t)
		s := open(t, fs, o)
		large := strings.Repeat("x", 1000)
		appendAll(t, s, strings.Split(strings.Repeat(large+" ", 30), " ")[:30]...)
		c := s.Cursor("bus")
		records := drain(t, c)
		c.Commit(records[19])
		time.Sleep(2 * time.Second) // the segments before it are removed
		stands := c.Rewind(3)
		if stands == 3 || stands > 19 {
			t.Fatalf("it stands at %d", stands)
		}
		time.Sleep(10 * time.Second)
		again := drain(t, c)
		if len(again) != 30-int(stands) || again[0].Lost > 0 {
			t.Errorf("behind %d there are %d records", stands, len(again))
		}
		left := open(t, fs.CrashClone(nil, 0), o)
		if got := fmt.Sprint(len(drain(t, left.Cursor("bus")))); got != fmt.Sprint(len(again)) {
			t.Errorf("after a loss of power %s records, want %d", got, len(again))
		}
		closeSpool(t, left)
		closeSpool(t, s)
	})
}
