package publishers_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postbridge/postbridge/publishers"
)

func load(state string) *publishers.Checkpoints {
	c, _ := publishers.LoadCheckpoints([]byte(state), publishers.BlindFor, slog.New(slog.DiscardHandler))
	return c
}

// stored has n events stored in one stream: event i at 10i, each with all before it done.
func stored(t *testing.T, n int) *publishers.Checkpoints {
	t.Helper()
	c := load("")
	for i := uint64(1); i <= uint64(n); i++ {
		if !c.Stored("ORDERS", "a", 10*i, i) || c.Stored("ORDERS", "a", 10*i-5, 7777) {
			t.Errorf("at %d: an earlier position is not told from a later one", i)
		}
		c.Found("ORDERS", "a", 10*i-5, 7777)
		c.State(i)
	}
	return c
}

type lookup func(publishers.Checkpoint) (publishers.Presence, error)

// upTo is a stream of that identity that ends at a position.
func upTo(identity string, end uint64) lookup {
	return func(k publishers.Checkpoint) (publishers.Presence, error) {
		if k.Identity != identity || k.Position > end {
			return publishers.Missing, nil
		}
		return publishers.Present, nil
	}
}

func unknown(publishers.Checkpoint) (publishers.Presence, error) { return publishers.Unknown, nil }

// check checks a stream until events go on or a loss is confirmed.
func check(c *publishers.Checkpoints, look lookup) (loss *publishers.Loss) {
	s := c.NewStream("ORDERS", look)
	for {
		loss, err := c.Check(s)
		if err == nil {
			return loss
		}
		time.Sleep(time.Second)
	}
}

// mustLose checks that there is a loss, and returns the sequence to rewind to.
func mustLose(t *testing.T, c *publishers.Checkpoints, look lookup) uint64 {
	t.Helper()
	loss := check(c, look)
	if loss == nil {
		t.Fatal("the loss is not found")
	}
	return c.RewindTo(loss)
}

func TestCheckpoints(t *testing.T) {
	for _, test := range []struct {
		name     string
		look     lookup
		rewindTo uint64
		lost     bool
	}{
		{"all there", upTo("a", 1000), 0, false},
		{"the end is gone", upTo("a", 45), 4, true},
		{"all is gone", upTo("a", 0), 0, true},
		{"made anew", upTo("b", 1000), 0, true},
		{"nobody can tell", unknown, 0, false},
		{"the end is gone, the rest was removed", func(k publishers.Checkpoint) (publishers.Presence, error) {
			if k.Sequence == 5 {
				return publishers.Missing, nil
			}
			return publishers.Unknown, nil
		}, 0, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := stored(t, 5)
				loss := check(c, test.look)
				if (loss != nil) != test.lost || loss != nil && loss.RewindTo != test.rewindTo {
					t.Fatalf("%+v", loss)
				}
				// What is lost is forgotten with the rewind, not before: until then, the next start has to find it.
				if n := strings.Count(string(c.State(5)), "\n"); n != 5 {
					t.Errorf("%d checkpoints before the rewind", n)
				}
				if again := check(load(string(c.State(5))), test.look); (again != nil) != test.lost {
					t.Errorf("a run that begins before the rewind finds %+v", again)
				}
				committed := uint64(5)
				if test.lost {
					committed = test.rewindTo
					if lost := c.Rewind(); !lost["ORDERS"] {
						t.Errorf("lost: %v", lost)
					}
				}
				next, rest := publishers.LoadCheckpoints(
					append([]byte("else\n"), c.State(committed)...),
					publishers.BlindFor,
					nil,
				)
				if string(rest) != "else\n" {
					t.Errorf("the rest of the state is %q", rest)
				}
				if loss := check(next, test.look); loss != nil {
					t.Errorf("found again: %+v", loss)
				}
			})
		})
	}
	c := stored(t, 5)
	c.Forget()
	if state := c.State(5); len(state) > 0 {
		t.Errorf("of another bus: %s", state)
	}
}

