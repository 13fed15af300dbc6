package spool_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postbridge/postbridge/bridge/spool"
	"github.com/postbridge/postbridge/bridge/spool/crashfs"
)

// TestFaults fails each kind of operation at each step, alone, and checks the result.
func TestFaults(t *testing.T) {
	const (
		opens = "Open fails"
		fails = "the spool fails"
		works = "nothing comes of it"
	)
	type step string
	const (
		create step = "Open of a new spool"
		reopen step = "Open"
		write  step = "Append"
		rotate step = "Append that needs a new segment"
		ahead  step = "Append that fills a segment nearly"
		save   step = "Commit"
		remove step = "background"
	)
	expected := map[step]map[crashfs.Op]string{
		create: {
			crashfs.Lock: opens, crashfs.List: opens, crashfs.Create: opens, crashfs.Write: opens, crashfs.Sync: opens,
			crashfs.Rename: opens, crashfs.SyncDir: opens, crashfs.Close: opens, crashfs.Free: opens,
		},
		reopen: {
			crashfs.Lock: opens, crashfs.List: opens, crashfs.Open: opens, crashfs.Read: opens, crashfs.Sync: opens,
			crashfs.SyncDir: opens, crashfs.Free: opens,
		},
		write: {crashfs.Write: fails, crashfs.Sync: fails},
		rotate: {
			crashfs.Create: fails, crashfs.Write: fails, crashfs.Sync: fails,
			crashfs.SyncDir: fails, crashfs.Close: fails, crashfs.Open: fails, crashfs.Rename: fails,
		},
		ahead: {crashfs.Create: works},
		save: {
			crashfs.Create: works, crashfs.Write: works, crashfs.Sync: works, crashfs.Rename: works,
			crashfs.SyncDir: works, crashfs.Close: works,
		},
		remove: {crashfs.Remove: works, crashfs.Free: works},
	}
	for step, ops := range expected {
		for op, want := range ops {
			for _, outcome := range []crashfs.Outcome{crashfs.Failed, crashfs.Happened, crashfs.Half} {
				t.Run(fmt.Sprintf("%s/%s %s", step, op, outcome), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						f := faultRun{t: t, fs: crashfs.New(t), acked: map[uint64]string{}}
						fault := crashfs.Fault{Op: op, Nth: 1, Outcome: outcome}
						got := f.run(string(step), fault)
						if got != want {
							t.Errorf("%s, want %s", got, want)
						}
						f.check()
					})
				})
			}
		}
	}
}

// faultRun runs one spool with a fault.
type faultRun struct {
	t     *testing.T
	fs    *crashfs.FS
	o     spool.Options
	s     *spool.Spool
	acked map[uint64]string
	tried []string
	done  uint64 // committed sequence
}

// run executes all steps, one of them with the fault.
func (f *faultRun) run(step string, fault crashfs.Fault) string {
	f.o = options()
	f.o.Keep = 0
	for _, next := range []struct {
		step string
		do   func() error
	}{
		{"Open of a new spool", f.open},
		{"Append", func() error { return f.append(1) }},
		{"Commit", func() error { f.commit(); return nil }},
		{"Append that needs a new segment", func() error { return f.append(8100) }},
		{"Append that fills a segment nearly", func() error { return f.append(3100) }},
		{"Append", func() error { return f.append(10) }},
		{"background", func() error { time.Sleep(3 * time.Second); return nil }},
		{"close", func() error { return f.s.Close() }},
		{"Open", f.open},
		{"Append", func() error { return f.append(10) }},
		{"close", func() error { return f.s.Close() }},
	} {
		if next.step == step {
			f.fs.Inject(fault)
		}
		err := next.do()
		synctest.Wait() // for background work
		if err == nil && f.s.Err() != nil {
			err = f.s.Err() // no call returned the error
		}
		switch {
		case errors.Is(err, spool.ErrFailed):
			f.failed(err)
			return "the spool fails"
		case err != nil && strings.HasPrefix(next.step, "Open"):
			return "Open fails"
		case err != nil && next.step != "close":
			f.t.Fatal(err)
		}
	}
	return "nothing comes of it"
}

func (f *faultRun) open() (err error) {
	f.s, err = spool.Open(f.fs, f.o)
	return err
}

// append appends two records of the size in one batch.
func (f *faultRun) append(size int) error {
	var tickets []spool.Ticket
	for range 2 {
		payload := fmt.Sprintf("%d/", len(f.tried)) + strings.Repeat("x", size)
		f.tried = append(f.tried, payload)
		ticket, err := f.s.Append([]byte(payload))
		if err != nil {
			return err
		}
		tickets = append(tickets, ticket)
	}
	for i, ticket := range tickets {
		sequence, err := f.s.Wait(ticket)
		if err != nil {
			return err
		}
		f.acked[sequence] = f.tried[len(f.tried)-len(tickets)+i]
	}
	return nil
}

