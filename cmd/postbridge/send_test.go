package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/brokers"
	"github.com/postbridge/postbridge/brokers/dhan"
	"github.com/postbridge/postbridge/brokers/fyers"
	"github.com/postbridge/postbridge/brokers/kite"
	"github.com/postbridge/postbridge/brokers/upstox"
)

// edgeSecrets are the settings with the secrets that an edge accepts.
const edgeSecrets = "KITE_SECRETS=1234=s3cret DHAN_TOKENS=t0ken UPSTOX_TOKENS=t0ken FYERS_TOKENS=t0ken"

// edge accepts postbacks as postbridge does, and records their events.
type edge struct {
	*httptest.Server
	brokers map[string]bridge.Broker
	status  func(n int64) int // of the answer to postback n, 200 if nil
	seen    atomic.Int64
	pairs   chan struct{} // if not nil, no answer goes before there are two to give

	mu     sync.Mutex
	orders map[string][]*event.Event // by order id
	busy   map[string]bool           // orders with a postback that waits for its answer
	bodies []string
	errors []string
}

func newEdge(t *testing.T) *edge {
	e := &edge{orders: make(map[string][]*event.Event), busy: make(map[string]bool), brokers: map[string]bridge.Broker{
		"kite": kite.New(kite.Config{Credentials: func() kite.Credentials {
			return kite.Credentials{Secrets: []kite.Secret{{AppID: "1234", Secret: "s3cret"},
				{AppID: "98", Secret: "0ther"}}}
		}}),
		"dhan":   dhan.New(func() dhan.Credentials { return dhan.Credentials{Tokens: []string{"t0ken"}} }),
		"upstox": upstox.New(func() upstox.Credentials { return upstox.Credentials{Tokens: []string{"t0ken"}} }),
		"fyers":  fyers.New(func() fyers.Credentials { return fyers.Credentials{Tokens: []string{"t0ken"}} }),
	}}
	e.Server = httptest.NewServer(e)
	t.Cleanup(func() {
		e.Close()
		for _, text := range e.errors {
			t.Error(text)
		}
	})
	return e
}

