package bridge_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/spool"
)

// TestPath takes postbacks in over HTTP and finds them on the bus, in order, across a restart.
func TestPath(t *testing.T) {
	f := newFakeBus(t)
	o := testOptions(t, new(logBuffer))
	o.Buses = []bridge.Bus{f.bus()}
	n := 0
	for range 2 {
		log := new(logBuffer)
		o2 := testOptions(t, log)
		o2.Buses, o2.DataDir = o.Buses, o.DataDir
		r := start(t, o2, log)
		for range 20 {
			r.mustPost("/kite", kiteBody("1", "OPEN", n))
			n++
		}
		r.mustPost("/dhan/"+dhanToken, official(t, "dhan"))
		n++
		f.waitStored(n)
		st := r.bus("all stored", func(b busStatus) bool { return b.Waiting == 0 })
		if st.Stored != uint64(n) || st.last != uint64(n) || !st.Up {
			t.Errorf("%d posted: %+v", n, st)
		}
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(log.String(), "stopped: 0 events stay in the spool for nats") {
			t.Errorf("the log does not say what stays:\n%s", log)
		}
	}
	for i, d := range f.stored {
		if d.Sequence != uint64(i+1) || d.Spool != f.stored[0].Spool || len(d.Spool) != 8 {
			t.Errorf("event %d is %s.%d", i, d.Spool, d.Sequence)
		}
	}
}

// TestBusDown takes postbacks while the bus takes nothing, and publishes them after a restart.
func TestBusDown(t *testing.T) {
	f := newFakeBus(t)
	f.down = errors.New("not reachable")
	f.setRule(func(*bridge.Delivery) verdict { return hold })
	log := new(logBuffer)
	o := testOptions(t, log)
	o.Buses = []bridge.Bus{f.bus()}
	r := start(t, o, log)
	for i := range 10 {
		r.mustPost("/kite", kiteBody("1", "OPEN", i))
	}
	st := r.bus("ten waiting", func(b busStatus) bool { return b.Waiting == 10 })
	if st.Committed != 0 || st.Up {
		t.Errorf("%+v", st)
	}
	if status, _ := r.get("/readyz"); status != http.StatusOK {
		t.Errorf("a bus that takes nothing made it unready: %d", status)
	}
	// Nothing is waited for: the bus is known to take nothing.
	ended := make(chan error)
	go func() { ended <- r.stop() }()
	log.waitFor(t, regexp.MustCompile(`stopped: 10 events stay in the spool for nats`))
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	f.setRule(nil)
	f.down = nil

	log = new(logBuffer)
	o2 := testOptions(t, log)
	o2.Buses, o2.DataDir = o.Buses, o.DataDir
	r = start(t, o2, log)
	f.waitStored(10)
	r.bus("all committed", func(b busStatus) bool { return b.Waiting == 0 && b.Stored == 10 })
}

// TestPublisherState saves the publisher state with the cursor: at once when asked for, else with the commits.
func TestPublisherState(t *testing.T) {
	f := newFakeBus(t)
	f.setRule(func(*bridge.Delivery) verdict { return hold })
	log := new(logBuffer)
	o := testOptions(t, log)
	o.Buses = []bridge.Bus{f.bus()}
	r := start(t, o, log)
	r.mustPost("/kite", kiteBody("1", "OPEN", 1))
	f.waitFor("the event", func() bool { return len(f.held) == 1 })
	if err := f.saveState(); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(filepath.Join(o.DataDir, "spool", "cursor-nats"))
	if err != nil || !bytes.HasSuffix(file, []byte("}\n0")) {
		t.Errorf("before the first commit the cursor's file is %q, %v", file, err)
	}
	f.setRule(nil)
	f.waitStored(1)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}

	log = new(logBuffer)
	again := testOptions(t, log)
	again.Buses, again.DataDir = o.Buses, o.DataDir
	r = start(t, again, log)
	if string(f.state) != "1" {
		t.Errorf("opened again with state %q, want 1", f.state)
	}
	if st := r.bus("one stored", func(b busStatus) bool { return b.Stored == 1 }); st.Committed != 1 {
		t.Errorf("%+v", st)
	}
}