// TestRewindToMany rewinds once for what several streams have lost.
func TestRewindToMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const (
			orders      = "checkpoint ORDERS a 10 1 1\ncheckpoint ORDERS a 40 4 4\n"
			rejects     = "checkpoint REJECTS a 1 2 2\n"
			deadletters = "checkpoint DEADLETTERS a 1 1 1\ncheckpoint DEADLETTERS a 2 5 5\n"
		)
		c := load(orders + "checkpoint ORDERS a 50 5 5\n" +
			rejects + "checkpoint REJECTS a 2 3 3\n" + deadletters)
		c.NewStream("REJECTS", upTo("a", 1))
		c.NewStream("DEADLETTERS", func(publishers.Checkpoint) (publishers.Presence, error) {
			return publishers.Unknown, errors.New("no answer")
		})
		if rewindTo := mustLose(t, c, upTo("a", 45)); rewindTo != 2 {
			t.Errorf("rewind to %d", rewindTo)
		}
		if lost := c.Rewind(); !lost["ORDERS"] || !lost["REJECTS"] || lost["DEADLETTERS"] {
			t.Errorf("lost: %v", lost)
		}
		if state := string(c.State(2)); state != deadletters+orders+rejects {
			t.Errorf("state %s", state)
		}
	})
}

// TestCheckpointDistances keeps few checkpoints, at distances that grow.
func TestCheckpointDistances(t *testing.T) {
	const kept, events = 5, 3600
	c := stored(t, events)
	var distances []uint64
	for line := range strings.Lines(string(c.State(events))) {
		var position, sequence, committed uint64
		_, err := fmt.Sscanf(line, "checkpoint ORDERS a %d %d %d", &position, &sequence, &committed)
		if err != nil || sequence != committed {
			t.Fatalf("%q: %v", line, err)
		}
		distances = append(distances, events-sequence)
	}
	if len(distances) != kept || distances[kept-1] > 0 {
		t.Fatalf("checkpoints %v events back", distances)
	}
	for i, distance := range distances[:kept-1] {
		if next := distances[i+1]; next >= distance || distance > 64*next+64 {
			t.Errorf("a gap from %d to %d events back: %v", distance, next, distances)
		}
	}
}

// TestCheck: a loss is believed when it is seen for a while, and no answer confirms nothing. Events wait until it is
// known, but not for a check that fails for long.
func TestCheck(t *testing.T) {
	present, missing, silent := publishers.Present, publishers.Missing, publishers.Presence(-1)
	for _, test := range []struct {
		name    string
		answers []publishers.Presence // one a second, the last of them for ever
		lost    bool
		after   int // seconds until events go on, or the loss is believed
	}{
		{"present", []publishers.Presence{present}, false, 0},
		{"lost", []publishers.Presence{missing}, true, 3},
		{"present again", []publishers.Presence{missing, missing, present}, false, 2},
		{"silent", []publishers.Presence{silent}, false, 30},
		{"silent, then lost", []publishers.Presence{silent, silent, silent, missing}, true, 6},
		{"lost, then silent", []publishers.Presence{missing, missing, silent}, false, 32},
		{"lost, silent, lost", []publishers.Presence{missing, missing, silent, missing}, true, 6},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				c, _ := publishers.LoadCheckpoints([]byte("checkpoint ORDERS a 80 80 80\n"), publishers.BlindFor,
					slog.New(slog.NewTextHandler(&log, nil)))
				begin, answers := time.Now(), test.answers
				loss := check(c, func(publishers.Checkpoint) (publishers.Presence, error) {
					answer := answers[0]
					answers = answers[min(1, len(answers)-1):]
					if answer == silent {
						return publishers.Unknown, errors.New("no answer")
					}
					return answer, nil
				})
				if after := time.Since(begin); (loss != nil) != test.lost ||
					after != time.Duration(test.after)*time.Second {
					t.Errorf("after %v: %+v", after, loss)
				}
				if logged := strings.Contains(log.String(), "going on without"); logged != (test.after >= 30) {
					t.Errorf("logged: %s", log.String())
				}
			})
		})
	}
}

// TestLoadLandmarks reads what earlier releases wrote: as many checkpoints, under another name and with a time.
func TestLoadLandmarks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var state string
		for i := 1; i <= 12; i++ {
			state += fmt.Sprintf("landmark ORDERS a %d %d %d 1764385200%03d\n", 10*i, i, i, i)
		}
		c := load(state)
		if n := strings.Count(string(c.State(12)), "checkpoint ORDERS a "); n != 5 {
			t.Errorf("%d checkpoints are kept: %s", n, c.State(12))
		}
		if loss := check(c, upTo("a", 120)); loss != nil {
			t.Errorf("%+v", loss)
		}
		if rewindTo := mustLose(t, c, upTo("a", 119)); rewindTo == 0 || rewindTo > 11 {
			t.Errorf("rewind to %d", rewindTo)
		}
	})
}

