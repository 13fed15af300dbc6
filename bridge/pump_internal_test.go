package bridge

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
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
