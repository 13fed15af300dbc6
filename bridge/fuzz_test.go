package bridge_test

import (
	"bufio"
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/spool"
)

// FuzzRequest feeds whole requests as they come over the wire: what is answered 200 has a token in its path or query.
func FuzzRequest(f *testing.F) {
	for _, target := range []string{
		"/dhan/" + dhanToken, "/dhan?token=" + dhanToken, "/kite/" + kiteToken, "/dhan/../dhan/" + dhanToken, "//dhan/" + dhanToken,
		"/dhan/%64han-token", "http://x/dhan/" + dhanToken, "*", "/dhan/" + dhanToken + "?a=%zz&b;c", "/dhan/a%2Fb", "/kite#x",
	} {
		f.Add([]byte("POST " + target + " HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"))
	}
	f.Add(
		[]byte(
			"POST /dhan/" + dhanToken + " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
		),
	)
	o := bridge.Options{
		Brokers:  testBrokers(kiteToken),
		MaxBody:  64 << 10,
		Registry: prometheus.NewRegistry(),
		Log:      slog.New(slog.DiscardHandler),
	}
	s := open(f, f.TempDir(), spool.Options{MaxBytes: 1 << 40})
	h, _ := bridge.Handler(o, s)
	f.Fuzz(func(t *testing.T, wire []byte) {
		req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(wire)))
		if err != nil {
			return
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		if w.Code >= 500 {
			t.Fatalf("answered %d %s", w.Code, w.Body)
		}
		line, _, _ := strings.Cut(string(wire), "\n")
		hasToken := strings.Contains(line, kiteToken) || strings.Contains(line, dhanToken) ||
			strings.Contains(line, "%")
		if w.Code == 200 && !hasToken {
			t.Fatalf("%q was answered %d", wire, w.Code)
		}
	})
}

// FuzzRecord reads what may be in a spool: a delivery that says the same when it is written again, or nothing.
func FuzzRecord(f *testing.F) {
	kite, p := testBrokers()[0], &bridge.Postback{Body: []byte(kiteBody("1", "OPEN", 1))}
	verifiedBy, err := kite.Verify(p)
	if err != nil {
		f.Fatal(err)
	}
	e := bridge.Normalize(kite, p, verifiedBy, time.Unix(1700000000, 0))
	f.Add(bridge.AppendRecord(nil, e))
	f.Add(bridge.NewDelivery("1", 10))
	f.Add([]byte{1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := bridge.ParseRecord(b)
		if err != nil {
			return
		}
		again, err := bridge.ParseRecord(append(bridge.AppendHead(d), d.Data...))
		if err != nil || !reflect.DeepEqual(d, again) {
			t.Errorf("%+v became %+v, %v", d, again, err)
		}
		for _, dest := range d.Destinations() {
			// The broker's name is its package's own, and so is the event id.
			d.Broker, d.ID = "kite", "1"
			if subject := d.Subject(dest); strings.ContainsFunc(subject, notInSubject) || len(subject) > 200 {
				t.Errorf("the subject is %q", subject)
			}
		}
		_ = d.Attributes()
	})
}

func notInSubject(r rune) bool { return r <= ' ' || r > '~' || r == '*' || r == '>' }

// FuzzAdmin asks the admin listener for anything with any header: what is behind the token is not told without it.
func FuzzAdmin(f *testing.F) {
	for _, path := range []string{"/status", "/metrics", "/livez", "/livez/../status", "//metrics", "/%73tatus", "/status?x", "/", "/page/data", "/page/../page/data"} {
		f.Add(path, "Bearer wrong")
	}
	f.Add("/status", "Bearer s3cret")
	o := testOptions(f, io.Discard)
	o.AdminToken = func() string { return "s3cret" }
	h := bridge.New(o).Admin()
	open := []string{"/livez", "/", "/page/page.css", "/page/page.js", "/page/icon.svg"}
	f.Fuzz(func(t *testing.T, target, authorization string) {
		req, err := http.ReadRequest(
			bufio.NewReader(strings.NewReader("GET " + target + " HTTP/1.1\r\nHost: x\r\n\r\n")),
		)
		if err != nil {
			return
		}
		req.Header.Set("Authorization", authorization)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		if strings.HasSuffix(authorization, " s3cret") || slices.Contains(open, req.URL.Path) {
			return
		}
		if w.Code == 200 || strings.Contains(w.Body.String(), "postbridge_") ||
			strings.Contains(w.Body.String(), "postbacks") {
			t.Errorf("%q with %q: answered %d %s", target, authorization, w.Code, w.Body)
		}
	})
}
