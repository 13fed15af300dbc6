package bridge_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postbridge/postbridge/bridge/spool/crashfs"
)

// lose makes the bus lose all that it stored, and report that.
func (f *fakeBus) lose() {
	f.mu.Lock()
	f.stored = nil
	f.mu.Unlock()
	f.rewound(0, errors.New("the stream was made anew"))
}

// sequences returns the sequences of what the bus stored, sorted.
func (f *fakeBus) sequences() (all []uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range f.stored {
		all = append(all, d.Sequence)
	}
	slices.Sort(all)
	return all
}

// TestRewindNotSaved: whichever file operation fails, and whether it happened all the same or not, nothing is published
// before the rewound cursor is on disk. So a crash leaves a bus that still lacks what it lost, and the next start finds
// the same loss, or a cursor that is rewound.
func TestRewindNotSaved(t *testing.T) {
	const events = 10
	for _, op := range []crashfs.Op{crashfs.Write, crashfs.Sync} {
		for _, outcome := range []crashfs.Outcome{crashfs.Failed, crashfs.Happened} {
			t.Run(fmt.Sprintf("%s %s", op, outcome), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f, fs := newFakeBus(t), crashfs.New(t)
					b, s := pumping(t, f, fs)
					for i := range events {
						appendOrder(t, s, fmt.Sprint(i))
					}
					time.Sleep(time.Second) // the cursor is saved
					fs.Inject(crashfs.Fault{Op: op, Nth: 1, Outcome: outcome, Sticky: true})
					f.lose()
					time.Sleep(time.Minute)
					if again := f.sequences(); again != nil {
						t.Errorf("%v are published before the rewound cursor is saved", again)
					}
					up, waiting, causes := b.Bus("nats")
					if up || waiting != events || !strings.Contains(strings.Join(causes, "\n"), "cursor: ") {
						t.Errorf("up %v, %d waiting, %q", up, waiting, causes)
					}
					for name, left := range map[string]*crashfs.FS{
						"killed": fs.Restart(), "the power was lost": fs.CrashClone(nil, 0),
					} {
						next := newFakeBus(t)
						_, _ = pumping(t, next, left)
						if string(next.state) != "0" {
							next.lose() // what a publisher finds with the checkpoints of the state from before the loss
						}
						time.Sleep(time.Minute)
						if n := len(next.sequences()); n != events {
							t.Errorf("%s: the next process publishes %d of %d", name, n, events)
						}
					}
					fs.Heal()
					time.Sleep(time.Minute)
					if n := len(f.sequences()); n != events {
						t.Errorf("%d of %d are published again once the disk works", n, events)
					}
					if up, waiting, causes := b.Bus("nats"); !up || waiting != 0 {
						t.Errorf("up %v, %d waiting, %q", up, waiting, causes)
					}
				})
			})
		}
	}
}

// TestRewindNotSavedAtStop: a stop does not wait for a disk that refuses the rewound cursor, and publishes nothing.
func TestRewindNotSavedAtStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, fs := newFakeBus(t), crashfs.New(t)
		_, s := pumping(t, f, fs) // it is stopped when the test ends
		for i := range 3 {
			appendOrder(t, s, fmt.Sprint(i))
		}
		time.Sleep(time.Second)
		fs.Inject(crashfs.Fault{Op: crashfs.Write, Nth: 1, Outcome: crashfs.Failed, Sticky: true})
		f.lose()
		time.Sleep(time.Minute)
		t.Cleanup(func() {
			if again := f.sequences(); again != nil {
				t.Errorf("%v are published before the rewound cursor is saved", again)
			}
		})
	})
}
