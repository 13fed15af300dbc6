package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
)

// bus is a server to publish to by hand.
type bus struct {
	address, dir string
	stop         func()
	conn         *nats.Conn
	js           jetstream.JetStream
}

func startBus(t *testing.T, listen, dir string) *bus {
	t.Helper()
	stop, address, err := startNATS(listen, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	conn, err := nats.Connect("nats://" + address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	return &bus{address, dir, stop, conn, js}
}

// addStream makes the stream of a destination.
func (b *bus) addStream(t *testing.T, prefix, destination string) {
	t.Helper()
	subject := destination + ".>"
	if prefix != "" {
		subject = prefix + "." + subject
	}
	name := strings.ToUpper(strings.NewReplacer(".>", "", ".", "_").Replace(subject))
	_, err := b.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: name, Subjects: []string{subject}})
	if err != nil {
		t.Fatal(err)
	}
}

// add publishes one event as postbridge does.
func (b *bus) add(t *testing.T, prefix string, dest bridge.Destination, d bridge.Delivery) {
	t.Helper()
	if d.Data == nil {
		d.Data = []byte(fmt.Sprintf(`{"id":"%s<","broker":"%s","user_id":%q,"order_id":%q,"status":%q}`, d.ID,
			d.Broker, d.UserID, d.OrderID, d.Status))
	}
	m := nats.NewMsg(prefix + d.Subject(dest))
	m.Data = d.Data
	for _, a := range d.Attributes() {
		m.Header.Set("ce-"+a[0], a[1])
	}
	if _, err := b.js.PublishMsg(t.Context(), m); err != nil {
		t.Fatal(err)
	}
}

func (b *bus) tail(t *testing.T, args string) result {
	t.Helper()
	return runWith(t, environ("NATS_LISTEN="+b.address), append([]string{"tail"}, strings.Fields(args)...)...)
}

// ids are the ids of the events in the output, one JSON object a line.
func (r result) ids(t *testing.T) (ids []string) {
	t.Helper()
	for line := range strings.Lines(r.stdout) {
		var e struct{ ID string }
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Errorf("%q: %v", line, err)
		}
		ids = append(ids, strings.TrimSuffix(e.ID, "<"))
	}
	return ids
}

func TestTailFilters(t *testing.T) {
	b := startBus(t, "127.0.0.1:0", t.TempDir())
	for _, dest := range []string{"orders", "rejects", "deadletters"} {
		b.addStream(t, "", dest)
	}
	for _, d := range []bridge.Delivery{
		{ID: "1", Broker: "kite", UserID: "AB1", OrderID: "7", Status: event.StatusOpen},
		{ID: "2", Broker: "kite", UserID: "A.*", OrderID: "8", Status: event.StatusRejected},
		{ID: "3", Broker: "dhan", UserID: "AB1", OrderID: "9", Status: event.StatusFilled},
		{ID: "4", Broker: "kite", UserID: "AB1", OrderID: "7", Status: event.StatusFilled},
		{ID: "5", Broker: "dhan", Deadletter: true, Status: event.StatusUnknown},
	} {
		for _, dest := range d.Destinations() {
			b.add(t, "", dest, d)
		}
	}
	for _, test := range []struct{ args, want string }{
		{"--count 4", "1 2 3 4"},
		{"--count 3 --broker kite", "1 2 4"},
		{"--count 3 --user AB1", "1 3 4"},
		{"--count 1 --user A.*", "2"},
		{"--count 2 --order 7", "1 4"},
		{"--count 2 --status filled", "3 4"},
		{"--count 3 --status filled,open", "1 3 4"},
		{"--count 3 --status filled --status rejected", "2 3 4"},
		{"--count 1 --broker kite --order 7 --status filled", "4"},
		{"--count 1 --destination rejects", "2"},
		{"--count 1 --destination deadletters", "5"},
		{"--count 4 --from 1h", "1 2 3 4"},
		{"--count 4 --from 2020-01-05T09:15:00+05:30", "1 2 3 4"},
	} {
		t.Run(test.args, func(t *testing.T) {
			args := test.args
			if !strings.Contains(args, "--from") {
				args += " --from start"
			}
			got := b.tail(t, args+" --timeout 10s")
			if ids := got.ids(t); got.code != 0 || !slices.Equal(ids, strings.Fields(test.want)) {
				t.Errorf("%v, exit %d, %s", ids, got.code, got.stderr)
			}
		})
	}
	got := b.tail(t, "--from start --count 5 --timeout 300ms")
	if got.code != 1 || len(got.ids(t)) != 4 || !strings.HasSuffix(got.stderr,
		"postbridge: tail: timed out after 300ms with 4 of 5 events\n") {
		t.Errorf("%+v", got)
	}
	if got := b.tail(t, "--from now --timeout 300ms"); got.code != 0 || got.stdout != "" {
		t.Errorf("%+v", got)
	}
}