func (f *faultRun) commit() {
	c := f.s.Cursor("bus")
	bus := busOf(c)
	for last := f.s.Stats().Last; f.done < last; {
		if r, err := c.Next(f.t.Context()); err == nil { // otherwise retry
			bus.commit(r, "state")
			f.done = r.Sequence
		}
	}
	time.Sleep(time.Second)
}

// failed checks that a failure is final: every call returns it.
func (f *faultRun) failed(err error) {
	<-f.s.Failed()
	if got := f.s.Err(); got == nil || got.Error() != err.Error() {
		f.t.Errorf("Err = %v, and Append returned %v", got, err)
	}
	synctest.Wait() // operations in flight end
	before := segments(f.fs)
	for range 3 {
		if _, err := f.s.Append([]byte("late")); !errors.Is(err, spool.ErrFailed) {
			f.t.Errorf("Append to a spool that failed: %v", err)
		}
	}
	time.Sleep(time.Minute)
	f.fs.Heal()
	if after := segments(f.fs); after != before {
		f.t.Errorf("a spool that failed goes on:\n%s\n%s", before, after)
	}
	if err := f.s.Close(); err != nil {
		f.t.Errorf("Close of a spool that failed: %v", err)
	}
}

func segments(fs *crashfs.FS) string {
	var b strings.Builder
	for _, name := range fs.Names() {
		if strings.HasSuffix(name, ".seg") {
			fmt.Fprintf(&b, "%s has %d bytes\n", name, len(fs.ReadFile(name)))
		}
	}
	return b.String()
}

// check opens the remaining files after each kind of crash and checks the acknowledged records.
func (f *faultRun) check() {
	f.fs.Heal()
	if names := f.fs.OpenFiles(); names != nil {
		f.t.Errorf("left open: %q", names)
	}
	f.o.Cursors = []string{"bus", "audit"}
	for name, left := range map[string]*crashfs.FS{"power lost": f.fs.CrashClone(nil, 0), "killed": f.fs.Restart()} {
		s := open(f.t, left, f.o)
		committed, state := s.Cursor("bus").Committed()
		if committed > f.done || committed > 0 && string(state) != "state" {
			f.t.Errorf("%s: the bus stands at %d with %q", name, committed, state)
		}
		found, tried := map[uint64]string{}, 0
		for _, r := range drain(f.t, s.Cursor("audit")) {
			if name == "killed" && (r.Lost > 0 || r.Payload == nil) {
				f.t.Errorf("%s: %d are lost before %d", name, r.Lost, r.Sequence)
			}
			if r.Payload == nil {
				continue
			}
			found[r.Sequence] = string(r.Payload)
			for ; tried < len(f.tried) && f.tried[tried] != string(r.Payload); tried++ {
			}
			if tried == len(f.tried) {
				f.t.Errorf("%s: %d is %.10s, which was not appended, or not there", name, r.Sequence, r.Payload)
			}
			tried++
		}
		for sequence, payload := range f.acked {
			if got, ok := found[sequence]; got != payload && (ok || sequence > committed) {
				f.t.Errorf("%s: %d was acknowledged as %.10s and is %.10s", name, sequence, payload, got)
			}
		}
		closeSpool(f.t, s)
	}
}

// TestFaultAnywhere fails every single operation of a run, once or from then on, and checks the remaining files.
func TestFaultAnywhere(t *testing.T) {
	counts := map[crashfs.Op]int{}
	synctest.Test(t, func(t *testing.T) {
		f := faultRun{t: t, fs: crashfs.New(t), acked: map[uint64]string{}}
		f.run("", crashfs.Fault{})
		counts = f.fs.Counts()
	})
	for op, n := range counts {
		for nth := 1; nth <= n; nth++ {
			for _, outcome := range []crashfs.Outcome{crashfs.Failed, crashfs.Happened, crashfs.Half} {
				for _, sticky := range []bool{false, true} {
					if sticky && (op == crashfs.Open || op == crashfs.Read) {
						continue // the bus would retry forever
					}
					synctest.Test(t, func(t *testing.T) {
						f := faultRun{t: t, fs: crashfs.New(t), acked: map[uint64]string{}}
						f.fs.Inject(crashfs.Fault{Op: op, Nth: nth, Outcome: outcome, Sticky: sticky})
						f.run("", crashfs.Fault{})
						f.check()
						if t.Failed() {
							t.Logf("%s of number %d %s, sticky: %v", op, nth, outcome, sticky)
						}
					})
				}
			}
		}
	}
}

