package bridge

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"
)

// cursorState is the first line of the state in a cursor file: the fates of all committed events, which add up to the
// committed sequence. The publisher state follows it.
type cursorState struct {
	Stored       uint64 `json:"stored"`
	Deadlettered uint64 `json:"deadlettered"`
	Quarantined  uint64 `json:"quarantined"`
	Skipped      uint64 `json:"skipped"`
	// Again is how many more were counted as stored and then lost.
	Again uint64 `json:"again"`
}

// load reads the state in the cursor file and returns the publisher state in it, nil if there is none.
func (p *pump) load() (publisher []byte, err error) {
	committed, state := p.cursor.Committed()
	p.committed = committed
	if state == nil {
		p.fates[skipped] = committed // the bus is new to this spool: its first event is the oldest that is kept
		return nil, nil
	}
	line, publisher, _ := bytes.Cut(state, []byte("\n"))
	var s cursorState
	if err := json.Unmarshal(line, &s); err != nil {
		return nil, fmt.Errorf("cannot read the publisher state in the cursor of %s: %w", p.bus, err)
	}
	p.fates, p.again = [numBusFates]uint64{s.Stored, s.Deadlettered, s.Quarantined, s.Skipped}, s.Again
	if len(publisher) == 0 {
		return nil, nil
	}
	return publisher, nil
}

// snapshot returns the committed sequence and the state to save with it, both as of one moment.
func (p *pump) snapshot() (committed uint64, state []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	state = fmt.Appendf(nil, "{\"stored\":%d,\"deadlettered\":%d,\"quarantined\":%d,\"skipped\":%d,\"again\":%d}\n",
		p.fates[stored], p.fates[deadlettered], p.fates[quarantined], p.fates[skipped], p.again)
	return p.committed, append(state, p.publisher.State(p.committed)...)
}

// busState is the part of a bus in /status and the metrics that the pump knows.
type busState struct {
	committed uint64 // the sum of fates
	fates     [numBusFates]uint64
	oldest    time.Time // arrival of the oldest event in flight; zero if there is none
	rewinds   uint64
	again     uint64
}

func (p *pump) state() busState {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := busState{fates: p.fates, rewinds: p.rewinds, again: p.again}
	for _, n := range p.fates {
		st.committed += n
	}
	if p.first < p.next {
		if d := p.slot(p.first).delivery; d != nil {
			st.oldest = d.ReceivedAt
		}
	}
	return st
}
