package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/brokers"
	"github.com/postbridge/postbridge/brokers/kite"
)

// ---- --replay ---------------------------------------------------------------------------------------------------

// recordEdge makes lines as tail prints them, of what an edge made of generated orders, a second apart.
func recordEdge(t *testing.T, broker string) (lines []string, bodies []string) {
	t.Helper()
	e := newEdge(t)
	e.sent(t, 0, "--broker", broker, "--count", "40", "--seed", "7")
	at := time.Date(2026, 1, 5, 3, 45, 0, 0, time.UTC)
	ids := make(map[string]int) // how many of an order there were
	for i, body := range e.bodies {
		order := bodyOrderID([]byte(body))
		event := e.orders[order][ids[order]]
		ids[order]++
		event.ReceivedAt = at.Add(time.Duration(i) * time.Second).Format(time.RFC3339Nano)
		lines = append(lines, string(event.Append(nil)))
	}
	return lines, e.bodies
}

// TestReplay replays a recording of each form and compares the received postbacks with the recorded ones.
func TestReplay(t *testing.T) {
	for _, test := range []struct {
		name, broker string
		form         func(line string) string
	}{
		{"events", "kite", func(line string) string { return line }},
		{"events of Dhan", "dhan", func(line string) string { return line }},
		{"events of Upstox", "upstox", func(line string) string { return line }},
		{"events of Fyers", "fyers", func(line string) string { return line }},
		{"with headers", "kite", func(line string) string {
			return `{"subject":"orders.kite.AB1.7","headers":{"ce-id":"1"},"event":` + line + "}"
		}},
		{"bodies with a time", "kite", func(line string) string {
			var e event.Event
			_ = json.Unmarshal([]byte(line), &e)
			return fmt.Sprintf("\n{\"received_at\":%q, \"raw\":%s}", e.ReceivedAt, e.Raw)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			lines, bodies := recordEdge(t, test.broker)
			for i := range lines {
				lines[i] = test.form(lines[i])
				bodies[i] = strings.Replace(bodies[i], `"pan":"",`, "", 1) // an event has no personal data
			}
			e := newEdge(t)
			r := e.sent(t, 0, "--replay", write(t, "day.jsonl", strings.Join(lines, "\n")), "--speed", "max")
			want := &replayReport{Lines: 40, Recorded: 39, Behind: r.Replayed.Behind}
			if r.OK != 40 || !reflect.DeepEqual(r.Replayed, want) || !slices.Equal(e.bodies, bodies) {
				t.Errorf("%+v, %+v; want %+v", r, r.Replayed, want)
			}
		})
	}
}

// TestReplayConnections sends a recording over many connections: edge refuses two postbacks of one order at once.
func TestReplayConnections(t *testing.T) {
	lines, bodies := recordEdge(t, "kite")
	e := newEdge(t)
	day := write(t, "day.jsonl", strings.Join(lines, "\n"))
	r := e.sent(t, 0, "--replay", day, "--speed", "0", "--connections", "8", "--count", "39")
	slices.Sort(bodies[:39])
	slices.Sort(e.bodies)
	if r.OK != 39 || !slices.Equal(e.bodies, bodies[:39]) {
		t.Errorf("%+v", r)
	}
}

// TestReplaySigns holds that a recording of another app, or of one whose secret was rotated, is signed for the one that
// is given.
func TestReplaySigns(t *testing.T) {
	lines, bodies := recordEdge(t, "kite")
	day := write(t, "day.jsonl", strings.ReplaceAll(strings.Join(lines, "\n"), `"app_id":1234`, `"app_id" : 77`))
	e := newEdge(t)
	r := e.sent(t, 0, "--replay", day, "--speed", "max")
	sent := strings.ReplaceAll(strings.Join(e.bodies, "\n"), `"app_id" : `, `"app_id":`)
	if r.OK != 40 || sent != strings.Join(bodies, "\n") {
		t.Errorf("%+v\n%s", r, e.bodies[0])
	}
	refused := runWith(t, nil, "send", "--url", e.URL, "--replay", day, "--secret", "1234=other", "--speed", "max")
	if refused.code != 1 || !strings.Contains(refused.stderr, "(line 1) was answered 403") {
		t.Errorf("%+v", refused)
	}
	e.errors = nil // of the wrong secret
}

