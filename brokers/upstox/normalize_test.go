package upstox_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/bridge/scan"
)

// orderOf scans a body and normalizes its members.
func orderOf(body string) (event.Order, error) {
	members, err := scan.Members(nil, body)
	if err != nil {
		return event.Order{}, err
	}
	return newBroker(nil, nil).Normalize(members)
}

// normalize returns the order of a body with an order id, a status and these members.
func normalize(t *testing.T, members string) event.Order {
	t.Helper()
	text := `{"order_id":"1","status":"open"` + members + `}`
	order, err := orderOf(text)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return order
}

// TestStatus has the 17 words of Upstox and some in another form.
func TestStatus(t *testing.T) {
	for word, want := range map[string]event.Status{
		"put order req received":                 event.StatusPending,
		"validation pending":                     event.StatusPending,
		"open pending":                           event.StatusPending,
		"after market order req received":        event.StatusPending,
		"modify after market order req received": event.StatusPending,
		"open":                                   event.StatusOpen,
		"modified":                               event.StatusOpen,
		"not modified":                           event.StatusOpen,
		"not cancelled":                          event.StatusOpen,
		"trigger pending":                        event.StatusTriggerPending,
		"modify pending":                         event.StatusPendingReplace,
		"modify validation pending":              event.StatusPendingReplace,
		"cancel pending":                         event.StatusPendingCancel,
		"complete":                               event.StatusFilled,
		"cancelled":                              event.StatusCancelled,
		"cancelled after market order":           event.StatusCancelled,
		"rejected":                               event.StatusRejected,

		"COMPLETE":                   event.StatusFilled,
		" Trigger_Pending ":          event.StatusTriggerPending,
		"put-order  req_received":    event.StatusPending,
		"frozen":                     event.StatusUnknown,
		"expired":                    event.StatusUnknown,
		"put order request received": event.StatusUnknown,
	} {
		order := normalize(t, fmt.Sprintf(`,"status":%q`, word))
		if order.Status != want || order.BrokerStatus != word {
			t.Errorf("%q became %s (%q), want %s", word, order.Status, order.BrokerStatus, want)
		}
	}
}

func TestPartialFill(t *testing.T) {
	for _, v := range []struct {
		members string
		want    event.Status
	}{
		{`,"quantity":5,"filled_quantity":1`, event.StatusPartiallyFilled},
		{`,"quantity":"5","filled_quantity":"1"`, event.StatusPartiallyFilled},
		{`,"quantity":5,"filled_quantity":0`, event.StatusOpen},
		{`,"quantity":5,"filled_quantity":5`, event.StatusOpen},
		{`,"quantity":5,"filled_quantity":null`, event.StatusOpen},
		{`,"status":"cancelled","quantity":5,"filled_quantity":1`, event.StatusCancelled},
	} {
		if order := normalize(t, v.members); order.Status != v.want {
			t.Errorf("%s became %s, want %s", v.members, order.Status, v.want)
		}
	}
}

// TestUpdateType has bodies of orders, of the other updates, and of updates that Upstox does not document.
func TestUpdateType(t *testing.T) {
	for updateType, want := range map[string]string{
		`"order"`: "order", `"Order "`: "order", `null`: "order", `""`: "order",
		`"gtt_order"`: "gtt_order", `"GTT_ORDER"`: "gtt_order", `"gtt-order"`: "gtt_order",
		`"position"`: "position", `"holding"`: "holding",
		`"basket"`: "", `"orders"`: "", `1`: "", `true`: "", `["order"]`: "",
	} {
		got := "order"
		_, err := orderOf(`{"order_id":"1","status":"open","update_type":` + updateType + `}`)
		if kind, ok := errors.AsType[bridge.NotAnOrder](err); ok {
			got = string(kind)
		} else if err != nil {
			got = ""
		}
		if got != want {
			t.Errorf("%s became %q (%v), want %q", updateType, got, err, want)
		}
	}
}

func TestNotUnderstood(t *testing.T) {
	for _, text := range []string{
		``, `[]`, `null`, `{}`, `{"order_id":"1"}`, `{"status":"open"}`, `{"order_id":null,"status":"open"}`,
		`{"order_id":"1","status":"NA"}`, `{"order_id":[1],"status":"open"}`, `{"order_id":"1","status":"open",}`,
		`{"Order_ID":"1","status":"open"}`,
	} {
		order, err := orderOf(text)
		if _, ok := errors.AsType[bridge.NotAnOrder](err); err == nil || ok {
			t.Errorf("%s became %+v, %v", text, order, err)
		}
	}
}

// TestNames reads a value that has several names from the first one with a value.
func TestNames(t *testing.T) {
	for _, v := range []struct{ members, user, symbol, instrument string }{
		{`,"placed_by":"A","user_id":"B","userId":"C"`, "A", "", ""},
		{`,"userId":"C","user_id":"B","placed_by":null`, "B", "", ""},
		{`,"userId":"C","user_id":"","placed_by":"NA"`, "C", "", ""},
		{`,"userId":5`, "5", "", ""},
		{`,"trading_symbol":"S","tradingsymbol":"T"`, "", "S", ""},
		{`,"tradingsymbol":"T","trading_symbol":null`, "", "T", ""},
		{`,"instrument_key":"K","instrument_token":"L"`, "", "", "K"},
		{`,"instrument_token":"L","instrument_key":""`, "", "", "L"},
		{`,"instrument_token":11536`, "", "", "11536"},
	} {
		o := normalize(t, v.members)
		if o.UserID != v.user || o.Symbol != v.symbol || o.InstrumentID != v.instrument {
			t.Errorf("%s became %q, %q, %q", v.members, o.UserID, o.Symbol, o.InstrumentID)
		}
	}
}

