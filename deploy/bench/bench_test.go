//go:build linux

package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
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
		order, ok := w.take()
		if !ok {
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
	if posted != 12_000 || !w.usedUp() {
		t.Errorf("%d postbacks, used up: %v", posted, w.usedUp())
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

// TestClosingServer has a server that closes each connection after its answer.
func TestClosingServer(t *testing.T) {
	var posted atomic.Int64
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if n, _ := io.Copy(io.Discard, r.Body); n > 0 {
			posted.Add(1)
		}
	}))
	srv.Config.SetKeepAlivesEnabled(false)
	srv.Start()
	defer srv.Close()
	p := plan{connections: 3, threads: 1, duration: time.Minute} // until the workload is used up
	r, err := p.run(t.Context(), netip.MustParseAddrPort(srv.Listener.Addr().String()), newWorkload(400))
	if err != nil || r.answered != 400 || posted.Load() != 400 {
		t.Errorf("%d answered, %d posted, %v", r.answered, posted.Load(), err)
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

func TestParse(t *testing.T) {
	for args, want := range map[string]bool{
		"":                                  true,
		"-rows=kafka,drain-kafka":           true,
		"-rows=drain-kafka -events=1000000": true,
		"-rows=flask,connect-sqlite":        true,
		"-rows=drain":                       false,
		"-rows=":                            false,
		"-events=0":                         false,
		"kafka":                             false,
	} {
		if _, err := parse(strings.Fields(args), io.Discard); (err == nil) != want {
			t.Errorf("%q: %v", args, err)
		}
	}
}

// TestRatios holds that a ratio is of two figures of the same round: the machine may be another in the next.
func TestRatios(t *testing.T) {
	bare := &row{figures: []figures{{rate: 100}, {rate: 10}, {rate: 1000}}}
	r := &row{baseline: bare, figures: []figures{{rate: 50}, {rate: 6}, {rate: 400}}}
	if got := r.ratios(); !slices.Equal(got, []float64{0.5, 0.6, 0.4}) || middle(got) != 0.5 {
		t.Errorf("ratios %v, median %v", got, middle(got))
	}
	b := &bench{minDrain: 0.5}
	if err := b.judge(nil, []*drain{{postbridge: r}}); err != nil {
		t.Error(err)
	}
	b.minDrain = 0.51
	if err := b.judge(nil, []*drain{{postbridge: r}}); err == nil {
		t.Error("a ratio below the limit passes")
	}
}
