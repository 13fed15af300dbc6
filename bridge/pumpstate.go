package bridge

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// busFates counts the fates of all committed events of a bus. They add up to the committed sequence.
type busFates struct {
	Stored       uint64 `json:"stored"`       // Events stored in all their destinations.
	Deadlettered uint64 `json:"deadlettered"` // Dead letters: not understood, or refused by the bus.
	Quarantined  uint64 `json:"quarantined"`  // Events in the quarantine file: the bus refuses them everywhere.
	Skipped      uint64 `json:"skipped"`      // Sequences without a record: damaged, or older than the bus.
}

// of returns the count of a fate.
func (c *busFates) of(f busFate) *uint64 {
	return [numBusFates]*uint64{&c.Stored, &c.Deadlettered, &c.Quarantined, &c.Skipped}[f]
}

// cursorState is the first line of the state in a cursor file. The publisher state follows it.
type cursorState struct {
	busFates
	// Again is how many more were counted as stored and then lost.
	Again uint64 `json:"again"`
}

// load reads the state in the cursor file and returns the publisher state in it, nil if there is none.
func (p *pump) load() (publisher []byte, err error) {
	committed, state := p.cursor.Committed()
	p.committed = committed
	if state == nil {
		p.fates.Skipped = committed // the bus is new to this spool: its first event is the oldest that is kept
		return nil, nil
	}
	line, publisher, _ := bytes.Cut(state, []byte("\n"))
	if err := json.Unmarshal(line, &p.fates); err != nil {
		return nil, fmt.Errorf("cannot read the publisher state in the cursor of %s: %w", p.bus, err)
	}
	if len(publisher) == 0 {
		return nil, nil
	}
	return publisher, nil
}

// snapshot returns the committed sequence and the state to save with it, both as of one moment.
func (p *pump) snapshot() (committed uint64, state []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	state, _ = json.Marshal(p.fates) // numbers
	return p.committed, append(append(state, '\n'), p.publisher.State(p.committed)...)
}

// status returns what the pump knows of the bus.
func (p *pump) status() busStatus {
	var st busStatus
	p.conditions.fill(&st)
	p.mu.Lock()
	defer p.mu.Unlock()
	st.Committed, st.busFates, st.again, st.Rewound = p.committed, p.fates.busFates, p.fates.Again, p.rewinds
	if len(p.window) > 0 && p.window[0].delivery != nil {
		st.oldest = p.window[0].delivery.ReceivedAt
	}
	return st
}
