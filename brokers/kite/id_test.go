package kite_test

import (
	"testing"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
)

// idOf is the event id of a body that is made of the one order of these tests and what differs from it.
func idOf(t *testing.T, namesAndValues ...string) string {
	t.Helper()
	body := object(append([]string{
		"order_id", `"260108152046774"`, "user_id", `"AB1234"`, "status", `"OPEN"`, "order_type", `"LIMIT"`,
		"transaction_type", `"BUY"`, "quantity", "1", "filled_quantity", "0", "cancelled_quantity", "0",
		"pending_quantity", "1",
		"price", "11.25", "trigger_price", "0", "average_price", "0", "order_timestamp", `"2026-01-08 15:23:46"`,
		"exchange_update_timestamp", `"2026-01-08 15:23:46"`, "guid", `"1767866026-514556-RGZ539-ADMINAPI"`,
	}, namesAndValues...)...) // of a repeated name the last counts
	return eventOf(t, body, time.Unix(1767866026, 0)).ID
}

func eventOf(t *testing.T, body []byte, received time.Time) *event.Event {
	t.Helper()
	e := bridge.Normalize(newBroker("", nil), &bridge.Postback{Body: body}, "checksum", received)
	if !e.Understood() {
		t.Fatalf("not understood: %s", body)
	}
	return e
}

func same(t *testing.T, a, b string) {
	t.Helper()
	if a != b {
		t.Error("the ids differ")
	}
}

func different(t *testing.T, a, b string) {
	t.Helper()
	if a == b {
		t.Error("the ids are the same")
	}
}

func TestRepeatHasSameID(t *testing.T) {
	body := read(t, "testdata/genuine/official.json")
	same(t, eventOf(t, body, time.Unix(1, 0)).ID, eventOf(t, body, time.Unix(2, 0)).ID)
}

func TestUpdateAndOpenOfSameNumbersHaveSameID(t *testing.T) {
	same(t, idOf(t, "status", `"UPDATE"`), idOf(t, "status", `"OPEN"`))
}

func TestChangedPriceHasAnotherID(t *testing.T) {
	different(t, idOf(t), idOf(t, "price", "11.35"))
}

func TestPriceThatComesBackWithinTheSecondHasTheFirstIDAgain(t *testing.T) {
	first, second, third := idOf(t, "price", "11.25"), idOf(t, "price", "11.35"), idOf(t, "price", "11.25")
	different(t, first, second)
	same(t, first, third)
}

// TestValueThatCannotBeReadIsPartOfTheID holds that a state is news even if what is new in it cannot be read.
func TestValueThatCannotBeReadIsPartOfTheID(t *testing.T) {
	different(t, idOf(t, "price", `"1,100.50"`), idOf(t, "price", `"1,200.50"`))
	same(t, idOf(t, "price", `"1,100.50"`), idOf(t, "price", `"1,100.50"`))
	different(t, idOf(t, "exchange_update_timestamp", `"today"`), idOf(t, "exchange_update_timestamp", `"tomorrow"`))
	different(t, idOf(t, "exchange_timestamp", `"today"`), idOf(t, "exchange_timestamp", `"tomorrow"`))
}

func TestDoubledCancelHasSameID(t *testing.T) {
	first := eventOf(t, read(t, "testdata/genuine/series-2026-4-cancelled.json"), time.Unix(1, 0))
	second := eventOf(t, read(t, "testdata/genuine/series-2026-5-cancelled.json"), time.Unix(2, 0))
	same(t, first.ID, second.ID)
}

func TestCancelAndCancelledHaveSameID(t *testing.T) {
	same(t, idOf(t, "status", `"CANCEL"`), idOf(t, "status", `"CANCELLED"`))
	same(t, idOf(t, "status", `"CANCEL"`), idOf(t, "status", `" Cancelled "`))
}

// TestOtherWordsHaveTheirOwnID holds that two words are two states, even if they are one status.
func TestOtherWordsHaveTheirOwnID(t *testing.T) {
	seen := make(map[string]string)
	for _, word := range []string{
		"OPEN", "MODIFIED", "NOT MODIFIED", "NOT CANCELLED", "CANCELLED", "CANCELLED AMO", "PUT ORDER REQ RECEIVED",
		"AMO REQ RECEIVED",
		"VALIDATION PENDING", "OPEN PENDING", "FROZEN", "THAWED",
	} {
		id := idOf(t, "status", quote(word))
		if other, ok := seen[id]; ok {
			t.Errorf("%s has the id of %s", word, other)
		}
		seen[id] = word
	}
}

func TestAnotherGUIDHasSameID(t *testing.T) {
	same(t, idOf(t), idOf(t, "guid", `"205871XvWfpJkFLquRq"`))
}

func TestAnotherPendingQuantityHasSameID(t *testing.T) {
	same(t, idOf(t), idOf(t, "pending_quantity", "0"))
}