// TestStalledKey has one order stall while the others go on, and its events done later, in order.
func TestStalledKey(t *testing.T) {
	f := newFakeBus(t)
	f.setRule(ofOrder("stalled", hold))
	log := new(logBuffer)
	o := testOptions(t, log)
	o.Buses = []bridge.Bus{f.bus()}
	r := start(t, o, log)
	r.mustPost("/kite", kiteBody("stalled", "OPEN", 1))
	for i := range 100 {
		r.mustPost("/kite", kiteBody(fmt.Sprint(i), "OPEN", 1))
	}
	f.waitStored(100)
	st := r.bus("nothing committed", func(b busStatus) bool { return b.Waiting == 101 })
	if st.Committed != 0 {
		t.Errorf("committed past an event that is not done: %+v", st)
	}
	f.setRule(nil)
	r.bus("all committed", func(b busStatus) bool { return b.Stored == 101 && b.Waiting == 0 })
}

// TestRefusedByTheBus sends what the bus refuses to the dead letters, and what it refuses there to the quarantine; what
// is behind goes on.
func TestRefusedByTheBus(t *testing.T) {
	f := newFakeBus(t)
	f.setRule(func(d *bridge.Delivery) verdict {
		if d.OrderID == "nowhere" || d.OrderID == "large" && !d.Deadletter {
			return reject
		}
		return store
	})
	log := new(logBuffer)
	o := testOptions(t, log)
	o.Buses = []bridge.Bus{f.bus()}
	r := start(t, o, log)
	for _, order := range []string{"a", "large", "nowhere", "b"} {
		r.mustPost("/kite", kiteBody(order, "OPEN", 1))
	}
	r.mustPost("/dhan/"+dhanToken, "not JSON")
	r.bus("every fate", func(b busStatus) bool {
		return b.Stored == 2 && b.Deadlettered == 2 && b.Quarantined == 1 && b.Committed == 5
	})
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(o.DataDir, "quarantine-nats.jsonl"))
	if err != nil || bytes.Count(b, []byte("\n")) != 1 || !bytes.Contains(b, []byte(`"sequence":3`)) {
		t.Errorf("quarantine %s, %v", b, err)
	}
	for _, d := range f.stored {
		if dead := d.OrderID == "large" || d.OrderID == ""; dead != d.Deadletter {
			t.Errorf("%s goes to %v", d.Key(), d.Destinations())
		}
	}
}

// TestQuarantineFails holds what is to go into quarantine until the disk takes it, and ends a line that a crash cut.
func TestQuarantineFails(t *testing.T) {
	f := newFakeBus(t)
	f.setRule(func(*bridge.Delivery) verdict { return reject })
	log := new(logBuffer)
	o := testOptions(t, log)
	o.Buses = []bridge.Bus{f.bus()}
	file := filepath.Join(o.DataDir, "quarantine-nats.jsonl")
	if err := os.Mkdir(file, 0o700); err != nil {
		t.Fatal(err)
	}
	r := start(t, o, log)
	r.mustPost("/kite", kiteBody("1", "OPEN", 1))
	r.bus("it says so", func(b busStatus) bool {
		return !b.Up && b.Waiting == 1 && strings.Contains(strings.Join(b.Causes, ""), "quarantine")
	})
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(`{"spool":"torn`), 0o600); err != nil {
		t.Fatal(err)
	}
	r.bus("one in quarantine", func(b busStatus) bool { return b.Up && b.Quarantined == 1 && b.Waiting == 0 })
	lines, err := os.ReadFile(file)
	if err != nil || !regexp.MustCompile(`^\{"spool":"torn\n\{.*\}\n$`).Match(lines) {
		t.Errorf("quarantine %s, %v", lines, err)
	}
}

