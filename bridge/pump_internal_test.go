package bridge

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postbridge/postbridge/bridge/spool"
	"github.com/postbridge/postbridge/bridge/spool/crashfs"
)

// TestStuckEnds: the condition of a full window ends with it, also if it is reported late.
func TestStuckEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pump{conditions: newConditions(slog.New(slog.DiscardHandler))}
		p.spaceAvailable.L, p.refusedOrFull.L = &p.mu, &p.mu
		held := func() bool {
			p.conditions.mu.Lock()
			defer p.conditions.mu.Unlock()
			return p.conditions.holding[conditionInFlight] != nil
		}
		setInFlight := func(n int) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.window, p.inFlight = []*slot{{}}, n
			p.spaceAvailable.Signal()
		}
		setInFlight(maxInFlight)
		go p.waitForSpace(t.Context())
		time.Sleep(2 * stuckAfter)
		if !held() {
			t.Error("a full window is not reported")
		}
		setInFlight(1)
		synctest.Wait()
		if held() {
			t.Error("a window with space is reported as full")
		}
		setInFlight(maxInFlight)
		p.reportStuck(t.Context()) // the timer of the wait before
		setInFlight(1)
		p.waitForSpace(t.Context())
		if held() {
			t.Error("the condition does not end")
		}
	})
}

// TestSlowIsNotStuck: a bus that takes longer than stuckAfter for a sixteenth of the window, but stores one event after
// the other, is not reported.
func TestSlowIsNotStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := crashfs.New(t)
		s, err := spool.Open(fs, spool.Options{
			MaxBytes: 64 << 20, Cursors: []string{"bus"}, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		p := &pump{conditions: newConditions(slog.New(slog.DiscardHandler)), cursor: s.Cursor("bus")}
		p.spaceAvailable.L, p.refusedOrFull.L = &p.mu, &p.mu
		all := make([]*slot, maxInFlight)
		for i := range all {
			all[i] = &slot{record: spool.Record{Sequence: uint64(i + 1)}}
		}
		p.window, p.inFlight = all, maxInFlight
		go p.waitForSpace(t.Context())
		for _, event := range all[:maxInFlight/16+1] {
			time.Sleep(stuckAfter / 2)
			p.markDone(event, stored)
			p.conditions.mu.Lock()
			if err := p.conditions.holding[conditionInFlight]; err != nil {
				t.Fatal(err)
			}
			p.conditions.mu.Unlock()
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestSpace: a pump that waits for space goes on once a sixteenth of the window is free, not after each event.
func TestSpace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pump{conditions: newConditions(slog.New(slog.DiscardHandler))}
		p.spaceAvailable.L, p.refusedOrFull.L = &p.mu, &p.mu
		all := make([]*slot, maxInFlight)
		for i := range all {
			all[i] = &slot{}
		}
		// The oldest is not done, so that nothing is committed.
		p.window, p.inFlight = append([]*slot{{}}, all...), maxInFlight
		waiting := true
		go func() {
			p.waitForSpace(t.Context())
			waiting = false
		}()
		for i, s := range all {
			synctest.Wait()
			if enough := i > maxInFlight/16; waiting == enough {
				t.Fatalf("after %d of %d events the pump waits: %t", i, maxInFlight, waiting)
			}
			p.markDone(s, stored)
		}
	})
}
