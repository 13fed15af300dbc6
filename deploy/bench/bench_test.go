//go:build linux

package main

import (
	"net/netip"
	"testing"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/brokers/kite"
)

// TestWorkload holds that what is sent is what it is said to be: every postback is proven by its checksum and
// understood, and no two have the same id. A load that is refused or repeated would cost less.
func TestWorkload(t *testing.T) {
	broker := kite.New(kite.Config{
		Checksum: kite.OrderTimestamp,
		Credentials: func() kite.Credentials {
			return kite.Credentials{Secrets: []kite.Secret{{AppID: appID, Secret: appSecret}}}
		},
	})
	life := orderLife(netip.MustParseAddrPort("127.0.0.1:8080"))
	w := newWorkload(12_000)
	ids := make(map[string]bool)
	posted := 0
	for {
		order, err := w.take()
		if err != nil {
			break
		}
		for i := range life {
			r := &life[i]
			r.address(orderNumber(order), w.sum(order))
			e, err := bridge.NewEvent(broker, &bridge.Postback{Body: r.text[r.body:]}, time.Now())
			if err != nil {
				t.Fatalf("%s\n%v", r.text, err)
			}
			if !e.Understood() || e.Status == bridge.StatusUnknown || ids[e.ID] {
				t.Fatalf("not understood, or a repeat: %s", r.text)
			}
			ids[e.ID] = true
			posted++
		}
	}
	if posted < 12_000 {
		t.Errorf("only %d postbacks", posted)
	}
}

func TestCheckAnswer(t *testing.T) {
	for answer, want := range map[string]struct{ whole, fails bool }{
		"":                              {},
		"HTTP/1.1 200 OK\r\nContent-Le": {},
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{":           {},
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}":          {whole: true},
		"HTTP/1.1 200 OK\r\nDate: x\r\nContent-Length: 0\r\n\r\n": {whole: true},
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}H":         {fails: true},
		"HTTP/1.1 200 OK\r\n\r\n":                                 {fails: true},
		"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n":            {fails: true},
	} {
		whole, err := checkAnswer([]byte(answer))
		if err == nil && whole != want.whole || (err != nil) != want.fails {
			t.Errorf("%q: whole %v, error %v", answer, whole, err)
		}
	}
}

func TestHistogram(t *testing.T) {
	h := new(histogram)
	for i := range 1000 {
		h.record(time.Duration(i+1) * 10 * time.Microsecond)
	}
	for q, want := range map[float64]time.Duration{0: 10e3, 0.5: 5010e3, 0.99: 9910e3, 0.999: 10e6} {
		if got := h.quantile(q); got < want || got > want+want/60 {
			t.Errorf("quantile %v is %s, want %s", q, got, want)
		}
	}
}
