package bridge_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/spool"
	"github.com/postbridge/postbridge/bridge/spool/crashfs"
	"github.com/postbridge/postbridge/brokers/fyers"
)

// open opens a spool with one cursor.
func open(t testing.TB, dir string, o spool.Options) *spool.Spool {
	t.Helper()
	fs, err := spool.OSDir(filepath.Join(dir, "spool"))
	if err != nil {
		t.Fatal(err)
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 64 << 20
	}
	o.Cursors, o.Log = []string{"nats"}, slog.New(slog.DiscardHandler)
	s, err := spool.Open(fs, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// nextEvent is the next event in the spool.
func nextEvent(t testing.TB, s *spool.Spool) *bridge.Delivery {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	r, err := s.Cursor("nats").Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	d, err := bridge.ParseRecord(r.Payload)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func official(t testing.TB, broker string) string {
	t.Helper()
	b, err := os.ReadFile("../deploy/samples/" + broker + ".json")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestAnswers is the status table of the contract, each row with a body.
func TestAnswers(t *testing.T) {
	genuine, dhan := official(t, "kite"), official(t, "dhan")
	forged := strings.Replace(genuine, "2011845d", "3011845d", 1)
	for _, row := range []struct {
		name, method, path, body string
		tokens                   []string // of Kite
		status                   int
		destination              bridge.Destination // of the event, if there is one
	}{
		{"kite", "POST", "/kite", genuine, nil, 200, bridge.Orders},
		{"kite, the guide's route", "POST", "/kite/postback", genuine, nil, 200, bridge.Orders},
		{"kite, trailing slash", "POST", "/kite/", genuine, nil, 200, bridge.Orders},
		{"kite, doubled slash", "POST", "//kite", genuine, nil, 200, bridge.Orders},
		{"kite, the guide's route, trailing slash", "POST", "/kite/postback/", genuine, nil, 200, bridge.Orders},
		{"kite, slashes all over", "POST", "///kite//postback//", genuine, nil, 200, bridge.Orders},
		{"kite with token", "POST", "/kite/" + kiteToken, genuine, []string{"other", kiteToken}, 200, bridge.Orders},
		{"kite, no token", "POST", "/kite", genuine, []string{kiteToken}, 401, ""},
		{"kite, wrong token", "POST", "/kite/postback", genuine, []string{kiteToken}, 401, ""},
		{"kite, token in the query", "POST", "/kite?token=" + kiteToken, genuine, []string{kiteToken}, 401, ""},
		{"kite, forged", "POST", "/kite", forged, nil, 403, ""},
		{"kite, forged with token", "POST", "/kite/" + kiteToken, forged, []string{kiteToken}, 403, ""},
		{"kite, other app", "POST", "/kite", strings.Replace(genuine, `"app_id":1234`, `"app_id":1235`, 1), nil, 403, ""},
		{"kite, order id twice", "POST", "/kite", strings.Replace(genuine, `{`, `{"Order_ID":"1",`, 1), nil, 403, ""},
		{"kite, array", "POST", "/kite", "[" + genuine + "]", nil, 403, ""},
		{"kite, no JSON", "POST", "/kite", genuine[1:], nil, 400, ""},
		{"kite, empty", "POST", "/kite", "", nil, 400, ""},
		{"kite, no JSON but a token", "POST", "/kite/" + kiteToken, genuine[1:], []string{kiteToken}, 200, bridge.Deadletters},
		{"kite, word not known", "POST", "/kite", strings.Replace(genuine, "COMPLETE", "LAPSED", 1), nil, 200, bridge.Orders},
		{"kite, rejected", "POST", "/kite", strings.Replace(genuine, "COMPLETE", "REJECTED", 1), nil, 200, bridge.Rejects},
		{"kite, too large", "POST", "/kite", genuine + strings.Repeat(" ", 64<<10), nil, 413, ""},
		{"kite, as large as may be", "POST", "/kite", genuine + strings.Repeat(" ", 64<<10-len(genuine)), nil, 200, bridge.Orders},
		{"kite, not UTF-8", "POST", "/kite", strings.Replace(genuine, "SBIN", "SB\xffIN", 1), nil, 200, bridge.Orders},
		{"kite, nested too deep for the event", "POST", "/kite",
			strings.Replace(genuine, `"meta":{}`, `"meta":`+strings.Repeat("[", 9999)+strings.Repeat("]", 9999), 1), nil, 200, bridge.Orders},
		{"dhan", "POST", "/dhan/" + dhanToken, dhan, nil, 200, bridge.Orders},
		{"dhan, token in the query", "POST", "/dhan?token=" + dhanToken, dhan, nil, 200, bridge.Orders},
		{"dhan, trailing slash", "POST", "/dhan/" + dhanToken + "/", dhan, nil, 200, bridge.Orders},
		{"dhan, doubled slash", "POST", "/dhan//" + dhanToken, dhan, nil, 200, bridge.Orders},
		{"dhan, token in the query behind a slash", "POST", "/dhan/?token=" + dhanToken, dhan, nil, 200, bridge.Orders},
		{"dhan, no token", "POST", "/dhan", dhan, nil, 401, ""},
		{"dhan, escaped slash", "POST", "/dhan%2F" + dhanToken, dhan, nil, 404, ""},
		{"dhan, wrong token", "POST", "/dhan/" + dhanToken + "x", dhan, nil, 401, ""},
		{"dhan, client not known", "POST", "/dhan/" + dhanToken, strings.Replace(dhan, `"1000000003"`, `"1000000004"`, 1), nil, 403, ""},
		{"dhan, no JSON", "POST", "/dhan/" + dhanToken, `{"legName": ,}`, nil, 200, bridge.Deadletters},
		{"dhan, neither JSON nor text", "POST", "/dhan/" + dhanToken, "\xff\x00", nil, 200, bridge.Deadletters},
		{"dhan, no order id", "POST", "/dhan/" + dhanToken, `{"dhanClientId":"1000000003","orderStatus":"TRADED"}`, nil, 200, bridge.Deadletters},
		{"not a POST", "GET", "/kite", "", nil, 405, ""},
		{"not a POST either", "PUT", "/dhan/" + dhanToken, dhan, nil, 405, ""},
		{"no route", "POST", "/", genuine, nil, 404, ""},
		{"no broker", "POST", "/upstox", genuine, nil, 404, ""},
		{"kite without tokens has no other route", "POST", "/kite/x", genuine, nil, 404, ""},
		{"too deep", "POST", "/dhan/" + dhanToken + "/x", dhan, nil, 404, ""},
		{"too deep, not a POST", "GET", "/dhan/" + dhanToken + "/x", "", nil, 405, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			o := testOptions(t, io.Discard)
			o.Brokers = testBrokers(row.tokens...)
			s := open(t, o.DataDir, spool.Options{})
			h, _ := bridge.Handler(o, s)
			for _, contentType := range []string{"application/json", "application/x-www-form-urlencoded"} {
				before := s.Stats().Last
				w := httptest.NewRecorder()
				req := httptest.NewRequest(row.method, row.path, strings.NewReader(row.body))
				req.Header.Set("Content-Type", contentType)
				h.ServeHTTP(w, req)
				checkAnswer(t, w, row.status)
				if row.destination == "" {
					if s.Stats().Last != before {
						t.Error("an event without a proven origin")
					}
					continue
				}
				if s.Stats().Last == before {
					continue // the second one repeats the first
				}
				d := nextEvent(t, s)
				dests := d.Destinations()
				if dests[len(dests)-1] != row.destination {
					t.Errorf("goes to %v, not to %s", dests, row.destination)
				}
				if !strings.Contains(w.Body.String(), d.ID) {
					t.Errorf("the answer %s does not have the id %s", w.Body, d.ID)
				}
				if !json.Valid(d.Data) || bytes.ContainsRune(d.Data, '\n') {
					t.Errorf("not one line of JSON: %.200q", d.Data)
				}
			}
		})
	}
}

// TestUnknownRoute counts and logs a POST below a broker's name that matches no route, without its path. A path that
// names no broker is no postback.
func TestUnknownRoute(t *testing.T) {
	log := new(logBuffer)
	o := testOptions(t, log)
	h, b := bridge.Handler(o, open(t, o.DataDir, spool.Options{}))
	for _, path := range []string{
		"/kite/a/b", "/kite/x", "/dhan/" + dhanToken + "/kite", "/dhan/a/b/", "/", "/other/a/b", "/Kite",
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("POST", path, strings.NewReader("{}")))
		checkAnswer(t, w, 404)
	}
	w := httptest.NewRecorder()
	b.Admin().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{
		`postbridge_received_total{broker="dhan"} 2`, `postbridge_postbacks_total{broker="dhan",fate="refused"} 2`,
		`postbridge_received_total{broker="kite"} 2`, `postbridge_postbacks_total{broker="kite",fate="refused"} 2`,
		`postbridge_refused_total{broker="dhan",reason="route"} 2`,
		`postbridge_refused_total{broker="kite",reason="route"} 2`,
	} {
		if !strings.Contains(w.Body.String(), want+"\n") {
			t.Errorf("no %s in\n%s", want, w.Body)
		}
	}
	for _, broker := range []string{"kite", "dhan"} {
		if !hasLine(log.String(), "level=WARN", "broker="+broker, "status=404", "reason=route") {
			t.Errorf("no line for %s in\n%s", broker, log)
		}
	}
	if strings.Contains(log.String(), dhanToken) || strings.Contains(log.String(), "/a") {
		t.Errorf("the path is in\n%s", log)
	}
}

func checkAnswer(t *testing.T, w *httptest.ResponseRecorder, status int) {
	t.Helper()
	if w.Code != status {
		t.Errorf("answered %d %s, want %d", w.Code, w.Body, status)
	}
	var body struct{ Status, ID, Error string }
	if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
		t.Fatalf("answer %q: %v", w.Body, err)
	}
	ok := regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(body.ID)
	if (status == 200) != (body.Status == "ok" && ok) {
		t.Errorf("answer %s for %d", w.Body, status)
	}
	for _, secret := range []string{kiteSecret, kiteToken, dhanToken, "2011845d"} {
		if strings.Contains(w.Body.String(), secret) {
			t.Errorf("the answer says %s", secret)
		}
	}
}

// TestUnavailable has the rows of the status table that no body causes.
func TestUnavailable(t *testing.T) {
	genuine := official(t, "kite")
	post := func(h http.Handler, body string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("POST", "/kite", strings.NewReader(body)))
		return w
	}
	unavailable := func(t *testing.T, w *httptest.ResponseRecorder) {
		t.Helper()
		checkAnswer(t, w, 503)
		if after := w.Header().Get("Retry-After"); after == "" || after == "0" {
			t.Errorf("Retry-After is %q", after)
		}
	}
	t.Run("full", func(t *testing.T) {
		log := new(logBuffer)
		o := testOptions(t, log)
		h, _ := bridge.Handler(o, open(t, o.DataDir, spool.Options{MaxBytes: 64 << 10}))
		filler := strings.Repeat(" ", 30<<10)
		for i := range 100 {
			body := kiteBody(fmt.Sprint(i), "OPEN", i)
			if w := post(h, strings.Replace(body, `"status"`, `"tag":"`+filler+`","status"`, 1)); w.Code != 200 {
				unavailable(t, w)
				unavailable(t, post(h, strings.Replace(body, `"status"`, `"tag":"`+filler+`","status"`, 1)))
				if n := strings.Count(log.String(), "answered 503"); n != 1 {
					t.Errorf("said %d times", n)
				}
				return
			}
		}
		t.Error("never full")
	})
	t.Run("reserve of the disk", func(t *testing.T) {
		o := testOptions(t, io.Discard)
		h, _ := bridge.Handler(o, open(t, o.DataDir, spool.Options{MinFree: 1 << 60}))
		unavailable(t, post(h, genuine))
	})
	t.Run("closed", func(t *testing.T) {
		o := testOptions(t, io.Discard)
		s := open(t, o.DataDir, spool.Options{})
		h, _ := bridge.Handler(o, s)
		checkAnswer(t, post(h, genuine), 200)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		unavailable(t, post(h, kiteBody("1", "OPEN", 1)))
	})
	t.Run("not open yet", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h, _ := bridge.Handler(testOptions(t, io.Discard), nil)
			unavailable(t, post(h, genuine))
		})
	})
}