func (e *edge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if e.status != nil {
		if status := e.status(e.seen.Add(1)); status != http.StatusOK {
			http.Error(w, "not today", status)
			return
		}
	}
	accepted, err := e.accept(r)
	if err != nil {
		e.mu.Lock()
		e.errors = append(e.errors, err.Error())
		e.mu.Unlock()
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	if e.pairs != nil { // answer two at a time: a second postback of the order would show here
		select {
		case e.pairs <- struct{}{}:
		case <-e.pairs:
		case <-r.Context().Done():
		}
	}
	e.mu.Lock()
	e.busy[accepted.OrderID] = false
	e.mu.Unlock()
	fmt.Fprintf(w, `{"status":"ok","id":%q}`, accepted.ID)
}

func (e *edge) accept(r *http.Request) (*event.Event, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	name, token, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	broker, p := e.brokers[name], &bridge.Postback{PathToken: token, Body: body}
	verifiedBy, err := broker.Verify(p)
	if err != nil {
		return nil, fmt.Errorf("refused: %w: %s", err, body)
	}
	accepted := bridge.Normalize(broker, p, verifiedBy, time.Now())
	e.mu.Lock()
	defer e.mu.Unlock()
	if !accepted.Understood() || accepted.Status == event.StatusUnknown {
		return nil, fmt.Errorf("not understood: %s", body)
	}
	if e.busy[accepted.OrderID] {
		return nil, fmt.Errorf("two postbacks of order %s at once", accepted.OrderID)
	}
	e.busy[accepted.OrderID] = true
	e.orders[accepted.OrderID] = append(e.orders[accepted.OrderID], accepted)
	e.bodies = append(e.bodies, string(body))
	return accepted, nil
}

// sent runs send with --json and returns its report.
func (e *edge) sent(t *testing.T, code int, args ...string) *summary {
	t.Helper()
	args = append([]string{"send", "--url", e.URL, "--json"}, args...)
	got := runWith(t, environ(edgeSecrets), args...)
	r := new(summary)
	if err := json.Unmarshal([]byte(got.stdout), r); err != nil || got.code != code {
		t.Fatalf("%+v", got)
	}
	return r
}

// TestSendLives sends many orders at once and checks the events of each.
func TestSendLives(t *testing.T) {
	for _, broker := range brokers.Names() {
		t.Run(broker, func(t *testing.T) {
			e := newEdge(t)
			e.pairs = make(chan struct{})
			r := e.sent(t, 0, "--broker", broker, "--count", "2000", "--connections", "8",
				"--repeats", "0.2", "--late", "0.2", "--users", "7")
			if r.Sent != 2000 || r.OK != 2000 || r.Statuses[200] != 2000 || len(r.Lost) != 0 || r.Refused != 0 {
				t.Errorf("%+v", r)
			}
			if r.Milliseconds.P50 <= 0 || r.Milliseconds.P99 < r.Milliseconds.P50 ||
				r.Milliseconds.Max < r.Milliseconds.P99 {
				t.Errorf("%+v", r.Milliseconds)
			}
			checkLives(t, e.orders)
		})
	}
}

func checkLives(t *testing.T, orders map[string][]*event.Event) {
	t.Helper()
	users, fates, repeats, late, states := make(map[string]bool), make(map[event.Status]int), 0, 0, 0
	for id, events := range orders {
		if events[0].Status != event.StatusPending || len(id) != 19 {
			t.Errorf("order %s begins with %s", id, events[0].Status)
		}
		for i, event := range events {
			users[event.UserID] = true
			fates[event.Status]++
			states++
			switch {
			case i > 0 && event.ID == events[i-1].ID:
				repeats++
			case i > 0 && event.UpdatedTime < events[i-1].UpdatedTime:
				late++
			}
		}
	}
	if len(users) != 7 {
		t.Errorf("%d users", len(users))
	}
	for _, s := range []event.Status{
		event.StatusOpen, event.StatusPartiallyFilled, event.StatusFilled, event.StatusCancelled, event.StatusRejected,
	} {
		if fates[s] == 0 {
			t.Errorf("no order is %s: %v", s, fates)
		}
	}
	if repeats < states/10 || repeats > states/4 {
		t.Errorf("%d of %d states are repeats", repeats, states)
	}
	if late < len(orders)/20 || late > len(orders)/4 {
		t.Errorf("%d late arrivals in %d orders", late, len(orders))
	}
}

// TestSendRepeats checks that a state with another status is the same event.
func TestSendRepeats(t *testing.T) {
	for _, broker := range brokers.Names() {
		e := newEdge(t)
		e.sent(t, 0, "--broker", broker, "--count", "1000", "--repeats", "1", "--seed", "4")
		for id, events := range e.orders {
			for i := 1; i < len(events); i += 2 {
				if events[i].ID != events[i-1].ID {
					t.Errorf("%s order %s: state %d (%s) is another event", broker, id, i, events[i].Status)
				}
			}
		}
	}
}

// TestSendAppID signs as apps with short and long ids. Serve accepts numbers only.
func TestSendAppID(t *testing.T) {
	e := newEdge(t)
	for _, secret := range []string{"1234=s3cret", "98=0ther"} {
		if r := e.sent(t, 0, "--secret", secret, "--count", "3"); r.OK != 3 {
			t.Errorf("%s: %+v", secret, r)
		}
	}
}

// TestSendSeed checks that the same seed sends the same bytes, and another seed other orders.
func TestSendSeed(t *testing.T) {
	bodies := func(args ...string) []string {
		e := newEdge(t)
		e.sent(t, 0, append(args, "--count", "50", "--repeats", "0.3", "--late", "0.5")...)
		return e.bodies
	}
	one, again, other, clock := bodies("--seed", "1"), bodies("--seed", "1"), bodies("--seed", "2"), bodies()
	if !slices.Equal(one, again) {
		t.Error("the same seed sends other orders")
	}
	if slices.Equal(one, other) || slices.Equal(one, clock) {
		t.Error("another seed sends the same orders")
	}
}

func TestSendAcked(t *testing.T) {
	e := newEdge(t)
	path := write(t, "acked", "before\n")
	e.sent(t, 0, "--count", "300", "--connections", "3", "--acked", path)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	if len(lines) != 301 || lines[0] != "before" {
		t.Fatalf("%d lines, the first is %q", len(lines), lines[0])
	}
	for _, line := range lines[1:] {
		fields := strings.Split(line, "\t")
		n, err := strconv.Atoi(fields[2])
		if err != nil || e.orders[fields[1]][n].ID != fields[0] {
			t.Errorf("%q is not what was acknowledged", line)
		}
	}
}

func TestSendFiles(t *testing.T) {
	e := newEdge(t)
	body := `{"order_id":"7", "order_timestamp":"2026-01-05 09:15:00","status":"OPEN","user_id":"AB1","checksum": "%s"}`
	sum := sha256.Sum256([]byte("72026-01-05 09:15:00s3cret"))
	right, wrong := fmt.Sprintf(body, hex.EncodeToString(sum[:])), fmt.Sprintf(body, "123")
	for _, test := range []struct {
		name, text string
		args       []string
		want       int
	}{
		{"as it is", right, nil, 0},
		{"signed again", wrong, []string{"--sign"}, 0},
		{"a wrong one", wrong, nil, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := len(e.bodies)
			r := e.sent(t, test.want, append(test.args, write(t, "body.json", test.text),
				write(t, "body.json", test.text))...)
			if test.want == 0 && (r.OK != 2 || !slices.Equal(e.bodies[before:], []string{right, right})) {
				t.Errorf("%+v %q", r, e.bodies[before:])
			}
			if test.want == 1 && (r.Sent != 1 || r.Statuses[403] != 1) {
				t.Errorf("%+v", r)
			}
		})
	}
	e.errors = nil // of the wrong one
	got := runInput(t.Context(), right, nil, "send", "--url", e.URL, "-")
	if got.code != 0 || !matches(got.stdout,
		`^sent 1 postback in 0\.[0-9]*s, 1 acknowledged, [0-9]+/s\n  status 200: 1\nlatency `) {
		t.Errorf("%+v", got)
	}
}