func TestTailHeaders(t *testing.T) {
	b := startBus(t, "127.0.0.1:0", t.TempDir())
	b.addStream(t, "de.desk1", "orders")
	d := bridge.Delivery{ID: "1", Broker: "kite", UserID: "AB1", OrderID: "7", Status: event.StatusOpen,
		Data: []byte(`{"id": "1","raw":{"x":"<&>"}}`)}
	b.add(t, "de.desk1.", bridge.Orders, d)
	got := runWith(t, environ("PREFIX=de.desk1 NATS_URL="+b.address), "tail", "--headers", "--from", "start", "--count",
		"1", "--timeout", "10s")
	var line struct {
		Subject string
		Headers map[string]string
		Event   json.RawMessage
	}
	if err := json.Unmarshal([]byte(got.stdout), &line); err != nil {
		t.Fatalf("%v: %+v", err, got)
	}
	if line.Subject != "de.desk1.orders.kite.AB1.7" || line.Headers["ce-orderstatus"] != "open" ||
		string(line.Event) != string(d.Data) {
		t.Errorf("%+v", line)
	}
	got = runWith(t, environ("PREFIX=de.desk1 NATS_URL="+b.address), "tail", "--from", "start", "--count", "1")
	if got.stdout != string(d.Data)+"\n" {
		t.Errorf("the event is not as it was: %q", got.stdout)
	}
}

// following is a tail that runs beside the test.
type following struct {
	done   chan int
	mu     sync.Mutex
	stdout bytes.Buffer
	stderr bytes.Buffer
}

// locked writes to one of the buffers.
type locked struct {
	f *following
	b *bytes.Buffer
}

func (l locked) Write(p []byte) (int, error) {
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	return l.b.Write(p)
}

func follow(ctx context.Context, environ []string, args ...string) *following {
	f := &following{done: make(chan int, 1)}
	go func() {
		f.done <- run(ctx, append([]string{"tail"}, args...), environ, strings.NewReader(""), locked{f, &f.stdout},
			locked{f, &f.stderr})
	}()
	return f
}