// TestRepeats holds the rule of repeats: against the last event of the order only, and for whoever asks at once.
func TestRepeats(t *testing.T) {
	s := openOn(t, crashfs.New(t)) // in memory: thousands of fsyncs take a while
	t.Cleanup(func() { _ = s.Close() })
	h, _ := bridge.Handler(testOptions(t, io.Discard), s)
	post := func(order, status string, price int) string {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("POST", "/kite", strings.NewReader(kiteBody(order, status, price))))
		checkAnswer(t, w, 200)
		return w.Body.String()
	}
	first := post("1", "OPEN", 10)
	last := func(want uint64) {
		t.Helper()
		if got := s.Stats().Last; got != want {
			t.Fatalf("%d events in the spool, want %d", got, want)
		}
	}
	if again := post("1", "OPEN", 10); again != first {
		t.Errorf("a repeat is answered %s, the first was %s", again, first)
	}
	post("1", "UPDATE", 10) // the same state in another word
	last(1)
	post("2", "OPEN", 10) // another order
	post("1", "OPEN", 10) // does not come between
	last(2)
	post("1", "OPEN", 11)
	if back := post("1", "OPEN", 10); back != first {
		t.Errorf("a state that returns has id %s, had %s", back, first)
	}
	last(4)

	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() { post("3", "OPEN", 1) })
	}
	wg.Wait()
	last(5)

	// The latest orders are in the memory.
	for i := range 2 * bridge.RememberedOrders / 16 {
		post(fmt.Sprintf("many-%d", i), "OPEN", 1)
	}
	n := s.Stats().Last
	for i := range 2 * bridge.RememberedOrders / 16 {
		post(fmt.Sprintf("many-%d", i), "OPEN", 1)
	}
	last(n)
}

