package publishertest

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/postbridge/postbridge/bridge"
)

func testStored(t *testing.T, bus Bus) {
	r := open(t, bus)
	all := append(events(1, 5000, 500), deadletters(5001, 50)...)
	r.publish(all...)
	r.waitDone(all...)
	r.checkStored(all...)
	r.eventually("every cause over", func() bool { return len(r.causes()) == 0 })
}

func testConnectionCut(t *testing.T, bus Bus) {
	r := open(t, bus)
	all := events(1, 4000, 200)
	r.publish(all...)
	for cuts := 0; cuts < 40; cuts++ {
		time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond) // not waiting for anything: the time of a cut
		bus.Cut()
	}
	r.waitDone(all...)
	more := events(4001, 1000, 200)
	r.publish(more...)
	r.waitDone(more...)
	r.checkStored(append(all, more...)...)
}

func testAnswersLostThenCut(t *testing.T, bus Bus) { answersLost(t, bus, bus.Cut) }

func testAnswersLost(t *testing.T, bus Bus) { answersLost(t, bus, func() {}) }

func answersLost(t *testing.T, bus Bus, then func()) {
	r := open(t, bus)
	first := events(1, 10, 10)
	r.publish(first...)
	r.waitDone(first...)

	bus.LoseAnswers(true)
	all := events(11, 500, 50)
	r.publish(all...)
	r.eventually("events stored whose answers are lost", func() bool { return len(bus.Stored(t, bridge.Orders)) >= 10+50 })
	if n := r.doneOf(all...); n != 0 {
		t.Errorf("%d events done without an answer", n)
	}
	bus.LoseAnswers(false)
	then()
	r.waitDone(all...)
	r.checkStored(append(first, all...)...)
}

func testDownAtStart(t *testing.T, bus Bus) {
	bus.Stop(t)
	r := open(t, bus)
	all := events(1, 500, 50)
	r.publish(all...)
	r.eventually("a cause reported", func() bool { return len(r.causes()) > 0 })
	if n := r.doneOf(all...); n != 0 {
		t.Errorf("%d events done without a bus", n)
	}
	bus.Start(t)
	r.waitDone(all...)
	r.checkStored(all...)
	r.eventually("every cause over", func() bool { return len(r.causes()) == 0 })
}

func testRestartedUnderLoad(t *testing.T, bus Bus) {
	r := open(t, bus)
	var all []*bridge.Delivery
	for round := range 3 {
		before := events(uint64(len(all)+1), 2000, 300)
		r.publish(before...)
		all = append(all, before...)
		if round == 1 {
			r.eventually("some events done", func() bool { return r.doneOf(before...) > 100 })
		}
		bus.Stop(t)
		during := events(uint64(len(all)+1), 300, 300)
		r.publish(during...)
		all = append(all, during...)
		bus.Start(t)
	}
	r.waitDone(all...)
	r.checkStored(all...)
}

func testDenied(t *testing.T, bus Bus) {
	denier, ok := bus.(Denier)
	if !ok {
		t.Skip("the bus cannot deny one key")
	}
	all := events(1, 100, 10)
	key := all[3].Key()
	denier.SetDenied(t, key, true)
	r := open(t, bus)
	r.publish(all...)
	denied, others := split(all, func(d *bridge.Delivery) bool { return d.Key() == key })
	r.waitDone(others...)
	r.eventually("the denied key reported", func() bool { return strings.Contains(strings.Join(r.causes(), "\n"), key) })
	if n := r.doneOf(denied...); n != 0 {
		t.Errorf("%d denied events done", n)
	}
	denier.SetDenied(t, key, false)
	r.waitDone(denied...)
	r.checkStored(all...)
	r.eventually("every cause over", func() bool { return len(r.causes()) == 0 })
}

func testTooLarge(t *testing.T, bus Bus) {
	r := open(t, bus)
	all := events(1, 300, 10)
	r.publish(all[:100]...)
	r.waitDone(all[:100]...)
	bus.SetMaxMessage(t, 4096)
	var large, rest []*bridge.Delivery
	for i, d := range all {
		if i >= 100 && i%20 == 0 {
			d.Data = []byte(strings.Repeat("x", 8192))
			large = append(large, d)
		} else {
			rest = append(rest, d)
		}
	}
	r.publish(all[100:]...)
	r.waitSettled(all...)
	for _, d := range large {
		if err := r.resultOf(d); !errors.Is(err, bridge.ErrRejected) {
			t.Errorf("a large event: %v, want ErrRejected", err)
		}
	}
	r.waitDone(rest...)
	r.checkStored(rest...)
}