// waitFor waits until the text is there, on stdout or on stderr.
func (f *following) waitFor(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		f.mu.Lock()
		found := strings.Contains(f.stdout.String(), text) || strings.Contains(f.stderr.String(), text)
		f.mu.Unlock()
		if found {
			return
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	t.Fatalf("no %q in\n%s%s", text, &f.stdout, &f.stderr)
}

// TestTailWaits starts before the bus and before the stream, and lives through a restart of the bus.
func TestTailWaits(t *testing.T) {
	b := startBus(t, "127.0.0.1:0", t.TempDir())
	b.stop()
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	f := follow(ctx, environ("NATS_LISTEN="+b.address))
	f.waitFor(t, "waiting for the bus: connect: connection refused at nats://"+b.address+"; is serve running?\n")
	b = startBus(t, b.address, b.dir)
	f.waitFor(t, "waiting for stream ORDERS, which does not exist yet\n")
	b.addStream(t, "", "orders")
	b.add(t, "", bridge.Orders, bridge.Delivery{ID: "1", Broker: "kite", UserID: "AB1", OrderID: "7",
		Status: event.StatusOpen})
	f.waitFor(t, `"id":"1<"`)
	b.stop()
	b = startBus(t, b.address, b.dir)
	b.add(t, "", bridge.Orders, bridge.Delivery{ID: "2", Broker: "kite", UserID: "AB1", OrderID: "7",
		Status: event.StatusFilled})
	f.waitFor(t, `"id":"2<"`)
	interrupt()
	if code := <-f.done; code != 0 {
		t.Errorf("exit %d after an interrupt\n%s", code, &f.stderr)
	}
	if n := strings.Count(f.stdout.String(), "\n"); n != 2 {
		t.Errorf("%d lines\n%s", n, &f.stdout)
	}
}

// TestTailNow prints only the events stored after it started.
func TestTailNow(t *testing.T) {
	b := startBus(t, "127.0.0.1:0", t.TempDir())
	b.addStream(t, "", "orders")
	b.add(t, "", bridge.Orders, bridge.Delivery{ID: "1", Broker: "kite", UserID: "AB1", OrderID: "7",
		Status: event.StatusOpen})
	f := follow(t.Context(), environ("NATS_LISTEN="+b.address), "--count", "1", "--timeout", "10s")
	f.waitFor(t, "following orders.*.*.* at nats://")
	b.add(t, "", bridge.Orders, bridge.Delivery{ID: "2", Broker: "kite", UserID: "AB1", OrderID: "7",
		Status: event.StatusOpen})
	if code := <-f.done; code != 0 || strings.Contains(f.stdout.String(), `"1<"`) ||
		!strings.Contains(f.stdout.String(), `"2<"`) {
		t.Errorf("exit %d\n%s%s", code, &f.stdout, &f.stderr)
	}
	// What it leaves on the bus is soon forgotten.
	stream, err := b.js.Stream(t.Context(), "ORDERS")
	if err != nil {
		t.Fatal(err)
	}
	for c := range stream.ListConsumers(t.Context()).Info() {
		if c.Config.InactiveThreshold > time.Minute {
			t.Errorf("consumer %s stays for %v", c.Name, c.Config.InactiveThreshold)
		}
	}
}

// TestTailShowsWithoutWaiting checks that each event is printed at once, and none after --count.
func TestTailShowsWithoutWaiting(t *testing.T) {
	f, stopped := new(following), false
	o := &tailOptions{count: 2, busFilter: busFilter{statuses: []string{"open"}}}
	out := &printer{tailOptions: o, w: locked{f, &f.stdout}, format: o.format(false, false), stop: func() { stopped = true }}
	follower := &follower{busFilter: o.busFilter, deliver: out.print}
	for i, want := range []string{"1", "1", "1 3", "1 3"} {
		status := []string{"open", "filled"}[i%2]
		follower.received(&message{key: "kite.AB1.7", status: status, data: fmt.Appendf(nil, `{"id":"%d"}`, i+1)})
		got := result{stdout: f.stdout.String()}
		if ids := got.ids(t); !slices.Equal(ids, strings.Fields(want)) || stopped != (len(ids) == 2) {
			t.Errorf("after %d: %v, want %s; stopped: %v", i+1, ids, want, stopped)
		}
	}
	follower.received(&message{key: "kite.AB1.7", status: "open", data: []byte("{}")})
	if n := strings.Count(f.stdout.String(), "\n"); n != 2 {
		t.Errorf("%d lines after --count 2", n)
	}
}

func TestTailMisuse(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"--fills --late", "--fills and --late need all events of an order; use one of them, without --status and --headers"},
		{"--fills --status open", "--fills and --late need all events of an order; use one of them, without --status and --headers"},
		{"--late --headers", "--fills and --late need all events of an order; use one of them, without --status and --headers"},
		{"--fills --destination rejects", "--fills and --late are for orders; leave out --destination"},
		{"--bus redis", "--bus \"redis\" is not known; set it to nats or kafka"},
		{"--bus kafka", "--bus kafka is not in POSTBRIDGE_PUBLISH; set that to kafka or nats,kafka, too"},
		{"--broker zerodha", "--broker \"zerodha\" is not known; set it to kite or dhan or upstox or fyers"},
		{"--destination trades",
			"--destination \"trades\" is not known; set it to one of orders, rejects, deadletters"},
		{"--status complete",
			"--status \"complete\" is not known; set it to one of pending, open, trigger_pending, partially_filled, " +
				"filled, pending_replace, pending_cancel, cancelled, rejected, expired, unknown"},
		{"--destination deadletters --user AB1",
			"dead letters have no user and no order; leave out --user and --order"},
		{"--from yesterday",
			"--from \"yesterday\" is not known; set it to start, now, a time like 2026-01-05T09:15:00+05:30 or how " +
				"long ago like 10m"},
		{"--count -1", "--count and --timeout must not be negative; 0 is no limit"},
		{"orders", "takes no argument \"orders\"; run 'postbridge tail --help'"},
	} {
		got := runWith(t, nil, append([]string{"tail"}, strings.Fields(test.args)...)...)
		if want := (result{2, "", "postbridge: tail: " + test.want + "\n"}); got != want {
			t.Errorf("%s: %+v\nwant %+v", test.args, got, want)
		}
	}
	if got := runWith(t, environ("NATS_URL=http://x"), "tail"); got.code != 2 {
		t.Errorf("%+v", got)
	}
}

