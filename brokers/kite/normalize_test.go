package kite_test

import (
	"testing"

	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/bridge/scan"
)

// orderOf scans a body and normalizes its members.
func orderOf(body []byte) (event.Order, error) {
	members, err := scan.Members(nil, string(body))
	if err != nil {
		return event.Order{}, err
	}
	return newBroker("", nil).Normalize(members)
}

func normalize(t *testing.T, text []byte) event.Order {
	t.Helper()
	order, err := orderOf(text)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return order
}

func TestStatus(t *testing.T) {
	for word, want := range map[string]event.Status{
		"PUT ORDER REQ RECEIVED":     event.StatusPending,
		"VALIDATION PENDING":         event.StatusPending,
		"OPEN PENDING":               event.StatusPending,
		"AMO REQ RECEIVED":           event.StatusPending,
		"OPEN":                       event.StatusOpen,
		"UPDATE":                     event.StatusOpen,
		"MODIFIED":                   event.StatusOpen,
		"TRIGGER PENDING":            event.StatusTriggerPending,
		"MODIFY VALIDATION PENDING":  event.StatusPendingReplace,
		"MODIFY PENDING":             event.StatusPendingReplace,
		"CANCEL PENDING":             event.StatusPendingCancel,
		"COMPLETE":                   event.StatusFilled,
		"CANCEL":                     event.StatusCancelled,
		"CANCELLED":                  event.StatusCancelled,
		"REJECTED":                   event.StatusRejected,
		" complete ":                 event.StatusFilled,
		"Trigger Pending":            event.StatusTriggerPending,
		"SOMETHING ELSE":             event.StatusUnknown,
		"PUT ORDER REQUEST RECEIVED": event.StatusPending,
		"MODIFY AMO REQ RECEIVED":    event.StatusPending,
		"CANCEL AMO REQ RECEIVED":    event.StatusPendingCancel,
		"CANCELLED AMO":              event.StatusCancelled,
		"NOT MODIFIED":               event.StatusOpen,
		"NOT CANCELLED":              event.StatusOpen,
		"not_modified":               event.StatusOpen,
		"Cancelled-AMO":              event.StatusCancelled,
		"TRIGGER   _PENDING":         event.StatusTriggerPending,
	} {
		order := normalize(t, object("order_id", `"1"`, "status", quote(word)))
		if order.Status != want || order.BrokerStatus != word {
			t.Errorf("%q became %s (%q), want %s", word, order.Status, order.BrokerStatus, want)
		}
	}
}

func TestPartialFill(t *testing.T) {
	for _, v := range []struct {
		status, quantity, filled string
		want                     event.Status
	}{
		{"UPDATE", "10", "4", event.StatusPartiallyFilled},
		{"OPEN", `"10"`, "4.0", event.StatusPartiallyFilled},
		{"OPEN PENDING", "10", "4", event.StatusPartiallyFilled},
		{"TRIGGER PENDING", "10", "4", event.StatusPartiallyFilled},
		{"UPDATE", "10", "0", event.StatusOpen},
		{"UPDATE", "10", "10", event.StatusOpen},
		{"UPDATE", "null", "4", event.StatusOpen},
		{"MODIFY PENDING", "10", "4", event.StatusPendingReplace},
		{"CANCELLED", "10", "4", event.StatusCancelled},
		{"COMPLETE", "10", "4", event.StatusFilled},
		{"SOMETHING ELSE", "10", "4", event.StatusUnknown},
	} {
		order := normalize(
			t,
			object("order_id", `"1"`, "status", quote(v.status), "quantity", v.quantity, "filled_quantity", v.filled),
		)
		if order.Status != v.want {
			t.Errorf("%s with %s of %s filled became %s, want %s", v.status, v.filled, v.quantity, order.Status, v.want)
		}
	}
}

func TestNotUnderstood(t *testing.T) {
	for _, text := range []string{
		``, `{`, `null`, `[]`, `"x"`, `{}`, `{"order_id":"1"}`, `{"status":"OPEN"}`,
		`{"order_id":"NA","status":"OPEN"}`,
		`{"order_id":{"a":1},"status":"OPEN"}`, `{"order_id":"1","status":["OPEN"]}`, `{"order_id":"1","status":" "}`,
		`{"order_id":"1","status":"OPEN"}x`, `{"Order_Id":"1","status":"OPEN"}`,
	} {
		if order, err := orderOf([]byte(text)); err == nil {
			t.Errorf("%s became %+v", text, order)
		} else if order != (event.Order{}) {
			t.Errorf("%s is an error, and yet the order has something in it: %+v", text, order)
		}
	}
}

