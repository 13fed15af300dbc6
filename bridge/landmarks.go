package bridge

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"time"
)

// landmarkInterval is how often a landmark is taken of each place, at most.
const landmarkInterval = time.Second

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

	at int64 // when it was taken, in Unix seconds
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
//	landmark <place> <identity> <position> <number> <committed> <Unix seconds>
type Landmarks struct {
	each int // how many of a place are kept

	mu     sync.Mutex
	places map[string]*place
	due    time.Time // for the next
	lost   bool      // of some place, a landmark is
	back   uint64    // what is stored is known to be there up to here, if lost
	closed bool      // what is behind back is published again: landmarks of it are not kept any more
	text   []byte
	stale  bool // text is not of what there is
}

// place is what is known of one place.
type place struct {
	last  Landmark // what was stored since the last landmark was taken; Number 0 if nothing was
	marks []Landmark
}

// NewLandmarks takes from a note the landmarks of the run before, so many of each place, and returns what else there is
// in it.
func NewLandmarks(note []byte, each int) (l *Landmarks, rest []byte) {
	l = &Landmarks{each: each, places: make(map[string]*place), stale: true}
	for line := range bytes.Lines(note) {
		var m Landmark
		_, err := fmt.Sscanf(string(line), landmarkLine, &m.Place, &m.Identity, &m.Position, &m.Number, &m.Committed, &m.at)
		if err != nil {
			rest = append(rest, line...)
			continue
		}
		p := l.place(m.Place)
		p.marks = append(p.marks, m)
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

// Stored says that the event of that number is stored at a position. What is stored further on counts.
func (l *Landmarks) Stored(name, identity string, position, number uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.place(name)
	if p.last.Identity == identity && p.last.Position > position {
		return
	}
	p.last = Landmark{Place: name, Identity: identity, Position: position, Number: number}
}

// Note returns the lines to keep, as of the time when all up to that event was done; valid until the next call. Now and
// then, and after Close, it takes a landmark of each place where something was stored.
func (l *Landmarks) Note(committed uint64) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); !l.closed && now.After(l.due) || l.closed && !l.lost {
		l.due = now.Add(landmarkInterval)
		for _, p := range l.places {
			l.stale = p.take(committed, now.Unix(), l.each) || l.stale
		}
	}
	if l.stale {
		l.stale = false
		l.text = l.text[:0]
		for _, p := range l.places {
			for _, m := range p.marks {
				if !l.closed || !l.lost || m.Committed <= l.back && l.back > 0 {
					l.text = fmt.Appendf(l.text, landmarkLine, m.Place, m.Identity, m.Position, m.Number, m.Committed, m.at)
				}
			}
		}
	}
	return l.text
}

// Due reports whether there is a landmark to take though nothing is committed: the note is to be kept.
func (l *Landmarks) Due() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Now().Before(l.due) {
		return false
	}
	for _, p := range l.places {
		if p.last.Number != 0 {
			return true
		}
	}
	return false
}

// take takes a landmark, and lets go of the one that is missed least if there are too many.
func (p *place) take(committed uint64, now int64, each int) bool {
	m := p.last
	if m.Number == 0 {
		return false
	}
	p.last.Number = 0
	m.Committed, m.at = committed, now
	if p.marks = append(p.marks, m); len(p.marks) > each {
		p.marks = slices.Delete(p.marks, p.spare(now), p.spare(now)+1)
	}
	return true
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

// Check looks at the landmarks of a place, the newest first, until one is held. Why says that what is behind that is lost,
// and back how far the bus holds what it stored; nil is that nothing is known to be lost. The place is asked for after
// the landmarks are chosen, so that it is not older than they are. An error ends it.
func (l *Landmarks) Check(name string, ask func() (Place, error)) (back uint64, why, err error) {
	marks := l.of(name)
	if len(marks) == 0 {
		return 0, nil, nil
	}
	now, err := ask()
	if err != nil {
		return 0, nil, err
	}
	for _, m := range slices.Backward(marks) {
		saw := Lost
		if m.Identity == now.Identity {
			if saw, err = now.Look(m); err != nil {
				return 0, nil, err
			}
		} else if why == nil {
			why = fmt.Errorf("%s was made anew", name)
		}
		if saw == Held {
			back = m.Committed
			break
		}
		if saw == Lost && why == nil {
			why = fmt.Errorf("%s does not hold event %d at %d any more", name, m.Number, m.Position)
		}
	}
	if why == nil {
		back = 0
	}
	return back, why, nil
}

// of are the landmarks of a place, the oldest first, and what was stored last.
func (l *Landmarks) of(name string) []Landmark {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.place(name)
	if p.last.Number == 0 {
		return slices.Clone(p.marks)
	}
	return append(slices.Clone(p.marks), p.last)
}

// Lose notes that the bus holds what it stored up to there only, and returns the lowest such number.
func (l *Landmarks) Lose(back uint64) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.lost || back < l.back {
		l.lost, l.back = true, back
	}
	return l.back
}

// Forget drops all landmarks: of another bus.
func (l *Landmarks) Forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.places)
	l.stale = true
}

// Close says that the publisher is closed. If something was lost, the next one knows nothing of what is behind it.
func (l *Landmarks) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed, l.stale = true, true
}