// TestRepeatsAreBounded holds that the memory of orders does not grow with their number, and that enough are in it.
func TestRepeatsAreBounded(t *testing.T) {
	for _, orders := range []int{bridge.RememberedOrders, 2 * bridge.RememberedOrders, 5*bridge.RememberedOrders + 7} {
		if n := bridge.NewSeen(orders).Remembered(); n < bridge.RememberedOrders || n > 2*bridge.RememberedOrders {
			t.Errorf("of %d orders %d are remembered", orders, n)
		}
	}
}

// TestReload has a postback refused only after the secrets were read again.
func TestReload(t *testing.T) {
	o := testOptions(t, io.Discard)
	asked, changed := 0, true
	o.Reload = func() bool { asked++; return changed }
	b := &swapped{Broker: o.Brokers[0], genuine: func() bool { return asked > 0 && changed }}
	o.Brokers = []bridge.Broker{b}
	s := open(t, o.DataDir, spool.Options{})
	h, _ := bridge.Handler(o, s)
	post := func(want int) {
		t.Helper()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("POST", "/kite", strings.NewReader(kiteBody("1", "OPEN", 1))))
		checkAnswer(t, w, want)
	}
	post(200)
	changed = false
	post(403)
	if asked != 2 {
		t.Errorf("asked %d times", asked)
	}
}

