package bridge_test

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/bridge/spool"
)

// TestThreats wants each test that the threat model names to exist: `TestX`, `FuzzX` or the story `x.txtar`.
func TestThreats(t *testing.T) {
	model, err := os.ReadFile("../deploy/THREATS.md")
	if err != nil {
		t.Fatal(err)
	}
	there := make(map[string]bool)
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	err = filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && strings.HasPrefix(d.Name(), ".") && d.Name() != "..":
			return fs.SkipDir
		case strings.HasSuffix(path, ".txtar"):
			there[d.Name()] = true
		case strings.HasSuffix(path, "_test.go"):
			text, err := os.ReadFile(path)
			for _, m := range function.FindAllSubmatch(text, -1) {
				there[string(m[1])] = true
			}
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile("`((?:Test|Fuzz)\\w+|\\w+\\.txtar)`").FindAllSubmatch(model, -1)
	if len(names) < 30 {
		t.Errorf("the threat model names %d tests", len(names))
	}
	for _, m := range names {
		if name := string(m[1]); !there[name] {
			t.Errorf("the threat model names %s, which is not there", name)
		}
	}
}

// taking is a handler with its spool and its log.
type taking struct {
	*testing.T
	log     *logBuffer
	spool   *spool.Spool
	handler http.Handler
}

func (t *taking) post(path, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	t.handler.ServeHTTP(w, httptest.NewRequest("POST", path, strings.NewReader(body)))
	return w
}

func newTaking(t *testing.T, tokens ...string) *taking {
	t.Helper()
	log := new(logBuffer)
	o := testOptions(t, log)
	o.Brokers = testBrokers(tokens...)
	s := open(t, o.DataDir, spool.Options{})
	h, _ := bridge.Handler(o, s)
	return &taking{t, log, s, h}
}

// accepted posts what is proven, and returns its event.
func (t *taking) accepted(path, body string) *bridge.Delivery {
	t.Helper()
	checkAnswer(t.T, t.post(path, body), 200)
	return nextEvent(t, t.spool)
}

// TestReplay sends a captured postback again. While it is the order's last state nothing comes of it; later it is
// published once more, under the id that it had, for consumers to know it by.
func TestReplay(t *testing.T) {
	in := newTaking(t)
	captured := kiteBody("1", "OPEN", 1)
	first := in.accepted("/kite", captured)
	checkAnswer(t, in.post("/kite", captured), 200)
	if last := in.spool.Stats().Last; last != 1 {
		t.Errorf("%d events of one state", last)
	}
	in.accepted("/kite", kiteBody("1", "COMPLETE", 1))
	if again := in.accepted("/kite", captured); again.ID != first.ID || in.spool.Stats().Last != 3 {
		t.Errorf("event %s is number %d, the first was %s", again.ID, in.spool.Stats().Last, first.ID)
	}
}

// TestReplayWithChangedStatus sends a captured postback with another status and price. Kite's checksum does not cover
// them: the event says that this was all that proved it; where a token is set, the capture is worth nothing without
// it.
func TestReplayWithChangedStatus(t *testing.T) {
	captured := official(t, "kite")
	changed := strings.NewReplacer(`"COMPLETE"`, `"REJECTED"`, `"average_price": 470`, `"average_price": 1`, `"average_price":470`, `"average_price":1`).
		Replace(captured)
	if changed == captured {
		t.Fatal("nothing is changed")
	}
	without := newTaking(t)
	genuine := without.accepted("/kite", captured)
	forged := without.accepted("/kite", changed)
	if forged.ID == genuine.ID || forged.Status != event.StatusRejected ||
		!bytes.Contains(forged.Data, []byte(`"verified_by":"checksum"`)) {
		t.Errorf("%s", forged.Data)
	}

	with := newTaking(t, kiteToken)
	checkAnswer(t, with.post("/kite", changed), 401)
	checkAnswer(t, with.post("/kite/wrong", changed), 401)
	if last := with.spool.Stats().Last; last != 0 {
		t.Errorf("%d events without the token", last)
	}
	if d := with.accepted("/kite/"+kiteToken, captured); !bytes.Contains(
		d.Data,
		[]byte(`"verified_by":"checksum+token"`),
	) {
		t.Errorf("%s", d.Data)
	}
}

