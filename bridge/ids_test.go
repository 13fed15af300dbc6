package bridge_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/spool/crashfs"
)

// TestNoIDsInLog has events refused, quarantined, held and lost: neither the log above debug nor /status has an id in
// it, but both say which event it is by its spool and sequence.
func TestNoIDsInLog(t *testing.T) {
	const user, id, order = "USERAB1234", "EVENT5d41402abc4b2a76", "ORDER220303000308932"
	synctest.Test(t, func(t *testing.T) {
		f, log, fs := newFakeBus(t), new(logBuffer), crashfs.New(t)
		f.setRule(func(d *bridge.Delivery) verdict {
			switch {
			case strings.HasSuffix(d.OrderID, "nowhere") || strings.HasSuffix(d.OrderID, "large") && !d.Deadletter:
				return reject
			case strings.HasSuffix(d.OrderID, "stuck"):
				return hold
			default:
				return store
			}
		})
		s := openOn(t, fs)
		b := pumpingFrom(t, s, f.bus(), slog.New(slog.NewTextHandler(log, nil)))
		var statuses strings.Builder
		look := func() {
			w := httptest.NewRecorder()
			b.Admin().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/status", nil))
			statuses.WriteString(w.Body.String())
			w = httptest.NewRecorder()
			b.Admin().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
			statuses.WriteString(w.Body.String())
		}
		for i, suffix := range []string{"fine", "large", "nowhere", "stuck"} {
			d := &bridge.Delivery{
				ID: fmt.Sprint(id, i), Broker: "kite", UserID: user, OrderID: order + suffix, ReceivedAt: time.Now(),
			}
			appendDelivery(t, s, append(bridge.AppendHead(d), `{"user_id":"`+user+`"}`...))
		}
		appendDelivery(t, s, []byte("of another version, with "+user))
		for range 15 {
			d := &bridge.Delivery{
				ID:         id,
				Broker:     "kite",
				UserID:     user,
				OrderID:    order + "stuck",
				ReceivedAt: time.Now(),
			}
			appendDelivery(t, s, append(bridge.AppendHead(d), make([]byte, bridge.MaxInFlightBytes/10)...))
		}
		time.Sleep(time.Minute)
		look()
		f.lose()
		time.Sleep(time.Minute)
		look()
		f.setRule(nil)
		time.Sleep(time.Minute)
		look()
		for what, text := range map[string]string{"the log": log.String(), "/status or /metrics": statuses.String()} {
			for _, secret := range []string{user, id, order} {
				if at := strings.Index(text, secret); at >= 0 {
					t.Errorf("%s has %s in it: …%s", what, secret, text[max(0, at-200):min(len(text), at+50)])
				}
			}
		}
		for _, want := range []string{
			`the bus refuses an event for good.* spool=` + s.ID() + ` sequence=2 `,
			`is quarantined.* spool=` + s.ID() + ` sequence=3 `,
			`publishing blocked.*condition=window.*event 4 of spool ` + s.ID(),
			`is quarantined.* spool=` + s.ID() + ` sequence=5 `,
		} {
			if !regexp.MustCompile(want).MatchString(log.String()) {
				t.Errorf("no line %s in the log:\n%s", want, log)
			}
		}
		if want := "event 4 of spool " + s.ID(); !strings.Contains(statuses.String(), want) {
			t.Errorf("/status does not name %s", want)
		}
	})
}

// TestNoIDsInLogOfPostbacks has postbacks accepted, repeated, refused and failed.
func TestNoIDsInLogOfPostbacks(t *testing.T) {
	t.Parallel()
	const order = "ORDER220303000308932"
	f, log, disk := newFakeBus(t), new(logBuffer), crashfs.New(t)
	o := testOptions(t, log)
	o.Log, o.Buses = slog.New(slog.NewTextHandler(log, nil)), []bridge.Bus{f.bus()}
	ctx, cancel := context.WithCancel(t.Context())
	r := run(ctx, t, cancel, bridge.OnDisk(o, disk), log)
	r.ingest = log.waitFor(t, readyLine)[1]
	genuine, other := kiteBody(order, "OPEN", 1), kiteBody(order, "OPEN", 2)
	var answers []string
	for _, post := range []struct {
		path, body string
		status     int
	}{
		{"/kite", genuine, 200},
		{"/kite", genuine, 200},
		{"/kite", strings.Replace(genuine, order, order+"1", 1), 403},
		{"/kite", genuine[1:], 400},
		{"/kite/" + order, genuine, 404},
		{"/dhan/" + dhanToken, strings.Replace(official(t, "dhan"), "1000000003", "1000000004", 1), 403},
		{"/kite", strings.Repeat(genuine, 500), 413},
	} {
		status, answer := r.post(post.path, post.body)
		if status != post.status {
			t.Errorf("%.20s answered %d, want %d", post.path, status, post.status)
		}
		answers = append(answers, answer)
	}
	id := regexp.MustCompile(`[0-9a-f]{32}`).FindString(answers[0])
	f.waitStored(1)
	_, status := r.get("/status")
	disk.Inject(crashfs.Fault{Op: crashfs.Sync, Nth: 1, Outcome: crashfs.Failed, Sticky: true})
	if status, _ := r.post("/kite", other); status != 503 {
		t.Errorf("answered %d, want 503", status)
	}
	if err := r.stop(); err == nil {
		t.Error("no error, though the disk failed")
	}
	if !strings.Contains(log.String(), "postbacks are answered 503") {
		t.Errorf("the log does not say that postbacks fail:\n%s", log)
	}
	for what, text := range map[string]string{"the log": log.String(), "/status": status} {
		for _, secret := range []string{"AB1234", order, "1000000004", id} {
			if strings.Contains(text, secret) {
				t.Errorf("%s has %s in it:\n%s", what, secret, text)
			}
		}
	}
}
