package bridge_test

import (
	"context"
	"io"
	"log/slog"
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
	s, err := spool.Open(fs, spool.Options{
		MaxBytes: 1 << 20, Cursors: []string{"nats"}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	o := testOptions(t, io.Discard)
	o.Buses = []bridge.Bus{f.bus()}
	b, stop, err := bridge.Pumping(context.Background(), o, s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return b, s
}

func appendOrder(t *testing.T, s *spool.Spool, order string) {
	t.Helper()
	ticket, err := s.Append(bridge.NewDelivery(order))
	if err == nil {
		_, err = s.Wait(ticket)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestDrain waits for a bus that is up, but not for ever, and for one that is down not at all.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeBus(t)
		f.setRule(func(*bridge.Delivery) verdict { return hold })
		b, s := pumping(t, f, crashfs.New(t))
		drain := func() time.Duration {
			start := time.Now()
			b.Drain()
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
		if took := drain(); took != 0 {
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
