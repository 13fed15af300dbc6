package book

import (
	"testing"
	"time"

	"github.com/postbridge/postbridge/bridge/event"
)

// state returns an order of 50 at 470 that was updated at 10:00:00, with changes.
func state(changes ...func(*event.Event)) *State {
	e := &event.Event{Order: event.Order{
		Status: event.StatusOpen, BrokerStatus: "OPEN", Quantity: event.QuantityOf(50), Price: "470", Side: "buy",
		FilledQuantity: event.QuantityOf(0), UpdatedTime: "2026-01-08T10:00:00+05:30",
	}, ReceivedAt: "2026-01-08T04:30:00.500000000Z"}
	for _, change := range changes {
		change(e)
	}
	s := StateOf(e)
	return &s
}

func status(s event.Status) func(*event.Event) { return func(e *event.Event) { e.Status = s } }

func word(w string) func(*event.Event) {
	return func(e *event.Event) { e.Status, e.BrokerStatus = event.StatusUnknown, w }
}

func filled(n int64) func(*event.Event) {
	return func(e *event.Event) { e.FilledQuantity = event.QuantityOf(n) }
}

func price(p string) func(*event.Event) { return func(e *event.Event) { e.Price = p } }

func average(p string) func(*event.Event) { return func(e *event.Event) { e.AveragePrice = p } }

func updated(clock string) func(*event.Event) {
	return func(e *event.Event) { e.UpdatedTime = "2026-01-08T" + clock + "+05:30" }
}

func symbol(s string) func(*event.Event) { return func(e *event.Event) { e.Symbol = s } }

func leg(l string) func(*event.Event) { return func(e *event.Event) { e.Leg = l } }

func updatedOn(t string) func(*event.Event) {
	return func(e *event.Event) { e.UpdatedTime = t + "+05:30" }
}

func received(clock string) func(*event.Event) {
	return func(e *event.Event) { e.ReceivedAt = "2026-01-08T" + clock + "Z" }
}

