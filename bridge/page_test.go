package bridge_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
)

// TestPageFiles holds what keeps the page harmless: the headers, and that there is nothing in it that needs weaker
// ones.
func TestPageFiles(t *testing.T) {
	t.Parallel()
	log := new(logBuffer)
	o := testOptions(t, log)
	o.Buses = []bridge.Bus{newFakeBus(t).bus()}
	r := start(t, o, log)
	for path, contentType := range map[string]string{
		"/": "text/html; charset=utf-8", "/page/page.css": "text/css; charset=utf-8",
		"/page/page.js": "text/javascript; charset=utf-8", "/page/icon.svg": "image/svg+xml", "/page/data": "application/json",
	} {
		resp, err := http.Get(r.admin + path)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != contentType {
			t.Errorf("%s: %s, %q, %v", path, resp.Status, resp.Header.Get("Content-Type"), err)
		}
		for name, want := range map[string]string{
			"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
				"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
			"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
			"Cross-Origin-Resource-Policy": "same-origin", "Cache-Control": "no-store", "Access-Control-Allow-Origin": "",
		} {
			if has := resp.Header.Get(name); has != want {
				t.Errorf("%s: %s: %q, want %q", path, name, has, want)
			}
		}
		outside := regexp.MustCompile(
			`(https?:)?//[a-z0-9]|innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|localStorage| style=| on[a-z]+=|<style|<script>`,
		)
		svg := strings.NewReplacer("http://www.w3.org/2000/svg", "") // a name, not an address
		if found := outside.FindAllString(svg.Replace(string(text)), -1); found != nil {
			t.Errorf("%s has %q", path, found)
		}
	}
	for _, path := range []string{"/page", "/page/", "/page/page.html", "/page/..%2fpage.go", "/index.html"} {
		if status, _ := r.get(path); status != http.StatusNotFound {
			t.Errorf("%s is answered %d", path, status)
		}
	}
	if status, _ := r.post("/", "{}"); status != http.StatusNotFound {
		t.Errorf("the ingest address has a page: %d", status)
	}
	if resp, err := http.Post(r.admin+"/page/data", "", nil); err != nil ||
		resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("a POST is answered %v, %v", resp, err)
	}
}

// TestPageStatuses is that each status can be filtered by.
func TestPageStatuses(t *testing.T) {
	text, err := os.ReadFile("page/page.html")
	if err != nil {
		t.Fatal(err)
	}
	var options []event.Status
	for _, m := range regexp.MustCompile(`<option>(\w+)</option>`).FindAllStringSubmatch(string(text), -1) {
		options = append(options, event.Status(m[1]))
	}
	if !slices.Equal(options, event.Statuses()) {
		t.Errorf("the page has %v", options)
	}
}

// pageData is what the page is told.
type pageData struct {
	Run     string
	Seconds float64
	Status  struct {
		Ready bool
		Buses map[string]busStatus
	}
	Answers struct {
		Count   uint64
		Buckets []struct {
			Seconds float64
			Count   uint64
		}
	}
	Refused map[string]map[string]uint64
	History struct {
		Fine, Coarse []struct {
			Seconds   float64
			Postbacks []uint64
			Buses     map[string]struct {
				Waiting uint64
				Up      bool
			}
		}
	}
	Events []map[string]any
	Last   uint64
}

func (r *running) page(after string) (d pageData) {
	r.t.Helper()
	status, text := r.get("/page/data?after=" + after)
	if err := json.Unmarshal([]byte(text), &d); status != http.StatusOK || err != nil {
		r.t.Fatalf("%d %s: %v", status, text, err)
	}
	return d
}

