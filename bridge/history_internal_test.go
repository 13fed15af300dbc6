package bridge

import (
	"context"
	"errors"
	"log/slog"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// TestHistory fills the history for two hours, with an outage of ten seconds within a coarse step.
func TestHistory(t *testing.T) {
	var h history
	const all = 2 * 60 * 60
	for n := range all {
		p := historyPoint{Seconds: float64(n), Buses: map[string]busPoint{"nats": {Up: true}}}
		if n > all-40 && n <= all-30 {
			p.Buses["nats"] = busPoint{Waiting: uint64(n), Up: false}
		}
		h.add(p)
	}
	got := h.after(-1)
	for _, row := range []struct {
		name       string
		points     []historyPoint
		number     int
		step, last float64
	}{
		{"fine", got.Fine, 121, 1, all - 1},
		{"coarse", got.Coarse, 241, 15, all - 15},
	} {
		if len(row.points) != row.number || row.points[row.number-1].Seconds != row.last ||
			row.points[1].Seconds-row.points[0].Seconds != row.step {
			t.Errorf("%s: %d points from %v on", row.name, len(row.points), row.points[0])
		}
	}
	for i, want := range []busPoint{{all - 30, false}, {0, true}} {
		if p := got.Coarse[len(got.Coarse)-2+i].Buses["nats"]; p != want {
			t.Errorf("the last coarse points have %v, want %v", p, want)
		}
	}
	if got := h.after(all - 17); len(got.Fine) != 16 || len(got.Coarse) != 1 {
		t.Errorf("after a moment there are %d and %d points", len(got.Fine), len(got.Coarse))
	}
	if got := h.after(all); got.Fine == nil || len(got.Fine)+len(got.Coarse) != 0 {
		t.Errorf("after the end there are %v", got)
	}
}

// TestSecondsToFill computes when the backlog fills the space that is left.
func TestSecondsToFill(t *testing.T) {
	course := func(seconds int, waiting func(second int) int64) *history {
		h := new(history)
		for n := range seconds {
			h.add(historyPoint{Seconds: float64(n), waitingBytes: waiting(n)})
		}
		return h
	}
	outageAt := func(begin int) func(int) int64 {
		return func(n int) int64 { return int64(max(0, n-begin)) * 100 }
	}
	for _, row := range []struct {
		name          string
		h             *history
		waiting, left int64 // at 100 s
		want          float64
	}{
		{"nothing known", new(history), 1000, 5000, 0},
		{"an outage for ten seconds", course(100, outageAt(90)), 1000, 5000, 50},
		{"an outage for longer than a minute", course(100, outageAt(0)), 10_000, 5000, 50},
		{"it has just begun", course(100, outageAt(96)), 400, 5000, 0},
		{"no postbacks for a minute", course(100, func(int) int64 { return 700 }), 700, 5000, 0},
		{"it shrinks", course(100, func(n int) int64 { return int64(100 - n) }), 0, 5000, 0},
		{"no space left", course(100, outageAt(90)), 1000, 0, 0},
	} {
		if got := row.h.secondsToFill(100*time.Second, row.waiting, row.left); got != row.want {
			t.Errorf("%s: %v seconds, want %v", row.name, got, row.want)
		}
	}
	s := spoolStatus{LimitBytes: 1000, WaitingBytes: 300, Bytes: 800, FreeBytes: 250, ReserveBytes: 100}
	if left := s.left(); left != 650 { // 150 above the reserve, and 500 of published events
		t.Errorf("%d bytes are left", left)
	}
}

// TestSince checks from when on a bus is down or up, and when its conditions began and its last error was reported.
func TestSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConditions(slog.New(slog.DiscardHandler))
		start := time.Now()
		at := func(seconds int) time.Time { return shownTime(start.Add(time.Duration(seconds) * time.Second)) }
		refused, denied := errors.New("refused"), errors.New("denied")
		notConnected := conditionStatus{"connection", at(0), errNotConnected.Error()}
		for i, step := range []struct {
			name  string
			err   error
			since time.Time
			holds []conditionStatus
			last  time.Time
		}{
			{"spool", nil, at(0), []conditionStatus{notConnected}, time.Time{}},
			{"connection", nil, at(2), nil, time.Time{}},
			{"connection", refused, at(3), []conditionStatus{{"connection", at(3), "refused"}}, at(3)},
			{"stream", denied, at(3),
				[]conditionStatus{{"connection", at(3), "refused"}, {"stream", at(4), "denied"}}, at(4)},
			{"connection", nil, at(3), []conditionStatus{{"stream", at(4), "denied"}}, at(4)},
			{"stream", refused, at(3), []conditionStatus{{"stream", at(4), "refused"}}, at(6)},
			{"stream", nil, at(7), nil, at(6)},
		} {
			time.Sleep(time.Second)
			c.report(t.Context(), step.name, step.err)
			var st busStatus
			c.fill(&st)
			if st.Up != (step.holds == nil) || !st.Since.Equal(step.since) || !st.LastErrorAt.Equal(step.last) ||
				!reflect.DeepEqual(st.Conditions, step.holds) || len(st.Causes) != len(step.holds) {
				t.Errorf("step %d: %+v", i, st)
			}
		}
		time.Sleep(time.Second)
		c.forget()
		c.forget()
		var st busStatus
		if c.fill(&st); !st.Since.Equal(at(8)) || len(st.Conditions) != 1 {
			t.Errorf("after the publisher was closed: %+v", st)
		}
	})
}

// TestKeepHistory checks that there is a point each second, and since when postbacks are accepted, or not.
func TestKeepHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(Options{Registry: prometheus.NewRegistry()})
		end := b.keepHistory()
		pause(context.Background(), 3500*time.Millisecond)
		if points := b.history.after(-1).Fine; len(points) != 4 || points[3].Seconds != 3 {
			t.Errorf("the points are %v", points)
		}
		if st := b.status(); st.Ready || !st.Since.Equal(shownTime(b.started)) {
			t.Errorf("ready %v since %v, started %v", st.Ready, st.Since, b.started)
		}
		if since := b.readiness.set(true); !since.Equal(time.Now()) || !b.readiness.set(true).Equal(since) {
			t.Errorf("ready since %v, now %v", since, time.Now())
		}
		end()
	})
}
