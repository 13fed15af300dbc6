package bridge

import (
	"context"
	"fmt"
	"time"
)

// stableAfter is how long a bus has to keep what it stored for its next loss to be a new one, which is not backed off.
const stableAfter = time.Minute

// loss records that the bus no longer holds some event with a sequence above committed.
type loss struct {
	committed uint64
	cause     error
}

// rewound implements Opening.Rewound.
func (p *pump) rewound(committed uint64, cause error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lost == nil || committed < p.lost.committed {
		p.lost = &loss{committed, cause}
	}
	p.endSession()
}

// reopen closes the publisher, rewinds the cursor to what the bus still holds, and opens another publisher.
func (p *pump) reopen(ctx context.Context) {
	if err := p.publisher.Close(); err != nil {
		p.log.Error("cannot close the publisher", "error", err)
	}
	p.conditions.forget()
	state := p.rewind()
	// Nothing is published before the rewound cursor is on disk. Otherwise a crash leaves a cursor that is ahead of
	// the bus, and a bus that holds other events at the checkpoints of the publisher state: no later run would find
	// the loss.
	save := func() error {
		if err := p.cursor.Save(); err != nil {
			return fmt.Errorf("cannot save the rewound cursor, and nothing is published before it is on disk: %w", err)
		}
		return nil
	}
	if p.retry(ctx, "cursor", save) {
		p.retry(ctx, "open", func() error { return p.openPublisher(ctx, state) })
	}
}

// rewind moves the cursor back to before the loss, if there is one, and returns the publisher state as of there. The
// publisher is closed. Deliveries still in flight are abandoned.
//
// Cursor, counts and publisher state change in one step under mu, as snapshot reads them: a cursor file that has the
// position before the rewind with checkpoints after it would hide the loss from the next start.
func (p *pump) rewind() (state []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	lost, before := p.lost, p.committed
	p.lost = nil
	if lost == nil {
		return nil
	}
	for _, s := range p.window {
		s.done = true
	}
	p.window, p.inFlight, p.inFlightBytes, p.refused = nil, 0, 0, 0
	p.rewinds++
	p.committed = p.cursor.Rewind(lost.committed)
	p.uncount(before - p.committed)
	p.publisher.Rewind()
	p.log.Error("the bus has lost events that it had stored; those still in the spool are published again",
		"cause", lost.cause, "spool", p.spoolID, "from", p.committed+1, "to", before,
		"not_kept", p.committed-min(lost.committed, p.committed))
	return p.publisher.State(p.committed)
}

// uncount subtracts n events from the counts. The fate of each one is not known; most were stored. Needs mu.
func (p *pump) uncount(n uint64) {
	for f := range numBusFates {
		count := p.fates.of(f)
		less := min(n, *count)
		*count -= less
		n -= less
		if f == stored {
			p.fates.Again += less
		}
	}
}
