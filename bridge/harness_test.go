package bridge_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/brokers/dhan"
	"github.com/postbridge/postbridge/brokers/kite"
)

const (
	kiteApp    = "1234"
	kiteSecret = "0hdv7iw5examplesecret"
	kiteToken  = "kite-token"
	dhanToken  = "dhan-token"
)

func testBrokers(tokens ...string) []bridge.Broker {
	return []bridge.Broker{
		kite.New(kite.Config{Credentials: func() kite.Credentials {
			return kite.Credentials{Secrets: []kite.Secret{{AppID: kiteApp, Secret: kiteSecret}}, Tokens: tokens}
		}}),
		dhan.New(func() dhan.Credentials {
			return dhan.Credentials{Tokens: []string{dhanToken}, ClientIDs: []string{"1000000003"}}
		}),
	}
}

// kiteBody is a signed postback of one state of an order.
func kiteBody(order, status string, price int) string {
	at := "2026-01-02 10:00:00"
	sum := sha256.Sum256([]byte(order + at + kiteSecret))
	return fmt.Sprintf(
		`{"user_id":"AB1234","app_id":%s,"checksum":"%x","order_id":%q,"status":%q,"order_timestamp":%q,`+
			`"quantity":1,"price":%d}`,
		kiteApp,
		sum,
		order,
		status,
		at,
		price,
	)
}