// TestForeignTraceContext has a sender that brings a trace context along, so that its trace is recorded or consumers
// are led to it. What goes with the event is made here, and says that nobody records it.
func TestForeignTraceContext(t *testing.T) {
	in := newTaking(t)
	const foreign = "0af7651916cd43dd8448eb211c80319c"
	req := httptest.NewRequest("POST", "/kite", strings.NewReader(kiteBody("1", "OPEN", 1)))
	req.Header.Set("Traceparent", "00-"+foreign+"-b7ad6b7169203331-01")
	req.Header.Set("Tracestate", "x="+foreign)
	req.Header.Set("Baggage", "x="+foreign)
	req.Header.Set("X-B3-Traceid", foreign)
	w := httptest.NewRecorder()
	in.handler.ServeHTTP(w, req)
	checkAnswer(t, w, 200)
	d := nextEvent(t, in.spool)
	if !regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-00$`).MatchString(d.TraceParent) ||
		strings.Contains(d.TraceParent+string(d.Data)+in.log.String(), foreign) {
		t.Errorf("the trace context is %s\n%s", d.TraceParent, d.Data)
	}
}

// TestHostileIDs has ids that would end a subject, a header, a log line or a cell, in a postback that is proven: a
// broker passes on what its clients write.
func TestHostileIDs(t *testing.T) {
	in := newTaking(t)
	before := strings.Count(in.log.String(), "\n")
	ids := []string{
		"a.b", "*", ">", "a b", "a\r\nNats-Msg-Id: x", "\x00", "../../etc", "=cmd()", `","id":"x`, "time=now level=ERROR", "é\u2028", strings.Repeat("9", 4000),
	}
	for _, id := range ids {
		body := fmt.Sprintf(
			`{"dhanClientId":"1000000003","orderId":%s,"correlationId":%[1]s,"orderStatus":"TRADED"}`,
			quoted(id),
		)
		d := in.accepted("/dhan/"+dhanToken, body)
		if d.OrderID != id {
			t.Errorf("%.40q became %.40q", id, d.OrderID)
		}
		if subject := d.Subject(bridge.Orders); !regexp.MustCompile(`^orders\.dhan\.1000000003\.[A-Za-z0-9_%-]{1,64}$`).
			MatchString(subject) {
			t.Errorf("%.40q has the subject %q", id, subject)
		}
		if bytes.ContainsAny(d.Data, "\r\n") {
			t.Errorf("%.40q: the event is not one line", id)
		}
	}
	// At debug, each has one line.
	if after := strings.Count(in.log.String(), "\n"); after-before != len(ids) {
		t.Errorf("%d lines in the log for %d postbacks:\n%s", after-before, len(ids), in.log)
	}
}

func quoted(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		fmt.Fprintf(&b, `\u%04x`, r) // none is beyond the first plane
	}
	return b.String() + `"`
}

// TestPathologicalJSON has bodies that cost more than others to read: each is answered at once.
func TestPathologicalJSON(t *testing.T) {
	in := newTaking(t)
	const most = 64 << 10
	fill := func(begin, repeat, end string) string {
		return begin + strings.Repeat(repeat, (most-len(begin)-len(end))/len(repeat)) + end
	}
	for name, body := range map[string]string{
		"open brackets":    fill("", "[", ""),
		"open braces":      fill("", `{"a":`, ""),
		"deep":             `{"a":` + fill("", "[", "")[:most/2-8] + strings.Repeat("]", most/2-8) + "}",
		"many members":     fill("{", `"a":1,`, `"b":1}`),
		"the same name":    fill("{", `"order_id":"1",`, `"b":1}`),
		"escapes":          fill(`{"order_id":"`, `\u0041`, `"}`),
		"half a surrogate": fill(`{"order_id":"`, `\ud800`, `"}`),
		"a long number":    fill(`{"quantity":`, "9", "}"),
		"a long exponent":  fill(`{"price":1e`, "9", "}"),
		"not UTF-8":        fill(`{"order_id":"`, "\xff", `"}`),
		"spaces":           fill("", " ", "{}"),
	} {
		for _, path := range []string{"/kite", "/dhan/" + dhanToken} {
			began := time.Now()
			w := in.post(path, body)
			if took := time.Since(began); w.Code >= 500 || took > 5*time.Second {
				t.Errorf("%s to %s: answered %d after %v", name, path, w.Code, took)
			}
		}
	}
}