// quarantineLines counts the lines of the quarantine file by sequence.
func quarantineLines(t *testing.T, dataDir string) (lines int, bySequence map[uint64]int) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dataDir, "quarantine-nats.jsonl"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	bySequence = make(map[uint64]int)
	for line := range bytes.Lines(text) {
		var event struct{ Sequence uint64 }
		if err := json.Unmarshal(line, &event); err != nil {
			t.Fatalf("%v in line %q", err, line)
		}
		lines++
		bySequence[event.Sequence]++
	}
	return lines, bySequence
}

// pumpOnce runs a pump on a spool of the data directory, which stop closes. The log is discarded.
func pumpOnce(t *testing.T, f *fakeBus, dataDir string) (b *bridge.Bridge, s *spool.Spool, stop func()) {
	t.Helper()
	o := testOptions(t, io.Discard)
	o.DataDir, o.Buses, o.Log = dataDir, []bridge.Bus{f.bus()}, slog.New(slog.DiscardHandler)
	s = open(t, dataDir, spool.Options{Cursors: []string{"nats"}, Log: o.Log})
	b, stopPumps, err := bridge.Pumping(o, s)
	if err != nil {
		t.Fatal(err)
	}
	return b, s, func() {
		t.Helper()
		if err := stopPumps(); err != nil {
			t.Fatal(err)
		}
	}
}

// eventually waits until cond holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// TestQuarantineAtStop stops while many events go into quarantine: one goroutine writes them, none is written any more
// when the pump has ended, and the next start writes the others and none of these.
func TestQuarantineAtStop(t *testing.T) {
	const events = 1000
	dir, f := t.TempDir(), newFakeBus(t)
	f.setRule(func(d *bridge.Delivery) verdict {
		if d.Sequence == 1 {
			return hold // until all others are refused
		}
		return reject
	})
	before := runtime.NumGoroutine()
	_, s, stop := pumpOnce(t, f, dir)
	appendOrders(t, s, events)
	f.waitFor("all but the first to be refused", func() bool { return f.rejected == 2*(events-1) })
	eventually(
		t,
		"the goroutines of the refused to end",
		func() bool { return runtime.NumGoroutine()-before < events/4 },
	)
	f.setRule(nil)
	for size := int64(0); size == 0; runtime.Gosched() {
		if info, err := os.Stat(filepath.Join(dir, "quarantine-nats.jsonl")); err == nil {
			size = info.Size()
		}
	}
	stop()
	atStop, _ := quarantineLines(t, dir)
	if atStop == events-1 {
		t.Fatal("the stop came too late to show anything")
	}

	f = newFakeBus(t)
	f.setRule(func(*bridge.Delivery) verdict { return reject })
	b, _, stop := pumpOnce(t, f, dir)
	eventually(t, "all in quarantine", func() bool { return b.Committed("nats") == events })
	stop()
	if lines, bySequence := quarantineLines(t, dir); lines != events-1 || len(bySequence) != events-1 {
		t.Errorf("%d lines of %d events, %d of them before the stop; want one of each of %d",
			lines, len(bySequence), atStop, events-1)
	}
}

// appendOrders appends an event of each of so many orders, named 0, 1, 2 and so on, and waits for the disk once.
func appendOrders(t *testing.T, s *spool.Spool, n int) {
	t.Helper()
	var records [][]byte
	for i := range n {
		records = append(records, bridge.NewDelivery(fmt.Sprint(i), 2))
	}
	appendDeliveries(t, s, records...)
}