// TestCompare has a case per sentence of the rules for the order book.
func TestCompare(t *testing.T) {
	requested := time.Date(2026, 1, 8, 4, 45, 0, 0, time.UTC) // 10:15:00 in India
	for _, c := range []struct {
		name        string
		stored, row *State
		want        Verdict
	}{
		{"the bus has no event", nil, state(), News},
		{"no event and a row of yesterday", nil, state(updatedOn("2026-01-07T23:59:59")), Old},
		{"no event and a row of the first second of the day", nil, state(updatedOn("2026-01-08T00:00:00")), News},
		{"no event and a row without a time", nil, state(updatedOn("")), News},
		{"an event, and a row of yesterday that is newer", state(updatedOn("2026-01-07T15:00:00")),
			state(status(event.StatusExpired), updatedOn("2026-01-07T23:59:59")), News},
		{"equal", state(), state(), Equal},
		{"the status differs", state(), state(status(event.StatusCancelled), updated("10:01:00")), News},
		{"fills differ", state(), state(filled(5), updated("10:01:00")), News},
		{"the price differs", state(), state(price("471"), updated("10:01:00")), News},
		{"470 and 470.00", state(), state(price("470.00")), Equal},
		{"0 and absent", state(price("0")), state(price("")), Equal},
		{"absent and 470", state(price("")), state(), Equal},
		{"a number more in the row", state(), state(func(e *event.Event) { e.CancelledQuantity = event.QuantityOf(5) }),
			Equal},
		{"fills absent and 0", state(func(e *event.Event) { e.FilledQuantity = event.Quantity{} }), state(), Equal},
		{"fills absent and 5", state(func(e *event.Event) { e.FilledQuantity = event.Quantity{} }), state(filled(5)),
			News},
		{"fills 5 and absent", state(filled(5)), state(func(e *event.Event) { e.FilledQuantity = event.Quantity{} }),
			Equal},
		{"pending quantities", state(func(e *event.Event) { e.PendingQuantity = event.QuantityOf(1) }),
			state(func(e *event.Event) { e.PendingQuantity = event.QuantityOf(50) }), Equal},
		{"a fill price that the event lacks", state(status(event.StatusFilled), filled(50)),
			state(status(event.StatusFilled), filled(50), average("470.05")), News},
		{"a fill price in place of 0", state(status(event.StatusFilled), filled(50), average("0.0")),
			state(status(event.StatusFilled), filled(50), average("470.05")), News},
		{"an average price without fills", state(), state(average("470.05")), Equal},
		{"another text", state(), state(func(e *event.Event) { e.Reason = "a reason" }), Equal},
		{"another side", state(), state(func(e *event.Event) { e.Side = "sell" }), Contradiction},
		{"another symbol", state(symbol("TCS")), state(symbol("INFY")), Contradiction},
		{"a symbol that the event lacks", state(), state(symbol("INFY")), Equal},
		{"another leg of the order", state(leg("entry_leg"), status(event.StatusFilled)),
			state(leg("target_leg"), updated("10:01:00")), Equal},
		{"the same leg", state(leg("entry_leg")), state(leg("entry_leg"), filled(5), updated("10:01:00")), News},
		{"another leg of an iceberg order", state(leg("1")), state(leg("2"), filled(5), updated("10:01:00")), News},
		{"a row without the leg of the event", state(leg("entry_leg")), state(filled(5), updated("10:01:00")), Equal},
		{"a leg and none", state(), state(leg("entry_leg"), filled(5), updated("10:01:00")), News},
		{"an unknown word of the broker", state(), state(word("LAPSED")), News},
		{"a known state after an unknown word", state(word("FROZEN")), state(status(event.StatusCancelled)), News},
		{"two unknown words", state(word("LAPSED")), state(word("FROZEN")), News},
		{"one unknown word in two cases", state(word("LAPSED")), state(word("Lapsed")), Equal},

		{"the row is younger than the grace", state(), state(filled(5), updated("10:14:31")), Early},
		{"no event and a young row", nil, state(updated("10:14:31")), Early},
		{"the row is as old as the grace", state(), state(filled(5), updated("10:14:30")), News},
		{"a row without a time", state(), state(filled(5), func(e *event.Event) { e.UpdatedTime = "" }), News},
		{"the event arrived with the book", state(received("04:44:59")), state(filled(5), updated("10:01:00")), Early},
		{"the event arrived after the book", state(received("04:45:10")), state(filled(5), updated("10:01:00")), Early},

		{"the row is older and differs", state(filled(5), updated("10:02:00")), state(updated("10:01:00")),
			Contradiction},
		{"the row is older and equal", state(updated("10:02:00")), state(updated("10:01:00")), Equal},
		{"terminal, and open in the same second", state(status(event.StatusFilled)), state(), Contradiction},
		{"fewer fills in the same second", state(filled(50)), state(filled(5)), Contradiction},
		{"more fills in the same second", state(filled(5)), state(filled(50)), News},
		{"pending, and open in the same second", state(status(event.StatusPending)), state(), News},
		{"terminal, and another state later", state(status(event.StatusFilled)),
			state(status(event.StatusCancelled), updated("10:01:00")), Contradiction},
		{"fewer fills later", state(filled(50)), state(filled(5), updated("10:01:00")), Contradiction},
		{"fills later unknown", state(filled(50)), state(price("471"), updated("10:01:00"),
			func(e *event.Event) { e.FilledQuantity = event.Quantity{} }), News},
		{"terminal, with a time that nobody signed", state(status(event.StatusFilled), updated("09:00:00")), state(),
			Contradiction},
		{"the later of two times counts", state(), state(filled(5), updated("09:00:00"), func(e *event.Event) {
			e.OrderTime = "2026-01-08T10:14:45+05:30"
		}), Early},
		{"older, and only a fill price more", state(status(event.StatusFilled), filled(50), updated("10:02:00")),
			state(status(event.StatusFilled), filled(50), average("470.05")), News},
	} {
		if got := Compare(c.stored, *c.row, requested, 30*time.Second); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