// TestBodyWithoutLength is cut at the limit while it is read.
func TestBodyWithoutLength(t *testing.T) {
	o := testOptions(t, io.Discard)
	h, _ := bridge.Handler(o, open(t, o.DataDir, spool.Options{}))
	req := httptest.NewRequest("POST", "/kite", strings.NewReader(strings.Repeat(" ", 1<<20)))
	req.ContentLength = -1
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	checkAnswer(t, w, 413)
}

// TestSecretsAreNotTold looks for tokens, secrets, checksums and what strangers wrote in the log, the metrics and the
// status.
func TestSecretsAreNotTold(t *testing.T) {
	t.Parallel()
	log := new(logBuffer)
	o := testOptions(t, log) // at level debug
	o.Brokers, o.Buses = testBrokers(kiteToken), []bridge.Bus{newFakeBus(t).bus()}
	r := start(t, o, log)
	r.mustPost("/kite/"+kiteToken, official(t, "kite"))
	r.mustPost("/dhan?token="+dhanToken, official(t, "dhan"))
	for range 50 {
		r.post("/kite/str4nger", strings.Replace(official(t, "kite"), "SBIN", "str4nger", 1))
		r.post("/kite/"+kiteToken, `{"order_id":"str4nger","checksum":"str4nger"}`)
		r.post("/str4nger", "{}")
		r.post("/dhan?token=str4nger", "{}")
	}
	_, metrics := r.get("/metrics")
	_, status := r.get("/status")
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{"log": log.String(), "metrics": metrics, "status": status} {
		for _, secret := range []string{kiteToken, kiteSecret, dhanToken, "2011845d", "str4nger"} {
			if strings.Contains(text, secret) {
				t.Errorf("the %s tells %s", what, secret)
			}
		}
	}
	if n := strings.Count(log.String(), "postbacks refused;"); n != 3 {
		t.Errorf("refusals are logged %d times, for 3 reasons", n)
	}
}

// TestJunkLeavesTheDisk refuses much, of which nothing is written.
func TestJunkLeavesTheDisk(t *testing.T) {
	in := newTaking(t)
	before := in.spool.Stats()
	for range 500 {
		in.post("/kite", `{"app_id":1234,"order_id":"1","checksum":"0"}`+strings.Repeat(" ", 60<<10))
		in.post("/dhan/x", strings.Repeat("x", 60<<10))
	}
	if after := in.spool.Stats(); after.Bytes != before.Bytes || after.Last != before.Last {
		t.Errorf("%d bytes on disk, before %d", after.Bytes, before.Bytes)
	}
}

// TestDataIsPrivate wants what is on disk to be for one user.
func TestDataIsPrivate(t *testing.T) {
	t.Parallel()
	log := new(logBuffer)
	o := testOptions(t, log)
	bus := newFakeBus(t)
	bus.rule = func(*bridge.Delivery) verdict { return reject }
	o.DataDir, o.Buses = filepath.Join(o.DataDir, "data"), []bridge.Bus{bus.bus()}
	r := start(t, o, log)
	r.mustPost("/kite", kiteBody("1", "OPEN", 1))
	r.bus("a quarantined event", func(st busStatus) bool { return st.Quarantined == 1 })
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	n := 0
	err := filepath.WalkDir(o.DataDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode()&0o077 != 0 {
			t.Errorf("%s has the mode %v", path, info.Mode())
		}
		n++
		return err
	})
	if err != nil || n < 4 {
		t.Errorf("%d files, %v", n, err)
	}
}

// TestAsksNobody holds that nothing in a postback can make postbridge ask another host: neither the bridge nor a
// broker's package connects to anything, except brokers/book, which reads order books at the configured addresses.
func TestAsksNobody(t *testing.T) {
	connects := regexp.MustCompile(
		`http\.(Get|Head|Post|PostForm|Client|DefaultClient|NewRequest|Transport)\b|net\.(Dial|Dialer|Lookup|Resolve)|tls\.Dial`,
	)
	for _, dir := range []string{"../bridge", "../brokers"} {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			books := []string{"../brokers/book", "../brokers/brokertest"}
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") ||
				slices.Contains(books, filepath.ToSlash(filepath.Dir(path))) {
				return err
			}
			text, err := os.ReadFile(path)
			if m := connects.Find(text); m != nil {
				t.Errorf("%s has %s", path, m)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
