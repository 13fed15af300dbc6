package bridge_test

import (
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/spool"
	"github.com/postbridge/postbridge/bridge/spool/crashfs"
)

// TestOldestWaiting has an event wait for an hour in each state in which a pump can be: the figure of the alert says an
// hour, never more than that and never zero.
func TestOldestWaiting(t *testing.T) {
	type world struct {
		*testing.T
		f    *fakeBus
		fs   *crashfs.FS
		b    *bridge.Bridge
		s    *spool.Spool
		fail func(error) // opening the publisher, from here on
	}
	post := func(w *world) { appendOrder(w.T, w.s, "1") }
	unreadable := func(w *world) {
		w.fs.Inject(crashfs.Fault{Op: crashfs.Read, Nth: 1, Outcome: crashfs.Failed, Sticky: true})
	}
	stored := func(w *world) {
		post(w)
		time.Sleep(3 * time.Hour)
	}
	for name, prepare := range map[string]func(*world){
		"the bus does not take it": func(w *world) {
			w.f.setRule(func(*bridge.Delivery) verdict { return hold })
			post(w)
		},
		"the bus does not take it after hours in which nothing came": func(w *world) {
			stored(w)
			w.f.setRule(func(*bridge.Delivery) verdict { return hold })
			post(w)
		},
		"the clock was set back": func(w *world) {
			w.f.setRule(func(*bridge.Delivery) verdict { return hold })
			d := &bridge.Delivery{ID: "1", Broker: "kite", OrderID: "1", ReceivedAt: time.Now().Add(24 * time.Hour)}
			appendDelivery(w.T, w.s, append(bridge.AppendHead(d), '{', '}'))
		},
		"the disk cannot be read": func(w *world) {
			unreadable(w)
			post(w)
		},
		"the disk cannot be read after hours in which nothing came": func(w *world) {
			stored(w)
			unreadable(w)
			post(w)
		},
		"the disk hangs": func(w *world) {
			w.fs.Before(func(op crashfs.Op) {
				if op == crashfs.Read {
					time.Sleep(time.Hour + time.Minute)
				}
			})
			post(w)
		},
		"the publisher does not open after a loss": func(w *world) {
			stored(w)
			w.fail(errors.New("the address is in use"))
			w.f.lose()
		},
		"the rewound cursor is not saved": func(w *world) {
			stored(w)
			w.fs.Inject(crashfs.Fault{Op: crashfs.Write, Nth: 1, Outcome: crashfs.Failed, Sticky: true})
			w.f.lose()
		},
		"the disk cannot be read after a restart": func(w *world) {
			w.f.setRule(func(*bridge.Delivery) verdict { return hold })
			post(w)
			time.Sleep(3 * time.Hour)
			w.fs = w.fs.Restart()
			w.s = openOn(w.T, w.fs)
			unreadable(w)
			w.b = pumpingFrom(w.T, w.s, newFakeBus(w.T).bus(), slog.New(slog.DiscardHandler))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &world{T: t, f: newFakeBus(t), fs: crashfs.New(t)}
				var openError atomic.Pointer[error]
				w.fail = func(err error) { openError.Store(&err) }
				bus := w.f.bus()
				openBus := bus.Open
				bus.Open = func(o bridge.Opening) (bridge.Publisher, error) {
					if err := openError.Load(); err != nil {
						return nil, *err
					}
					return openBus(o)
				}
				w.s = openOn(t, w.fs)
				w.b = pumpingFrom(t, w.s, bus, slog.New(slog.DiscardHandler))
				if oldest := w.b.Oldest("nats"); oldest != 0 {
					t.Errorf("nothing waits, and the oldest is %v old", oldest)
				}
				prepare(w)
				for _, age := range []time.Duration{time.Second, time.Hour} {
					time.Sleep(age)
					_, waiting, causes := w.b.Bus("nats")
					oldest := w.b.Oldest("nats")
					if waiting != 1 || oldest <= 0 || oldest > age+2*time.Second || oldest < age-2*time.Second {
						t.Errorf("after %v: %d waiting, %q, the oldest is %v old", age, waiting, causes, oldest)
					}
				}
				w.fs.Heal()
				w.fs.Before(nil)
				openError.Store(nil)
				w.f.setRule(nil)
				time.Sleep(time.Hour)
				if oldest := w.b.Oldest("nats"); oldest != 0 {
					t.Errorf("nothing waits any more, and the oldest is %v old", oldest)
				}
			})
		})
	}
}