// TestPageData is that the page is told what became of the postbacks, of the events what postbridge made of them, and
// nothing of their bodies.
func TestPageData(t *testing.T) {
	t.Parallel()
	log := new(logBuffer)
	o := testOptions(t, log)
	bus := newFakeBus(t)
	o.Buses = []bridge.Bus{bus.bus()}
	r := start(t, o, log)
	if d := r.page(""); d.Events == nil || len(d.Events) != 0 || d.Last != 0 || len(d.Refused) != 0 {
		t.Errorf("before the first postback: %+v", d)
	}
	r.mustPost("/kite", kiteBody("1", "OPEN", 470))
	r.mustPost("/kite", kiteBody("1", "OPEN", 470)) // no news
	r.mustPost("/kite", kiteBody("<img src=x>", "REJECTED", 1))
	r.mustPost("/dhan/"+dhanToken, `{"private": ,}`)
	_, _ = r.post("/kite", `{"order_id":"1","checksum":"0123"}`)
	_, _ = r.post("/dhan/wrong-token", `{}`)
	bus.waitStored(3)

	d := r.page("0")
	if len(d.Events) != 3 || d.Last != 3 || !d.Status.Ready || d.Run == "" || d.Seconds <= 0 {
		t.Fatalf("%+v", d)
	}
	first, id := d.Events[0], d.Events[0]["id"]
	delete(first, "received_at")
	delete(first, "id")
	want := map[string]any{
		"sequence": 1.0, "broker": "kite", "user_id": "AB1234", "order_id": "1", "status": "open", "broker_status": "OPEN",
		"quantity": 1.0, "price": "470", "verified_by": "checksum",
	}
	if fmt.Sprint(first) != fmt.Sprint(want) || len(fmt.Sprint(id)) != 32 {
		t.Errorf("the first event is %v, id %v; want %v", first, id, want)
	}
	if e := d.Events[1]; e["order_id"] != "<img src=x>" || e["status"] != "rejected" || e["sequence"] != 2.0 {
		t.Errorf("the second event is %v", e)
	}
	if e := d.Events[2]; e["order_id"] != nil || e["status"] != "unknown" || e["broker"] != "dhan" || len(e) != 6 {
		t.Errorf("what was not understood is %v", e)
	}
	if fmt.Sprint(d.Refused) != "map[dhan:map[token:1] kite:map[checksum:1]]" {
		t.Errorf("refused: %v", d.Refused)
	}
	if n := len(d.Answers.Buckets); d.Answers.Count != 6 || n != 16 || d.Answers.Buckets[n-1].Count != 6 {
		t.Errorf("answers: %+v", d.Answers)
	}
	if d := r.page("2"); len(d.Events) != 1 || d.Events[0]["sequence"] != 3.0 || d.Last != 3 {
		t.Errorf("behind 2: %+v", d)
	}
	if d := r.page("3"); len(d.Events) != 0 || d.Last != 3 {
		t.Errorf("behind 3: %+v", d)
	}
	if d := r.page("4000"); len(d.Events) != 3 {
		t.Errorf("behind a place of another run: %+v", d)
	}
	for _, query := range []string{"", "after=3", "after=3&since=-1"} {
		status, text := r.get("/page/data?" + query)
		if d := r.page("3"); status != http.StatusOK || len(d.History.Fine) == 0 || len(d.History.Coarse) == 0 ||
			len(d.History.Fine[0].Postbacks) != 5 {
			t.Errorf("%q has no history: %d %s", query, status, text)
		}
	}
	if _, text := r.get("/page/data?since=1e9"); !strings.Contains(text, `"history":{"fine":[],"coarse":[]}`) {
		t.Errorf("there is a history after the present: %s", text)
	}
	_, text := r.get("/page/data")
	for _, never := range []string{"private", "checksum\":\"", "0123", kiteSecret, dhanToken, "wrong-token", `"raw`, "app_id", "<img"} {
		if strings.Contains(text, never) {
			t.Errorf("the page is told %q:\n%s", never, text)
		}
	}
	for _, after := range []string{"-1", "x", "18446744073709551616"} {
		if status, _ := r.get("/page/data?after=" + after); status != http.StatusBadRequest {
			t.Errorf("after=%s is answered %d", after, status)
		}
	}
	if status, _ := r.get("/page/data?since=x"); status != http.StatusBadRequest {
		t.Errorf("since=x is answered %d", status)
	}
}

