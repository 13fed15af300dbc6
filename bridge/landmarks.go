package bridge

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"time"
)

// landmarkInterval is how often a landmark is taken of each place, at most: as often as a cursor is saved.
const landmarkInterval = 200 * time.Millisecond

// Landmark is an event that the bus stored, and where: if the bus does not hold it there any more, it has lost what it
// stored since.
type Landmark struct {
	// Place is the stream, or the topic and partition, and Identity tells one of that name from another that was made
	// after it. Neither has a space in it.
	Place, Identity string
	// Position is where in the place, and Number that of the event there.
	Position, Number uint64
	// Committed is how far the bus was when the landmark was taken: all up to that event is stored no further than
	// Position.
	Committed uint64

	at int64 // when it was taken, in Unix milliseconds
}

// Sighting is what a look at a landmark finds.
type Sighting int

// The sightings.
const (
	Held    Sighting = iota // the event is there
	Lost                    // it is not, though nobody removed it
	Unknown                 // it may have been removed, or nobody can tell
)

// Landmarks are those of one bus: the newest of each place, and fewer and fewer of longer ago. They are kept in the
// publisher's note, a line for each:
//
//	landmark <place> <identity> <position> <number> <committed> <Unix milliseconds>
type Landmarks struct {
	each int // how many of a place are kept

	mu     sync.Mutex
	places map[string]*place
	due    time.Time // for the next
	lost   bool      // something is, of some place
	back   uint64    // what is stored is known to be there up to here, if lost
	closed bool      // what is behind back is published again: landmarks of it are not kept any more
}

// place is what is known of one place.
type place struct {
	// last is what is stored furthest, as far as we know. Only when fresh is nothing of ours further: then something was
	// stored behind all that earlier runs stored. No landmark was taken of it yet if pending.
	last           Landmark
	fresh, pending bool
	marks          []Landmark

	// verified is the furthest position at which this run saw a landmark, with all before it.
	verified uint64
	// Of a place that lost something: its identity now, and up to where it holds what it stored.
	lost     bool
	identity string
	holds    uint64
}

// NewLandmarks takes from a note the landmarks of the run before, so many of each place, and returns what else there is
// in it.
func NewLandmarks(note []byte, each int) (l *Landmarks, rest []byte) {
	l = &Landmarks{each: each, places: make(map[string]*place)}
	for line := range bytes.Lines(note) {
		var m Landmark
		_, err := fmt.Sscanf(string(line), landmarkLine, &m.Place, &m.Identity, &m.Position, &m.Number, &m.Committed, &m.at)
		if err != nil {
			rest = append(rest, line...)
			continue
		}
		p := l.place(m.Place)
		p.marks, p.last = append(p.marks, m), m
	}
	return l, rest
}

const landmarkLine = "landmark %s %s %d %d %d %d\n"

// place needs mu.
func (l *Landmarks) place(name string) *place {
	p := l.places[name]
	if p == nil {
		p = new(place)
		l.places[name] = p
	}
	return p
}

// Stored says that the event of that number was stored just now, at that position. False is that something is stored
// further already, so that the place has lost what it had: it is to be looked at.
func (l *Landmarks) Stored(name, identity string, position, number uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.place(name)
	if p.last.Identity == identity && p.last.Position >= position {
		return false
	}
	p.reach(identity, position, number)
	p.fresh = true
	return true
}

// Found says that the event of that number was stored at that position some time ago.
func (l *Landmarks) Found(name, identity string, position, number uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.place(name); position > 0 && (p.last.Identity != identity || p.last.Position < position) {
		p.reach(identity, position, number)
	}
}

func (p *place) reach(identity string, position, number uint64) {
	if p.last.Identity != identity {
		p.fresh, p.verified = false, 0
	}
	p.last.Identity, p.last.Position, p.last.Number = identity, position, number
	p.pending = true
}

// Note returns the lines to keep, as of the time when all up to that event was done. Now and then, and after Close, it
// takes a landmark of each place where something was stored.
func (l *Landmarks) Note(committed uint64) (text []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); !l.closed && now.After(l.due) || l.closed && !l.lost {
		l.due = now.Add(landmarkInterval)
		for name, p := range l.places {
			p.take(name, committed, now, l.each)
		}
	}
	for _, p := range l.places {
		for _, m := range p.marks {
			if !l.closed || l.keeps(p, m) {
				text = fmt.Appendf(text, landmarkLine, m.Place, m.Identity, m.Position, m.Number, m.Committed, m.at)
			}
		}
	}
	return text
}

// keeps reports whether a landmark is of use to the next publisher. Needs mu.
func (l *Landmarks) keeps(p *place, m Landmark) bool {
	switch {
	case !l.lost:
		return true
	case m.Committed > l.back || l.back == 0:
		return false
	default:
		return !p.lost || m.Identity == p.identity && m.Position <= p.holds
	}
}