// TestReplayOtherIDs counts events whose id differs from the recorded one.
func TestReplayOtherIDs(t *testing.T) {
	lines, _ := recordEdge(t, "kite")
	lines[3] = strings.Replace(lines[3], `"id":"`, `"id":"x`, 1)
	e := newEdge(t)
	r := e.sent(t, 0, "--replay", write(t, "day.jsonl", strings.Join(lines, "\n")), "--speed", "max")
	if r.OK != 40 || r.Replayed.OtherIDs != 1 {
		t.Errorf("%+v", r.Replayed)
	}
}

// TestReplayBadLine checks that the lines before a bad line are sent, and that the error has its number.
func TestReplayBadLine(t *testing.T) {
	lines, _ := recordEdge(t, "kite")
	for _, test := range []struct{ line, want string }{
		{`{"id":`, "is not an event: unexpected end of JSON input"},
		{`["x"]`, "is not an event: json: cannot unmarshal array into Go value of type event.Event"},
		{`{"id":"1","raw":{}}`, "has no received_at"},
		{`{"received_at":"2026-01-05T03:45:00Z"}`, "has no raw, the body that the broker sent"},
		{`{"id":"1","order_id":"7","received_at":"2026-01-05T03:45:00Z"}`, "has no raw, the body that the broker sent"},
		{`{"received_at":"2026-01-05T03:45:00Z","broker":"x","raw":{}}`, "unknown broker \"x\""},
		{`{"received_at":"2026-01-05T03:45:00Z","raw":{"order_id":"1"}}`,
			`cannot be signed: it has no "checksum" to replace`},
	} {
		e := newEdge(t)
		input := strings.Join([]string{lines[0], "", lines[1], test.line, lines[2]}, "\n")
		args := []string{"send", "--url", e.URL, "--replay", "-", "--speed", "max"}
		got := runInput(t.Context(), input, environ("KITE_SECRETS=1234=s3cret"), args...)
		want := "postbridge: send: -, line 4: " + test.want + "\n"
		if got.code != 1 || got.stderr != want || len(e.bodies) != 2 {
			t.Errorf("%+v, %d sent; want %q", got, len(e.bodies), want)
		}
	}
	e := newEdge(t)
	input := `{"received_at":"2026-01-05T03:45:00Z","broker":"dhan","raw":{}}`
	got := runInput(t.Context(), input, nil, "send", "--url", e.URL, "--replay", "-")
	want := "line 1: the route of dhan needs a path token; set --token or POSTBRIDGE_DHAN_TOKENS\n"
	if !strings.HasSuffix(got.stderr, want) {
		t.Errorf("%+v", got)
	}
}

// TestReplayEmptyBody has a dead letter of a body that was empty, as a prober of the route sends it.
func TestReplayEmptyBody(t *testing.T) {
	r, err := parseRecorded([]byte(`{"id":"1","broker":"dhan","status":"unknown",` +
		`"received_at":"2026-01-05T03:45:00Z",` +
		`"verified_by":"token","source":"postback"}`))
	if err != nil || len(r.body) != 0 {
		t.Errorf("%q, %v", r.body, err)
	}
}

// TestReplayDueLate has a gap and a speed that make more time than there is: it is not due before the rest.
func TestReplayDueLate(t *testing.T) {
	r := newRecording(testSender(&sendOptions{speed: 1e-9}), new(bytes.Buffer))
	first := time.Date(2026, 1, 5, 3, 45, 0, 0, time.UTC)
	if at := r.dueAt(first); !at.Equal(r.start) {
		t.Errorf("the first is due at %v", at)
	}
	if at := r.dueAt(first.Add(time.Minute)); time.Until(at) < 24*time.Hour {
		t.Errorf("the second is due at %v", at)
	}
}

// TestReplayPace checks the gaps of a recording, at its own speed and faster.
func TestReplayPace(t *testing.T) {
	for _, test := range []struct {
		speed float64
		took  time.Duration
	}{{1, 5 * time.Second}, {10, 500 * time.Millisecond}, {0, 0}} {
		synctest.Test(t, func(t *testing.T) {
			day := new(bytes.Buffer)
			for _, second := range []int{0, 1, 1, 5, 2, 5} { // the last but one was recorded late
				fmt.Fprintf(day, "{\"received_at\":\"2026-01-05T03:45:%02dZ\",\"raw\":{\"order_id\":\"%d\"}}\n",
					second, second)
			}
			s := testSender(&sendOptions{speed: test.speed, broker: "kite"})
			s.target = &target{routes: map[string]*route{"kite": {}}}
			s.source = newRecording(s, day).next
			n := 0
			for pb, ok := s.take(0); ok && s.wait(t.Context(), pb.due); pb, ok = s.take(0) {
				n++
			}
			took := time.Since(s.start)
			if took != test.took || s.total.Replayed.Recorded != 5 || n != 6 || !errors.Is(s.ended, io.EOF) {
				t.Errorf("speed %v: %v, %+v", test.speed, took, s.total.Replayed)
			}
		})
	}
}

