package bridge_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/spool"
)

// onOneLine is the official sample as Kite sends it.
func onOneLine(t testing.TB) []byte {
	t.Helper()
	var body bytes.Buffer
	if err := json.Compact(&body, []byte(official(t, "kite"))); err != nil {
		t.Fatal(err)
	}
	return body.Bytes()
}

// BenchmarkNormalize is what one Kite postback costs from its bytes to the bytes of its event.
func BenchmarkNormalize(b *testing.B) {
	body := onOneLine(b)
	kite := testBrokers()[0]
	now := time.Now()
	p := new(bridge.Postback)
	var record []byte
	b.ReportAllocs()
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		p.Reset("", "", body)
		verifiedBy, err := kite.Verify(p)
		if err != nil {
			b.Fatal(err)
		}
		e := bridge.Normalize(kite, p, verifiedBy, now)
		record = bridge.AppendRecord(record[:0], e)
	}
}

// BenchmarkReceive is the whole way of a postback to its answer, durable, with 64 of them under way.
func BenchmarkReceive(b *testing.B) {
	o := testOptions(b, io.Discard)
	o.Log = slog.New(slog.NewTextHandler(io.Discard, nil)) // at debug each event is logged, too
	h, _ := bridge.Handler(o, open(b, o.DataDir, spool.Options{MaxBytes: 1 << 40}))
	b.ReportAllocs()
	b.SetParallelism(64)
	b.RunParallel(func(pb *testing.PB) {
		order := strconv.FormatInt(time.Now().UnixNano(), 10)
		for n := 0; pb.Next(); n++ {
			w := httptest.NewRecorder()
			h.ServeHTTP(
				w,
				httptest.NewRequest(http.MethodPost, "/kite", bytes.NewReader([]byte(kiteBody(order, "OPEN", n)))),
			)
			if w.Code != http.StatusOK {
				b.Fatalf("answered %d", w.Code)
			}
		}
	})
}

// kiteFields are what Normalize reads of a Kite postback, for encoding/json.
type kiteFields struct {
	UserID           string          `json:"user_id"`
	AccountID        string          `json:"account_id"`
	AppID            int64           `json:"app_id"`
	Checksum         string          `json:"checksum"`
	OrderID          string          `json:"order_id"`
	ExchangeOrderID  string          `json:"exchange_order_id"`
	ParentOrderID    string          `json:"parent_order_id"`
	Status           string          `json:"status"`
	Message          string          `json:"status_message"`
	MessageRaw       string          `json:"status_message_raw"`
	Tag              string          `json:"tag"`
	Exchange         string          `json:"exchange"`
	Symbol           string          `json:"tradingsymbol"`
	Instrument       int64           `json:"instrument_token"`
	Side             string          `json:"transaction_type"`
	Type             string          `json:"order_type"`
	Product          string          `json:"product"`
	Validity         string          `json:"validity"`
	Variety          string          `json:"variety"`
	Quantity         int64           `json:"quantity"`
	Filled           int64           `json:"filled_quantity"`
	Cancelled        int64           `json:"cancelled_quantity"`
	Pending          int64           `json:"pending_quantity"`
	Disclosed        int64           `json:"disclosed_quantity"`
	Price            json.Number     `json:"price"`
	TriggerPrice     json.Number     `json:"trigger_price"`
	AveragePrice     json.Number     `json:"average_price"`
	OrderTime        string          `json:"order_timestamp"`
	ExchangeTime     string          `json:"exchange_timestamp"`
	UpdateTime       string          `json:"exchange_update_timestamp"`
	Meta             json.RawMessage `json:"meta"`
	MarketProtection json.Number     `json:"market_protection"`
}

// BenchmarkUnmarshal is what encoding/json alone costs for the postback of BenchmarkNormalize, into a struct of the
// fields that count: what a handler in Go would begin with.
func BenchmarkUnmarshal(b *testing.B) {
	body := onOneLine(b)
	b.ReportAllocs()
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		var f kiteFields
		if err := json.Unmarshal(body, &f); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSeen is what a postback of a new order costs in the processor, from its bytes to its record, when so many
// orders have been seen.
func BenchmarkSeen(b *testing.B) {
	for _, orders := range []int{1000, 10_000_000} {
		b.Run(fmt.Sprint("orders=", orders), func(b *testing.B) {
			seen, kite, p := bridge.NewSeen(orders), testBrokers()[0], new(bridge.Postback)
			body, record := onOneLine(b), []byte(nil)
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				p.Reset("", "", body)
				verifiedBy, err := kite.Verify(p)
				if err != nil {
					b.Fatal(err)
				}
				e := bridge.Normalize(kite, p, verifiedBy, time.Now())
				record = bridge.AppendRecord(record[:0], e)
				e.OrderID = strconv.Itoa(n)
				if seen.Compare(e) {
					b.Fatal("a new order is a repeat")
				}
			}
		})
	}
}
