package bridge

import (
	"log/slog"
	"maps"
	"slices"
	"sync"
)

// health is what keeps events from one bus, by cause. The beginning and the end of a cause are logged, and in between
// each reason once: however often a connection is tried, a refused one is one line.
type health struct {
	log *slog.Logger // with the bus

	mu     sync.Mutex
	begun  bool                // there was a connection
	causes map[string]*trouble // what holds now
	last   string              // the last error there was
}

// trouble is one cause while it holds.
type trouble struct {
	now  error
	said map[string]bool // what was logged of it
}

func newHealth(log *slog.Logger) *health {
	return &health{log: log, causes: make(map[string]*trouble)}
}

// report is the bus's Report.
func (h *health) report(cause string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.causes[cause]
	if err == nil {
		h.begun = h.begun || cause == causeConnection
		if t != nil {
			delete(h.causes, cause)
			if len(h.causes) == 0 {
				h.log.Info("the bus takes events again", "cause", cause)
			} else {
				h.log.Info("one of the causes that keep events from the bus is over", "cause", cause)
			}
		}
		return
	}
	if t == nil {
		t = &trouble{said: make(map[string]bool)}
		h.causes[cause] = t
	}
	t.now = err
	h.last = cause + ": " + err.Error()
	if !t.said[err.Error()] && len(t.said) < maxSaid {
		t.said[err.Error()] = true
		h.log.Warn("events are kept from the bus; they wait in the spool", "cause", cause, "error", err)
	}
}

// forget ends all causes: of a publisher that is closed.
func (h *health) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.causes)
	h.begun = false
}

// maxSaid is how many reasons of one cause are logged, should they have something in them that always changes.
const maxSaid = 10

// causeConnection is the cause that every bus reports first: that there is none, or why there is.
const causeConnection = "connection"

// state returns the causes that hold now, and the last error there was.
func (h *health) state() (causes []string, last string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.begun && h.causes[causeConnection] == nil {
		causes = append(causes, causeConnection+": not connected yet")
	}
	for _, cause := range slices.Sorted(maps.Keys(h.causes)) {
		causes = append(causes, cause+": "+h.causes[cause].now.Error())
	}
	return causes, h.last
}
