package bridge_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/spool"
	"github.com/postbridge/postbridge/bridge/spool/crashfs"
)

// pumping runs pumps on a spool in memory, in a bubble of its own time.
func pumping(t *testing.T, f *fakeBus, fs *crashfs.FS) (*bridge.Bridge, *spool.Spool) {
	t.Helper()
	s := openOn(t, fs)
	return pumpingFrom(t, s, f.bus(), slog.New(slog.DiscardHandler)), s
}

func openOn(t *testing.T, fs *crashfs.FS) *spool.Spool {
	t.Helper()
	s, err := spool.Open(fs, spool.Options{
		MaxBytes: 256 << 20, Cursors: []string{"nats"}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// pumpingFrom runs the pump of a bus until the test ends, and closes the spool then.
func pumpingFrom(t *testing.T, s *spool.Spool, bus bridge.Bus, log *slog.Logger) *bridge.Bridge {
	t.Helper()
	o := testOptions(t, io.Discard)
	o.Log, o.Buses = log, []bridge.Bus{bus}
	b, stop, err := bridge.Pumping(o, s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func appendOrder(t *testing.T, s *spool.Spool, order string) {
	t.Helper()
	appendDelivery(t, s, bridge.NewDelivery(order, 2))
}

func appendDelivery(t *testing.T, s *spool.Spool, record []byte) {
	t.Helper()
	appendDeliveries(t, s, record)
}

// appendDeliveries waits for the disk once.
func appendDeliveries(t *testing.T, s *spool.Spool, records ...[]byte) {
	t.Helper()
	var last spool.Ticket
	for _, record := range records {
		var err error
		if last, err = s.Append(record); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Wait(last); err != nil {
		t.Fatal(err)
	}
}

// TestStopWaits waits for a bus that is up, but not for ever, and for one that is down hardly at all.
func TestStopWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeBus(t)
		f.setRule(func(*bridge.Delivery) verdict { return hold })
		b, s := pumping(t, f, crashfs.New(t))
		drain := func() time.Duration {
			start := time.Now()
			b.WaitForBuses()
			return time.Since(start)
		}
		if took := drain(); took != 0 {
			t.Errorf("nothing waits, took %v", took)
		}
		appendOrder(t, s, "1")
		if took := drain(); took != bridge.DrainTimeout {
			t.Errorf("the bus is up and takes nothing, took %v", took)
		}
		f.report("connection", io.EOF)
		if took := drain(); took > 2*time.Second {
			t.Errorf("the bus is down, took %v", took)
		}
		f.report("connection", nil)
		go func() {
			time.Sleep(3 * time.Second)
			f.setRule(nil)
		}()
		if took := drain(); took < 3*time.Second || took > 4*time.Second {
			t.Errorf("the bus takes it after 3s, took %v", took)
		}
	})
}

// TestUnreadableDisk tries again for ever, at most 30 s apart, and says so; events go on as soon as they can be read.
func TestUnreadableDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, fs := newFakeBus(t), crashfs.New(t)
		b, s := pumping(t, f, fs)
		fs.Inject(crashfs.Fault{Op: crashfs.Read, Nth: 1, Outcome: crashfs.Failed, Sticky: true})
		appendOrder(t, s, "1")
		time.Sleep(time.Hour)
		up, waiting, causes := b.Bus("nats")
		if up || waiting != 1 || !strings.HasPrefix(strings.Join(causes, ""), "spool: ") {
			t.Errorf("up %v, %d waiting, %v", up, waiting, causes)
		}
		tried := fs.Count(crashfs.Read)
		if tried < 120 || tried > 1000 {
			t.Errorf("tried %d times in an hour", tried)
		}
		fs.Heal()
		time.Sleep(31 * time.Second)
		if up, waiting, causes := b.Bus("nats"); !up || waiting != 0 {
			t.Errorf("up %v, %d waiting, %v", up, waiting, causes)
		}
	})
}

// TestInFlightWindow stops offering when the in-flight window is full, reports for which event, and goes on when
// there is space: for events that are not done, for their bytes, and for events behind one that is not done.
func TestInFlightWindow(t *testing.T) {
	first := func(d *bridge.Delivery) verdict {
		if d.OrderID == "0" {
			return hold
		}
		return store
	}
	all := func(*bridge.Delivery) verdict { return hold }
	for name, of := range map[string]struct {
		rule    func(*bridge.Delivery) verdict
		events  int
		size    int
		offered int
	}{
		"events":     {all, bridge.MaxInFlight + 10, 2, bridge.MaxInFlight},
		"bytes":      {all, 300, bridge.MaxInFlightBytes / 200, 200},
		"one behind": {first, bridge.MaxWindow + 10, 2, bridge.MaxWindow},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeBus(t)
				f.setRule(of.rule)
				b, s := pumping(t, f, crashfs.New(t))
				records := make([][]byte, of.events)
				for i := range records {
					records[i] = bridge.NewDelivery(strconv.Itoa(i), of.size)
				}
				appendDeliveries(t, s, records...)
				time.Sleep(time.Minute)
				up, waiting, causes := b.Bus("nats")
				if up || waiting != uint64(of.events) ||
					!strings.Contains(strings.Join(causes, ""), "event 1 of spool "+s.ID()) {
					t.Errorf("up %v, %d waiting, %v", up, waiting, causes)
				}
				f.mu.Lock()
				offered := len(f.offered)
				f.mu.Unlock()
				if offered > of.offered || offered < of.offered-1 {
					t.Errorf("%d offered, want %d", offered, of.offered)
				}
				f.setRule(nil)
				time.Sleep(time.Minute)
				if up, waiting, causes := b.Bus("nats"); !up || waiting != 0 {
					t.Errorf("up %v, %d waiting, %v", up, waiting, causes)
				}
			})
		})
	}
}

// TestDiskFails ends the process when a write cannot be made durable: 503 to whoever waits, not ready, the error of
// Run.
func TestDiskFails(t *testing.T) {
	disk := crashfs.New(t)
	f, log := newFakeBus(t), new(logBuffer)
	o := testOptions(t, log)
	o.Buses = []bridge.Bus{f.bus()}
	ctx, cancel := context.WithCancel(t.Context())
	r := run(ctx, t, cancel, bridge.OnDisk(o, disk).WithoutLameDuck(), log)
	log.waitFor(t, readyLine)
	r.mustPost("/kite", kiteBody("1", "OPEN", 1))
	f.waitStored(1)
	disk.Inject(crashfs.Fault{Op: crashfs.Sync, Nth: 1, Outcome: crashfs.Happened, Sticky: true})
	if status, answer := r.post("/kite", kiteBody("1", "OPEN", 2)); status != http.StatusServiceUnavailable {
		t.Errorf("answered %d %s", status, answer)
	}
	log.waitFor(t, regexp.MustCompile("stopped: "))
	if err := r.stop(); !errors.Is(err, spool.ErrFailed) {
		t.Errorf("ended with %v", err)
	}
}