func TestWords(t *testing.T) {
	for _, v := range []struct{ members, want string }{
		{`,"product":"D","exchange":"NSE"`, "NSE cnc "}, {`,"exchange":"bse","product":"d"`, "BSE cnc "},
		{`,"product":"D","exchange":"NFO"`, "NFO nrml "}, {`,"product":"D","exchange":"MCX"`, "MCX nrml "},
		{`,"product":"D","exchange":"CDS"`, "CDS nrml "}, {`,"product":"D"`, " d "},
		{`,"product":"I","exchange":"NSE"`, "NSE mis "}, {`,"product":"I"`, " mis "},
		{`,"product":"MTF","exchange":"NSE"`, "NSE mtf "}, {`,"product":"CO","exchange":"NFO"`, "NFO co "},
		{`,"product":" Odd ","exchange":"NSE"`, "NSE odd "}, {`,"exchange":"ncd_fo"`, "NCD_FO  "},
		{`,"order_type":"MARKET"`, "  market"}, {`,"order_type":"LIMIT"`, "  limit"},
		{`,"order_type":"SL"`, "  stop_limit"}, {`,"order_type":"SL-M"`, "  stop_market"},
		{`,"order_type":"sl_m"`, "  stop_market"}, {`,"order_type":"Odd"`, "  odd"},
	} {
		o := normalize(t, v.members)
		if got := o.Exchange + " " + o.Product + " " + o.OrderType; got != v.want {
			t.Errorf("%s became %q, want %q", v.members, got, v.want)
		}
	}
	if o := normalize(t, `,"transaction_type":"SELL","validity":"IOC","variety":"SIMPLE"`); o.Side != "sell" ||
		o.Validity != "ioc" || o.Variety != "simple" {
		t.Errorf("%+v", o)
	}
}

// TestTimes reads times without a zone as Indian time.
func TestTimes(t *testing.T) {
	for _, v := range []struct{ members, placed, exchange, updated string }{
		{`,"order_timestamp":"2024-02-21 14:40:02","exchange_timestamp":"2024-02-21 14:40:03"`,
			"2024-02-21T14:40:02+05:30", "2024-02-21T14:40:03+05:30", "2024-02-21T14:40:03+05:30"},
		{`,"order_timestamp":"2024-02-21 14:40:02","exchange_timestamp":null`,
			"2024-02-21T14:40:02+05:30", "", "2024-02-21T14:40:02+05:30"},
		{`,"order_timestamp":"2024-02-21T09:10:02Z","exchange_timestamp":"NA"`,
			"2024-02-21T14:40:02+05:30", "", "2024-02-21T14:40:02+05:30"},
		{`,"order_timestamp":"","exchange_timestamp":"soon"`, "", "", ""},
	} {
		o := normalize(t, v.members)
		if o.OrderTime != v.placed || o.ExchangeTime != v.exchange || o.UpdatedTime != v.updated {
			t.Errorf("%s became %q, %q, %q", v.members, o.OrderTime, o.ExchangeTime, o.UpdatedTime)
		}
	}
}

// TestStates compares bodies that differ in one member, two by two.
func TestStates(t *testing.T) {
	id := func(members string) string {
		p := &bridge.Postback{PathToken: token, Body: []byte(`{"order_id":"1","status":"open"` + members + `}`)}
		return bridge.Normalize(newBroker(nil, nil), p, "token", time.Unix(1, 0)).ID
	}
	for _, v := range [][2]string{
		{`,"guid":"a"`, `,"guid":"b"`}, {`,"order_ref_id":"1"`, `,"order_ref_id":"2"`},
		{`,"order_request_id":"1"`, `,"order_request_id":"2"`}, {`,"pending_quantity":1`, `,"pending_quantity":0`},
		{`,"status":"open"`, `,"status":"modified"`}, {`,"is_amo":false`, `,"is_amo":true`},
		{`,"user_id":"A"`, `,"userId":"A"`},
	} {
		if id(v[0]) == id(v[1]) {
			t.Errorf("%s and %s are one state", v[0], v[1])
		}
	}
	for _, v := range [][2]string{
		{`,"price":470`, `,"price":"470.0"`}, {`,"average_price":0`, `,"average_price":null`}, {`,"tag":null`, ``},
		{`,"status":"trigger pending"`, `,"status":"TRIGGER_PENDING"`},
		{`,"quantity":1,"price":2`, `,"price":2,"quantity":1`},
		{`,"exchange_timestamp":"2024-02-21 14:40:03"`, `,"exchange_timestamp":"2024-02-21T14:40:03+05:30"`},
	} {
		if id(v[0]) != id(v[1]) {
			t.Errorf("%s and %s are two states", v[0], v[1])
		}
	}
}
