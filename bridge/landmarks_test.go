package bridge_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postbridge/postbridge/bridge"
)

// marked has landmarks of one place, one for each second: event n at 10n, with all up to n-1 done.
func marked(t *testing.T, each, seconds int) *bridge.Landmarks {
	t.Helper()
	l, _ := bridge.NewLandmarks(nil, each)
	for n := uint64(1); n <= uint64(seconds); n++ {
		if !l.Stored("ORDERS", "a", 10*n, n) || l.Stored("ORDERS", "a", 10*n-5, 7777) {
			t.Errorf("at %d: what is less far is not told from what is further", n)
		}
		l.Found("ORDERS", "a", 10*n-5, 7777)
		l.Note(n - 1)
		time.Sleep(1001 * time.Millisecond)
	}
	return l
}

// upTo is a look that finds what is stored up to a position.
func upTo(end uint64) func(bridge.Landmark) (bridge.Sighting, error) {
	return func(m bridge.Landmark) (bridge.Sighting, error) {
		if m.Position > end {
			return bridge.Lost, nil
		}
		return bridge.Held, nil
	}
}

// at is a place of that identity.
func at(identity string, look func(bridge.Landmark) (bridge.Sighting, error)) func() (bridge.Place, error) {
	return func() (bridge.Place, error) { return bridge.Place{Identity: identity, Look: look}, nil }
}

func TestLandmarks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			name, identity string
			look           func(bridge.Landmark) (bridge.Sighting, error)
			committed      uint64
			lost           bool
		}{
			{"all there", "a", upTo(1000), 0, false},
			{"the end is gone", "a", upTo(45), 3, true},
			{"all is gone", "a", upTo(0), 0, true},
			{"made anew", "b", upTo(1000), 0, true},
			{"nobody can tell", "a", func(bridge.Landmark) (bridge.Sighting, error) { return bridge.Unknown, nil }, 0, false},
			{"the end is gone, the rest was removed", "a", func(m bridge.Landmark) (bridge.Sighting, error) {
				if m.Number == 5 {
					return bridge.Lost, nil
				}
				return bridge.Unknown, nil
			}, 0, true},
		} {
			l := marked(t, 10, 5)
			loss, err := l.Check("ORDERS", at(c.identity, c.look))
			if err != nil || (loss != nil) != c.lost || loss != nil && loss.Back != c.committed {
				t.Errorf("%s: %+v, %v", c.name, loss, err)
			}
			if loss != nil {
				l.Lose("ORDERS", loss)
			}
			// What is lost is forgotten with the publisher, not before: until then, the next start has to find out.
			if n := strings.Count(string(l.Note(5)), "\n"); n != 5 {
				t.Errorf("%s: %d landmarks before the publisher is closed", c.name, n)
			}
			l.Close()
			again, rest := bridge.NewLandmarks(append([]byte("else\n"), l.Note(c.committed)...), 10)
			if string(rest) != "else\n" {
				t.Errorf("%s: the rest of the note is %q", c.name, rest)
			}
			if loss, err := again.Check("ORDERS", at(c.identity, c.look)); err != nil || loss != nil {
				t.Errorf("%s: said again: %+v, %v", c.name, loss, err)
			}
		}
		l := marked(t, 10, 5)
		broken := errors.New("no answer")
		look := func(bridge.Landmark) (bridge.Sighting, error) { return bridge.Unknown, broken }
		if loss, err := l.Check("ORDERS", at("a", look)); loss != nil || !errors.Is(err, broken) {
			t.Errorf("no answer: %+v, %v", loss, err)
		}
		l.Forget()
		if note := l.Note(5); len(note) > 0 {
			t.Errorf("of another bus: %s", note)
		}
	})
}

// TestLandmarksAge keeps those of long ago sparsely.
func TestLandmarksAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const each, seconds = 12, 3600
		l := marked(t, each, seconds)
		var back []uint64
		for line := range strings.Lines(string(l.Note(seconds))) {
			var m bridge.Landmark
			var at int64
			if _, err := fmt.Sscanf(line, "landmark %s %s %d %d %d %d", &m.Place, &m.Identity, &m.Position, &m.Number, &m.Committed, &at); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			back = append(back, seconds-m.Number)
		}
		if len(back) != each {
			t.Fatalf("landmarks %v seconds ago", back)
		}
		for i, age := range back[:each-1] {
			if next := back[i+1]; next >= age || age > 8*next+8 {
				t.Errorf("a gap from %d to %d seconds ago: %v", age, next, back)
			}
		}
		if back[each-1] > 1 {
			t.Errorf("the newest is %d seconds old", back[each-1])
		}
	})
}

// place is what a stream holds: the number of the event at each position. What is behind the end was lost.
type place map[uint64]uint64

func (p place) until(end uint64) func() (bridge.Place, error) {
	return at("a", func(m bridge.Landmark) (bridge.Sighting, error) {
		n, there := p[m.Position]
		switch {
		case m.Position <= end && !there:
			return bridge.Unknown, nil
		case m.Position <= end && n == m.Number:
			return bridge.Held, nil
		default:
			return bridge.Lost, nil
		}
	})
}

