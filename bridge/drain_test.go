package bridge_test

import (
	"context"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/spool"
)

// leftBehind is the data directory of a replica that is no more, with events that wait.
func leftBehind(t *testing.T, events int) string {
	t.Helper()
	dir := t.TempDir()
	fs, err := spool.OSDir(filepath.Join(dir, "spool"))
	if err != nil {
		t.Fatal(err)
	}
	o := testOptions(t, io.Discard)
	s, err := spool.Open(fs, spool.Options{MaxBytes: o.SpoolMaxBytes, Cursors: []string{"nats"}, Log: o.Log})
	if err != nil {
		t.Fatal(err)
	}
	for range events {
		appendOrder(t, s, "1")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

func draining(t *testing.T, dir string, f *fakeBus) *bridge.Bridge {
	o := testOptions(t, t.Output())
	o.DataDir, o.Brokers, o.Listen, o.AdminListen = dir, nil, "", ""
	o.Buses = []bridge.Bus{f.bus()}
	return bridge.New(o)
}

func TestDrain(t *testing.T) {
	dir, f := leftBehind(t, 3), newFakeBus(t)
	for range 2 { // there is nothing to do the second time
		if err := draining(t, dir, f).Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(f.stored) != 3 {
			t.Errorf("%d events are stored, want 3", len(f.stored))
		}
	}
}

// TestDrainStopped publishes the rest the next time.
func TestDrainStopped(t *testing.T) {
	dir, f := leftBehind(t, 3), newFakeBus(t)
	ctx, stop := context.WithCancel(t.Context())
	f.setRule(func(d *bridge.Delivery) verdict {
		if d.Sequence == 1 {
			return store
		}
		stop()
		return hold
	})
	err := draining(t, dir, f).Drain(ctx)
	if err == nil || !strings.Contains(err.Error(), "stopped before the end: ") {
		t.Errorf("%v", err)
	}
	f.rule, f.held = nil, nil
	if err := draining(t, dir, f).Drain(t.Context()); err != nil {
		t.Error(err)
	}
	if last := f.stored[len(f.stored)-1]; last.Sequence != 3 {
		t.Errorf("the last stored is %d", last.Sequence)
	}
}