func TestHumanLine(t *testing.T) {
	ist := time.FixedZone("IST", 19800)
	for _, test := range []struct{ event, want string }{
		{
			`{"broker":"kite","user_id":"AB1234","order_id":"220303000308932","status":"filled","symbol":"SBIN",` +
				`"side":"buy","quantity":10,"filled_quantity":10,"price":"0","average_price":"470.5",` +
				`"received_at":"2026-01-05T03:45:00.5Z"}`,
			"09:15:00.500 kite   AB1234     220303000308932     filled           buy      10/10 SBIN @ 470.5",
		},
		{
			`{"broker":"dhan","user_id":"1000000003","order_id":"1121","status":"rejected","instrument_id":"11536",` +
				`"side":"sell","quantity":5,"price":"12.5",` +
				`"reason":"no \u001b[2Jfunds","received_at":"2026-01-05T03:45:00Z"}`,
			"09:15:00.000 dhan   1000000003 1121                rejected         sell       0/5 11536 @ 12.5 no " +
				".[2Jfunds",
		},
		{
			`{"broker":"dhan","status":"unknown","raw_text":"{\n","received_at":"2026-01-05T03:45:00Z"}`,
			"09:15:00.000 dhan   -          -                   unknown                          not understood: {.",
		},
		{
			`{"broker":"fyers","status":"unknown","other":"probe","received_at":"2026-01-05T03:45:00Z"}`,
			"09:15:00.000 fyers  -          -                   unknown                          not an order: probe",
		},
		{
			`{"broker":"dhan","user_id":"1000000003","order_id":"1121","status":"rejected","instrument_id":"11536",` +
				`"side":"sell","quantity":5,"price":"12.5","reason":"no funds",` +
				`"received_at":"2026-01-05T03:45:00Z","source":"order_book"}`,
			"09:15:00.000 dhan   1000000003 1121                rejected         sell       0/5 [order_book] 11536 @ " +
				"12.5 no funds",
		},
		{
			`{"broker":"kite","user_id":"AB1234","order_id":"1","status":"open","symbol":"SBIN",` +
				`"received_at":"2026-01-05T03:45:00Z","source":"postback"}`,
			"09:15:00.000 kite   AB1234     1                   open                            SBIN",
		},
		{
			`{"broker":"kite","status":"unknown","raw":[],"received_at":"2026-01-05T03:45:00Z","source":"order_book"}`,
			"09:15:00.000 kite   -          -                   unknown                         [order_book]  " +
				"not understood: []",
		},
		{"other\tthings", "other.things"},
		{`{"probe":"X","sent_at":"2026-01-05T03:45:00Z"}`, `{"probe":"X","sent_at":"2026-01-05T03:45:00Z"}`},
	} {
		if got := string(humanLine([]byte(test.event), ist)); got != test.want+"\n" {
			t.Errorf("%q\nwant %q", got, test.want)
		}
	}
}

// TestTailTrackerFull checks that tail ends at an order that it cannot count.
func TestTailTrackerFull(t *testing.T) {
	var lines strings.Builder
	stopped := false
	view := &trackerView{orders: event.Tracker{MaxOrders: 1}, fills: true, json: true}
	out := &printer{tailOptions: new(tailOptions), w: &lines, format: view.format, stop: func() { stopped = true }}
	for _, order := range []string{"1", "2", "1"} {
		out.print(&message{data: fmt.Appendf(nil, `{"id":%[1]q,"broker":"kite","order_id":%[1]q,"status":"filled",`+
			`"filled_quantity":50,"received_at":"2026-01-05T03:45:30Z"}`, order)})
	}
	const want = "more than 1 orders changed within a day, too many for --fills and --late; " +
		"select fewer with --broker, --user or --from"
	if strings.Count(lines.String(), "\n") != 1 || !stopped || out.err == nil || out.err.Error() != want {
		t.Errorf("stopped: %v, %v after\n%s", stopped, out.err, &lines)
	}
}

