package bridge

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"
)

// health holds the conditions that keep events from one bus. The beginning and the end of a condition are logged, and
// in between each reason once: however often a connection is tried, a refused one is one line.
//
// A report never waits for the log, which may block for ever: publishers report with their own locks held. Lines are
// queued under mu, and a goroutine of their own logs them in that order.
type health struct {
	log *slog.Logger // with the bus

	mu         sync.Mutex
	connected  bool                  // there was a connection
	conditions map[string]*condition // what holds now
	last       string                // the last error there was
	lines      []line                // to be logged
	dropped    int                   // lines that were not queued
	logged     chan struct{}         // closed when all lines are logged; nil if none waits
}

// condition is one while it holds.
type condition struct {
	now  error
	said map[string]bool // what was logged of it
}

// line is one of the log.
type line struct {
	level slog.Level
	text  string
	args  []any
}

const (
	// maxSaid is how many reasons of one condition are logged, should they have something in them that always changes.
	maxSaid = 10
	// maxLines is how many lines wait for the log.
	maxLines = 100
	// logGrace is how long the stop waits for the lines that are left.
	logGrace = time.Second
)

// conditionConnection is the condition that every bus reports first: that there is no connection, or that there is.
const conditionConnection = "connection"

func newHealth(log *slog.Logger) *health {
	return &health{log: log, conditions: make(map[string]*condition)}
}

// report is the bus's Report.
func (h *health) report(name string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.conditions[name]
	if err == nil {
		h.connected = h.connected || name == conditionConnection
		if c != nil {
			delete(h.conditions, name)
			text := "the bus takes events again"
			if len(h.conditions) > 0 {
				text = "one of the causes that keep events from the bus is over"
			}
			h.say(slog.LevelInfo, text, "cause", name)
		}
		return
	}
	if c == nil {
		c = &condition{said: make(map[string]bool)}
		h.conditions[name] = c
	}
	c.now = err
	h.last = name + ": " + err.Error()
	if !c.said[err.Error()] && len(c.said) < maxSaid {
		c.said[err.Error()] = true
		h.say(slog.LevelWarn, "events are kept from the bus; they wait in the spool", "cause", name, "error", err)
	}
}

// say queues a line. Needs mu.
func (h *health) say(level slog.Level, text string, args ...any) {
	if len(h.lines) >= maxLines {
		h.dropped++
		return
	}
	h.lines = append(h.lines, line{level, text, args})
	if h.logged == nil {
		h.logged = make(chan struct{})
		go h.writeLines()
	}
}

// writeLines logs the lines until none is left. There is one at a time.
func (h *health) writeLines() {
	for {
		lines, dropped := h.takeLines()
		if lines == nil {
			return
		}
		for _, l := range lines {
			h.log.Log(context.Background(), l.level, l.text, l.args...)
		}
		if dropped > 0 {
			h.log.Warn("the log was blocked and lines were dropped; /status has the conditions that hold now", "lines", dropped)
		}
	}
}

// takeLines takes the lines that wait, and how many were dropped behind them; nil is the end.
func (h *health) takeLines() (lines []line, dropped int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	lines, dropped = h.lines, h.dropped
	h.lines, h.dropped = nil, 0
	if lines == nil {
		close(h.logged)
		h.logged = nil
	}
	return lines, dropped
}

// flush waits until what is left is logged, unless the log is blocked.
func (h *health) flush() {
	h.mu.Lock()
	logged := h.logged
	h.mu.Unlock()
	if logged == nil {
		return
	}
	select {
	case <-logged:
	case <-time.After(logGrace):
	}
}

// forget ends all conditions: of a publisher that is closed.
func (h *health) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.conditions)
	h.connected = false
}

// state returns the conditions that hold now, and the last error there was.
func (h *health) state() (conditions []string, last string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.connected && h.conditions[conditionConnection] == nil {
		conditions = append(conditions, conditionConnection+": not connected yet")
	}
	for _, name := range slices.Sorted(maps.Keys(h.conditions)) {
		conditions = append(conditions, name+": "+h.conditions[name].now.Error())
	}
	return conditions, h.last
}
