package bridge_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/postbridge/postbridge/bridge"
)

func replayed(sequence uint64, order string) *bridge.Delivery {
	return &bridge.Delivery{
		Spool: "5b001dea", Sequence: sequence, ID: fmt.Sprint("id", sequence), Broker: "kite", UserID: "u", OrderID: order,
		Status: bridge.StatusRejected, Data: []byte("{}"),
	}
}

func newReplay(t *testing.T, bus *fakeBus, refused func(d *bridge.Delivery, sequence uint64, err error)) *bridge.Replay {
	t.Helper()
	r, err := bridge.NewReplay(bus.bus(), func(string, error) {}, refused)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// TestAReplayIsAMessageOfItsOwn: what names the acceptance is new, all else stays.
func TestAReplayIsAMessageOfItsOwn(t *testing.T) {
	bus := newFakeBus(t)
	r := newReplay(t, bus, nil)
	d := replayed(41, "1")
	d.Redelivered, d.Only = true, bridge.Rejects
	key := d.Key()
	if err := errors.Join(r.Offer(t.Context(), d), r.Offer(t.Context(), replayed(77, "1")), r.Wait(t.Context())); err != nil {
		t.Fatal(err)
	}
	first := bus.stored[0]
	if first.MsgID() != r.ID()+".00000000000000000001" || len(r.ID()) != 8 || r.ID() == "5b001dea" || first.Redelivered {
		t.Errorf("the message is %s of run %s", first.MsgID(), r.ID())
	}
	if first.ID != "id41" || first.Key() != key || string(first.Data) != "{}" {
		t.Errorf("the event is %+v", first)
	}
	if got := first.Destinations(); len(got) != 1 || got[0] != bridge.Rejects {
		t.Errorf("it goes to %v", got)
	}
	if got := bus.stored[1].Destinations(); len(got) != 2 {
		t.Errorf("the other goes to %v", got)
	}
	if st := r.State(); st != (bridge.ReplayState{Offered: 2, Stored: 2, Through: 77}) {
		t.Errorf("the state is %+v", st)
	}
	if again := newReplay(t, bus, nil); again.ID() == r.ID() {
		t.Error("two runs have the same id")
	}
}

// TestAReplayWaitsForTheBus: it offers no more than a pump does, and says how far all is done when it is stopped.
func TestAReplayWaitsForTheBus(t *testing.T) {
	bus := newFakeBus(t)
	bus.setRule(ofOrder("stuck", hold))
	r := newReplay(t, bus, nil)
	ctx, stop := context.WithCancel(t.Context())
	if err := errors.Join(r.Offer(ctx, replayed(5, "1")), r.Offer(ctx, replayed(6, "stuck"))); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() {
		for sequence := uint64(7); ; sequence++ {
			if err := r.Offer(ctx, replayed(sequence, "stuck")); err != nil {
				ended <- err
				return
			}
		}
	}()
	bus.waitFor("the look-ahead to be used up", func() bool { return len(bus.held) == bridge.MaxUnacked })
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("a stopped replay says %v", err)
	}
	if st := r.State(); st.Through != 5 || st.Stored != 1 || st.Offered != bridge.MaxUnacked+1 {
		t.Errorf("the state is %+v", st)
	}
}

// TestAReplayOfWhatTheBusRefuses names it and goes on.
func TestAReplayOfWhatTheBusRefuses(t *testing.T) {
	bus := newFakeBus(t)
	bus.setRule(ofOrder("large", reject))
	var named []string
	r := newReplay(t, bus, func(d *bridge.Delivery, sequence uint64, err error) {
		named = append(named, fmt.Sprintf("%d %s %v", sequence, d.ID, errors.Is(err, bridge.ErrRejected)))
	})
	if err := errors.Join(r.Offer(t.Context(), replayed(5, "large")), r.Offer(t.Context(), replayed(6, "1")), r.Wait(t.Context())); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(named, ", "); got != "5 id5 true" {
		t.Errorf("refused are %s", got)
	}
	if st := r.State(); st != (bridge.ReplayState{Offered: 2, Stored: 1, Refused: 1, Through: 6}) {
		t.Errorf("the state is %+v", st)
	}
}

// TestAReplayEndsWhenTheBusForgets: what it published may be gone, so it is not done as far as any number.
func TestAReplayEndsWhenTheBusForgets(t *testing.T) {
	bus := newFakeBus(t)
	bus.setRule(ofOrder("held", hold))
	r := newReplay(t, bus, nil)
	if err := errors.Join(r.Offer(t.Context(), replayed(4, "1")), r.Wait(t.Context()), r.Offer(t.Context(), replayed(5, "held"))); err != nil {
		t.Fatal(err)
	}
	if st := r.State(); st.Through != 4 {
		t.Fatalf("the state is %+v", st)
	}
	bus.rewound(0, errors.New("stream ORDERS was made anew"))
	if err := r.Wait(t.Context()); err == nil || !strings.Contains(err.Error(), "ORDERS was made anew") {
		t.Errorf("the replay ends with %v", err)
	}
	if st := r.State(); st.Through != 0 || st.Stored != 1 {
		t.Errorf("the state is %+v", st)
	}
}
