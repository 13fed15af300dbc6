package bridge_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/postbridge/postbridge/bridge"
)

// TestConditionLines has a condition begin and end again and again: reports return, /status and /metrics answer, events
// are published, and the lines of the condition come in order.
func TestConditionLines(t *testing.T) {
	t.Parallel()
	f, log := newFakeBus(t), new(logBuffer)
	o := testOptions(t, log)
	o.Buses = []bridge.Bus{f.bus()}
	r := start(t, o, log)
	for range 1000 {
		f.report("publish", errors.New("stuck"))
		f.report("publish", nil)
	}
	f.report("publish", errors.New("stuck for good"))
	st := r.bus("the condition", func(b busStatus) bool { return !b.Up })
	if want := "publish: stuck for good"; strings.Join(st.Causes, "") != want {
		t.Errorf("the conditions are %q, want %s", st.Causes, want)
	}
	if status, _ := r.get("/metrics"); status != http.StatusOK {
		t.Errorf("/metrics answers %d", status)
	}
	r.mustPost("/kite", kiteBody("1", "OPEN", 1))
	f.waitStored(1)
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	last, lines := "is over", 0
	for line := range strings.Lines(log.String()) {
		switch {
		case strings.Contains(line, "publishing blocked"):
			if last == "begins" {
				t.Errorf("it begins twice: %s", line)
			}
			last = "begins"
			lines++
		case strings.Contains(line, "publishing unblocked"):
			if last == "is over" {
				t.Errorf("it is over twice: %s", line)
			}
			last = "is over"
			lines++
		}
	}
	if lines != 2001 {
		t.Errorf("%d lines, want 2001", lines)
	}
}