// TestQuarantineBehindStalled: an event that can go nowhere waits in the window for those before it, so that a stop
// does not have it quarantined twice. Only when the window is used up it goes first, so that it never blocks what is
// behind.
func TestQuarantineBehindStalled(t *testing.T) {
	rule := func(d *bridge.Delivery) verdict {
		switch d.OrderID {
		case "stalled":
			return hold
		case "fine":
			return store
		default:
			return reject
		}
	}
	dir, f := t.TempDir(), newFakeBus(t)
	f.setRule(rule)
	_, s, stop := pumpOnce(t, f, dir)
	for _, order := range []string{"stalled", "nowhere", "fine"} {
		appendOrder(t, s, order)
	}
	f.waitStored(1)
	f.waitFor("the refusal", func() bool { return f.rejected == 2 })
	stop()
	if n, _ := quarantineLines(t, dir); n != 0 {
		t.Errorf("%d events are in quarantine before those in front of them are done", n)
	}

	f = newFakeBus(t)
	f.setRule(rule)
	b, s, stop := pumpOnce(t, f, dir)
	f.waitStored(1)
	appendOrders(t, s, bridge.MaxInFlight)
	appendOrder(t, s, "fine")
	f.waitStored(2)
	f.setRule(func(*bridge.Delivery) verdict { return store })
	eventually(t, "the first event", func() bool { return b.Committed("nats") > 0 })
	stop()
	if lines, bySequence := quarantineLines(t, dir); lines == 0 || lines != len(bySequence) {
		t.Errorf("%d lines of %d events", lines, len(bySequence))
	}
}