// swapped refuses what is not genuine by another rule than the broker's own.
type swapped struct {
	bridge.Broker
	genuine func() bool
}

func (b *swapped) Verify(p *bridge.Postback) (string, error) {
	if !b.genuine() {
		return "", &bridge.Refusal{Status: http.StatusForbidden, Reason: "checksum", Detail: "no"}
	}
	return b.Broker.Verify(p)
}

// panicking is a broker with a mistake in it.
type panicking struct{ bridge.Broker }

func (panicking) Verify(*bridge.Postback) (string, error) { panic("a mistake") }

// TestPanic has a mistake in a broker's package: the postback is not answered, the log says so whatever its level,
// and the next one is taken.
func TestPanic(t *testing.T) {
	t.Parallel()
	log := new(logBuffer)
	o := testOptions(t, log)
	o.Log = slog.New(slog.NewTextHandler(log, nil))
	o.Brokers = testBrokers()
	o.Brokers[1] = panicking{o.Brokers[1]}
	o.Buses = []bridge.Bus{newFakeBus(t).bus()}
	r := start(t, o, log)
	if resp, err := http.Post(r.ingest+"/dhan/"+dhanToken, "", strings.NewReader("{}")); err == nil {
		t.Errorf("answered %s", resp.Status)
	}
	r.mustPost("/kite", kiteBody("1", "OPEN", 1))
	if !hasLine(log.String(), "level=ERROR", "a mistake") {
		t.Errorf("not in the log:\n%s", log)
	}
}