// places is what a stream holds: the number of the event at each position. What is behind the end was lost.
type places map[uint64]uint64

func (p places) until(end uint64) lookup {
	return func(k publishers.Checkpoint) (publishers.Presence, error) {
		sequence, there := p[k.Position]
		switch {
		case k.Position <= end && !there:
			return publishers.Unknown, nil
		case k.Position <= end && sequence == k.Sequence:
			return publishers.Present, nil
		default:
			return publishers.Missing, nil
		}
	}
}

// TestCheckpointsOfOneCommit: while one event waits, checkpoints have the same number of what is done. The one that is
// lost is not found again by the next publisher.
func TestCheckpointsOfOneCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := load("")
		c.Stored("ORDERS", "a", 95, 95)
		c.State(90)
		c.Stored("ORDERS", "a", 99, 99)
		c.State(90)
		left := places{95: 95}.until(97)
		rewindTo := mustLose(t, c, left)
		c.Rewind()
		if loss := check(load(string(c.State(rewindTo))), left); rewindTo != 90 || loss != nil {
			t.Errorf("rewind to %d, and then %+v", rewindTo, loss)
		}
	})
}

// TestRewindToOldestKept: the spool may no longer have what a rewind is to go to. What is lost is not found again.
func TestRewindToOldestKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := stored(t, 5)
		if rewindTo := mustLose(t, c, upTo("b", 0)); rewindTo != 0 {
			t.Errorf("rewind to %d", rewindTo)
		}
		c.Rewind()
		if loss := check(load(string(c.State(5))), upTo("b", 0)); loss != nil {
			t.Errorf("%+v", loss)
		}
	})
}

// TestCheckpointsBehindHole: what was stored behind what is lost, before a check, does not hide it.
func TestCheckpointsBehindHole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := load("")
		for _, n := range []uint64{90, 100, 101} {
			c.Stored("ORDERS", "a", n, n)
			c.State(n)
		}
		if rewindTo := mustLose(t, c, places{90: 90, 100: 7777, 101: 101}.until(101)); rewindTo != 90 {
			t.Errorf("rewind to %d", rewindTo)
		}
	})
}

// TestCheckpointsFoundAgain: an event that was stored by the run before, where nobody saw it, is not beyond a
// checkpoint.
func TestCheckpointsFoundAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// 92 had to wait, and was stored at 99; the crash left the cursor at 92 and a checkpoint at 80.
		c := load("checkpoint ORDERS a 80 80 80\n")
		c.Found("ORDERS", "a", 95, 95)
		c.State(95)
		c.Stored("ORDERS", "a", 104, 104)
		c.State(104)
		if rewindTo := mustLose(t, c, places{80: 80, 95: 95}.until(95)); rewindTo != 80 {
			t.Errorf("rewind to %d", rewindTo)
		}

		// The acknowledgement of 102 was lost; it is found further on than the last that was stored.
		c = load("")
		c.Stored("ORDERS", "a", 80, 80)
		c.State(80)
		c.Stored("ORDERS", "a", 101, 101)
		c.Found("ORDERS", "a", 102, 102)
		c.State(102)
		if rewindTo := mustLose(t, c, places{80: 80, 101: 101}.until(101)); rewindTo != 80 {
			t.Errorf("rewind to %d", rewindTo)
		}
	})
}

// TestCheckpointsOnlyFound: a run that found all where the run before had stored it, and stored nothing, leaves a
// checkpoint of that: what is done is lost without it, too.
func TestCheckpointsOnlyFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := load("checkpoint ORDERS a 80 80 79\n")
		c.Found("ORDERS", "a", 95, 95)
		left := string(c.State(95))
		if rewindTo := mustLose(t, load(left), places{80: 80}.until(80)); rewindTo != 79 {
			t.Errorf("rewind to %d", rewindTo)
		}
		// What else that run had stored may lie behind it: 92, say, at 99.
		next := load(left)
		next.Stored("ORDERS", "a", 104, 104)
		next.State(104)
		if rewindTo := mustLose(t, next, places{80: 80, 95: 95}.until(95)); rewindTo != 79 {
			t.Errorf("rewind to %d", rewindTo)
		}

		// Where there is no checkpoint, nobody knows what lies before it.
		c = load("")
		c.Found("ORDERS", "a", 95, 95)
		if state := c.State(95); len(state) > 0 {
			t.Errorf("state %q", state)
		}
	})
}
