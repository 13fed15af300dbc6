package bridge

import (
	"context"
	"sync"
)

// Reporter calls a Report from one goroutine that holds no lock, so that a Report that blocks holds up nothing of a
// publisher. It keeps the latest state of each cause only: states that follow each other while Report blocks are
// reported as the last of them.
type Reporter struct {
	call Report
	wake chan struct{} // holds one

	mu      sync.Mutex
	waiting []string         // causes with a state to report, oldest first; guarded by mu
	states  map[string]error // the state of each; guarded by mu
}

// NewReporter makes a Reporter, which reports while Run runs.
func NewReporter(call Report) *Reporter {
	return &Reporter{call: call, wake: make(chan struct{}, 1), states: make(map[string]error)}
}

// Report notes the state of a cause. It may be called with any lock held.
func (r *Reporter) Report(cause string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.states[cause]; !ok {
		r.waiting = append(r.waiting, cause)
	}
	r.states[cause] = err
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run reports until ctx ends.
func (r *Reporter) Run(ctx context.Context) {
	for ctx.Err() == nil {
		if cause, err, ok := r.next(); ok {
			r.call(cause, err)
			continue
		}
		select {
		case <-r.wake:
		case <-ctx.Done():
		}
	}
}

func (r *Reporter) next() (cause string, err error, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.waiting) == 0 {
		return "", nil, false
	}
	cause = r.waiting[0]
	r.waiting = r.waiting[1:]
	err = r.states[cause]
	delete(r.states, cause)
	return cause, err, true
}
