package kafka

import (
	"context"
	"sync"

	"github.com/postbridge/postbridge/bridge"
)

// reports calls a bridge.Report on a goroutine of its own: it may block, and nothing else is to wait for it. A cause
// that changes meanwhile is reported once, as it is then.
type reports struct {
	report bridge.Report
	wake   chan struct{} // holds one

	mu      sync.Mutex
	changed []string         // causes to report, in this order
	state   map[string]error // of those
}

func newReports(report bridge.Report) *reports {
	return &reports{report: report, wake: make(chan struct{}, 1), state: make(map[string]error)}
}

// set has a cause reported. Of one cause the last call counts.
func (r *reports) set(cause string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, waits := r.state[cause]; !waits {
		r.changed = append(r.changed, cause)
	}
	r.state[cause] = err
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// next returns a cause to report; false if there is none.
func (r *reports) next() (cause string, err error, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.changed) == 0 {
		return "", nil, false
	}
	cause, r.changed = r.changed[0], r.changed[1:]
	err = r.state[cause]
	delete(r.state, cause)
	return cause, err, true
}

// run reports until ctx ends.
func (r *reports) run(ctx context.Context) {
	for {
		select {
		case <-r.wake:
		case <-ctx.Done():
			return
		}
		for ctx.Err() == nil {
			cause, err, ok := r.next()
			if !ok {
				break
			}
			r.report(cause, err)
		}
	}
}