// TestPageOff is that there is neither page nor data where it is switched off, and the rest is as ever.
func TestPageOff(t *testing.T) {
	t.Parallel()
	log := new(logBuffer)
	o := testOptions(t, log)
	o.AdminPage = false
	o.Buses = []bridge.Bus{newFakeBus(t).bus()}
	r := start(t, o, log)
	r.mustPost("/kite", kiteBody("1", "OPEN", 470))
	for path, want := range map[string]int{
		"/": 404, "/page/data": 404, "/page/page.js": 404, "/page/page.css": 404, "/page/icon.svg": 404, "/status": 200, "/metrics": 200,
	} {
		if status, _ := r.get(path); status != want {
			t.Errorf("%s is answered %d", path, status)
		}
	}
}

// TestPageWithoutSpool is that the page says why nothing is taken while the spool is held by another process.
func TestPageWithoutSpool(t *testing.T) {
	t.Parallel()
	log := new(logBuffer)
	o := testOptions(t, log)
	o.Buses = []bridge.Bus{newFakeBus(t).bus()}
	start(t, o, log)
	o2 := testOptions(t, new(logBuffer))
	log2 := new(logBuffer)
	o2.DataDir, o2.Buses, o2.Log = o.DataDir, []bridge.Bus{newFakeBus(t).bus()}, testOptions(t, log2).Log
	r := startUnready(t, o2, log2)
	_, text := r.get("/page/data")
	if !strings.Contains(text, `"ready":false,"not_ready":"waiting for the spool"`) ||
		!strings.Contains(text, `"buses":{}`) {
		t.Error(text)
	}
}

// sequences are the numbers of events.
func sequences(t *testing.T, events []json.RawMessage) (numbers []uint64) {
	t.Helper()
	for _, text := range events {
		var e struct{ Sequence uint64 }
		if err := json.Unmarshal(text, &e); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		numbers = append(numbers, e.Sequence)
	}
	return numbers
}

// TestRecent is that the last events are kept, and the last rejects for longer, each once and in order.
func TestRecent(t *testing.T) {
	r := bridge.NewRecent()
	const all, every = 3000, 20 // each 20th is rejected
	for n := uint64(1); n <= all; n++ {
		e := &event.Event{
			ID:     "id",
			Broker: "kite",
			Order:  event.Order{OrderID: fmt.Sprint(n), Status: event.StatusOpen},
		}
		if n%every == 0 {
			e.Status = event.StatusRejected
		}
		r.Add(n, e)
		if n == 1 || n == every || n == bridge.RecentEvents || n == bridge.RecentEvents+1 {
			events, last := r.Since(0)
			if numbers := sequences(t, events); last != n || len(numbers) != min(int(n), bridge.RecentEvents) ||
				!slices.IsSorted(numbers) {
				t.Errorf("after %d events there are %v", n, numbers)
			}
		}
	}
	var want []uint64
	for n := uint64(all - bridge.RecentRejects*every + every); n <= all; n++ {
		if n%every == 0 || n > all-bridge.RecentEvents {
			want = append(want, n)
		}
	}
	events, last := r.Since(0)
	if numbers := sequences(t, events); !slices.Equal(numbers, want) || last != all {
		t.Errorf("%d: there are %v, want %v", last, numbers, want)
	}
	if events, _ := r.Since(all + 1); len(events) != len(want) {
		t.Errorf("behind a place that there is not yet, there are %d", len(events))
	}
	events, _ = r.Since(all - 2)
	if numbers := sequences(t, events); !slices.Equal(numbers, []uint64{all - 1, all}) {
		t.Errorf("behind the last but two, there are %v", numbers)
	}
	before := string(events[0])
	for range bridge.RecentEvents {
		r.Add(1, &event.Event{ID: "another"})
	}
	if string(events[0]) != before {
		t.Error("what was returned has changed")
	}
}