// TestOnlyWhatIsKnown reads the least that is an order, with nothing written in every way there is.
func TestOnlyWhatIsKnown(t *testing.T) {
	want := event.Order{OrderID: "1953341975595868160", Status: event.StatusOpen, BrokerStatus: "OPEN"}
	for _, nothing := range []string{`null`, `""`, `"NA"`, `" "`, `"na"`, `{}`, `[1]`, `"0001-01-01 00:00:00"`} {
		order := normalize(t, object("order_id", "1953341975595868160", "status", `"OPEN"`, "average_price", nothing,
			"quantity", nothing, "filled_quantity", nothing, "order_timestamp", nothing, "exchange_timestamp", nothing,
			"exchange_update_timestamp", nothing, "price", nothing))
		if order != want {
			t.Errorf("%s: %+v", nothing, order)
		}
		if nothing[1] == '0' {
			continue // a text that is a time is not nothing in the fields below
		}
		order = normalize(
			t,
			object("order_id", "1953341975595868160", "status", `"OPEN"`, "user_id", nothing, "tag", nothing,
				"exchange", nothing, "tradingsymbol", nothing, "transaction_type", nothing, "order_type", nothing,
				"status_message", nothing, "meta", nothing, "parent_order_id", nothing, "exchange_order_id", nothing),
		)
		if order != want {
			t.Errorf("%s: %+v", nothing, order)
		}
	}
}

func TestWords(t *testing.T) {
	for _, v := range []struct{ name, sent, want string }{
		{"order_type", "MARKET", "market"}, {"order_type", "LIMIT", "limit"}, {"order_type", "SL", "stop_limit"},
		{"order_type", "SL-M", "stop_market"}, {"order_type", " sl-m ", "stop_market"},
		{"order_type", "SL_M", "stop_market"}, {"order_type", "ODD", "odd"},
		{"product", "CNC", "cnc"}, {"product", "MIS", "mis"}, {"product", "NRML", "nrml"}, {"product", "MTF", "mtf"},
		{"product", "CO", "co"},
		{"transaction_type", "BUY", "buy"}, {"transaction_type", "Sell", "sell"},
		{"validity", "TTL", "ttl"}, {"variety", "Iceberg", "iceberg"}, {"exchange", "nfo", "NFO"}, {"exchange", "NCO",
			"NCO"},
		{"price", "1", ""},
	} {
		order := normalize(t, object("order_id", `"1"`, "status", `"OPEN"`, v.name, quote(v.sent)))
		got := map[string]string{
			"order_type": order.OrderType, "product": order.Product, "transaction_type": order.Side,
			"validity": order.Validity,
			"variety":  order.Variety, "exchange": order.Exchange,
		}[v.name]
		if got != v.want {
			t.Errorf("%s %q became %q, want %q", v.name, v.sent, got, v.want)
		}
	}
}

// TestLeg reads the number of the leg of an iceberg order.
func TestLeg(t *testing.T) {
	for meta, want := range map[string]string{
		`{"iceberg":{"leg":1,"legs":5,"leg_quantity":200,"total_quantity":1000,"remaining_quantity":800}}`: "1",
		`{"iceberg":{"leg":"2"}}`: "2", `{"iceberg":{"legs":5}}`: "", `{"iceberg":[{"leg":1}]}`: "", `{"leg":1}`: "",
		`{}`: "", `""`: "", `"leg"`: "", `null`: "",
	} {
		if o := normalize(t, object("order_id", `"1"`, "status", `"OPEN"`, "meta", meta)); o.Leg != want {
			t.Errorf("%s is leg %q, want %q", meta, o.Leg, want)
		}
	}
}

// TestUpdatedTime falls back on the order time, which moves when an order is modified or cancelled.
func TestUpdatedTime(t *testing.T) {
	order := normalize(t, object("order_id", `"1"`, "status", `"REJECTED"`,
		"exchange_update_timestamp", "null", "order_timestamp", `"2025-08-07 10:12:30"`))
	if order.UpdatedTime != "2025-08-07T10:12:30+05:30" || order.OrderTime != order.UpdatedTime {
		t.Errorf("%+v", order)
	}
}

// TestAccountID reads the user as the order book and the ticker call it, if there is no user_id.
func TestAccountID(t *testing.T) {
	if o := normalize(t, object("order_id", `"1"`, "status", `"OPEN"`, "account_id",
		`"DR0900"`)); o.UserID != "DR0900" {
		t.Errorf("%+v", o)
	}
	o := normalize(t, object("order_id", `"1"`, "status", `"OPEN"`, "user_id", `"AB1234"`, "account_id", `"DR0900"`))
	if o.UserID != "AB1234" {
		t.Errorf("%+v", o)
	}
}
