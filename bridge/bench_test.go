package bridge_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/spool"
)

// BenchmarkNewEvent is what one Kite postback costs from its bytes to the bytes of its event.
func BenchmarkNewEvent(b *testing.B) {
	body := []byte(official(b, "kite"))
	kite := testBrokers()[0]
	now := time.Now()
	p := new(bridge.Postback)
	b.ReportAllocs()
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		p.Reset("", "", body)
		e, err := bridge.NewEvent(kite, p, now)
		if err != nil {
			b.Fatal(err)
		}
		bridge.Record(e)
	}
}

// BenchmarkReceive is the whole way of a postback to its answer, durable, with 64 of them under way.
func BenchmarkReceive(b *testing.B) {
	o := testOptions(b, io.Discard)
	h, _ := bridge.Handler(o, open(b, o.DataDir, spool.Options{MaxBytes: 1 << 40}))
	b.ReportAllocs()
	b.SetParallelism(64)
	b.RunParallel(func(pb *testing.PB) {
		order := strconv.FormatInt(time.Now().UnixNano(), 10)
		for n := 0; pb.Next(); n++ {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/kite", bytes.NewReader([]byte(kiteBody(order, "OPEN", n)))))
			if w.Code != http.StatusOK {
				b.Fatalf("answered %d", w.Code)
			}
		}
	})
}
