package publishertest

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
)

// fewer returns n, or short with -short.
func fewer(n, short int) int {
	if testing.Short() {
		return short
	}
	return n
}

func testStored(t *testing.T, bus Bus) {
	n := fewer(5000, 1000)
	r := Open(t, bus)
	all := append(Events(1, n, n/10), Deadletters(uint64(n+1), 50)...)
	r.Publish(all...)
	r.WaitDone(all...)
	r.CheckStored(all...)
	r.Eventually("end of all conditions", func() bool { return len(r.Causes()) == 0 })
}

// random returns a source of random numbers and logs its seed; to repeat a run, set it here.
func random(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("the random seed is %#x", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// notPart skips a test of a fault that the bus cannot simulate.
func notPart(t *testing.T, bus Bus, why string) {
	t.Helper()
	t.Skipf("not for %T: %s", bus, why)
}

func testConnectionCut(t *testing.T, bus Bus) {
	rnd := random(t)
	r := Open(t, bus)
	all := Events(1, 4000, 200)
	r.Publish(all...)
	for range fewer(40, 10) {
		time.Sleep(time.Duration(rnd.IntN(60)) * time.Millisecond) // the random time of the cut
		bus.Cut()
	}
	r.WaitDone(all...)
	more := Events(4001, 1000, 200)
	r.Publish(more...)
	r.WaitDone(more...)
	r.CheckStored(append(all, more...)...)
}

func testAnswersLostThenCut(t *testing.T, bus Bus) { answersLost(t, bus, bus.Cut) }

func testAnswersLost(t *testing.T, bus Bus) { answersLost(t, bus, func() {}) }

func answersLost(t *testing.T, bus Bus, then func()) {
	r := Open(t, bus)
	first := Events(1, 300, 50) // opens all connections, which needs responses
	r.Publish(first...)
	r.WaitDone(first...)

	bus.LoseAnswers(true)
	all := Events(301, 500, 50)
	r.Publish(all...)
	r.Eventually("events stored whose acks are lost", func() bool { return len(bus.Stored(t, bridge.Orders)) > 300 })
	if n := r.DoneOf(all...); n != 0 {
		t.Errorf("%d events done without an ack", n)
	}
	bus.LoseAnswers(false)
	then()
	r.WaitDone(all...)
	r.CheckStored(append(first, all...)...)
}

func testDownAtStart(t *testing.T, bus Bus) {
	bus.Stop(t)
	r := Open(t, bus)
	all := Events(1, 500, 50)
	r.Publish(all...)
	r.Eventually("condition reported", func() bool { return len(r.Causes()) > 0 })
	if n := r.DoneOf(all...); n != 0 {
		t.Errorf("%d events done without a bus", n)
	}
	bus.Start(t)
	r.WaitDone(all...)
	r.CheckStored(all...)
	r.Eventually("end of all conditions", func() bool { return len(r.Causes()) == 0 })
}

func testRestartedUnderLoad(t *testing.T, bus Bus) {
	r := Open(t, bus)
	var all []*bridge.Delivery
	for round := range 3 {
		before := Events(uint64(len(all)+1), fewer(2000, 500), 300)
		r.Publish(before...)
		all = append(all, before...)
		if round == 1 {
			r.Eventually("some events done", func() bool { return r.DoneOf(before...) > 100 })
		}
		bus.Stop(t)
		during := Events(uint64(len(all)+1), 300, 300)
		r.Publish(during...)
		all = append(all, during...)
		bus.Start(t)
	}
	r.WaitDone(all...)
	r.CheckStored(all...)
}

func testDenied(t *testing.T, bus Bus) {
	denier, ok := bus.(Denier)
	if !ok {
		notPart(t, bus, "it cannot deny one key (Denier)")
	}
	all := Events(1, 100, 10)
	key := all[3].Key()
	denier.SetDenied(t, key, true)
	r := Open(t, bus)
	r.Publish(all...)
	denied, others := split(all, func(d *bridge.Delivery) bool { return d.Key() == key })
	r.WaitDone(others...)
	r.Eventually("the denial reported", func() bool { return len(r.Causes()) > 0 })
	// Conditions are logged and shown in /status, which must not name a user or an order.
	for _, id := range []string{key, all[3].UserID, all[3].OrderID} {
		if causes := strings.Join(r.Causes(), "\n"); strings.Contains(causes, id) {
			t.Errorf("%q is named in %q", id, causes)
		}
	}
	if n := r.DoneOf(denied...); n != 0 {
		t.Errorf("%d denied events done", n)
	}
	denier.SetDenied(t, key, false)
	r.WaitDone(denied...)
	r.CheckStored(all...)
	r.Eventually("end of all conditions", func() bool { return len(r.Causes()) == 0 })
}

func testTooLarge(t *testing.T, bus Bus) {
	r := Open(t, bus)
	all := Events(1, 300, 10)
	r.Publish(all[:100]...)
	r.WaitDone(all[:100]...)
	bus.SetMaxMessage(t, 4096)
	var large, rest []*bridge.Delivery
	for i, d := range all {
		if i >= 100 && i%20 == 0 {
			d.Data = noise(8192)
			large = append(large, d)
		} else {
			rest = append(rest, d)
		}
	}
	r.Publish(all[100:]...)
	r.WaitSettled(all...)
	for _, d := range large {
		if err := r.ResultOf(d); !errors.Is(err, bridge.ErrRejected) {
			t.Errorf("a large event: %v, want ErrRejected", err)
		}
	}
	r.WaitDone(rest...)
	r.CheckStored(rest...)
}

func testOrdersFull(t *testing.T, bus Bus) {
	r := Open(t, bus)
	before, after := Events(1, 100, 20), Events(101, 200, 20)
	r.Publish(before...)
	r.WaitDone(before...)
	bus.SetFull(t, bridge.Orders, true)
	r.Publish(after...)
	r.Eventually("the full destination reported", func() bool { return len(r.Causes()) > 0 })
	if n := r.DoneOf(after...); n != 0 {
		t.Errorf("%d events done in a full destination", n)
	}
	dead := Deadletters(301, 5)
	r.Publish(dead...)
	r.WaitDone(dead...) // another destination is not affected
	bus.SetFull(t, bridge.Orders, false)
	r.WaitDone(after...)
	r.CheckStored(append(append(before, after...), dead...)...)
	r.Eventually("end of all conditions", func() bool { return len(r.Causes()) == 0 })
}

func testRejectsFull(t *testing.T, bus Bus) {
	r := Open(t, bus)
	// Rejected events are at various positions in their keys, so that some events wait for a rejected one.
	first, all := Events(1, 1, 20), Events(2, 200, 20)
	first[0].Status = event.StatusRejected
	r.Publish(first...)
	r.WaitDone(first...)
	bus.SetFull(t, bridge.Rejects, true)
	r.Publish(all...)
	_, alone := bus.(ByDestination)
	blocked := make(map[string]bool)
	waiting, going := split(all, func(d *bridge.Delivery) bool {
		rejected := d.Status == event.StatusRejected
		blocked[d.Key()] = rejected || blocked[d.Key()] && !alone
		return blocked[d.Key()]
	})
	r.WaitDone(going...)
	r.Eventually("the full destination reported", func() bool { return len(r.Causes()) > 0 })
	if n := r.DoneOf(waiting...); n != 0 {
		t.Errorf("%d events done although rejects is full for them or for one before them", n)
	}
	bus.SetFull(t, bridge.Rejects, false)
	r.WaitDone(all...)
	r.CheckStored(append(all, first...)...)
}

func testOfferedAgain(t *testing.T, bus Bus) {
	r := Open(t, bus)
	before := Events(1, 300, 50)
	r.Publish(before...)
	r.WaitDone(before...)
	bus.LoseAnswers(true)
	all := Events(301, 400, 40)
	r.Publish(all...)
	r.Eventually("events stored whose acks are lost", func() bool { return len(bus.Stored(t, bridge.Orders)) > 300 })
	r.Close()
	bus.LoseAnswers(false)
	bus.Cut()

	// The next run publishes the same deliveries with the same sequences.
	again := r.Reopen()
	again.Publish(all...)
	again.WaitDone(all...)
	again.CheckStored(append(before, all...)...)
}

// testKilled ends several runs at random times; each next run begins from an older saved cursor.
func testKilled(t *testing.T, bus Bus) {
	const more = 300
	rounds := fewer(10, 3)
	rnd := random(t)
	r := Open(t, bus)
	var all []*bridge.Delivery
	for round := range rounds {
		r.Publish(all[r.Prefix():]...)
		some := Events(uint64(len(all)+1), more, 60)
		for i := range some {
			if i%25 == 0 {
				some[i] = asDeadletter(some[i])
			}
		}
		all = append(all, some...)
		r.Publish(some...)
		if round == rounds-1 {
			break
		}
		enough := r.DoneOf(all...) + rnd.IntN(more)
		r.Eventually("some events done", func() bool { return r.DoneOf(all...) >= min(enough, len(all)) })
		if round%2 == 0 {
			bus.LoseAnswers(true)
			time.Sleep(time.Duration(rnd.IntN(20)) * time.Millisecond) // the random time of the end
		}
		r.Close()
		bus.LoseAnswers(false)
		bus.Cut()
		r = r.Recover()
	}
	r.WaitDone(all[r.start:]...)
	r.CheckStored(all...)
}

// restorer returns the bus as a Restorer, or skips the test.
func restorer(t *testing.T, bus Bus) Restorer {
	t.Helper()
	r, ok := bus.(Restorer)
	if !ok {
		notPart(t, bus, "it cannot be restored from an older copy (Restorer)")
	}
	return r
}

// publishUntilCheckpoint publishes events with sequences from first on until the state has a checkpoint of one.
func publishUntilCheckpoint(r *Trial, first uint64) (all []*bridge.Delivery) {
	r.t.Helper()
	r.Eventually("a checkpoint", func() bool {
		some := Events(first+uint64(len(all)), 50, 20)
		all = append(all, some...)
		r.Publish(some...)
		r.WaitDone(some...)
		return r.HasCheckpoint("", first)
	})
	return all
}

// testOlderCopy restores the bus from an older copy of its data.
func testOlderCopy(t *testing.T, bus Bus) {
	older := restorer(t, bus)
	r := Open(t, bus)
	all := publishUntilCheckpoint(r, 1)
	all = append(all, publishUntilCheckpoint(r, uint64(len(all)+1))...)
	bus.Stop(t)
	older.Save(t)
	bus.Start(t)
	saved := len(all)
	all = append(all, publishUntilCheckpoint(r, uint64(len(all)+1))...)
	r.ExpectLoss()
	bus.Stop(t)
	older.Restore(t)
	bus.Start(t)
	r = r.Rewind()
	if r.start == 0 || r.start > uint64(saved) {
		t.Errorf("rewound to %d, although the last %d of %d events are lost", r.start, len(all)-saved, len(all))
	}
	r.Publish(all[r.start:]...)
	r.WaitDone(all[r.start:]...)
	r.CheckStored(all...)
	if lost := r.Lost(); lost != nil {
		t.Errorf("loss reported after the rewind: %v", lost)
	}
}

// testOlderCopyOutgrown restores an older copy, to which another spool writes until it is longer than the lost data.
func testOlderCopyOutgrown(t *testing.T, bus Bus) {
	older := restorer(t, bus)
	r := Open(t, bus)
	all := publishUntilCheckpoint(r, 1)
	bus.Stop(t)
	older.Save(t)
	bus.Start(t)
	lost := publishUntilCheckpoint(r, uint64(len(all)+1))
	r.Close()
	bus.Stop(t)
	older.Restore(t)
	bus.Start(t)

	other := openFrom(t, bus, "feedface")
	foreign := Events(1, 4*len(lost), 20)
	for _, d := range foreign {
		d.Spool = "feedface"
	}
	other.Publish(foreign...)
	other.WaitDone(foreign...)
	other.Close()

	r = r.Reopen()
	r.ExpectLoss()
	r = r.Rewind()
	all = append(all, lost...)
	r.Publish(all[r.start:]...)
	r.WaitDone(all[r.start:]...)
	own := 0
	for _, m := range bus.Stored(t, bridge.Orders) {
		if m.Attributes["spool"] == spoolID {
			own++
		}
	}
	if own != len(all) {
		t.Errorf("%d events of %d are stored", own, len(all))
	}
}

// testRecreated deletes a destination and creates it again; no event is stored twice in the others.
func testRecreated(t *testing.T, bus Bus) {
	r := Open(t, bus)
	all := publishUntilCheckpoint(r, 1)
	r.ExpectLoss()
	bus.Recreate(t, bridge.Orders)
	bus.Cut()
	r = r.Rewind()
	more := Events(uint64(len(all)+1), 100, 20)
	all = append(all, more...)
	r.Publish(all[r.start:]...)
	r.WaitDone(all[r.start:]...)
	r.CheckStored(all...)
}

// testRecreatedBetweenRuns does what testRecreated does while no publisher is open.
func testRecreatedBetweenRuns(t *testing.T, bus Bus) {
	r := Open(t, bus)
	all := publishUntilCheckpoint(r, 1)
	r.Close()
	bus.Recreate(t, bridge.Orders)
	r = r.Reopen()
	r.ExpectLoss()
	more := Events(uint64(len(all)+1), 10, 20)
	r.Publish(more...) // a publish starts the check
	r = r.Rewind()
	all = append(all, more...)
	r.Publish(all[r.start:]...)
	r.WaitDone(all[r.start:]...)
	r.CheckStored(all...)
}

func testContextEnded(t *testing.T, bus Bus) {
	r := Open(t, bus)
	all := Events(1, 10, 10)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, d := range all {
		r.publisher.Publish(ctx, d, func(error) { t.Error("done called for an event that was not accepted") })
	}
	more := Events(11, 10, 10)
	r.Publish(more...)
	r.WaitDone(more...)
	r.CheckStored(more...)
}

func testCloseWhileDown(t *testing.T, bus Bus) {
	r := Open(t, bus)
	all := Events(1, 2000, 200)
	r.Publish(all...)
	r.Eventually("some events done", func() bool { return r.DoneOf(all...) > 50 })
	bus.Stop(t)
	r.Close() // and no done after it, which Trial.done checks
	bus.Start(t)
}

func testLeaderKilled(t *testing.T, bus Bus) {
	cluster := bus.(Cluster)
	r := Open(t, bus)
	var all []*bridge.Delivery
	for range fewer(3, 1) {
		some := Events(uint64(len(all)+1), 3000, 300)
		r.Publish(some...)
		all = append(all, some...)
		r.Eventually("some events done", func() bool { return r.DoneOf(some...) > 100 })
		cluster.KillLeader(t, bridge.Orders)
		bus.Cut()
	}
	r.WaitDone(all...)
	r.CheckStored(all...)
}

// noise returns n incompressible bytes, the same each time.
func noise(n int) []byte {
	source := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(source.Uint32())
	}
	return data
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