// TestSendAnswers checks that an error status ends the run, or with --tolerate is counted.
func TestSendAnswers(t *testing.T) {
	failing := func(status int) func(int64) int {
		return func(n int64) int {
			if n%10 == 5 {
				return status
			}
			return http.StatusOK
		}
	}
	for _, test := range []struct {
		status int
		args   []string
		code   int
		sent   int64
	}{
		{503, nil, 1, 5},
		{503, []string{"--tolerate"}, 0, 40},
		{403, nil, 1, 5},
		{403, []string{"--tolerate"}, 1, 5},
	} {
		t.Run(fmt.Sprint(test.status, test.args), func(t *testing.T) {
			e := newEdge(t)
			e.status = failing(test.status)
			r := e.sent(t, test.code, append(test.args, "--count", "40")...)
			if r.Sent != test.sent || r.Sent != r.OK+r.Statuses[test.status] {
				t.Errorf("%+v", r)
			}
		})
	}
}

// TestSendShowsLittle gets an answer of another server: a long page that echoes the path with its token.
func TestSendShowsLittle(t *testing.T) {
	for _, status := range []int{200, 404, 503} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(status)
			fmt.Fprintf(w, "<html>\n\x1b[31mCannot POST %s\n%s", r.URL.Path, strings.Repeat("<p>sorry</p>\n", 1000))
		}))
		for _, mode := range []string{"--count=1", "--canary --timeout=100ms"} {
			args := []string{"send", "--secret", "1234=s3cret", "--token", "t0ken", "--url", server.URL}
			got := runWith(t, environ("NATS_LISTEN=127.0.0.1:1"), append(args, strings.Fields(mode)...)...)
			short := strings.Count(got.stderr, "\n") == 1 && len(got.stderr) <= 500
			if got.code != 1 || strings.Contains(got.stderr, "t0ken") || strings.Contains(got.stderr, "\x1b") ||
				!short {
				t.Errorf("%d %s: %+v", status, mode, got)
			}
		}
		server.Close()
	}
}

