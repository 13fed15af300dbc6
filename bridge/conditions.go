package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"
)

// conditions holds the conditions that block publishing to one bus, by name. The begin and the end of a condition are
// logged, and in between each of its errors once: a refused connection is one line, however often it is retried. It
// logs with locks held, its own and those of the publishers that report: see Options.Log.
type conditions struct {
	log *slog.Logger // with the bus

	mu      sync.Mutex // guards what follows
	holding map[string]*condition
	changed time.Time // when the first condition began, or the last one ended
	last    string    // the last error reported
	lastAt  time.Time
}

// condition is one condition, from when it begins until it ends.
type condition struct {
	since  time.Time
	err    error           // the latest
	logged map[string]bool // the errors logged so far
}

const (
	// maxLogged bounds the errors logged of one condition, in case their text changes each time.
	maxLogged = 10
	// conditionConnection is the condition that every publisher ends first, once it is connected.
	conditionConnection = "connection"
)

var errNotConnected = errors.New("not connected yet")

func newConditions(log *slog.Logger) *conditions {
	c := &conditions{log: log, holding: make(map[string]*condition)}
	c.forget()
	return c
}

// forget ends all conditions of the publisher, which is closed. The next one is not connected yet.
func (c *conditions) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	held := c.begin(conditionConnection) // before the others end: publishing stays blocked
	held.err = errNotConnected
	c.holding = map[string]*condition{conditionConnection: held}
}

// begin adds a condition. Needs mu.
func (c *conditions) begin(name string) *condition {
	now := time.Now()
	if len(c.holding) == 0 {
		c.changed = now
	}
	held := &condition{since: now, logged: make(map[string]bool)}
	c.holding[name] = held
	return held
}

// end removes a condition, and returns it; nil if it does not hold. Needs mu.
func (c *conditions) end(name string) *condition {
	held := c.holding[name]
	delete(c.holding, name)
	if held != nil && len(c.holding) == 0 {
		c.changed = time.Now()
	}
	return held
}

// report sets a condition, or ends it if err is nil. It has no effect after ctx, the session of a publisher, has ended.
func (c *conditions) report(ctx context.Context, name string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	if err == nil {
		if held := c.end(name); held != nil && len(held.logged) > 0 {
			text := "publishing unblocked"
			if len(c.holding) > 0 {
				text = "a condition ended; publishing is blocked by others"
			}
			c.log.Info(text, "condition", name)
		}
		return
	}
	held := c.holding[name]
	if held == nil {
		held = c.begin(name)
	}
	held.err, c.last, c.lastAt = err, name+": "+err.Error(), time.Now()
	if !held.logged[err.Error()] && len(held.logged) < maxLogged {
		held.logged[err.Error()] = true
		c.log.Warn("publishing blocked; events are spooled", "condition", name, "error", err)
	}
}

// fill sets the members of a status that depend on conditions.
func (c *conditions) fill(st *busStatus) {
	c.mu.Lock()
	defer c.mu.Unlock()
	st.Up, st.Since = len(c.holding) == 0, shownTime(c.changed)
	for _, name := range slices.Sorted(maps.Keys(c.holding)) {
		held := c.holding[name]
		st.Causes = append(st.Causes, fmt.Sprintf("%s: %v", name, held.err))
		st.Conditions = append(st.Conditions, conditionStatus{name, shownTime(held.since), held.err.Error()})
	}
	if c.last != "" {
		st.LastError, st.LastErrorAt = c.last, shownTime(c.lastAt)
	}
}
