package dhan_test

import (
	"fmt"
	"testing"

	"github.com/postbridge/postbridge/bridge"
)

// normalize reads an order that has an id, a status and these members.
func normalize(t *testing.T, members string) bridge.Order {
	t.Helper()
	text := `{"orderId":"1","orderStatus":"TRANSIT"` + members + `}`
	order, err := newBroker(nil, nil).Normalize(&bridge.Postback{Body: []byte(text)})
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return order
}

func TestStatus(t *testing.T) {
	for word, want := range map[string]bridge.Status{
		"TRANSIT":     bridge.StatusPending,
		"PENDING":     bridge.StatusOpen,
		"REJECTED":    bridge.StatusRejected,
		"CANCELLED":   bridge.StatusCancelled,
		"TRADED":      bridge.StatusFilled,
		"EXPIRED":     bridge.StatusExpired,
		"PART_TRADED": bridge.StatusPartiallyFilled,
		"Traded":      bridge.StatusFilled,
		" pending ":   bridge.StatusOpen,
		"FROZEN":      bridge.StatusUnknown,
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
		want    bridge.Status
	}{
		{`,"orderStatus":"PENDING","quantity":5,"filled_qty":1`, bridge.StatusPartiallyFilled},
		{`,"orderStatus":"PENDING","quantity":5,"filledQty":"1"`, bridge.StatusPartiallyFilled},
		{`,"orderStatus":"TRANSIT","quantity":5,"filled_qty":1`, bridge.StatusPartiallyFilled},
		{`,"orderStatus":"PENDING","quantity":5,"filled_qty":0`, bridge.StatusOpen},
		{`,"orderStatus":"PENDING","quantity":5,"filled_qty":5`, bridge.StatusOpen},
		{`,"orderStatus":"CANCELLED","quantity":5,"filled_qty":1`, bridge.StatusCancelled},
	} {
		if order := normalize(t, v.members); order.Status != v.want {
			t.Errorf("%s became %s, want %s", v.members, order.Status, v.want)
		}
	}
}

func TestNotUnderstood(t *testing.T) {
	for _, text := range []string{
		``, `[]`, `null`, `{}`, `{"orderId":"1"}`, `{"orderStatus":"PENDING"}`, `{"orderId":null,"orderStatus":"PENDING"}`,
		`{"orderId":"1","orderStatus":"NA"}`, `{"orderId":[1],"orderStatus":"PENDING"}`, `{"orderId":"1","orderStatus":"PENDING","legName": ,}`,
	} {
		if order, err := newBroker(nil, nil).Normalize(&bridge.Postback{Body: []byte(text)}); err == nil {
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
		want    bridge.Quantity
	}{
		{`,"filled_qty":1`, bridge.QuantityOf(1)},
		{`,"filledQty":2`, bridge.QuantityOf(2)},
		{`,"filledQty":2,"filled_qty":1`, bridge.QuantityOf(1)},
		{`,"filled_qty":0,"filledQty":2`, bridge.QuantityOf(0)}, // 0 is a value
		{`,"filled_qty":null,"filledQty":2`, bridge.QuantityOf(2)},
		{`,"filled_qty":"50"`, bridge.QuantityOf(50)},
		{``, bridge.Quantity{}},
	} {
		if got := normalize(t, v.members).FilledQuantity; got != v.want {
			t.Errorf("%s: the filled quantity is %v, want %v", v.members, got, v.want)
		}
	}
	for _, v := range []struct{ members, want string }{
		{`,"averageTradedPrice":1.10,"averagePrice":2,"tradedPrice":3`, "1.10"},
		{`,"averagePrice":"2.0","tradedPrice":3`, "2.0"},
		{`,"averageTradedPrice":"NA","averagePrice":null,"tradedPrice":3`, "3"},
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
		{"orderType", "STOP_LOSS_MARKET", "stop_market"}, {"orderType", "Odd", "odd"},
		{"productType", "CNC", "cnc"}, {"productType", "INTRADAY", "mis"}, {"productType", "MARGIN", "nrml"},
		{"productType", "MTF", "mtf"}, {"productType", "CO", "co"},
		{"exchangeSegment", "NSE_EQ", "NSE"}, {"exchangeSegment", "BSE_EQ", "BSE"}, {"exchangeSegment", "NSE_FNO", "NFO"},
		{"exchangeSegment", "BSE_FNO", "BFO"}, {"exchangeSegment", "NSE_CURRENCY", "CDS"},
		{"exchangeSegment", "BSE_CURRENCY", "BCD"}, {"exchangeSegment", "mcx_comm", "MCX"}, {"exchangeSegment", "Idx_I", "IDX_I"},
		{"transactionType", "BUY", "buy"}, {"validity", "IOC", "ioc"},
	} {
		order := normalize(t, fmt.Sprintf(`,%q:%q`, v.name, v.sent))
		got := map[string]string{
			"orderType": order.OrderType, "productType": order.Product, "exchangeSegment": order.Exchange,
			"transactionType": order.Side, "validity": order.Validity,
		}[v.name]
		if got != v.want {
			t.Errorf("%s %q became %q, want %q", v.name, v.sent, got, v.want)
		}
	}
}

// TestIDsAreText keeps ids that a client declares as numbers and that a float would not hold.
func TestIDsAreText(t *testing.T) {
	o := normalize(t, `,"orderId":1953341975595868160,"exchangeOrderId":1100000014814320,"securityId":11536,"correlationId":"a b-1"`)
	if o.OrderID != "1953341975595868160" || o.ExchangeOrderID != "1100000014814320" || o.InstrumentID != "11536" || o.ClientOrderID != "a b-1" {
		t.Errorf("%+v", o)
	}
}