// Due reports whether there is a landmark to take though nothing is committed.
func (l *Landmarks) Due() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Now().Before(l.due) {
		return false
	}
	for _, p := range l.places {
		if p.due() {
			return true
		}
	}
	return false
}

// due reports whether there is a landmark to take. One that is not fresh has to have another before it: see take.
func (p *place) due() bool {
	n := len(p.marks)
	return p.pending && (p.fresh || n > 0 && p.marks[n-1].Identity == p.last.Identity)
}

// oldLandmark is from when on one of a place is enough.
const oldLandmark = time.Hour

// take takes a landmark, and lets go of the one that is missed least if there are too many.
func (p *place) take(name string, committed uint64, now time.Time, each int) {
	if !p.due() {
		return
	}
	p.pending = false
	m := p.last
	if !p.fresh { // some of what is done since the one before it may lie behind it
		committed = p.marks[len(p.marks)-1].Committed
	}
	m.Place, m.Committed, m.at = name, committed, now.UnixMilli()
	p.marks = append(p.marks, m)
	for len(p.marks) > 2 && p.marks[1].at < now.Add(-oldLandmark).UnixMilli() {
		p.marks = slices.Delete(p.marks, 0, 1)
	}
	if len(p.marks) > each {
		i := p.spare(m.at)
		p.marks = slices.Delete(p.marks, i, i+1)
	}
}

// spare is the landmark without which the gap between its neighbours is shortest for how long ago they are.
func (p *place) spare(now int64) (least int) {
	shortest := 0.0
	for i := 1; i < len(p.marks)-1; i++ {
		gap := float64(p.marks[i+1].at-p.marks[i-1].at) / float64(now-p.marks[i-1].at+1)
		if least == 0 || gap < shortest {
			least, shortest = i, gap
		}
	}
	return least
}

// Place is what a bus says of a place now.
type Place struct {
	Identity string
	// Look looks at a landmark of that identity.
	Look func(Landmark) (Sighting, error)
}

// Loss is what a place has lost.
type Loss struct {
	// Why names the first landmark that is lost.
	Why error
	// Back is how far the bus holds what it stored.
	Back uint64

	identity string
	holds    uint64 // up to where the place does
}

// Check looks at the landmarks of a place, the newest first, until one is held that was seen before: something may be
// stored behind a hole. Nil is that nothing is known to be lost. The place is asked for after the landmarks are chosen, so
// that it is not older than they are. An error ends it.
func (l *Landmarks) Check(name string, ask func() (Place, error)) (*Loss, error) {
	marks, verified := l.of(name)
	if len(marks) == 0 {
		return nil, nil
	}
	now, err := ask()
	if err != nil {
		return nil, err
	}
	var loss *Loss
	held := false     // one is, that is behind no lost one
	var best Landmark // that one
	for _, m := range slices.Backward(marks) {
		saw, why := Lost, fmt.Errorf("%s was made anew", name)
		if m.Identity == now.Identity {
			why = fmt.Errorf("%s does not hold event %d at %d any more", name, m.Number, m.Position)
			if saw, err = now.Look(m); err != nil {
				return nil, err
			}
		}
		if saw == Lost {
			loss, held = &Loss{Why: why, identity: now.Identity}, false
		}
		if saw == Held && !held {
			held, best = true, m
		}
		if saw == Held && m.Position <= verified {
			break
		}
	}
	if loss != nil && held {
		loss.Back, loss.holds = best.Committed, best.Position
	}
	if loss == nil && held {
		l.verify(name, best)
	}
	return loss, nil
}

func (l *Landmarks) verify(name string, m Landmark) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.place(name); p.last.Identity == m.Identity {
		p.verified = max(p.verified, m.Position)
	}
}

// of are the landmarks of a place, the oldest first, with what was stored last; and up to where they were seen.
func (l *Landmarks) of(name string) (marks []Landmark, verified uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.place(name)
	marks = slices.Clone(p.marks)
	if p.pending {
		marks = append(marks, p.last)
	}
	return marks, p.verified
}

// Lose notes what a place has lost, and returns how far the bus holds what it stored in all places.
func (l *Landmarks) Lose(name string, loss *Loss) (back uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.place(name)
	p.lost, p.identity, p.holds = true, loss.identity, loss.holds
	if !l.lost || loss.Back < l.back {
		l.lost, l.back = true, loss.Back
	}
	return l.back
}

// Forget drops all landmarks: of another bus.
func (l *Landmarks) Forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.places)
}

// Close says that the publisher is closed. If something was lost, the next one knows nothing of what is behind it.
func (l *Landmarks) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
}
