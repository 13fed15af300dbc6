package bridge_test

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/spool"
)

// TestAllocations holds the way of a postback to a number of allocations, which no noise changes: a copy too many is a
// tenth of the processor's time. Who needs more of them raises the number, with a reason.
func TestAllocations(t *testing.T) {
	kite, p, body, record := testBrokers()[0], new(bridge.Postback), onOneLine(t), []byte(nil)
	allocates(t, "verify, normalize and encode", 12, func() {
		p.Reset("", "", body)
		verifiedBy, err := kite.Verify(p)
		if err != nil {
			t.Fatal(err)
		}
		e := bridge.Normalize(kite, p, verifiedBy, time.Unix(1700000000, 0))
		record = bridge.AppendRecord(record[:0], e)
	})
	o := testOptions(t, io.Discard)
	o.Log = slog.New(slog.NewTextHandler(io.Discard, nil)) // at debug each event is logged, too
	h, _ := bridge.Handler(o, open(t, o.DataDir, spool.Options{MaxBytes: 1 << 40}))
	w, req := new(discard), httptest.NewRequest(http.MethodPost, "/kite", nil)
	order := 0
	// 22 of them, 11 of which are the body's; the race detector makes pools forget a quarter.
	allocates(t, "the handler, without net/http", 30, func() {
		order++
		req.Body = io.NopCloser(bytes.NewReader([]byte(kiteBody("1", "OPEN", order))))
		h.ServeHTTP(w, req)
	})
}

func allocates(t *testing.T, what string, most float64, do func()) {
	t.Helper()
	if n := testing.AllocsPerRun(200, do); n > most {
		t.Errorf("%s: %.0f allocations, %.0f are allowed", what, n, most)
	} else {
		t.Logf("%s: %.0f allocations", what, n)
	}
}

// discard is a ResponseWriter that keeps nothing.
type discard struct{ header http.Header }

func (d *discard) Header() http.Header {
	if d.header == nil {
		d.header = make(http.Header)
	}
	return d.header
}
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }
func (d *discard) WriteHeader(int)             {}
