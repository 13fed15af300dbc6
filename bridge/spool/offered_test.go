package spool_test

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"

	"github.com/postbridge/postbridge/bridge/spool"
	"github.com/postbridge/postbridge/bridge/spool/crashfs"
)

// offeredStep is how far the high-water mark is ahead of the records returned.
const offeredStep = 1 << 14

// redelivered counts the records marked as possibly returned before, which must be the first ones.
func redelivered(t *testing.T, records []spool.Record) (n int) {
	t.Helper()
	for i, r := range records {
		if r.Redelivered && i != n {
			t.Errorf("%d may have been returned before, and the one before it not", r.Sequence)
		}
		if r.Redelivered {
			n++
		}
	}
	return n
}

// TestRedelivered kills a process that never committed: the next one knows which records had been returned, with an
// error of one step at most.
func TestRedelivered(t *testing.T) {
	const there = 3 * offeredStep
	fs := crashfs.New(t)
	o := options()
	o.MaxBytes = 8 << 20
	s := open(t, fs, o)
	appendAll(t, s, make([]string, there)...)
	c := s.Cursor("bus")

	for _, step := range []struct {
		read, least, most int
	}{
		{0, there, there}, // without a file, every record may have been returned
		{1, offeredStep + 1, offeredStep + 1},
		{offeredStep / 2, offeredStep + 1, offeredStep + 1},
		{offeredStep + 1, offeredStep + 1, 2 * offeredStep},
		{offeredStep + 2, offeredStep + 2, 2*offeredStep + 2},
		{there, there, there},
	} {
		for c != nil && step.read > 0 {
			r, err := c.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if r.Redelivered {
				t.Fatalf("%d of a new spool may have been returned before", r.Sequence)
			}
			if int(r.Sequence) == step.read {
				break
			}
		}
		after := open(t, fs.CrashClone(nil, 0), o)
		appendAll(t, after, "new")
		if n := redelivered(t, drain(t, after.Cursor("bus"))); n < step.least || n > step.most {
			t.Errorf("%d were returned; afterwards %d may have been, want %d to %d",
				step.read, n, step.least, step.most)
		}
		closeSpool(t, after)
	}
	closeSpool(t, s)
}

// TestNextDoesNotWaitForTheMark: the mark is raised half a step ahead of need, and Next goes on up to the one that is
// on disk.
func TestNextDoesNotWaitForTheMark(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, o := crashfs.New(t), options()
		o.MaxBytes = 8 << 20
		s := open(t, fs, o)
		defer s.Close()
		appendAll(t, s, make([]string, offeredStep+10)...)
		c := s.Cursor("bus")
		read := func() {
			if _, err := c.Next(t.Context()); err != nil {
				t.Error(err)
			}
		}
		read()
		hold, raising := make(chan struct{}), false
		fs.Before(func(op crashfs.Op) {
			if op == crashfs.Write {
				raising = true
				<-hold
			}
		})
		for range offeredStep {
			read()
		}
		synctest.Wait()
		if !raising {
			t.Error("the mark is not raised ahead of need")
		}
		close(hold)
		read()
		after := open(t, fs.CrashClone(nil, 0), o)
		if n := redelivered(t, drain(t, after.Cursor("bus"))); n != offeredStep+10 {
			t.Errorf("%d may have been returned before, want %d", n, offeredStep+10)
		}
		closeSpool(t, after)
	})
}

// TestRedeliveredFile opens a cursor file with a high-water mark that is too low, or without a valid one.
func TestRedeliveredFile(t *testing.T) {
	slot := func(generation, mark uint64) []byte { return cursorSlot(2, testID, generation, 0, mark, "") }
	damaged := slot(2, 4)
	damaged[0] = 'q'
	for _, c := range []struct {
		name string
		file []byte
		want int
	}{
		{"none", nil, 9},
		{"none offered", cursorSlots(slot(1, 0), nil), 0},
		{"some offered", cursorSlots(slot(1, 4), nil), 4},
		{"more offered later", cursorSlots(slot(1, 2), slot(2, 4)), 4},
		{"more offered before", cursorSlots(slot(3, 4), slot(2, 6)), 4},
		{"ahead of the log", cursorSlots(slot(1, 400), nil), 9},
		{"the second slot is damaged", cursorSlots(slot(1, 3), damaged), 9},
		{"the first slot is damaged", cursorSlots(damaged, slot(2, 3)), 9},
		{"both are damaged", cursorSlots(damaged, damaged), 9},
		{"cut in the second", cursorSlots(slot(1, 3), slot(2, 4))[:4096+30], 9},
		{"cut in the first", cursorSlots(slot(1, 3), nil)[:30], 9},
		{"cut after the first", slot(1, 3), 3},
		{"empty", []byte{}, 9},
		{"of another spool", cursorSlots(cursorSlot(2, testID+1, 1, 0, 4, ""), nil), 9},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := threeSegments(t)
			if c.file != nil {
				fs.WriteFile("cursor-bus", c.file)
			}
			s := open(t, fs, options())
			appendAll(t, s, "new")
			if n := redelivered(t, drain(t, s.Cursor("bus"))); n != c.want {
				t.Errorf("%d may have been returned before, want %d", n, c.want)
			}
			closeSpool(t, s)
			s = open(t, fs, options())
			if n := redelivered(t, drain(t, s.Cursor("bus"))); n != 10 {
				t.Errorf("opened again, %d may have been returned before", n)
			}
			closeSpool(t, s)
		})
	}
}

