package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
)

// conditions holds the conditions that block publishing to one bus, by name. The begin and the end of a condition are
// logged, and in between each of its errors once: a refused connection is one line, however often it is retried. It
// logs with locks held, its own and those of the publishers that report: see Options.Log.
type conditions struct {
	log *slog.Logger // with the bus

	mu      sync.Mutex // guards what follows
	holding map[string]*condition
	last    string // the last error reported
}

// condition is one condition, from when it begins until it ends.
type condition struct {
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
	clear(c.holding)
	c.holding[conditionConnection] = &condition{errNotConnected, make(map[string]bool)}
}

// report sets a condition, or ends it if err is nil. It has no effect after ctx, the session of a publisher, has ended.
func (c *conditions) report(ctx context.Context, name string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	held := c.holding[name]
	if err == nil {
		delete(c.holding, name)
		if held != nil && len(held.logged) > 0 {
			text := "publishing unblocked"
			if len(c.holding) > 0 {
				text = "a condition ended; publishing is blocked by others"
			}
			c.log.Info(text, "condition", name)
		}
		return
	}
	if held == nil {
		held = &condition{logged: make(map[string]bool)}
		c.holding[name] = held
	}
	held.err, c.last = err, name+": "+err.Error()
	if !held.logged[err.Error()] && len(held.logged) < maxLogged {
		held.logged[err.Error()] = true
		c.log.Warn("publishing blocked; events are spooled", "condition", name, "error", err)
	}
}

// state returns the conditions that hold now, and the last error reported.
func (c *conditions) state() (holding []string, last string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(c.holding)) {
		holding = append(holding, fmt.Sprintf("%s: %v", name, c.holding[name].err))
	}
	return holding, c.last
}