func TestSendWrongAnswer(t *testing.T) {
	for _, answer := range []string{
		"", "ok", `{"status":"ok"}`, `{"status":"ok","id":"0123"}`,
		`{"status":"no","id":"0123456789abcdef0123456789abcdef"}`,
		`{"status":"ok","id":"0123456789abcdef0123456789abcdeF"}`,
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, answer)
		}))
		got := runWith(t, nil, "send", "--secret", "1234=s3cret", "--url", server.URL, "--tolerate")
		if got.code != 1 || !strings.Contains(got.stderr, "without an event id") {
			t.Errorf("%q: %+v", answer, got)
		}
		server.Close()
	}
}

// TestSendOutage starts before there is anything to connect to, and loses answers: each postback is sent once at most.
func TestSendOutage(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	_ = listener.Close()
	send := func(args ...string) result {
		args = append([]string{"send", "--secret", "1234=s3cret", "--url", "http://" + address, "--json"}, args...)
		return runWith(t, nil, args...)
	}
	if got := send(); got.code != 1 || !strings.Contains(got.stderr, "connection refused; is postbridge running?") {
		t.Errorf("%+v", got)
	}
	if got := send("--tolerate", "--for", "50ms"); got.code != 0 || !strings.Contains(got.stdout, `"sent":0`) {
		t.Errorf("%+v", got)
	}

	e := newEdge(t)
	var arrived atomic.Int64
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if arrived.Add(1)%4 == 0 {
			panic(http.ErrAbortHandler) // accepted, but the answer is lost
		}
		e.ServeHTTP(w, r)
	})
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Second}
	go func() {
		time.Sleep(100 * time.Millisecond)
		if listener, err := net.Listen("tcp", address); err == nil {
			_ = server.Serve(listener)
		}
	}()
	defer server.Close()
	got := send("--tolerate", "--count", "40")
	r := new(summary)
	if err := json.Unmarshal([]byte(got.stdout), r); err != nil || got.code != 0 {
		t.Fatalf("%+v", got)
	}
	if r.Sent != 40 || r.OK != 30 || r.Lost["connection closed"] != 10 || r.Refused == 0 || arrived.Load() != 40 {
		t.Errorf("%+v, %d arrived", r, arrived.Load())
	}
}

// TestPace checks the rate, and both ways to end.
func TestPace(t *testing.T) {
	for _, test := range []struct {
		options sendOptions
		want    int
		took    time.Duration
	}{
		{sendOptions{count: 50, rate: 200}, 50, 245 * time.Millisecond},
		{sendOptions{count: 50}, 50, 0},
		// the first is due at once
		{sendOptions{duration: 100 * time.Millisecond, rate: 100}, 11, 100 * time.Millisecond},
		{sendOptions{count: 5, duration: time.Second, rate: 100}, 5, 40 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, n := testSender(&test.options), 0
			for pb, ok := s.take(0); ok && s.wait(t.Context(), pb.due); pb, ok = s.take(0) {
				if late := time.Since(pb.due); late != 0 && test.options.rate > 0 {
					t.Errorf("postback %d comes %v late", n, late)
				}
				n++
			}
			if took := time.Since(s.start); n != test.want || took != test.took {
				t.Errorf("%+v: %d postbacks in %v, want %d in %v", test.options, n, took, test.want, test.took)
			}
		})
	}
}

// testSender returns a sender with an endless source.
func testSender(o *sendOptions) *sender {
	s := newSender(o)
	s.start = time.Now()
	s.source = func(int) (postback, error) { return postback{}, nil }
	return s
}

// TestSendStall checks that latency counts from the due time.
func TestSendStall(t *testing.T) {
	e := newEdge(t)
	var stalled atomic.Bool
	e.status = func(int64) int {
		if stalled.CompareAndSwap(false, true) {
			time.Sleep(200 * time.Millisecond)
		}
		return http.StatusOK
	}
	if r := e.sent(t, 0, "--count", "40", "--rate", "200"); r.Milliseconds.P50 < 20 {
		t.Errorf("a stall of 200ms is hidden: %+v", r.Milliseconds)
	}
}

func TestSendInterrupted(t *testing.T) {
	e := newEdge(t)
	ctx, stop := context.WithCancel(t.Context())
	defer time.AfterFunc(50*time.Millisecond, stop).Stop()
	got := runInput(ctx, "", nil, "send", "--secret", "1234=s3cret", "--url", e.URL, "--for", "1h")
	if got.code != 0 || !strings.HasPrefix(got.stdout, "sent ") {
		t.Errorf("%+v", got)
	}
}

