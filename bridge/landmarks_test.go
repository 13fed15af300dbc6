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
		l.Stored("ORDERS", "a", 10*n, n)
		l.Stored("ORDERS", "a", 10*n-5, 7777) // less far: of no interest
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
			back, why, err := l.Check("ORDERS", at(c.identity, c.look))
			if err != nil || back != c.committed || (why != nil) != c.lost {
				t.Errorf("%s: back to %d, %v, %v", c.name, back, why, err)
			}
			if c.lost {
				l.Lose(back)
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
			if _, why, err := again.Check("ORDERS", at(c.identity, c.look)); err != nil || why != nil {
				t.Errorf("%s: said again: %v, %v", c.name, why, err)
			}
		}
		l := marked(t, 10, 5)
		broken := errors.New("no answer")
		if _, why, err := l.Check("ORDERS", at("a", func(bridge.Landmark) (bridge.Sighting, error) { return bridge.Unknown, broken })); why != nil || !errors.Is(err, broken) {
			t.Errorf("no answer: %v, %v", why, err)
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