func testOrdersFull(t *testing.T, bus Bus) {
	r := open(t, bus)
	before, after := events(1, 100, 20), events(101, 200, 20)
	r.publish(before...)
	r.waitDone(before...)
	bus.SetFull(t, bridge.Orders, true)
	r.publish(after...)
	r.eventually("the full destination reported", func() bool { return len(r.causes()) > 0 })
	if n := r.doneOf(after...); n != 0 {
		t.Errorf("%d events done in a full destination", n)
	}
	dead := deadletters(301, 5)
	r.publish(dead...)
	r.waitDone(dead...) // another destination has nothing to do with it
	bus.SetFull(t, bridge.Orders, false)
	r.waitDone(after...)
	r.checkStored(append(append(before, after...), dead...)...)
	r.eventually("every cause over", func() bool { return len(r.causes()) == 0 })
}

func testRejectsFull(t *testing.T, bus Bus) {
	r := open(t, bus)
	// Each key has its rejected event first, in the middle or not at all, so that some wait behind one.
	first, all := events(1, 1, 20), events(2, 200, 20)
	first[0].Status = bridge.StatusRejected
	r.publish(first...)
	r.waitDone(first...)
	bus.SetFull(t, bridge.Rejects, true)
	r.publish(all...)
	blocked := make(map[string]bool)
	waiting, going := split(all, func(d *bridge.Delivery) bool {
		blocked[d.Key()] = blocked[d.Key()] || d.Status == bridge.StatusRejected
		return blocked[d.Key()]
	})
	r.waitDone(going...)
	r.eventually("the full destination reported", func() bool { return len(r.causes()) > 0 })
	if n := r.doneOf(waiting...); n != 0 {
		t.Errorf("%d events done whose second copy, or the one before it, has no room", n)
	}
	bus.SetFull(t, bridge.Rejects, false)
	r.waitDone(all...)
	r.checkStored(append(all, first...)...)
}

func testOfferedAgain(t *testing.T, bus Bus) {
	r := open(t, bus)
	before := events(1, 100, 10)
	r.publish(before...)
	r.waitDone(before...)
	bus.LoseAnswers(true)
	all := events(101, 400, 40)
	r.publish(all...)
	r.eventually("events stored whose answers are lost", func() bool { return len(bus.Stored(t, bridge.Orders)) >= 100+40 })
	r.close()
	bus.LoseAnswers(false)
	bus.Cut()

	// The next run offers the same deliveries with the same numbers.
	again := r.reopen()
	again.publish(all...)
	again.waitDone(all...)
	again.checkStored(append(before, all...)...)
}

func testContextEnded(t *testing.T, bus Bus) {
	r := open(t, bus)
	all := events(1, 10, 10)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, d := range all {
		r.publisher.Publish(ctx, d, func(error) { t.Error("done called for an event that was not taken") })
	}
	more := events(11, 10, 10)
	r.publish(more...)
	r.waitDone(more...)
	r.checkStored(more...)
}

func testCloseWhileDown(t *testing.T, bus Bus) {
	r := open(t, bus)
	all := events(1, 2000, 200)
	r.publish(all...)
	r.eventually("some events done", func() bool { return r.doneOf(all...) > 50 })
	bus.Stop(t)
	r.close() // and no done after it, which close checks
	bus.Start(t)
}

func testLeaderKilled(t *testing.T, bus Bus) {
	cluster := bus.(Cluster)
	r := open(t, bus)
	var all []*bridge.Delivery
	for range 3 {
		some := events(uint64(len(all)+1), 3000, 300)
		r.publish(some...)
		all = append(all, some...)
		r.eventually("some events done", func() bool { return r.doneOf(some...) > 100 })
		cluster.KillLeader(t, bridge.Orders)
		bus.Cut()
	}
	r.waitDone(all...)
	r.checkStored(all...)
}

func split(all []*bridge.Delivery, is func(*bridge.Delivery) bool) (yes, no []*bridge.Delivery) {
	for _, d := range all {
		if is(d) {
			yes = append(yes, d)
		} else {
			no = append(no, d)
		}
	}
	return yes, no
}