func TestSendMisuse(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"", "no Kite app to sign with; set --secret or POSTBRIDGE_KITE_SECRETS to app_id=api_secret"},
		{"--secret desk=s3cret",
			"no Kite app to sign with; set --secret or POSTBRIDGE_KITE_SECRETS to app_id=api_secret"},
		{"--secret s3cret", "no Kite app to sign with; set --secret or POSTBRIDGE_KITE_SECRETS to app_id=api_secret"},
		{"--broker dhan", "the route of dhan needs a path token; set --token or POSTBRIDGE_DHAN_TOKENS"},
		{"--broker fyers", "the route of fyers needs a path token; set --token or POSTBRIDGE_FYERS_TOKENS"},
		{"--broker x", "--broker \"x\" is not known; set it to kite or dhan or upstox or fyers"},
		{"--count -1", "--count, --for and --rate must not be negative; 0 is no limit"},
		{"--connections 0", "--connections and --users must be at least 1"},
		{"--late 2", "--repeats and --late are fractions; set them between 0 and 1"},
		{"--sign", "--sign is for files of --broker kite; leave it out"},
		{"--sign --broker upstox /no/such", "--sign is for files of --broker kite; leave it out"},
		{"--secret 1=2 --url x /no/such", "--url \"x\" is not a URL; write it like http://127.0.0.1:8080"},
		{"--secret 1=2 --url 127.0.0.1:8080",
			"--url \"127.0.0.1:8080\" is not a URL; write it like http://127.0.0.1:8080"},
		{"--count x", "invalid value \"x\" for flag -count: parse error; run 'postbridge send --help'"},
	} {
		got := runWith(t, nil, append([]string{"send"}, strings.Fields(test.args)...)...)
		if want := (result{2, "", "postbridge: send: " + test.want + "\n"}); got != want {
			t.Errorf("%s: %+v\nwant %+v", test.args, got, want)
		}
	}
}

// TestSendURL checks that send finds a serve with the same environment.
func TestSendURL(t *testing.T) {
	c, err := parseConfig(nil)
	if err != nil || c.Listen != ":8080" {
		t.Errorf("the default of POSTBRIDGE_LISTEN is not that of send: %+v, %v", c, err)
	}
	for listen, want := range map[string]string{
		"": "http://127.0.0.1:8080", ":9000": "http://127.0.0.1:9000", "0.0.0.0:80": "http://127.0.0.1:80",
		"[::]:80": "http://127.0.0.1:80", "10.0.0.1:80": "http://10.0.0.1:80",
		"[::1]:80": "http://[::1]:80", "edge:80": "http://edge:80",
	} {
		p := &process{env: map[string]string{"POSTBRIDGE_LISTEN": listen}}
		o := &sendOptions{broker: "kite", secret: "1=2"}
		if err := p.sendSettings(o); err != nil || o.url != want {
			t.Errorf("%s: %s, %v; want %s", listen, o.url, err, want)
		}
	}
	got := runWith(t, environ("LISTEN=8080"), "send", "--secret", "1=2")
	if got.code != 2 || !strings.Contains(got.stderr, "POSTBRIDGE_LISTEN: \"8080\" is not an address") {
		t.Errorf("%+v", got)
	}
}

// TestSendFileErrors checks that the error of a file names the command.
func TestSendFileErrors(t *testing.T) {
	for _, args := range []string{"/no/such", "--acked /no/such"} {
		got := runWith(t, nil, append([]string{"send", "--secret", "1=2"}, strings.Fields(args)...)...)
		if want := (result{1, "", "postbridge: send: open /no/such: no such file or directory\n"}); got != want {
			t.Errorf("%s: %+v", args, got)
		}
	}
}

func TestQuantiles(t *testing.T) {
	s := newSummary()
	for i := range 1000 {
		s.latencies = append(s.latencies, time.Duration(1000-i)*time.Millisecond)
	}
	s.finish(time.Second)
	if ms := s.Milliseconds; ms.P50 != 501 || ms.P99 != 991 || ms.Max != 1000 {
		t.Errorf("%+v", ms)
	}
}