// TestSlowClient cuts a client that never sends its body, and counts it.
func TestSlowClient(t *testing.T) {
	if testing.Short() {
		t.Skip("left out by -short: takes as long as the read timeout")
	}
	t.Parallel()
	log := new(logBuffer)
	o := testOptions(t, log)
	o.Buses = []bridge.Bus{newFakeBus(t).bus()}
	r := start(t, o, log)
	conn, err := net.Dial("tcp", strings.TrimPrefix(r.ingest, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "POST /kite HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
	_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != http.StatusBadRequest {
		t.Errorf("answered %v, %v", resp, err)
	}
	if _, body := r.get("/metrics"); !strings.Contains(
		body,
		`postbridge_refused_total{broker="kite",reason="incomplete"} 1`,
	) {
		t.Errorf("not counted:\n%s", body)
	}
}

// FuzzReceive feeds whole requests: no panic, no 5xx, no event without a proven origin, nothing proven lost.
func FuzzReceive(f *testing.F) {
	for _, broker := range []string{"kite", "dhan"} {
		f.Add("/"+broker, "", []byte(official(f, broker)))
		f.Add("/"+broker+"/"+kiteToken, "", []byte(official(f, broker)))
		f.Add("/"+broker, "token="+dhanToken, []byte(official(f, broker)))
	}
	f.Add("/dhan/"+dhanToken, "", []byte(`{"legName": ,}`))
	f.Add("/kite", "token=%zz", []byte("\xff"))
	f.Add("/fyers/"+fyersToken, "", []byte(fyersOrder))
	f.Add("/fyers", "token="+fyersToken, []byte(`{"clientId":`))
	o := bridge.Options{
		Brokers: append(testBrokers(kiteToken), fyers.New(func() fyers.Credentials {
			return fyers.Credentials{Tokens: []string{fyersToken}}
		})),
		MaxBody:  64 << 10,
		Registry: prometheus.NewRegistry(),
		Log:      slog.New(slog.DiscardHandler),
	}
	s := open(f, f.TempDir(), spool.Options{MaxBytes: 1 << 40})
	h, _ := bridge.Handler(o, s)
	f.Fuzz(func(t *testing.T, path, query string, body []byte) {
		req, err := http.NewRequest("POST", "http://x/", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.URL.Path, req.URL.RawQuery = path, query
		before := s.Stats().Last
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		news := s.Stats().Last - before
		if w.Code >= 500 || w.Code != 200 && news != 0 || news > 1 {
			t.Fatalf("answered %d %s, %d events", w.Code, w.Body, news)
		}
		parts := strings.FieldsFunc(req.URL.EscapedPath(), func(c rune) bool { return c == '/' })
		path = "/" + strings.Join(parts, "/")
		if w.Code == 200 && path != "/kite/"+kiteToken && path != "/dhan/"+dhanToken &&
			path != "/fyers/"+fyersToken && !slices.Contains([]string{dhanToken, fyersToken}, req.URL.Query().Get("token")) {
			t.Fatalf("%s?%s was answered %d", path, query, w.Code)
		}
		if w.Code != 200 && path == "/fyers/"+fyersToken {
			t.Fatalf("a verified postback of Fyers was answered %d %s", w.Code, w.Body)
		}
		if news == 1 {
			if d := nextEvent(t, s); !strings.Contains(w.Body.String(), d.ID) || !json.Valid(d.Data) {
				t.Fatalf("answered %s, in the spool is %s", w.Body, d.Data)
			}
		}
	})
}

func newRecorder(h http.Handler, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("POST", "/kite", strings.NewReader(body)))
	return w
}