// TestOrderOfAnOrder checks that a postback waits for the previous one of its order only.
func TestOrderOfAnOrder(t *testing.T) {
	s := testSender(new(sendOptions))
	orders := []string{"1", "2", "1", "1", "3"}
	s.source = func(int) (postback, error) {
		pb := postback{order: orders[0], unordered: orders[0] == "3"}
		orders = orders[1:]
		return pb, nil
	}
	var all []postback
	for range 5 {
		pb, _ := s.take(0)
		all = append(all, pb)
	}
	if all[0].before != nil || all[1].before != nil || all[2].before != all[0].done || all[3].before != all[2].done ||
		all[4].before != nil {
		t.Errorf("%+v", all)
	}
	for _, pb := range all {
		if s.release(pb); !pb.unordered {
			<-pb.done
		}
	}
	if len(s.inFlight) != 0 {
		t.Errorf("%d in flight", len(s.inFlight))
	}
}

func TestSign(t *testing.T) {
	apps := []kite.Secret{{AppID: "1", Secret: "one"}, {AppID: "2", Secret: "two"}, {AppID: "2", Secret: "old"}}
	signature := func(secret string) string {
		return checksum("7", "2026-01-05 09:15:00", secret)
	}
	const order = `"order_id":"7","order_timestamp":"2026-01-05 09:15:00"`
	for _, test := range []struct{ body, want string }{
		{`{"app_id":2,"checksum":"x",` + order + `}`,
			`{"app_id":2,"checksum":"` + signature("two") + `",` + order + `}`},
		{`{"app_id":3,"checksum":"x",` + order + `}`,
			`{"app_id":1,"checksum":"` + signature("one") + `",` + order + `}`},
		{` { "checksum" : null , "app_id" : 3333 , ` + order + `} `,
			` { "checksum" : "` + signature("one") + `" , "app_id" : 1 , ` + order + `} `},
		{`{"app_id":"2","checksum":"x",` + order + `}`,
			`{"app_id":"2","checksum":"` + signature("two") + `",` + order + `}`},
		{`{"checksum":"",` + order + `}`, `{"checksum":"` + signature("one") + `",` + order + `}`},
		{`{"meta":{"checksum":"m","order_id":"8"},"checksum":"x",` + order + `,"x":[{}]}`,
			`{"meta":{"checksum":"m","order_id":"8"},"checksum":"` + signature("one") + `",` + order + `,"x":[{}]}`},
	} {
		if got, _, err := sign([]byte(test.body), apps); err != nil || string(got) != test.want {
			t.Errorf("%s\nsigned %s, %v\nwant   %s", test.body, got, err, test.want)
		}
	}
	for _, body := range []string{``, `[]`, `{"checksum":"x"`, `{"checksum" "x"}`, `{}`} {
		if got, _, err := sign([]byte(body), apps); err == nil {
			t.Errorf("%s signed %s", body, got)
		}
	}
}

// ---- --worst ----------------------------------------------------------------------------------------------------