// mustLose checks that there is a loss, and returns how far back it goes.
func mustLose(t *testing.T, l *bridge.Landmarks, ask func() (bridge.Place, error)) uint64 {
	t.Helper()
	loss, err := l.Check("ORDERS", ask)
	if err != nil || loss == nil {
		t.Fatalf("the loss is not found: %v", err)
	}
	return l.Lose("ORDERS", loss)
}

// note takes a landmark of what was stored last.
func note(l *bridge.Landmarks, committed uint64) {
	time.Sleep(time.Second)
	l.Note(committed)
}

// TestLandmarksOfOneCommit: while one event waits, landmarks have the same number of what is done. The one that is lost is
// not found again by the next publisher.
func TestLandmarksOfOneCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := bridge.NewLandmarks(nil, 12)
		l.Stored("ORDERS", "a", 95, 95)
		note(l, 90)
		l.Stored("ORDERS", "a", 99, 99)
		note(l, 90)
		left := place{95: 95}.until(97)
		back := mustLose(t, l, left)
		l.Close()
		next, _ := bridge.NewLandmarks(l.Note(back), 12)
		if loss, err := next.Check("ORDERS", left); back != 90 || loss != nil || err != nil {
			t.Errorf("back to %d, and then %+v, %v", back, loss, err)
		}
	})
}

// TestLandmarksBehindHole: what was stored behind what is lost, before anybody looked, does not hide it.
func TestLandmarksBehindHole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := bridge.NewLandmarks(nil, 12)
		l.Stored("ORDERS", "a", 90, 90)
		note(l, 90)
		l.Stored("ORDERS", "a", 100, 100)
		note(l, 100)
		l.Stored("ORDERS", "a", 101, 101)
		note(l, 101)
		if back := mustLose(t, l, place{90: 90, 100: 7777, 101: 101}.until(101)); back != 90 {
			t.Errorf("back to %d", back)
		}
	})
}

// TestLandmarksVerified: what was seen once, with all before it, is not looked at again and again.
func TestLandmarksVerified(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := marked(t, 10, 8)
		looks := 0
		ask := at("a", func(bridge.Landmark) (bridge.Sighting, error) { looks++; return bridge.Held, nil })
		for _, want := range []int{8, 9, 10} {
			if loss, err := l.Check("ORDERS", ask); loss != nil || err != nil || looks != want {
				t.Errorf("%d looks, want %d; %+v, %v", looks, want, loss, err)
			}
		}
	})
}

// TestLandmarksFoundAgain: an event that was stored by the run before, where nobody saw it, is not beyond a landmark.
func TestLandmarksFoundAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// 92 had to wait, and was stored at 99; the crash left the cursor at 92 and a landmark at 80.
		l, _ := bridge.NewLandmarks([]byte("landmark ORDERS a 80 80 80 1\n"), 12)
		l.Found("ORDERS", "a", 95, 95)
		note(l, 95)
		l.Stored("ORDERS", "a", 104, 104)
		note(l, 104)
		if back := mustLose(t, l, place{80: 80, 95: 95}.until(95)); back != 80 {
			t.Errorf("back to %d", back)
		}

		// The acknowledgement of 102 was lost; it is found further on than the last that was stored.
		l, _ = bridge.NewLandmarks(nil, 12)
		l.Stored("ORDERS", "a", 80, 80)
		note(l, 80)
		l.Stored("ORDERS", "a", 101, 101)
		l.Found("ORDERS", "a", 102, 102)
		note(l, 102)
		if back := mustLose(t, l, place{80: 80, 101: 101}.until(101)); back != 80 {
			t.Errorf("back to %d", back)
		}
	})
}

// TestLandmarksOnlyFound: a run that found all where the run before had stored it, and stored nothing, leaves a landmark of
// that: what is done is lost without it, too.
func TestLandmarksOnlyFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := bridge.NewLandmarks([]byte("landmark ORDERS a 80 80 79 1\n"), 12)
		l.Found("ORDERS", "a", 95, 95)
		if !l.Due() {
			t.Error("there is nothing to note")
		}
		note(l, 95)
		if l.Due() {
			t.Error("it is noted, and still to be noted")
		}
		l.Close()
		next, _ := bridge.NewLandmarks(l.Note(95), 12)
		if back := mustLose(t, next, place{80: 80}.until(80)); back != 79 {
			t.Errorf("back to %d", back)
		}
		// What else that run had stored may lie behind it: 92, say, at 99.
		next, _ = bridge.NewLandmarks(l.Note(95), 12)
		next.Stored("ORDERS", "a", 104, 104)
		note(next, 104)
		if back := mustLose(t, next, place{80: 80, 95: 95}.until(95)); back != 79 {
			t.Errorf("back to %d", back)
		}

		// Where nothing was noted, nobody knows what lies before it.
		l, _ = bridge.NewLandmarks(nil, 12)
		l.Found("ORDERS", "a", 95, 95)
		if note := l.Note(95); l.Due() || len(note) > 0 {
			t.Errorf("noted %q", note)
		}
	})
}
