package bridge_test

import (
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/spool"
)

// TestTooMany holds the limit of one source: so many at once, then one in a while, and all again after a rest.
func TestTooMany(t *testing.T) {
	const burst, interval = bridge.RefusalBurst, bridge.RefusalInterval
	s := bridge.NewRefusals()
	for i := range burst {
		if s.TooMany("192.0.2.1:1", 0) {
			t.Fatalf("refusal %d is one too many", i+1)
		}
	}
	for range 10 * burst {
		if !s.TooMany("192.0.2.1:2", interval-1) {
			t.Fatal("one more than the limit")
		}
	}
	if s.TooMany("192.0.2.1:3", interval) || !s.TooMany("192.0.2.1:3", interval) {
		t.Error("after a while it is not one more")
	}
	for i := range burst {
		if s.TooMany("192.0.2.1:4", time.Hour) {
			t.Fatalf("refusal %d after an hour is one too many", i+1)
		}
	}
}

// TestTooManyAtOnce counts none too many and none too few from many goroutines.
func TestTooManyAtOnce(t *testing.T) {
	s := bridge.NewRefusals()
	var wg sync.WaitGroup
	var mu sync.Mutex
	told := 0
	for range 16 {
		wg.Go(func() {
			for range bridge.RefusalBurst {
				if !s.TooMany("192.0.2.1:1", 0) {
					mu.Lock()
					told++
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	if told != bridge.RefusalBurst {
		t.Errorf("%d were told why, want %d", told, bridge.RefusalBurst)
	}
}

// TestClientPrefix holds which addresses are counted together.
func TestClientPrefix(t *testing.T) {
	for address, want := range map[string]string{
		"192.0.2.1:1":                 "192.0.2.1/32",
		"[::ffff:192.0.2.1]:9":        "192.0.2.1/32",
		"[2001:db8:1:2::3]:1":         "2001:db8:1:2::/64",
		"[2001:db8:1:2:ffff::3]:1":    "2001:db8:1:2::/64",
		"[2001:db8:1:3::3]:1":         "2001:db8:1:3::/64",
		"[fe80::1%eth0]:1":            "fe80::/64",
		"@":                           "invalid Prefix",
		"":                            "invalid Prefix",
		"192.0.2.1":                   "invalid Prefix",
		"2001:db8::1, 192.0.2.1:8080": "invalid Prefix",
	} {
		if got := bridge.ClientPrefix(address); got != want {
			t.Errorf("%q is counted as %s, want %s", address, got, want)
		}
	}
}

// TestRefusalsAreBounded floods the table from many networks: it takes no more memory, an address that had too many
// still has, and nothing else is lost: what the flood costs others is the reason of their refusals.
func TestRefusalsAreBounded(t *testing.T) {
	s := bridge.NewRefusals()
	for range bridge.RefusalBurst {
		s.TooMany("192.0.2.1:1", 0)
	}
	n := 0
	address := make([]string, 1<<16)
	for i := range address {
		address[i] = fmt.Sprintf("[2001:db8:%x::1]:1", i)
	}
	allocates(t, "a refusal from another network", 0, func() {
		for range len(address) / 200 {
			s.TooMany(address[n%len(address)], 0)
			n++
		}
	})
	if !s.TooMany("192.0.2.1:1", 0) {
		t.Error("the flood had the count of another forgotten")
	}
}

// TestRefusedTooOften answers 429 to what is refused, and 200 to what is proven, from one address at a time; the
// accounts balance, and the reason is counted and told to nobody.
func TestRefusedTooOften(t *testing.T) {
	t.Parallel()
	log := new(logBuffer)
	o := testOptions(t, log)
	o.Buses = []bridge.Bus{newFakeBus(t).bus()}
	r := start(t, o, log)
	forged := strings.Replace(kiteBody("1", "OPEN", 1), `"checksum":"`, `"checksum":"0`, 1)
	for range bridge.RefusalBurst {
		if status, answer := r.post("/kite", forged); status != 403 {
			t.Fatalf("answered %d %s", status, answer)
		}
	}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := range 50 {
				if status, answer := r.post("/dhan/wrong", "{}"); status != 429 && status != 401 ||
					strings.Contains(answer, "token") != (status == 401) {
					t.Errorf("wrong token: answered %d %s", status, answer)
				}
				if status, answer := r.post("/kite", kiteBody(fmt.Sprintf("%d-%d", i, n), "OPEN", 1)); status != 200 {
					t.Errorf("proven: answered %d %s", status, answer)
				}
			}
		})
	}
	wg.Wait()
	_, metrics := r.get("/metrics")
	for _, want := range []string{
		`postbridge_received_total{broker="kite"} 260`, `postbridge_postbacks_total{broker="kite",fate="accepted"} 200`,
		`postbridge_postbacks_total{broker="kite",fate="refused"} 60`, `postbridge_refused_total{broker="kite",reason="checksum"} 60`,
		`postbridge_limited_total{broker="kite"} 0`, `postbridge_refused_total{broker="dhan",reason="token"} 200`,
	} {
		if !strings.Contains(metrics, want+"\n") {
			t.Errorf("no %s in\n%s", want, metrics)
		}
	}
	if strings.Contains(metrics, `postbridge_limited_total{broker="dhan"} 0`) {
		t.Error("what was answered 429 is not counted")
	}
}

// TestTooManyAnswer is the answer itself, to every way to be refused.
func TestTooManyAnswer(t *testing.T) {
	o := testOptions(t, io.Discard)
	h, _ := bridge.Handler(o, open(t, o.DataDir, spool.Options{}))
	post := func(path, body, from, forwarded string) *httptest.ResponseRecorder {
		w, req := httptest.NewRecorder(), httptest.NewRequest("POST", path, strings.NewReader(body))
		req.RemoteAddr = from
		if forwarded != "" {
			req.Header.Set("X-Forwarded-For", forwarded)
			req.Header.Set("Forwarded", "for="+forwarded)
		}
		h.ServeHTTP(w, req)
		return w
	}
	const from = "192.0.2.1:1234"
	for i := range bridge.RefusalBurst {
		// What the sender says of where it comes from makes no difference.
		checkAnswer(t, post("/kite", "{}", from, net.IPv4(10, 0, 0, byte(i)).String()), 403)
	}
	for _, row := range []struct{ path, body string }{
		{"/kite", "{}"}, {"/kite", "not JSON"}, {"/kite/x", "{}"}, {"/dhan", "{}"}, {"/kite", strings.Repeat(" ", 65<<10)},
	} {
		w := post(row.path, row.body, from, "10.9.9.9")
		checkAnswer(t, w, 429)
		if after := w.Header().Get("Retry-After"); after != "60" {
			t.Errorf("Retry-After is %q", after)
		}
	}
	checkAnswer(t, post("/kite", kiteBody("1", "OPEN", 1), from, ""), 200)
	others := 0 // one of them may share a slot
	for i := range 4 {
		if post("/kite", "{}", fmt.Sprintf("198.51.100.%d:1", i), "").Code == 403 {
			others++
		}
	}
	if others == 0 {
		t.Error("others are not told why, either")
	}
	checkAnswer(t, post("/other", "{}", from, ""), 404)
}

// FuzzClientPrefix takes any text for one client or for none.
func FuzzClientPrefix(f *testing.F) {
	for _, address := range []string{"192.0.2.1:1", "[2001:db8::1%eth0]:1", "[::ffff:192.0.2.1]:9", "@", ""} {
		f.Add(address)
	}
	s := bridge.NewRefusals()
	f.Fuzz(func(t *testing.T, address string) {
		s.TooMany(address, 0)
		got := bridge.ClientPrefix(address)
		ip, _, _ := strings.Cut(got, "/")
		if got != "invalid Prefix" && bridge.ClientPrefix(net.JoinHostPort(ip, "1")) != got {
			t.Errorf("%q is counted as %q, and that as something else", address, got)
		}
	})
}