func testOptions(t testing.TB, log io.Writer) bridge.Options {
	return bridge.Options{
		Brokers:        testBrokers(),
		Listen:         "127.0.0.1:0",
		AdminListen:    "127.0.0.1:0",
		AdminPage:      true,
		Routes:         []string{"/kite"},
		MaxBody:        64 << 10,
		MaxConnections: 1024,
		IdleTimeout:    time.Minute,
		DataDir:        t.TempDir(),
		SpoolMaxBytes:  64 << 20,
		SpoolKeep:      time.Hour,
		Registry:       prometheus.NewRegistry(),
		Log:            slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

// fakeBus stores what it is offered, unless a test says otherwise. It polices the pump: a key's events must be offered
// in order, and not once more in one run.
type fakeBus struct {
	t *testing.T

	mu      sync.Mutex
	changed sync.Cond
	offered map[string]uint64 // highest sequence by key
	stored  []bridge.Delivery
	held    []func() // answers that wait for release
	// rejected counts refusals.
	rejected int
	down     error
	report   bridge.Report
	// state is the one that the bus was opened with.
	state     []byte
	saveState func() error
	rewound   func(uint64, error)
	closing   func() // called by Close, if there is one
	// rule says what to do with a delivery; nil stores it at once.
	rule func(*bridge.Delivery) verdict
}

type verdict int

const (
	store verdict = iota
	hold
	reject
)

func newFakeBus(t *testing.T) *fakeBus {
	f := &fakeBus{t: t, offered: make(map[string]uint64)}
	f.changed.L = &f.mu
	return f
}

// bus is a fresh publisher on the same fake bus.
func (f *fakeBus) bus() bridge.Bus {
	return bridge.Bus{Name: "nats", Open: func(o bridge.Opening) (bridge.Publisher, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.report, f.state, f.saveState, f.rewound = o.Report, o.State, o.SaveState, o.Rewound
		o.Report("connection", f.down)
		f.offered = make(map[string]uint64)
		return f, nil
	}}
}

func (f *fakeBus) Publish(ctx context.Context, d *bridge.Delivery, done func(error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if last := f.offered[d.Key()]; d.Sequence <= last {
		f.t.Errorf("%s: %d offered after %d", d.Key(), d.Sequence, last)
	}
	f.offered[d.Key()] = d.Sequence
	v := store
	if f.rule != nil {
		v = f.rule(d)
	}
	switch v {
	case store:
		f.stored = append(f.stored, *d)
		go done(nil)
	case reject:
		f.rejected++
		go done(fmt.Errorf("%w: too large", bridge.ErrRejected))
	case hold:
		f.held = append(f.held, func() {
			if ctx.Err() == nil {
				f.mu.Lock()
				f.stored = append(f.stored, *d)
				f.mu.Unlock()
				done(nil)
			}
		})
	}
	f.changed.Broadcast()
}

// State is the number itself.
func (f *fakeBus) State(committed uint64) []byte { return fmt.Append(nil, committed) }

func (f *fakeBus) Rewind() {}

func (f *fakeBus) Close() error {
	if f.closing != nil {
		f.closing()
	}
	return nil
}

// ofOrder is the rule that an order has that verdict, and all others are stored.
func ofOrder(id string, v verdict) func(*bridge.Delivery) verdict {
	return func(d *bridge.Delivery) verdict {
		if d.OrderID == id {
			return v
		}
		return store
	}
}

// setRule changes the rule, and lets go of what was held.
func (f *fakeBus) setRule(rule func(*bridge.Delivery) verdict) {
	f.mu.Lock()
	f.rule = rule
	held := f.held
	f.held = nil
	f.mu.Unlock()
	for _, release := range held {
		release()
	}
}

// waitFor waits until cond holds, which is called with mu held.
func (f *fakeBus) waitFor(what string, cond func() bool) {
	f.t.Helper()
	late := false
	timer := time.AfterFunc(20*time.Second, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		late = true
		f.changed.Broadcast()
	})
	defer timer.Stop()
	f.mu.Lock()
	defer f.mu.Unlock()
	for !cond() {
		if late {
			f.t.Fatalf("waited in vain for %s: %d stored, %d held", what, len(f.stored), len(f.held))
		}
		f.changed.Wait()
	}
}

func (f *fakeBus) waitStored(n int) {
	f.t.Helper()
	f.waitFor(fmt.Sprintf("%d events on the bus", n), func() bool { return len(f.stored) >= n })
}

// running is a bridge that runs in this process.
type running struct {
	t      *testing.T
	ingest string // base URL
	admin  string
	log    *logBuffer
	stop   func() error // ends it in order and returns Run's error
}

var readyLine = regexp.MustCompile(`ready: POST postbacks to (http://[0-9.:]+)/`)

// start runs a bridge until the test ends or stop is called.
func start(t *testing.T, o bridge.Options, log *logBuffer) *running {
	t.Helper()
	r := startUnready(t, o, log)
	r.ingest = log.waitFor(t, readyLine)[1]
	return r
}

func startUnready(t *testing.T, o bridge.Options, log *logBuffer) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	return run(ctx, t, cancel, bridge.New(o).WithoutLameDuck(), log)
}

// run runs a bridge.
func run(ctx context.Context, t *testing.T, cancel func(), b *bridge.Bridge, log *logBuffer) *running {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	var once sync.Once
	var err error
	stop := func() error {
		once.Do(func() {
			cancel()
			err = <-ended
		})
		return err
	}
	t.Cleanup(func() { _ = stop() })
	m := log.waitFor(t, regexp.MustCompile(`msg=listening ingest=([0-9.:]+) admin=([0-9.:]+)`))
	return &running{t: t, ingest: "http://" + m[1], admin: "http://" + m[2], log: log, stop: stop}
}

// post returns status and body of the answer.
func (r *running) post(path, body string) (int, string) {
	r.t.Helper()
	resp, err := http.Post(r.ingest+path, "application/json", strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func (r *running) mustPost(path, body string) {
	r.t.Helper()
	if status, answer := r.post(path, body); status != http.StatusOK {
		r.t.Fatalf("%s answered %d %s", path, status, answer)
	}
}

func (r *running) get(path string) (int, string) {
	r.t.Helper()
	resp, err := http.Get(r.admin + path)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// busStatus is what /status says of the bus.
type busStatus struct {
	Up                                                                   bool
	Committed, Waiting, Stored, Deadlettered, Quarantined, Skipped, last uint64
	Rewound                                                              uint64
	Causes                                                               []string
}

// bus waits until /status says of the bus what it should, and checks that the accounts balance each time.
func (r *running) bus(what string, cond func(busStatus) bool) busStatus {
	r.t.Helper()
	var st busStatus
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		_, body := r.get("/status")
		var all struct {
			Spool struct{ Last uint64 }
			Buses map[string]busStatus
		}
		if err := json.Unmarshal([]byte(body), &all); err != nil {
			r.t.Fatal(err)
		}
		st = all.Buses["nats"]
		st.last = all.Spool.Last
		if sum := st.Stored + st.Deadlettered + st.Quarantined + st.Skipped; sum != st.Committed {
			r.t.Fatalf("committed %d is not the sum %d of the fates", st.Committed, sum)
		}
		if cond(st) {
			return st
		}
	}
	r.t.Fatalf("waited in vain for %s: %+v", what, st)
	return st
}

// logBuffer is a log that can be waited for.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logBuffer) waitFor(t *testing.T, line *regexp.Regexp) []string {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if m := line.FindStringSubmatch(l.String()); m != nil {
			return m
		}
	}
	t.Fatalf("no line %v in the log:\n%s", line, l)
	return nil
}