// TestRedeliveredOnFullDisk: a full disk or a failed operation leaves no high-water mark that is too low.
func TestRedeliveredOnFullDisk(t *testing.T) {
	for _, op := range []crashfs.Op{crashfs.Create, crashfs.Write, crashfs.Sync, crashfs.Rename} {
		fs := threeSegments(t)
		fs.WriteFile("cursor-bus", cursorSlots(cursorSlot(2, testID, 1, 0, 4, ""), nil))
		if op == crashfs.Create || op == crashfs.Rename {
			fs.SetFree(0) // nothing is to be created
		}
		s := open(t, fs, options())
		fs.Inject(crashfs.Fault{Op: op, Nth: 1, Outcome: crashfs.Failed})
		c := s.Cursor("bus")
		for range 5 {
			if _, err := c.Next(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		after := open(t, fs.CrashClone(nil, 0), options())
		if n := redelivered(t, drain(t, after.Cursor("bus"))); n != 9 {
			t.Errorf("after a failed %v, %d may have been returned before", op, n)
		}
		closeSpool(t, after)
		_ = s.Close() // its cursor is not saved
	}
}

// blockingLog blocks at each line until it is closed.
type blockingLog struct {
	slog.Handler
	blocked, release chan struct{}
}

func (h blockingLog) Enabled(context.Context, slog.Level) bool { return true }

func (h blockingLog) Handle(context.Context, slog.Record) error {
	close(h.blocked)
	<-h.release
	return nil
}

// TestOfferedWithLogBlocked: cursors are saved while the log line for an unsaved high-water mark blocks.
func TestOfferedWithLogBlocked(t *testing.T) {
	fs, o := threeSegments(t), options()
	fs.WriteFile("cursor-bus", cursorSlots(cursorSlot(2, testID, 1, 0, 0, ""), nil))
	log := blockingLog{slog.DiscardHandler, make(chan struct{}), make(chan struct{})}
	o.Log = slog.New(log)
	s := open(t, fs, o)
	c := s.Cursor("bus")
	for _, op := range []crashfs.Op{crashfs.Write, crashfs.Create} {
		fs.Inject(crashfs.Fault{Op: op, Nth: 1, Outcome: crashfs.Failed, Sticky: true})
	}
	read := make(chan error)
	go func() {
		_, err := c.Next(context.Background())
		read <- err
	}()
	<-log.blocked
	fs.Heal()
	if err := c.Save(); err != nil {
		t.Error(err)
	}
	close(log.release)
	if err := <-read; err != nil {
		t.Error(err)
	}
	closeSpool(t, s)
}

// TestRedeliveredByBus: each bus has its own high-water mark.
func TestRedeliveredByBus(t *testing.T) {
	fs := crashfs.New(t)
	o := options()
	o.Cursors, o.MaxBytes = []string{"bus", "other"}, 8<<20
	s := open(t, fs, o)
	appendAll(t, s, "a")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, name := range o.Cursors {
		if _, err := s.Cursor(name).Next(ctx); err != nil {
			t.Fatal(err)
		}
	}
	appendAll(t, s, make([]string, offeredStep+1)...)
	drain(t, s.Cursor("bus"))
	after := open(t, fs.CrashClone(nil, 0), o)
	for name, want := range map[string]int{"bus": offeredStep + 2, "other": offeredStep + 1} {
		if n := redelivered(t, drain(t, after.Cursor(name))); n != want {
			t.Errorf("%s: %d may have been returned before, want %d", name, n, want)
		}
	}
	closeSpool(t, after)
	closeSpool(t, s)
}