// TestWorst checks what each behaviour sends.
func TestWorst(t *testing.T) {
	for _, broker := range brokers.Names() {
		for name, want := range map[string]func(e *edge) bool{
			"doubled": func(e *edge) bool { return everyPair(e.bodies, func(a, b string) bool { return a == b }) },
			"words": func(e *edge) bool {
				return e.some(func(a, b *event.Event) bool {
					// only Kite has two words
					return a.ID == b.ID && (broker != "kite" || a.BrokerStatus != b.BrokerStatus)
				})
			},
			"cancels": func(e *edge) bool {
				return e.some(func(a, b *event.Event) bool { return a.Status == event.StatusCancelled && a.ID == b.ID })
			},
			"late": func(e *edge) bool {
				return e.some(func(a, b *event.Event) bool {
					return a.Status == event.StatusFilled && b.Status == event.StatusPartiallyFilled
				})
			},
		} {
			t.Run(broker+" "+name, func(t *testing.T) {
				t.Parallel()
				e := newEdge(t)
				// There is no bus here.
				environment := environ(edgeSecrets + " NATS_LISTEN=127.0.0.1:1")
				got := runWith(t, environment, "send", "--url", e.URL, "--broker", broker,
					"--worst", name, "--count", "300", "--seed", "3", "--timeout", "100ms")
				unread := "  nats: not checked, cannot be read: waiting for the bus: "
				if got.code != 0 || !strings.Contains(got.stdout, unread) {
					t.Errorf("%+v", got)
				}
				if len(e.bodies) != 300 || !want(e) {
					t.Errorf("%d bodies, and it is not %s", len(e.bodies), name)
				}
			})
		}
	}
}

// some reports whether some event and the one after it in its order are so.
func (e *edge) some(so func(a, b *event.Event) bool) bool {
	for _, events := range e.orders {
		for i := range len(events) - 1 {
			if so(events[i], events[i+1]) {
				return true
			}
		}
	}
	return false
}

func everyPair(bodies []string, so func(a, b string) bool) bool {
	for i := 0; i+1 < len(bodies); i += 2 {
		if !so(bodies[i], bodies[i+1]) {
			return false
		}
	}
	return len(bodies) > 0
}

// TestWorstSplit holds that half of the connections share their orders, which are then marked as unordered.
func TestWorstSplit(t *testing.T) {
	g := newGenerator(&sendOptions{
		broker: "dhan", profile: profiles()["dhan"], users: 1, seed: 1, connections: 3, split: true,
	})
	a, _ := g.next(0)
	b, _ := g.next(2)
	c, _ := g.next(1)
	if a.order != b.order || !a.unordered || !b.unordered || c.order == a.order || c.unordered {
		t.Errorf("%v %v %v", a, b, c)
	}
}

// TestWorstStorm checks that the postbacks of a second are due at once.
func TestWorstStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &sendOptions{count: 12, rate: 5, worst: behaviours{{rate: 500}}}
		o.worst.apply(o)
		p := testSender(o)
		var at []time.Duration
		for pb, ok := p.take(0); ok; pb, ok = p.take(0) {
			at = append(at, pb.due.Sub(p.start))
		}
		s := time.Second
		if !slices.Equal(at, []time.Duration{0, 0, 0, 0, 0, s, s, s, s, s, 2 * s, 2 * s}) {
			t.Error(at)
		}
	})
}

// TestSendWatch checks the comparison of acknowledged postbacks with the events on a bus.
func TestSendWatch(t *testing.T) {
	for _, test := range []struct {
		sent, stored string
		unordered    bool
		want         busReport
	}{
		{"a b c", "a b c", false, busReport{Stored: 3}},
		{"a a b b", "a b", false, busReport{Stored: 2}},
		{"a b a", "a b a", false, busReport{Stored: 3}},
		{"a a b", "a a b", false, busReport{Stored: 3, Republish: 1}},
		{"a b c", "a c", false, busReport{Stored: 2, Missing: 1}},
		{"a b c", "a c b", false, busReport{Stored: 3, Disorder: 1}},
		{"a b a", "a b", false, busReport{Stored: 2, Disorder: 1}},
		{"a b", "", false, busReport{Missing: 2}},
		{"a b a b", "b a b", true, busReport{Stored: 3}},
		{"a b c", "c a", true, busReport{Stored: 2, Missing: 1}},
		{"a - b", "a x b", false, busReport{Stored: 3}}, // one that was not answered
	} {
		w := &busWatch{orders: make(map[string]*ackedOrder)}
		for _, id := range strings.Fields(test.sent) {
			w.sent(postback{order: "7", unordered: test.unordered}, strings.Trim(id, "-"))
		}
		var got busReport
		got.compare(w.orders["7"], strings.Fields(test.stored))
		if got != test.want {
			t.Errorf("%s, stored %s: %+v, want %+v", test.sent, test.stored, got, test.want)
		}
	}
}

