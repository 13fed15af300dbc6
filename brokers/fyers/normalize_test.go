package fyers_test

import (
	"fmt"
	"strings"
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

// normalize reads an order that has an id, a status and these members.
func normalize(t *testing.T, members string) event.Order {
	t.Helper()
	text := `{"id":"1","status":4` + members + `}`
	order, err := orderOf(text)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return order
}

func TestStatus(t *testing.T) {
	for sent, want := range map[string]event.Status{
		`1`: event.StatusCancelled, `2`: event.StatusFilled, `4`: event.StatusPending, `5`: event.StatusRejected,
		`6`: event.StatusOpen, `7`: event.StatusExpired, `"6"`: event.StatusOpen, `6.0`: event.StatusOpen,
		`" 5 "`: event.StatusRejected,
		`3`:     event.StatusUnknown, `8`: event.StatusUnknown, `0`: event.StatusUnknown, `-1`: event.StatusUnknown,
		`6.5`: event.StatusUnknown, `"TRADED"`: event.StatusUnknown, `99999999999999999999`: event.StatusUnknown,
	} {
		order := normalize(t, `,"status":`+sent)
		if order.Status != want || order.BrokerStatus != strings.Trim(sent, `"`) {
			t.Errorf("%s became %s (%q), want %s", sent, order.Status, order.BrokerStatus, want)
		}
	}
}

func TestPartialFill(t *testing.T) {
	for _, v := range []struct {
		members string
		want    event.Status
	}{
		{`,"status":6,"qty":5,"filledQty":1`, event.StatusPartiallyFilled},
		{`,"status":"6","qty":"5","filledQty":"1"`, event.StatusPartiallyFilled},
		{`,"status":4,"qty":5,"filledQty":1`, event.StatusPartiallyFilled},
		{`,"status":6,"qty":5,"filledQty":0`, event.StatusOpen},
		{`,"status":6,"qty":5,"filledQty":5`, event.StatusOpen},
		{`,"status":2,"qty":5,"filledQty":5`, event.StatusFilled},
		{`,"status":2,"qty":5,"filledQty":1`, event.StatusPartiallyFilled},
		{`,"status":2,"qty":5,"filledQty":0`, event.StatusFilled},
		{`,"status":2,"qty":5`, event.StatusFilled},
		{`,"status":1,"qty":5,"filledQty":1`, event.StatusCancelled},
		{`,"status":7,"qty":5,"filledQty":1`, event.StatusExpired},
	} {
		if order := normalize(t, v.members); order.Status != v.want {
			t.Errorf("%s became %s, want %s", v.members, order.Status, v.want)
		}
	}
}

func TestNotUnderstood(t *testing.T) {
	for _, text := range []string{
		``, `[]`, `null`, `{"id":"1"}`, `{"status":6}`, `{"id":null,"status":6}`, `{"id":"","status":6}`,
		`{"id":"1","status":"NA"}`, `{"id":[1],"status":6}`, `{"id":"1","status":null}`, `{"id":"1","status":6,"pan":}`,
	} {
		if order, err := orderOf(text); err == nil {
			t.Errorf("%s became %+v", text, order)
		}
	}
}

func TestWords(t *testing.T) {
	for _, v := range []struct{ members, want string }{
		{`"side":1`, "buy"}, {`"side":-1`, "sell"}, {`"side":"-1"`, "sell"}, {`"side":1.0`, "buy"},
		{`"side":2`, "2"}, {`"side":"BUY"`, "buy"}, {`"side":null`, ""}, {`"side":""`, ""},
		{`"type":1`, "limit"}, {`"type":2`, "market"}, {`"type":3`, "stop_market"}, {`"type":4`, "stop_limit"},
		{`"type":"2"`, "market"}, {`"type":5`, "5"}, {`"type":"Odd"`, "odd"},
		{`"productType":"CNC"`, "cnc"}, {`"productType":"INTRADAY"`, "mis"}, {`"productType":"MARGIN"`, "nrml"},
		{`"productType":"MTF"`, "mtf"}, {`"productType":"CO"`, "co"}, {`"productType":" intraday "`, "mis"},
		{`"orderValidity":"IOC"`, "ioc"},
		{`"orderTag":"1:mine"`, "mine"}, {`"orderTag":"2:Untagged"`, ""}, {`"orderTag":"mine"`, "mine"},
		{`"orderTag":"1:"`, ""},
		{`"fytoken":"1"`, "1"}, {`"fyToken":101123072754619`, "101123072754619"},
		{`"disclosedQty":5`, "5"}, {`"discloseQty":6,"disclosedQty":5`, "6"}, {`"disclosedQty":5,"discloseQty":null`, "5"},
		{`"message":"Completed","status":2`, ""}, {`"message":"placed","status":6`, ""},
		{`"message":"RED","status":5`, "RED"}, {`"status":1,"message":"by user"`, "by user"},
		{`"message":"day over","status":7`, "day over"}, {`"message":"?","status":3`, "?"},
	} {
		o := normalize(t, ","+v.members)
		disclosed := ""
		if n, known := o.DisclosedQuantity.Get(); known {
			disclosed = fmt.Sprint(n)
		}
		got := o.Side + o.OrderType + o.Product + o.Validity + o.Tag + o.InstrumentID + disclosed + o.Reason
		if got != v.want {
			t.Errorf("%s became %q, want %q", v.members, got, v.want)
		}
	}
}

func TestExchange(t *testing.T) {
	for _, v := range []struct{ members, want string }{
		{`"exchange":10,"segment":10`, "NSE"}, {`"exchange":10,"segment":11`, "NFO"},
		{`"exchange":10,"segment":12`, "CDS"}, {`"exchange":11,"segment":20`, "MCX"},
		{`"exchange":12,"segment":10`, "BSE"}, {`"exchange":12,"segment":11`, "BFO"},
		{`"exchange":12,"segment":12`, "BCD"}, {`"segment":"11","exchange":"10"`, "NFO"},
		{`"exchange":10.0,"segment":11.0,"symbol":"BSE:X"`, "NFO"},
		{`"exchange":10,"segment":20,"symbol":"nse:GOLD"`, "NSE"}, {`"symbol":"BSE:SBIN-A"`, "BSE"},
		{`"exchange":10,"segment":20`, "10"}, {`"exchange":"Nse"`, "NSE"}, {`"segment":10`, ""},
		{`"exchange":13,"segment":10,"symbol":"GOLD"`, "13"},
	} {
		if got := normalize(t, ","+v.members).Exchange; got != v.want {
			t.Errorf("%s became %q, want %q", v.members, got, v.want)
		}
	}
}

func TestTime(t *testing.T) {
	const want = "2023-07-18T11:44:29+05:30"
	for _, sent := range []string{
		`"18-Jul-2023 11:44:29"`, `1689660869`, `"1689660869"`, `1689660869.0`, `"2023-07-18 11:44:29"`,
	} {
		o := normalize(t, `,"orderDateTime":`+sent)
		if o.OrderTime != want || o.UpdatedTime != want {
			t.Errorf("%s became %q and %q, want %q", sent, o.OrderTime, o.UpdatedTime, want)
		}
	}
	for _, sent := range []string{`null`, `""`, `"NA"`, `0`, `999999999`, `1689660869000`, `"11:44:29"`, `{}`, `-1689660869`} {
		if o := normalize(t, `,"orderDateTime":`+sent); o.OrderTime != "" || o.UpdatedTime != "" {
			t.Errorf("%s became %q and %q", sent, o.OrderTime, o.UpdatedTime)
		}
	}
}

// TestStatesOfOneOrder has pairs of bodies that differ in one member.
func TestStatesOfOneOrder(t *testing.T) {
	id := func(members string) string {
		p := &bridge.Postback{PathToken: token, Body: []byte(`{"id":"1","status":6` + members + `}`)}
		broker := newBroker([]string{token}, nil)
		verifiedBy, err := broker.Verify(p)
		if err != nil {
			t.Fatal(err)
		}
		return bridge.Normalize(broker, p, verifiedBy, time.Unix(1, 0)).ID
	}
	for _, v := range [][2]string{
		{`"stopPrice":1.5`, `"stopPrice":2.5`}, {`"message":"a"`, `"message":"b"`}, {`"side":1`, `"side":-1`},
		{`"orderDateTime":"18-Jul-2023 11:44:29"`, `"orderDateTime":"18-Jul-2023 11:44:30"`},
		{`"orderNumStatus":"1:6"`, `"orderNumStatus":"1:2"`}, {`"offlineOrder":true`, `"offlineOrder":false`},
		{`"status":6`, `"status":2`},
	} {
		if id(","+v[0]) == id(","+v[1]) {
			t.Errorf("%s and %s are one state", v[0], v[1])
		}
	}
	for _, v := range [][2]string{
		{`"limitPrice":470`, `"limitPrice":"470.0"`}, {`"limitPrice":0.0`, `"limitPrice":null`},
		{`"tradedPrice":0`, ``}, {`"qty":5,"side":1`, `"side":1,"qty":5`}, {`"side":1`, `"side":"1"`},
		{`"orderDateTime":"18-Jul-2023 11:44:29"`, `"orderDateTime":1689660869`},
		{`"pan":"ABCDE1234F"`, ``}, {`"PAN":"ABCDE1234F"`, `"PAN":"ABCDE1234G"`}, {`"lp":6.85`, `"lp":6.9`},
	} {
		if id(","+v[0]) != id(strings.TrimSuffix(","+v[1], ",")) {
			t.Errorf("%s and %s are two states", v[0], v[1])
		}
	}
}

// TestIDsAreText keeps ids that are numbers and that a float would not hold.
func TestIDsAreText(t *testing.T) {
	o := normalize(t, `,"id":1953341975595868160,"exchOrdId":1100000014814320123,"clientId":1,"parentId":2`)
	if o.OrderID != "1953341975595868160" || o.ExchangeOrderID != "1100000014814320123" || o.UserID != "1" ||
		o.ParentOrderID != "2" {
		t.Errorf("%+v", o)
	}
}
