//go:build linux

package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/brokers/kite"
)

// TestWorkload: every postback is verified by its checksum and understood, and no two have the same id. A load that is
// rejected or repeated would cost less.
func TestWorkload(t *testing.T) {
	broker := kite.New(kite.Config{
		Checksum: kite.OrderTimestamp,
		Credentials: func() kite.Credentials {
			return kite.Credentials{Secrets: []kite.Secret{{AppID: appID, Secret: appSecret}}}
		},
	})
	life := orderLife(netip.MustParseAddrPort("127.0.0.1:8080"))
	w := &workload{limit: 3000}
	ids := make(map[string]bool)
	for order, ok := w.take(); ok; order, ok = w.take() {
		for i := range life {
			r := &life[i]
			r.fill(order)
			p := &bridge.Postback{Body: r.text[r.body:]}
			verifiedBy, err := broker.Verify(p)
			if err != nil {
				t.Fatalf("%s\n%v", r.text, err)
			}
			e := bridge.Normalize(broker, p, verifiedBy, time.Now())
			if !e.Understood() || e.Status == event.StatusUnknown || ids[e.ID] {
				t.Fatalf("not understood, or a repeat: %s", r.text)
			}
			ids[e.ID] = true
		}
	}
	if len(ids) != 12_000 {
		t.Errorf("%d postbacks", len(ids))
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

// TestLoops posts a whole workload in a closed and in an open loop: each postback once.
func TestLoops(t *testing.T) {
	for _, rate := range []int{0, 2000} {
		var posted atomic.Int64
		srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if n, _ := io.Copy(io.Discard, r.Body); n > 0 {
				posted.Add(1)
			}
		}))
		p := plan{connections: 3, threads: 1, duration: time.Minute} // until the workload is used up
		r, err := p.run(t.Context(), netip.MustParseAddrPort(srv.Listener.Addr().String()), &workload{limit: 100}, rate)
		if err != nil || r.answered != 400 || posted.Load() != 400 || len(r.latencies) != 400 {
			t.Errorf("rate %d: %d answered, %d posted, %v", rate, r.answered, posted.Load(), err)
		}
		srv.Close()
	}
}

func TestQuantile(t *testing.T) {
	var all times
	for i := range 1000 {
		all = append(all, time.Duration(1000-i))
	}
	for q, want := range map[float64]time.Duration{0: 1, 0.5: 501, 0.99: 991, 1: 1000} {
		if got := all.quantile(q); got != want {
			t.Errorf("quantile %v is %d, want %d", q, got, want)
		}
	}
}

func TestParse(t *testing.T) {
	for args, want := range map[string]bool{
		"":                                  true,
		"-rows=kafka,drain-kafka":           true,
		"-rows=drain-kafka -events=1000000": true,
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

// TestReport: figures are compared within a round only, since the speed of the machine may change between rounds.
func TestReport(t *testing.T) {
	bare := &row{name: "bare", figures: []*figures{{rate: 100}, {rate: 10}, {rate: 1000}}}
	own := &row{name: "own", baseline: bare, goal: "half", figures: []*figures{{rate: 50}, {rate: 6}, {rate: 400}}}
	g := &group{title: "rates", rows: []*row{bare, own}}
	var out strings.Builder
	g.report(&out)
	got := strings.Join(strings.Fields(out.String()), " ")
	if want := "rates per second ratio goal bare 100 (10–1000) own 50 (6–400) 0.500 (0.400–0.600) half"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