// TestDamage skips what cannot be read any more, and counts it, and goes on behind it.
func TestDamage(t *testing.T) {
	o := testOptions(t, io.Discard)
	s := open(t, o.DataDir, spool.Options{})
	h, _ := bridge.Handler(o, s)
	for i := range 5 {
		w := newRecorder(h, kiteBody("1", "OPEN", i))
		checkAnswer(t, w, 200)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	segments, err := filepath.Glob(filepath.Join(o.DataDir, "spool", "*.seg"))
	if err != nil || len(segments) != 1 {
		t.Fatal(segments, err)
	}
	b, err := os.ReadFile(segments[0])
	if err != nil {
		t.Fatal(err)
	}
	b[bytes.Index(b, []byte(`"price":"2"`))+10] ^= 1
	if err := os.WriteFile(segments[0], b, 0o600); err != nil {
		t.Fatal(err)
	}

	f, log := newFakeBus(t), new(logBuffer)
	o2 := testOptions(t, log)
	o2.DataDir, o2.Buses = o.DataDir, []bridge.Bus{f.bus()}
	r := start(t, o2, log)
	f.waitStored(4)
	r.bus("one skipped", func(b busStatus) bool { return b.Skipped == 1 && b.Stored == 4 && b.Waiting == 0 })
	if !strings.Contains(log.String(), "damaged") {
		t.Errorf("nothing said:\n%s", log)
	}
	bad, _ := filepath.Glob(filepath.Join(o.DataDir, "spool", "*.bad"))
	if len(bad) != 1 {
		t.Errorf("kept %v", bad)
	}
}

// TestLock waits, unready and answering, for a spool that another process has.
func TestLock(t *testing.T) {
	f, log := newFakeBus(t), new(logBuffer)
	o := testOptions(t, log)
	o.Buses = []bridge.Bus{f.bus()}
	s := open(t, o.DataDir, spool.Options{})
	r := startUnready(t, o, log)
	log.waitFor(t, regexp.MustCompile(`another process has the spool open`))
	if status, body := r.post("/kite", official(t, "kite")); status != http.StatusServiceUnavailable {
		t.Errorf("answered %d %s", status, body)
	}
	if status, body := r.get("/readyz"); status != http.StatusServiceUnavailable {
		t.Errorf("ready: %d %s", status, body)
	}
	if status, _ := r.get("/livez"); status != http.StatusOK {
		t.Errorf("not live: %d", status)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	log.waitFor(t, readyLine)
	r.mustPost("/kite", official(t, "kite"))
	f.waitStored(1)
}

// TestMetrics finds every metric that dashboards rely on, with the numbers they should have.
func TestMetrics(t *testing.T) {
	f, log := newFakeBus(t), new(logBuffer)
	o := testOptions(t, log)
	o.Buses = []bridge.Bus{f.bus()}
	r := start(t, o, log)
	for i := range 3 {
		r.mustPost("/kite", kiteBody("1", "OPEN", i))
	}
	r.mustPost("/kite", kiteBody("1", "OPEN", 2))
	r.post("/kite", `{}`)
	r.post("/kite", `{`)
	r.post("/dhan", `{}`)
	r.bus("all stored", func(b busStatus) bool { return b.Stored == 3 && b.Waiting == 0 })
	_, body := r.get("/metrics")
	for _, want := range []string{
		`postbridge_received_total{broker="kite"} 6`,
		`postbridge_postbacks_total{broker="kite",fate="accepted"} 3`,
		`postbridge_postbacks_total{broker="kite",fate="repeated"} 1`,
		`postbridge_postbacks_total{broker="kite",fate="refused"} 2`,
		`postbridge_postbacks_total{broker="kite",fate="failed"} 0`,
		`postbridge_postbacks_total{broker="dhan",fate="refused"} 1`,
		`postbridge_refused_total{broker="kite",reason="checksum"} 1`,
		`postbridge_refused_total{broker="kite",reason="not_json"} 1`,
		`postbridge_refused_total{broker="dhan",reason="token"} 1`,
		`postbridge_answer_seconds_count 7`,
		`postbridge_ready 1`,
		`postbridge_spool_limit_bytes 6.7108864e+07`,
		`postbridge_spool_waiting_bytes 0`,
		`postbridge_spool_last_sequence 3`,
		`postbridge_bus_events_total{bus="nats",fate="stored"} 3`,
		`postbridge_bus_events_total{bus="nats",fate="deadlettered"} 0`,
		`postbridge_bus_events_total{bus="nats",fate="quarantined"} 0`,
		`postbridge_bus_events_total{bus="nats",fate="skipped"} 0`,
		`postbridge_bus_committed_sequence{bus="nats"} 3`,
		`postbridge_bus_waiting{bus="nats"} 0`,
		`postbridge_bus_oldest_waiting_seconds{bus="nats"} 0`,
		`postbridge_bus_up{bus="nats"} 1`,
		`postbridge_bus_rewound_total{bus="nats"} 0`,
	} {
		if !strings.Contains(body, want+"\n") {
			t.Errorf("no %s in\n%s", want, body)
		}
	}
	if !strings.Contains(body, "\npostbridge_spool_bytes ") {
		t.Errorf("no postbridge_spool_bytes in\n%s", body)
	}
}

// TestOrderedStop answers what is in flight when the stop begins, and publishes it.
func TestOrderedStop(t *testing.T) {
	f, log := newFakeBus(t), new(logBuffer)
	o := testOptions(t, log)
	o.Buses = []bridge.Bus{f.bus()}
	ctx, cancel := context.WithCancel(t.Context())
	r := run(ctx, t, cancel, bridge.New(o), log)
	log.waitFor(t, readyLine)
	text := kiteBody("1", "OPEN", 1)
	conn, err := net.Dial("tcp", strings.TrimPrefix(r.ingest, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST /kite HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(text), text[:10])
	r.bus("received", func(busStatus) bool {
		_, body := r.get("/metrics")
		return strings.Contains(body, `postbridge_received_total{broker="kite"} 1`)
	})
	stopped := make(chan error)
	go func() { stopped <- r.stop() }()
	for { // until no new connection is taken
		resp, err := http.Get(r.ingest + "/kite")
		if err != nil {
			break
		}
		_ = resp.Body.Close()
		time.Sleep(time.Millisecond)
	}
	_, _ = io.WriteString(conn, text[10:])
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("in flight, answered %v, %v", resp, err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	f.waitStored(1)
}

// storeTwenty runs a bridge until its bus has stored twenty states of an order.
func storeTwenty(t *testing.T) (f *fakeBus, r *running, o bridge.Options, log *logBuffer) {
	t.Helper()
	f, log = newFakeBus(t), new(logBuffer)
	o = testOptions(t, log)
	o.Buses = []bridge.Bus{f.bus()}
	r = start(t, o, log)
	for i := range 20 {
		r.mustPost("/kite", kiteBody("1", "OPEN", i))
	}
	r.bus("all stored", func(b busStatus) bool { return b.Stored == 20 })
	return f, r, o, log
}

// TestRewound has the bus lose events: they are published again, in order and before what is new, and counted once.
func TestRewound(t *testing.T) {
	f, r, o, log := storeTwenty(t)
	f.setRule(func(*bridge.Delivery) verdict { return hold })
	r.mustPost("/kite", kiteBody("1", "OPEN", 20))
	f.waitFor("the event that is under way", func() bool { return len(f.held) == 1 })
	f.report("publish", errors.New("stuck")) // by a publisher that is closed then

	f.mu.Lock()
	f.stored, f.rule = nil, nil
	underWay := f.held
	f.held = nil
	f.mu.Unlock()
	f.rewound(12, errors.New("it does not hold event 13"))
	f.waitStored(9)
	st := r.bus(
		"all stored again",
		func(b busStatus) bool { return b.Waiting == 0 && b.Stored == 21 && b.Rewound >= 1 },
	)
	if !st.Up {
		t.Errorf("what kept events from the publisher before still counts: %q", st.Causes)
	}
	for _, release := range underWay {
		release() // an answer to the publisher of before
	}
	for i, d := range f.stored {
		if d.Sequence != uint64(13+i) || d.Redelivered != (d.Sequence <= 21) {
			t.Errorf("the bus gets %d, redelivered: %v", d.Sequence, d.Redelivered)
		}
	}
	r.mustPost("/kite", kiteBody("1", "OPEN", 21))
	r.bus("what is new", func(b busStatus) bool { return b.Waiting == 0 && b.Stored == 22 })
	_, metrics := r.get("/metrics")
	for _, line := range []string{
		fmt.Sprintf(`postbridge_bus_rewound_total{bus="nats"} %d`, st.Rewound),
		`postbridge_bus_events_total{bus="nats",fate="stored"} 30`,
	} {
		if !strings.Contains(metrics, line+"\n") {
			t.Errorf("no line %q in the metrics", line)
		}
	}
	if !strings.Contains(log.String(), `msg="the bus has lost events`) {
		t.Error("nothing is said of the loss")
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}

	log = new(logBuffer)
	again := testOptions(t, log)
	again.Buses, again.DataDir = o.Buses, o.DataDir
	r = start(t, again, log)
	_, metrics = r.get("/metrics")
	if want := `postbridge_bus_events_total{bus="nats",fate="stored"} 30` + "\n"; !strings.Contains(metrics, want) {
		t.Errorf("after a restart, no line %q in the metrics", want)
	}
}

// TestRewoundAtStop has the loss be found when the process stops already: the next start publishes again.
func TestRewoundAtStop(t *testing.T) {
	f, r, o, _ := storeTwenty(t)
	f.closing = func() { f.rewound(12, errors.New("it does not hold event 13")) }
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	f.closing, f.stored = nil, nil

	log := new(logBuffer)
	again := testOptions(t, log)
	again.Buses, again.DataDir = o.Buses, o.DataDir
	r = start(t, again, log)
	f.waitStored(8)
	if string(f.state) != "12" || f.stored[0].Sequence != 13 {
		t.Errorf("opened with state %q, it gets %d first", f.state, f.stored[0].Sequence)
	}
	r.bus("all stored again", func(b busStatus) bool { return b.Waiting == 0 && b.Stored == 20 })
}