// TestTailTracker prints what a consumer would count: new fills, and which events are late or repeats.
func TestTailTracker(t *testing.T) {
	state := func(id, status string, filled int, price, updated string) *message {
		return &message{
			status: status, headers: map[string]string{"ce-type": "postbridge.order.v1"},
			data: fmt.Appendf(nil, `{"id":%q,"broker":"kite","user_id":"AB1234","order_id":"1","status":%q,"side":"buy",`+
				`"symbol":"INFY","quantity":50,"filled_quantity":%d,"average_price":%q,"updated_time":"2026-01-05T09:15:%s+05:30",`+
				`"received_at":"2026-01-05T03:45:30Z","source":"postback"}`, id, status, filled, price, updated),
		}
	}
	part := state("a", "partially_filled", 20, "470", "01")
	all := state("b", "filled", 50, "471.2", "02")
	stream := []*message{part, part, all, state("c", "partially_filled", 30, "470.5", "01"), all}
	ist := time.FixedZone("IST", 19800)
	run := func(v *trackerView) (lines string) {
		v.zone = ist
		for _, m := range stream {
			line, err := v.format(m)
			if lines += string(line); err != nil {
				lines += err.Error() + "\n"
			}
		}
		return lines
	}
	if got, want := run(&trackerView{fills: true}),
		"09:15:30.000 kite   AB1234     1                   buy  +20 @ 470                20/50 partially_filled INFY\n"+
			"09:15:30.000 kite   AB1234     1                   buy  +30 @ 472                50/50 filled           INFY\n"; got != want {
		t.Errorf("fills\n%swant\n%s", got, want)
	}
	if got, want := run(&trackerView{fills: true, json: true}),
		`{"id":"a","key":"kite.AB1234.1","status":"partially_filled","symbol":"INFY","side":"buy","new_fill":20,`+
			`"fill_price":"470","filled_quantity":20}`+"\n"+
			`{"id":"b","key":"kite.AB1234.1","status":"filled","symbol":"INFY","side":"buy","new_fill":30,`+
			`"fill_price":"472","filled_quantity":50}`+"\n"; got != want {
		t.Errorf("fills as JSON\n%swant\n%s", got, want)
	}
	line := func(m *message) []byte { return fmt.Appendln(nil, m.status) }
	if got, want := run(&trackerView{line: line}), "       partially_filled\nrepeat partially_filled\n       filled\n"+
		"late   partially_filled\nrepeat filled\n"; got != want {
		t.Errorf("late\n%swant\n%s", got, want)
	}
	if got := run(&trackerView{json: true}); strings.Count(got, `"verdict":"repeat"`) != 2 ||
		!strings.HasPrefix(got, `{"verdict":"new","event":{"id":"a",`) {
		t.Errorf("late as JSON\n%s", got)
	}
	probe := &message{data: []byte(`{"probe":"x"}`), headers: map[string]string{"ce-type": "postbridge.probe.v1"}}
	if got, err := (&trackerView{fills: true, line: line}).format(probe); got != nil || err != nil {
		t.Errorf("a probe is printed as a fill: %s, %v", got, err)
	}
	if got := coloured([]byte("x\n"), "rejected"); string(got) != "\x1b[31mx\x1b[0m\n" {
		t.Errorf("coloured %q", got)
	}
}

// TestTailDomain: behind a leaf node without JetStream, the stream is looked up in the domain that is set.
func TestTailDomain(t *testing.T) {
	start := func(o *server.Options) *server.Server {
		o.Host, o.Port, o.StoreDir, o.NoSigs, o.NoLog = "127.0.0.1", server.RANDOM_PORT, t.TempDir(), true, true
		s, err := server.NewServer(o)
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
		if !s.ReadyForConnections(20 * time.Second) {
			t.Fatal("the NATS server does not become ready")
		}
		return s
	}
	hub := &server.Options{
		JetStream: true, JetStreamDomain: "hub",
		LeafNode: server.LeafNodeOpts{Host: "127.0.0.1", Port: server.RANDOM_PORT},
	}
	conn, err := nats.Connect(start(hub).ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	b := &bus{js: js}
	b.addStream(t, "", "orders")
	b.add(t, "", bridge.Orders, bridge.Delivery{ID: "of-hub", Broker: "kite", UserID: "AB1", OrderID: "7"})
	link := &url.URL{Scheme: "nats-leaf", Host: fmt.Sprint("127.0.0.1:", hub.LeafNode.Port)}
	leaf := start(&server.Options{
		LeafNode: server.LeafNodeOpts{Remotes: []*server.RemoteLeafOpts{{URLs: []*url.URL{link}}}},
	})
	got := runWith(t, environ("NATS_DOMAIN=hub NATS_URL="+leaf.ClientURL()),
		"tail", "--from", "start", "--count", "1", "--timeout", "20s")
	if got.code != 0 || !strings.Contains(got.stdout, "of-hub") {
		t.Errorf("%+v", got)
	}
}
