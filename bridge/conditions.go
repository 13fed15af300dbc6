package bridge

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"
)

// conditions holds the conditions that block publishing to one bus, by name. The begin and the end of a condition are
// logged, and in between each of its errors once: a refused connection is one line, however often it is retried.
//
// A report never waits for the log, which may block, since publishers report with locks held: lines are queued under
// mu, and one goroutine logs them in that order.
type conditions struct {
	log *slog.Logger // with the bus

	mu        sync.Mutex // guards what follows
	publisher int        // number of publishers closed
	connected bool       // the publisher has been connected
	holding   map[string]*condition
	last      string        // the last error reported
	lines     []func()      // the queue of log lines
	dropped   int           // lines that found the queue full
	logged    chan struct{} // closed when no line is left; nil if there is none
}

// condition is one condition, from when it begins until it ends.
type condition struct {
	err    error           // the latest
	logged map[string]bool // the errors logged so far
}

const (
	// maxLogged bounds the errors logged of one condition, in case their text changes each time.
	maxLogged = 10
	// maxLines bounds the queue of lines for the log.
	maxLines = 100
	// logGrace is how long the stop waits for a blocked log.
	logGrace = time.Second
)

const (
	// conditionConnection is the condition that every publisher reports first: whether it is connected.
	conditionConnection = "connection"
	// conditionInFlight blocks publishing while the in-flight window of the pump is full.
	conditionInFlight = "window"
)

func newConditions(log *slog.Logger) *conditions {
	return &conditions{log: log, holding: make(map[string]*condition)}
}

// forPublisher returns the Report of a publisher. It has no effect after the next forget.
func (c *conditions) forPublisher() Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	publisher := c.publisher
	return func(name string, err error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if publisher == c.publisher {
			c.set(name, err)
		}
	}
}

// forget ends all conditions, since the publisher is closed.
func (c *conditions) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.holding)
	c.connected = false
	c.publisher++
}

// report is the Report of the pump itself.
func (c *conditions) report(name string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.set(name, err)
}

// set needs mu.
func (c *conditions) set(name string, err error) {
	held := c.holding[name]
	switch {
	case err == nil:
		c.connected = c.connected || name == conditionConnection
		if held != nil {
			delete(c.holding, name)
			text := "publishing unblocked"
			if len(c.holding) > 0 {
				text = "a condition ended; publishing is blocked by others"
			}
			c.queue(func() { c.log.Info(text, "condition", name) })
		}
		return
	case held == nil:
		held = &condition{logged: make(map[string]bool)}
		c.holding[name] = held
	}
	held.err, c.last = err, name+": "+err.Error()
	if !held.logged[err.Error()] && len(held.logged) < maxLogged {
		held.logged[err.Error()] = true
		c.queue(func() { c.log.Warn("publishing blocked; events are spooled", "condition", name, "error", err) })
	}
}

// queue queues a log line. Needs mu.
func (c *conditions) queue(line func()) {
	if len(c.lines) >= maxLines {
		c.dropped++
		return
	}
	c.lines = append(c.lines, line)
	if c.logged == nil {
		c.logged = make(chan struct{})
		go c.logLines()
	}
}

// logLines logs the queued lines until none is left.
func (c *conditions) logLines() {
	for {
		c.mu.Lock()
		lines, dropped := c.lines, c.dropped
		c.lines, c.dropped = nil, 0
		if lines == nil {
			close(c.logged)
			c.logged = nil
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		for _, line := range lines {
			line()
		}
		if dropped > 0 {
			c.log.Warn(
				"the log was blocked and lines were dropped; /status has the conditions that hold now",
				"lines",
				dropped,
			)
		}
	}
}

// flush waits until the queue is logged, for logGrace at most.
func (c *conditions) flush() {
	c.mu.Lock()
	logged := c.logged
	c.mu.Unlock()
	if logged == nil {
		return
	}
	select {
	case <-logged:
	case <-time.After(logGrace):
	}
}

// state returns the conditions that hold now, and the last error reported.
func (c *conditions) state() (holding []string, last string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.connected && c.holding[conditionConnection] == nil {
		holding = append(holding, conditionConnection+": not connected yet")
	}
	for _, name := range slices.Sorted(maps.Keys(c.holding)) {
		holding = append(holding, fmt.Sprintf("%s: %v", name, c.holding[name].err))
	}
	return holding, c.last
}
