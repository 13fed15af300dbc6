package dhan_test

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
func orderOf(body []byte) (event.Order, error) {
	members, err := scan.Members(nil, string(body))
	if err != nil {
		return event.Order{}, err
	}
	return newBroker(nil, nil).Normalize(members)
}

// normalize reads an order that has an id, a status and these members.
func normalize(t *testing.T, members string) event.Order {
	t.Helper()
	text := `{"orderId":"1","orderStatus":"TRANSIT"` + members + `}`
	order, err := orderOf([]byte(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return order
}

func TestStatus(t *testing.T) {
	for word, want := range map[string]event.Status{
		"TRANSIT":      event.StatusPending,
		"PENDING":      event.StatusOpen,
		"REJECTED":     event.StatusRejected,
		"CANCELLED":    event.StatusCancelled,
		"TRADED":       event.StatusFilled,
		"EXPIRED":      event.StatusExpired,
		"PART_TRADED":  event.StatusPartiallyFilled,
		"Traded":       event.StatusFilled,
		" pending ":    event.StatusOpen,
		"FROZEN":       event.StatusUnknown,
		"CONFIRM":      event.StatusOpen,
		"TRIGGERED":    event.StatusOpen,
		"CLOSED":       event.StatusUnknown,
		"Part Traded":  event.StatusPartiallyFilled,
		"part--traded": event.StatusPartiallyFilled,
	} {
		order := normalize(t, fmt.Sprintf(`,"orderStatus":%q`, word))
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
		{`,"orderStatus":"PENDING","quantity":5,"filled_qty":1`, event.StatusPartiallyFilled},
		{`,"orderStatus":"PENDING","quantity":5,"filledQty":"1"`, event.StatusPartiallyFilled},
		{`,"orderStatus":"TRANSIT","quantity":5,"filled_qty":1`, event.StatusPartiallyFilled},
		{`,"orderStatus":"PENDING","quantity":5,"filled_qty":0`, event.StatusOpen},
		{`,"orderStatus":"PENDING","quantity":5,"filled_qty":5`, event.StatusOpen},
		{`,"orderStatus":"CANCELLED","quantity":5,"filled_qty":1`, event.StatusCancelled},
	} {
		if order := normalize(t, v.members); order.Status != v.want {
			t.Errorf("%s became %s, want %s", v.members, order.Status, v.want)
		}
	}
}

func TestNotUnderstood(t *testing.T) {
	for _, text := range []string{
		``, `[]`, `null`, `{}`, `{"orderId":"1"}`, `{"orderStatus":"PENDING"}`,
		`{"orderId":null,"orderStatus":"PENDING"}`,
		`{"orderId":"1","orderStatus":"NA"}`, `{"orderId":[1],"orderStatus":"PENDING"}`,
		`{"orderId":"1","orderStatus":"PENDING","legName": ,}`,
	} {
		if order, err := orderOf([]byte(text)); err == nil {
			t.Errorf("%s became %+v", text, order)
		}
	}
}

// TestSpellings reads a thing that has several names from whichever has a value.
func TestSpellings(t *testing.T) {
	for _, v := range []struct{ members, want string }{
		{`,"omsErrorCode":"A"`, "A"},
		{`,"omserroeCode":"B"`, "B"},
		{`,"omsErrorCode":"A","omserroeCode":"B"`, "A"},
		{`,"omsErrorCode":null,"omserroeCode":"B"`, "B"},
		{`,"omserroeCode":"B","omsErrorCode":""`, "B"},
		{`,"OMSERRORCODE":5`, "5"},
		{`,"omsErrorCode":"A","OmsErrorCode":"C"`, "C"},
	} {
		if got := normalize(t, v.members).ReasonCode; got != v.want {
			t.Errorf("%s: the reason code is %q, want %q", v.members, got, v.want)
		}
	}
	for _, v := range []struct {
		members string
		want    event.Quantity
	}{
		{`,"filled_qty":1`, event.QuantityOf(1)},
		{`,"filledQty":2`, event.QuantityOf(2)},
		{`,"filledQty":2,"filled_qty":1`, event.QuantityOf(1)},
		{`,"filled_qty":0,"filledQty":2`, event.QuantityOf(0)}, // 0 is a value
		{`,"filled_qty":null,"filledQty":2`, event.QuantityOf(2)},
		{`,"filled_qty":"50"`, event.QuantityOf(50)},
		{``, event.Quantity{}},
	} {
		if got := normalize(t, v.members).FilledQuantity; got != v.want {
			t.Errorf("%s: the filled quantity is %v, want %v", v.members, got, v.want)
		}
	}
	for _, v := range []struct{ members, want string }{
		{`,"averageTradedPrice":1.10,"averagePrice":2,"tradedPrice":3`, "1.10"},
		{`,"averagePrice":"2.0","tradedPrice":3`, "2.0"},
		{`,"averageTradedPrice":"NA","averagePrice":null,"tradedPrice":3`, "3"},
		// With fills 0 is no price, unless there is no other. Without, it is as good as another.
		{`,"filled_qty":5,"averageTradedPrice":0.0,"averagePrice":2`, "2"},
		{`,"filledQty":"5","averageTradedPrice":"-0.00","averagePrice":0,"tradedPrice":"3.10"`, "3.10"},
		{`,"orderStatus":"TRADED","averageTradedPrice":0,"averagePrice":2`, "2"},
		{`,"orderStatus":"PART_TRADED","averageTradedPrice":0,"tradedPrice":3`, "3"},
		{`,"orderStatus":"TRADED","averageTradedPrice":0.0,"averagePrice":null,"tradedPrice":0`, "0.0"},
		{`,"filled_qty":0,"averageTradedPrice":0.0,"averagePrice":2`, "0.0"},
		{`,"filled_qty":5,"averageTradedPrice":10,"averagePrice":2`, "10"},
		{``, ""},
	} {
		if got := normalize(t, v.members).AveragePrice; got != v.want {
			t.Errorf("%s: the average price is %q, want %q", v.members, got, v.want)
		}
	}
}

func TestWords(t *testing.T) {
	for _, v := range []struct{ name, sent, want string }{
		{"orderType", "MARKET", "market"}, {"orderType", "LIMIT", "limit"}, {"orderType", "STOP_LOSS", "stop_limit"},
		{"orderType", "STOP_LOSS_MARKET", "stop_market"}, {"orderType", "Stop-Loss Market", "stop_market"},
		{"orderType", "Odd", "odd"},
		{"productType", "CNC", "cnc"}, {"productType", "INTRADAY", "mis"}, {"productType", "MARGIN", "nrml"},
		{"productType", "MTF", "mtf"}, {"productType", "CO", "co"},
		{"exchangeSegment", "NSE_EQ", "NSE"}, {"exchangeSegment", "BSE_EQ", "BSE"}, {"exchangeSegment", "NSE_FNO",
			"NFO"},
		{"exchangeSegment", "BSE_FNO", "BFO"}, {"exchangeSegment", "NSE_CURRENCY", "CDS"},
		{"exchangeSegment", "BSE_CURRENCY", "BCD"}, {"exchangeSegment", "mcx_comm", "MCX"}, {"exchangeSegment",
			"Idx_I", "IDX_I"},
		{"exchangeSegment", "nse fno", "NFO"}, {"productType", "Co_X", "co_x"},
		{"legName", "ENTRY_LEG", "entry_leg"}, {"legName", "TARGET_LEG", "target_leg"},
		{"legName", "Stop_Loss_Leg", "stop_loss_leg"}, {"legName", "NA", ""},
		{"transactionType", "BUY", "buy"}, {"validity", "IOC", "ioc"},
	} {
		order := normalize(t, fmt.Sprintf(`,%q:%q`, v.name, v.sent))
		got := map[string]string{
			"orderType": order.OrderType, "productType": order.Product, "exchangeSegment": order.Exchange,
			"transactionType": order.Side, "validity": order.Validity, "legName": order.Leg,
		}[v.name]
		if got != v.want {
			t.Errorf("%s %q became %q, want %q", v.name, v.sent, got, v.want)
		}
	}
}

// TestStatesOfOneOrder has bodies that differ in one member, two by two. Both are states of the order.
func TestStatesOfOneOrder(t *testing.T) {
	id := func(members string) string {
		body := `{"orderId":"1","orderStatus":"CANCELLED","updateTime":null` + members + `}`
		p := &bridge.Postback{PathToken: token, Body: []byte(body)}
		broker := newBroker([]string{token}, nil)
		verifiedBy, err := broker.Verify(p)
		if err != nil {
			t.Fatal(err)
		}
		return bridge.Normalize(broker, p, verifiedBy, time.Unix(1, 0)).ID
	}
	for _, v := range [][2]string{
		{`"legName":"TARGET_LEG"`, `"legName":"STOP_LOSS_LEG"`}, {`"boStopLossValue":1.5`, `"boStopLossValue":2.5`},
		{`"boProfitValue":1.5`, `"boProfitValue":2.5`}, {`"disclosedQuantity":1`, `"disclosedQuantity":2`},
		{`"omsErrorCode":"A"`, `"omsErrorCode":"B"`},
		{`"exchangeTime":"2021-11-24 13:33:03"`, `"exchangeTime":"2021-11-24 13:33:04"`},
		{`"price":1,"PRICE":2`, `"PRICE":2,"price":1`}, // the last counts, whatever its case
	} {
		if id(","+v[0]) == id(","+v[1]) {
			t.Errorf("%s and %s are one state", v[0], v[1])
		}
	}
	for _, v := range [][2]string{
		{`"price":470`, `"price":"470.0"`}, {`"price":0.0`, `"price":null`}, {`"boProfitValue":0.0`, ``},
		{`"legName":null`, `"legName":"NA"`},
		{`"quantity":1,"price":2`, `"price":2,"quantity":1`},
		{`"exchangeTime":"2021-11-24 13:33:03"`, `"exchangeTime":"2021-11-24T13:33:03+05:30"`},
	} {
		if id(","+v[0]) != id(strings.TrimSuffix(","+v[1], ",")) {
			t.Errorf("%s and %s are two states", v[0], v[1])
		}
	}
}

// TestIDsAreText keeps ids that a client declares as numbers and that a float would not hold.
func TestIDsAreText(t *testing.T) {
	o := normalize(
		t,
		`,"orderId":1953341975595868160,"exchangeOrderId":1100000014814320,"securityId":11536,"correlationId":"a b-1"`,
	)
	if o.OrderID != "1953341975595868160" || o.ExchangeOrderID != "1100000014814320" || o.InstrumentID != "11536" ||
		o.ClientOrderID != "a b-1" {
		t.Errorf("%+v", o)
	}
}