// TestWorstFailure checks that a missing event is a failure, and an unreadable bus is not.
func TestWorstFailure(t *testing.T) {
	buses := map[string]*busReport{"nats": {Stored: 3, Missing: 1, Disorder: 1}, "kafka": {Unread: "why"}}
	r := &worstReport{Orders: 2, Events: 5, Buses: buses}
	if err := r.failure(); err == nil || err.Error() != "nats lacks 1 of 5 events, and has 1 of 2 orders out of order" {
		t.Error(err)
	}
	r.Buses["nats"] = &busReport{Stored: 7, Republish: 2}
	if err := r.failure(); err != nil {
		t.Error(err)
	}
}

// ---- --canary ---------------------------------------------------------------------------------------------------

// TestCanaryFailures checks that each failure has its own error, without a secret.
func TestCanaryFailures(t *testing.T) {
	e := newEdge(t)
	b := startBus(t, "127.0.0.1:0", t.TempDir())
	b.addStream(t, "", "orders")
	for _, test := range []struct{ env, args, want string }{
		{"NATS_LISTEN=" + b.address, "",
			"answered 200 in [0-9.]*ms, but not on nats after [0-9.]*ms \\(following orders.kite.CANARY.canary-"},
		{"NATS_LISTEN=127.0.0.1:1", "", "answered 200 in [0-9.]*ms, but nats cannot be read: waiting for the bus: "},
		{"NATS_LISTEN=127.0.0.1:1", "--secret 1234=wr0ng", "refused: answered 403: "},
		{"NATS_LISTEN=127.0.0.1:1", "--url http://127.0.0.1:1",
			"no connection: dial tcp 127.0.0.1:1: connect: connection refused; is postbridge running\\?"},
	} {
		environment := append(environ(test.env), "POSTBRIDGE_KITE_SECRETS=1234=s3cret")
		args := append([]string{"send", "--url", e.URL, "--canary", "--timeout", "400ms"}, strings.Fields(test.args)...)
		got := runWith(t, environment, args...)
		if got.code != 1 || got.stdout != "" || !matches(got.stderr, "^postbridge: send: canary: "+test.want) {
			t.Errorf("%s: %+v", test.want, got)
		}
		got = runWith(t, environment, append(args, "--json")...)
		var c canary
		err := json.Unmarshal([]byte(got.stdout), &c)
		if err != nil || got.code != 1 || c.OK || !matches(c.Error, "^"+test.want) || len(c.Buses) != 0 {
			t.Errorf("%s: %+v", test.want, got)
		}
		for _, secret := range []string{"s3cret", "wr0ng"} {
			if strings.Contains(got.stdout+got.stderr, secret) {
				t.Errorf("%s: printed the secret: %+v", test.want, got)
			}
		}
	}
	e.errors = nil // of the wrong secret
}

func matches(text, pattern string) bool { return regexp.MustCompile(pattern).MatchString(text) }

func TestModesMisuse(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"--worst x", `invalid value "x" for flag -worst: "x" is not known; set it to all or some of ` +
			`late,words,cancels,doubled,storm,split; run 'postbridge send --help'`},
		{"--speed fast --replay x", `invalid value "fast" for flag -speed: it is not a number; ` +
			`set it like 10, or to max; run 'postbridge send --help'`},
		{"--speed NaN --replay x", `invalid value "NaN" for flag -speed: it is not a number; ` +
			`set it like 10, or to max; run 'postbridge send --help'`},
		{"--speed 2", "--speed needs --replay, --worst or --canary; run 'postbridge send --help'"},
		{"--replay x --rate 3", "--replay takes no --rate; leave one of them out"},
		{"--replay x --worst all", "--replay takes no --worst; leave one of them out"},
		{"--worst all x", "--worst takes no file \"x\"; leave one of them out"},
		{"--canary --count 3", "--canary takes no --count; leave one of them out"},
		{"--canary --user a.b", "--user \"a.b\" has to be letters, digits, - and _"},
		{"--canary --timeout 0s", "--timeout must be positive; set it like 10s"},
		{"--canary", "no Kite app to sign with; set --secret or POSTBRIDGE_KITE_SECRETS to app_id=api_secret"},
		{"--replay x --secret s3cret",
			"no Kite app to sign with; set --secret or POSTBRIDGE_KITE_SECRETS to app_id=api_secret"},
	} {
		got := runWith(t, nil, append([]string{"send"}, strings.Fields(test.args)...)...)
		if want := (result{2, "", "postbridge: send: " + test.want + "\n"}); got != want {
			t.Errorf("%s: %+v\nwant %+v", test.args, got, want)
		}
	}
}