func TestAnotherChecksumHasSameID(t *testing.T) {
	same(t, idOf(t), idOf(t, "checksum", `"00"`))
}

func TestDecimalsWithoutTrailingZeros(t *testing.T) {
	same(t, idOf(t, "price", "470"), idOf(t, "price", "470.0"))
	same(t, idOf(t, "price", "470"), idOf(t, "price", `"470.00"`))
	different(t, idOf(t, "price", "470"), idOf(t, "price", "4700"))
	different(t, idOf(t, "price", "470.5"), idOf(t, "price", "470.05"))
}

// TestTimesOfOneInstantHaveSameID has a time in Kite's layout and in the one that names its zone.
func TestTimesOfOneInstantHaveSameID(t *testing.T) {
	for _, name := range []string{"order_timestamp", "exchange_timestamp", "exchange_update_timestamp"} {
		same(t, idOf(t, name, `"2026-01-08 15:23:47"`), idOf(t, name, `"2026-01-08T09:53:47Z"`))
	}
}

// TestMembersInAnotherOrderHaveSameID sends the members, and those of meta, the other way round.
func TestMembersInAnotherOrderHaveSameID(t *testing.T) {
	id := func(members ...string) string { return eventOf(t, object(members...), time.Unix(1, 0)).ID }
	same(t, id("order_id", `"1"`, "status", `"OPEN"`, "price", "1", "meta", `{"iceberg":{"leg":1,"legs":5}}`),
		id("meta", `{"iceberg":{"legs":5,"leg":1}}`, "price", "1", "status", `"OPEN"`, "order_id", `"1"`))
	// Of a repeated name the last counts.
	different(t, id("order_id", `"1"`, "status", `"OPEN"`, "price", "1", "price", "2"),
		id("order_id", `"1"`, "status", `"OPEN"`, "price", "2", "price", "1"))
}

func TestZeroIsLikeAbsent(t *testing.T) {
	for _, name := range []string{
		"price", "trigger_price", "average_price", "quantity", "filled_quantity", "cancelled_quantity",
		"disclosed_quantity",
	} {
		same(t, idOf(t, name, "0"), idOf(t, name, "null"))
		same(t, idOf(t, name, "0"), idOf(t, name, "0.0"))
	}
}

// TestFieldsOfTheID changes each field that tells one state from another.
func TestFieldsOfTheID(t *testing.T) {
	seen := map[string]string{idOf(t): "nothing"}
	for _, v := range [][2]string{
		{"user_id", `"AB1235"`}, {"order_id", `"260108152046775"`}, {"status", `"REJECTED"`}, {"status_message",
			`"margin"`},
		{"exchange_order_id", `"1"`}, {"transaction_type", `"SELL"`}, {"order_type", `"SL"`}, {"product", `"MIS"`},
		{"validity", `"IOC"`}, {"quantity", "2"}, {"filled_quantity", "1"}, {"cancelled_quantity", "1"}, {"price", "1"},
		{"trigger_price", "1"}, {"average_price", "1"}, {"exchange_update_timestamp", `"2026-01-08 15:23:47"`},
		{"order_timestamp", `"2026-01-08 15:23:47"`}, {"exchange_timestamp", `"2026-01-08 15:23:47"`},
		{"disclosed_quantity", "1"},
		{"meta", `{"iceberg":{"leg":1}}`}, {"meta", `{"iceberg":{"leg":2}}`}, {"tags", `["a"]`}, {"tags", `["a","b"]`},
		{"tag", `"x"`},
		{"modified", "true"}, {"modified", "false"}, {"a member of next year", "0"},
	} {
		id := idOf(t, v[0], v[1])
		if before, ok := seen[id]; ok {
			t.Errorf("%s changed has the id of %s changed", v[0], before)
		}
		seen[id] = v[0]
	}
}

func TestNotUnderstoodHasIDOfBrokerAndBody(t *testing.T) {
	id := func(body string) string {
		e := bridge.Normalize(newBroker("", nil), &bridge.Postback{Body: []byte(body)}, "checksum", time.Unix(1, 0))
		if e.Understood() {
			t.Fatal("understood")
		}
		return e.ID
	}
	same(t, id("{}"), id("{}"))
	different(t, id("{}"), id("{} "))
}

// TestSeriesOfOneOrder is the capture: placed, modified (UPDATE, then OPEN), cancelled (twice).
func TestSeriesOfOneOrder(t *testing.T) {
	var ids []string
	for _, name := range []string{"1-open", "2-update", "3-open", "4-cancelled", "5-cancelled"} {
		ids = append(ids, eventOf(t, read(t, "testdata/genuine/series-2026-"+name+".json"), time.Unix(1, 0)).ID)
	}
	same(t, ids[0], ids[1])
	different(t, ids[1], ids[2])
	different(t, ids[2], ids[3])
	same(t, ids[3], ids[4])
}