// TestRecentFields is that each field is shown under the name that it has on the bus, and nothing else of the event is.
func TestRecentFields(t *testing.T) {
	var e event.Event
	onBus := `{"id":"id","broker":"kite","user_id":"user","order_id":"order","status":"rejected","broker_status":"word",` +
		`"reason":"why","exchange":"NSE","symbol":"SBIN","instrument_id":"7","side":"buy","order_type":"limit","quantity":4,` +
		`"filled_quantity":3,"cancelled_quantity":0,"pending_quantity":1,"price":"1.5","trigger_price":"1.4","average_price":"1.45",` +
		`"received_at":"then","verified_by":"token"`
	more := `,"reason_raw":"x","reason_code":"x","exchange_order_id":"x","parent_order_id":"x","client_order_id":"x","tag":"x",` +
		`"product":"x","validity":"x","variety":"x","disclosed_quantity":9,"order_time":"x","source":"x","raw":{"body":1},"raw_text":"x"}`
	if err := json.Unmarshal([]byte(onBus+more), &e); err != nil {
		t.Fatal(err)
	}
	r := bridge.NewRecent()
	large := e
	r.Add(12, &e)
	r.AddLarge(12, &large)
	events, _ := r.Since(0)
	for _, text := range events {
		var has, want map[string]any
		if err := errors.Join(json.Unmarshal(text, &has), json.Unmarshal([]byte(onBus+`,"sequence":12}`), &want)); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(has, want) {
			t.Errorf("is shown as\n%v, want\n%v", has, want)
		}
	}
}

// TestRecentBounds is that no event takes more memory than its share, whatever the broker wrote, and that what is
// left of it is text.
func TestRecentBounds(t *testing.T) {
	for _, part := range []string{"x", "\x00", "€", "\xff", "\"", "𝄞"} {
		long := strings.Repeat(part, 50_000)
		r := bridge.NewRecent()
		r.AddLarge(1, &event.Event{ID: "id", Broker: "kite", Order: event.Order{
			UserID: long, OrderID: long, Status: event.StatusRejected, BrokerStatus: long, Reason: long, Exchange: long, Symbol: long,
			InstrumentID: long, Side: long, OrderType: long, Price: long, TriggerPrice: long, AveragePrice: long, ReasonRaw: long, Tag: long,
		}})
		events, _ := r.Since(0)
		if len(events) != 1 || len(events[0]) > 24<<10 || !json.Valid(events[0]) {
			t.Errorf("%q: %d events, the first of %d bytes", part, len(events), len(events[0]))
		}
		var e struct {
			Reason string `json:"reason"`
		}
		if err := json.Unmarshal(events[0], &e); err != nil || !strings.HasSuffix(e.Reason, "…") {
			t.Errorf("%q: the reason is %q, %v", part, e.Reason, err)
		}
		if part == "€" && strings.Trim(e.Reason, "€") != "…" {
			t.Errorf("a character is cut: %q", e.Reason)
		}
	}
}

// TestRecentTogether adds and looks at the same time; the race detector has the last word.
func TestRecentTogether(t *testing.T) {
	r := bridge.NewRecent()
	var adding sync.WaitGroup
	for range 4 {
		adding.Go(func() {
			for n := range uint64(2000) {
				r.Add(n, &event.Event{ID: "id", Order: event.Order{Status: event.StatusRejected}})
			}
		})
	}
	done := make(chan struct{})
	go func() { adding.Wait(); close(done) }()
	seen, place := 0, uint64(0)
	for ended := false; !ended; {
		select {
		case <-done:
			ended = true
		default:
		}
		events, last := r.Since(place)
		if last < place || uint64(len(events)) > last-place {
			t.Fatalf("%d events between %d and %d", len(events), place, last)
		}
		seen, place = seen+len(events), last
	}
	if place != 8000 || seen == 0 {
		t.Errorf("%d of %d events were seen", seen, place)
	}
}