// TestFailureReachesAll: all waiters of the failed batch and of the batch after it get the error.
func TestFailureReachesAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := crashfs.New(t)
		s := open(t, fs, options())
		durable, err := s.Append([]byte("a"))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		fs.Inject(crashfs.Fault{Op: crashfs.Sync, Nth: 1, Outcome: crashfs.Failed})
		hold := make(chan struct{})
		fs.Before(func(op crashfs.Op) {
			if op == crashfs.Sync {
				<-hold
			}
		})
		errs := make(chan error, 20)
		for range cap(errs) / 2 { // the first batch
			ticket, err := s.Append([]byte("x"))
			if err != nil {
				t.Fatal(err)
			}
			go func() { _, err := s.Wait(ticket); errs <- err }()
		}
		synctest.Wait()
		var late []spool.Ticket
		for range cap(errs) / 2 { // the second one
			ticket, err := s.Append([]byte("y"))
			if err != nil {
				t.Fatal(err)
			}
			late = append(late, ticket)
			go func() { _, err := s.Wait(ticket); errs <- err }()
		}
		synctest.Wait()
		close(hold)
		for range cap(errs) {
			if err := <-errs; !errors.Is(err, spool.ErrFailed) {
				t.Errorf("Wait: %v", err)
			}
		}
		for _, ticket := range late {
			if _, err := s.Wait(ticket); !errors.Is(err, spool.ErrFailed) {
				t.Errorf("Wait later: %v", err)
			}
		}
		if n, err := s.Wait(durable); n != 1 || err != nil {
			t.Errorf("Wait for what was durable before: %d, %v", n, err)
		}
		wantRecords(t, s.Cursor("bus"), "1:a")
		closeSpool(t, s)
	})
}

// TestNothingIsDoneAfterAFailure: after a failure no call uses the disk.
func TestNothingIsDoneAfterAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := crashfs.New(t)
		s := open(t, fs, options())
		for range 9 { // eight in a segment
			appendAll(t, s, string(thousand))
		}
		publishAll(t, s.Cursor("bus"))
		time.Sleep(time.Second)
		fs.Inject(crashfs.Fault{Op: crashfs.Sync, Nth: 1, Outcome: crashfs.Failed})
		ticket, err := s.Append(thousand)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Wait(ticket); !errors.Is(err, spool.ErrFailed) {
			t.Errorf("Wait: %v", err)
		}
		synctest.Wait()
		before := fs.Counts()
		if _, err := s.Append(make([]byte, 1<<20)); !errors.Is(err, spool.ErrFailed) {
			t.Errorf("Append: %v", err)
		}
		time.Sleep(2 * options().Keep)
		if after := fs.Counts(); fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("a spool that failed goes on:\n%v after\n%v", after, before)
		}
		closeSpool(t, s)
	})
}

// TestFailureInClose: Close returns the error, since no other caller may see it.
func TestFailureInClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := crashfs.New(t)
		s := open(t, fs, options())
		fs.Inject(crashfs.Fault{Op: crashfs.Sync, Nth: 1, Outcome: crashfs.Failed})
		if _, err := s.Append([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); !errors.Is(err, spool.ErrFailed) {
			t.Errorf("Close: %v", err)
		}
	})
}

// TestACursorThatCannotBeSaved: saving is retried with a pause, and logged once.
func TestACursorThatCannotBeSaved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, o := crashfs.New(t), options()
		var log lines
		o.Log, o.Cursors = log.logger(), []string{"nats", "kafka"}
		s := open(t, fs, o)
		appendAll(t, s, "a")
		records, state := drain(t, s.Cursor("nats")), strings.Repeat("a state that needs a larger file ", 200)
		fs.Inject(crashfs.Fault{Op: crashfs.Rename, Nth: 1, Outcome: crashfs.Failed, Sticky: true})
		before := fs.Count(crashfs.Rename)
		busOf(s.Cursor("nats")).commit(records[0], state)
		time.Sleep(time.Minute)
		if n := fs.Count(crashfs.Rename) - before; n < 60 || n > 600 {
			t.Errorf("it is tried %d times in a minute", n)
		}
		if n := log.count(); n != 1 {
			t.Errorf("logged %d times, want once", n)
		}
		appendAll(t, s, "b")
		fs.Heal()
		time.Sleep(time.Second)
		after := open(t, fs.CrashClone(nil, 0), o)
		wantCommitted(t, after.Cursor("nats"), 1, state)
		closeSpool(t, after)
		closeSpool(t, s)
	})
}

// TestNextAfterAFailedRead: after a failed read, Next returns the record once the disk works again.
func TestNextAfterAFailedRead(t *testing.T) {
	for _, op := range []crashfs.Op{crashfs.Open, crashfs.Read} {
		fs := threeSegments(t)
		s := open(t, fs, options())
		c := s.Cursor("bus")
		var got []spool.Record
		for nth := 1; nth <= 3; nth++ {
			fs.Inject(crashfs.Fault{Op: op, Nth: nth, Outcome: crashfs.Failed})
		}
		failures := 0
		for len(got) < 9 {
			r, err := c.Next(t.Context())
			if err != nil {
				failures++
				continue
			}
			got = append(got, r)
		}
		if describe(got) != all || failures != 3 || badFiles(fs) != nil {
			t.Errorf("after %d times that %s failed: %q, kept %q", failures, op, describe(got), badFiles(fs))
		}
		closeSpool(t, s)
	}
}
