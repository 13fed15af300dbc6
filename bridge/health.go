package bridge

import (
	"log/slog"
	"maps"
	"slices"
	"sync"
)

// health is what keeps events from one bus, by cause. Changes are logged, repetitions are not.
type health struct {
	log *slog.Logger // with the bus

	mu     sync.Mutex
	causes map[string]error // what holds now
	last   string           // the last error there was
}

func newHealth(log *slog.Logger) *health {
	return &health{log: log, causes: make(map[string]error)}
}

// report is the bus's Report.
func (h *health) report(cause string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	before, held := h.causes[cause]
	switch {
	case err == nil && held:
		delete(h.causes, cause)
		h.log.Info("the bus takes events again", "cause", cause)
	case err != nil && (!held || before.Error() != err.Error()):
		h.causes[cause] = err
		h.last = cause + ": " + err.Error()
		h.log.Warn("events are kept from the bus; they wait in the spool", "cause", cause, "error", err)
	}
}

// state returns the causes that hold now, and the last error there was.
func (h *health) state() (causes []string, last string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, cause := range slices.Sorted(maps.Keys(h.causes)) {
		causes = append(causes, cause+": "+h.causes[cause].Error())
	}
	return causes, h.last
}
