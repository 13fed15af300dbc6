package bridge_test

import (
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postbridge/postbridge/bridge"
)

// recorder is a tracer that remembers what it was told.
type recorder struct {
	flags string // of the trace contexts that it makes

	mu        sync.Mutex
	contexts  []string
	requests  []bridge.RequestOutcome
	published []bridge.Publication
}

func (r *recorder) Request(string, time.Time) bridge.RequestSpan {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.contexts = append(r.contexts, fmt.Sprintf("00-%032x-%016x-%s", len(r.contexts)+1, 1, r.flags))
	return &recordedRequest{r, r.contexts[len(r.contexts)-1]}
}

func (r *recorder) Publish(p bridge.Publication) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.published = append(r.published, p)
}

type recordedRequest struct {
	*recorder
	context string
}

func (r *recordedRequest) TraceParent() string { return r.context }

func (r *recordedRequest) End(o bridge.RequestOutcome) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = append(r.requests, o)
}

// TestTracer holds what a tracer hears, and that the bus gets the trace context of the request, sampled or not.
func TestTracer(t *testing.T) {
	for _, flags := range []string{"01", "00"} {
		t.Run(flags, func(t *testing.T) {
			f, log, tracer := newFakeBus(t), new(logBuffer), &recorder{flags: flags}
			o := testOptions(t, log)
			o.Buses, o.Tracer = []bridge.Bus{f.bus()}, tracer
			r := start(t, o, log)
			r.mustPost("/kite", kiteBody("1", "OPEN", 7))
			r.mustPost("/kite", kiteBody("1", "OPEN", 7))
			if status, _ := r.post("/kite", `{"order_id":"1"}`); status != http.StatusForbidden {
				t.Fatal(status)
			}
			r.mustPost("/kite", kiteBody("1", "COMPLETE", 7))
			f.waitStored(2)
			if err := r.stop(); err != nil {
				t.Fatal(err)
			}

			id := func(i int) string { return f.stored[i].ID }
			want := []bridge.RequestOutcome{
				{Status: 200, Fate: "accepted", EventID: id(0), OrderID: "1"},
				{Status: 200, Fate: "repeated", EventID: id(0), OrderID: "1"},
				{Status: 403, Fate: "refused", Reason: "checksum"},
				{Status: 200, Fate: "accepted", EventID: id(1), OrderID: "1"},
			}
			if !reflect.DeepEqual(tracer.requests, want) {
				t.Errorf("%+v", tracer.requests)
			}
			if f.stored[0].TraceParent != tracer.contexts[0] || f.stored[1].TraceParent != tracer.contexts[3] {
				t.Errorf(
					"the bus got %s and %s, the tracer made %s",
					f.stored[0].TraceParent,
					f.stored[1].TraceParent,
					tracer.contexts,
				)
			}
			checkPublished(t, tracer, f.stored, flags == "01")
		})
	}
}

func checkPublished(t *testing.T, tracer *recorder, stored []bridge.Delivery, sampled bool) {
	t.Helper()
	if !sampled {
		if len(tracer.published) != 0 {
			t.Errorf("heard of %d events that are not sampled", len(tracer.published))
		}
		return
	}
	if len(tracer.published) != len(stored) {
		t.Fatalf("heard of %d of %d events", len(tracer.published), len(stored))
	}
	for _, p := range tracer.published { // in any order: each is done by itself
		known := slices.ContainsFunc(stored, func(d bridge.Delivery) bool { return d.ID == p.ID })
		if p.Bus != "nats" || p.Fate != "stored" || !known || p.Offered.IsZero() || p.Done.Before(p.Offered) {
			t.Errorf("%+v", p)
		}
	}
}

// TestDebugLog holds that at debug each event is named, and nothing of what a postback brings is.
func TestDebugLog(t *testing.T) {
	f, log := newFakeBus(t), new(logBuffer)
	o := testOptions(t, log)
	o.Brokers, o.Buses = testBrokers(kiteToken), []bridge.Bus{f.bus()}
	r := start(t, o, log)
	r.mustPost("/kite/"+kiteToken, kiteBody("77", "OPEN", 7))
	r.mustPost("/dhan/"+dhanToken, official(t, "dhan"))
	f.waitStored(2)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	for i, order := range []string{"77", "112111182198"} {
		for _, what := range []string{"postback accepted", "event stored"} {
			if line := fmt.Sprintf("id=%s order_id=%s", f.stored[i].ID, order); !hasLine(log.String(), what, line) {
				t.Errorf("no %q with %q in\n%s", what, line, log)
			}
		}
	}
	for _, never := range []string{kiteSecret, kiteToken, dhanToken, "checksum", "AB1234", "1000000003", "order_timestamp", "dhanClientId"} {
		if strings.Contains(log.String(), never) {
			t.Errorf("%s is in\n%s", never, log)
		}
	}
}

func hasLine(text string, parts ...string) bool {
	for line := range strings.Lines(text) {
		n := 0
		for _, part := range parts {
			if strings.Contains(line, part) {
				n++
			}
		}
		if n == len(parts) {
			return true
		}
	}
	return false
}
