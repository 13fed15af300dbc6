package bridge_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/spool"
	"github.com/postbridge/postbridge/bridge/spool/crashfs"
)

// zipped is the text as one gzip member.
func zipped(t testing.TB, text string) string {
	t.Helper()
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed) // it is for the bombs
	if err == nil {
		_, err = io.WriteString(z, text)
		err = errors.Join(err, z.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestEncodings has what a body may be encoded with, and what becomes of it.
func TestEncodings(t *testing.T) {
	const limit = 64 << 10
	genuine := kiteBody("1", "OPEN", 1)
	zip := zipped(t, genuine)
	pad := func(size int) string { return genuine + strings.Repeat(" ", size-len(genuine)) }
	noise := func(size int) string { // is larger than a small body when it is zipped, too
		var b strings.Builder
		for i := 0; b.Len() < size; i++ {
			fmt.Fprintf(&b, "%x", uint32(i)*0x9E3779B9)
		}
		return strings.Replace(genuine, "{", `{"meta":"`+b.String()+`",`, 1)
	}
	for _, row := range []struct {
		name, coding, body string
		status             int
	}{
		{"none", "", genuine, 200},
		{"identity", "identity", genuine, 200},
		{"gzip", "gzip", zip, 200},
		{"upper case", "GZip", zip, 200},
		{"the old name", "x-gzip", zip, 200},
		{"a list", "identity, gzip", zip, 200},
		{"larger than a small body", "gzip", zipped(t, pad(bridge.SmallBody+1)), 200},
		{"as large as may be", "gzip", zipped(t, pad(limit)), 200},
		{"too large", "gzip", zipped(t, pad(limit+1)), 413},
		{"a bomb", "gzip", zipped(t, strings.Repeat(" ", 16<<20)), 413},
		{"a large one that stays large", "gzip", zipped(t, noise(48<<10)), 200},
		{"a larger one that stays large", "gzip", zipped(t, noise(96<<10)), 413},
		{"too large as it arrives", "gzip", zip + strings.Repeat("x", limit), 413},
		{"two members", "gzip", zipped(t, genuine[:99]) + zipped(t, genuine[99:]), 200},
		{"something behind it", "gzip", zip + "x", 400},
		{"zeros behind it", "gzip", zip + strings.Repeat("\x00", 512), 400},
		{"truncated", "gzip", zip[:len(zip)-1], 400},
		{"only a beginning", "gzip", zip[:5], 400},
		{"another checksum", "gzip", zip[:len(zip)-8] + "xxxx" + zip[len(zip)-4:], 400},
		{"not gzip", "gzip", genuine, 400},
		{"empty", "gzip", "", 400},
		{"gzip unsaid", "", zip, 400},
		{"gzip twice", "gzip, gzip", zipped(t, zip), 415},
		{"brotli", "br", genuine, 415},
		{"deflate", "deflate", genuine, 415},
		{"unknown", "x", genuine, 415},
		{"byte order mark", "", "\uFEFF" + genuine, 200},
		{"byte order mark in gzip", "gzip", zipped(t, "\uFEFF"+genuine), 200},
		{"two byte order marks", "", "\uFEFF\uFEFF" + genuine, 400},
	} {
		t.Run(row.name, func(t *testing.T) {
			o := testOptions(t, io.Discard)
			o.MaxBody = limit
			s := open(t, o.DataDir, spool.Options{})
			h, b := bridge.Handler(o, s)
			for _, length := range []bool{true, false} {
				req := httptest.NewRequest("POST", "/kite", strings.NewReader(row.body))
				if !length {
					req.ContentLength = -1
				}
				if row.coding != "" {
					req.Header.Set("Content-Encoding", row.coding)
				}
				w := httptest.NewRecorder()
				h.ServeHTTP(w, req)
				checkAnswer(t, w, row.status)
				if accepts := w.Header().Get("Accept-Encoding"); (accepts == "gzip") != (row.status == 415) {
					t.Errorf("Accept-Encoding is %q", accepts)
				}
			}
			if row.status == 200 {
				if d := nextEvent(t, s); bytes.Contains(d.Data, []byte("\uFEFF")) || d.OrderID != "1" {
					t.Errorf("%.999s", d.Data)
				}
			}
			if left := b.BodyBudget(); left != bridge.LeastBudget {
				t.Errorf("%d bytes of the budget are left", left)
			}
		})
	}
}

// TestSameThroughEncodings takes one state in every encoding for one event: what consumers get does not depend on it.
func TestSameThroughEncodings(t *testing.T) {
	in := newTaking(t)
	genuine := kiteBody("1", "OPEN", 1)
	first := in.accepted("/kite", "\uFEFF"+genuine)
	for _, body := range []string{genuine, zipped(t, genuine)} {
		req := httptest.NewRequest("POST", "/kite", strings.NewReader(body))
		if body != genuine {
			req.Header.Set("Content-Encoding", "gzip")
		}
		w := httptest.NewRecorder()
		in.handler.ServeHTTP(w, req)
		checkAnswer(t, w, 200)
		if !strings.Contains(w.Body.String(), first.ID) || in.spool.Stats().Last != 1 {
			t.Errorf("answered %s, the first was %s", w.Body, first.ID)
		}
	}
}

// TestBombs decodes bombs in no more memory than a body may take.
func TestBombs(t *testing.T) {
	in := newTaking(t)
	bomb := zipped(t, strings.Repeat(" ", 32<<20))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const bombs = bridge.RefusalBurst // more are answered 429
	for range bombs {
		req := httptest.NewRequest("POST", "/dhan/"+dhanToken, strings.NewReader(bomb))
		req.Header.Set("Content-Encoding", "gzip")
		w := httptest.NewRecorder()
		in.handler.ServeHTTP(w, req)
		checkAnswer(t, w, 413)
	}
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / bombs; each > 512<<10 {
		t.Errorf("a bomb of %d bytes allocates %d", len(bomb), each)
	}
}

// FuzzGzip answers any body as it answers what gzip makes of it.
func FuzzGzip(f *testing.F) {
	genuine := kiteBody("1", "OPEN", 1)
	zip := zipped(f, genuine)
	for _, body := range []string{zip, zipped(f, "{") + zipped(f, genuine[1:]), zip + "x", genuine, ""} {
		f.Add([]byte(body))
	}
	o := bridge.Options{
		Brokers: testBrokers(), MaxBody: 1 << 10,
		Registry: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler),
	}
	h, _ := bridge.Handler(o, open(f, f.TempDir(), spool.Options{MaxBytes: 1 << 40}))
	f.Fuzz(func(t *testing.T, body []byte) {
		post := func(body []byte, coding string) int {
			req, w := httptest.NewRequest("POST", "/dhan/"+dhanToken, bytes.NewReader(body)), httptest.NewRecorder()
			req.Header.Set("Content-Encoding", coding)
			h.ServeHTTP(w, req)
			return w.Code
		}
		want := 400
		if len(body) == 0 {
			want = post(nil, "")
		} else if len(body) > 1<<10 {
			want = 413
		} else if z, err := gzip.NewReader(bytes.NewReader(body)); err == nil {
			plain, err := io.ReadAll(io.LimitReader(z, 1<<10+1))
			if err == nil || len(plain) > 1<<10 {
				want = post(plain, "")
			}
		}
		if got := post(body, "gzip"); got != want {
			t.Fatalf("answered %d, want %d", got, want)
		}
	})
}

// inMemory runs a test in a bubble of its own time, with a handler whose spool is in memory, and not open yet.
func inMemory(t *testing.T, maxBody int64, test func(*testing.T, http.Handler, *bridge.Bridge, *spool.Spool)) {
	t.Helper()
	o := testOptions(t, io.Discard)
	o.MaxBody = maxBody
	synctest.Test(t, func(t *testing.T) {
		s, err := spool.Open(crashfs.New(t), spool.Options{
			MaxBytes: 256 << 20, Cursors: []string{"nats"}, Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		h, b := bridge.Handler(o, nil)
		test(t, h, b, s)
	})
}

// sent is a request that is being answered.
type sent struct {
	body   *io.PipeWriter
	answer chan *httptest.ResponseRecorder
	at     time.Time // when it was answered; valid after the answer
}

// send begins a request of so many bytes, of which it sends the first; the rest is for the caller.
func send(h http.Handler, length int, first string) *sent {
	r, w := io.Pipe()
	s := &sent{body: w, answer: make(chan *httptest.ResponseRecorder, 1)}
	req := httptest.NewRequest("POST", "/kite", r)
	req.ContentLength = int64(length)
	go func() {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		_ = r.Close()
		s.at = time.Now()
		s.answer <- w
	}()
	go func() {
		if _, err := io.WriteString(w, first); err == nil && len(first) == length {
			_ = w.Close()
		}
	}()
	return s
}

// TestBodyBudget has strangers who hold all memory there is for large bodies, and never end them. A small postback is
// taken at once. A large one waits for a share, is taken once there is one, and gets 503 if that takes too long.
func TestBodyBudget(t *testing.T) {
	const size = 1 << 20 // a share has one byte more
	large := func(order string) string {
		body := kiteBody(order, "OPEN", 1)
		return body + strings.Repeat(" ", 2*bridge.SmallBody-len(body))
	}
	inMemory(t, 2*size, func(t *testing.T, h http.Handler, b *bridge.Bridge, s *spool.Spool) {
		b.Open(s)
		began := time.Now()
		var strangers []*sent
		for range bridge.LeastBudget / size {
			strangers = append(strangers, send(h, size-1, strings.Repeat(" ", bridge.SmallBody+1)))
		}
		strangers = append(strangers, send(h, size-1, strings.Repeat(" ", bridge.SmallBody))) // needs no share
		synctest.Wait()
		if left := b.BodyBudget(); left != 0 {
			t.Fatalf("%d bytes are left", left)
		}
		small := kiteBody("1", "OPEN", 1)
		checkAnswer(t, <-send(h, len(small), small).answer, 200)
		if took := time.Since(began); took != 0 {
			t.Errorf("a small one took %v", took)
		}

		for range 2 * bridge.RefusalBurst { // and is never answered 429
			late := send(h, len(large("2")), large("2"))
			w := <-late.answer
			checkAnswer(t, w, 503)
			if after := w.Header().Get("Retry-After"); after == "" || late.at.Sub(began) != 2*time.Second {
				t.Errorf("answered after %v, Retry-After %q", late.at.Sub(began), after)
			}
			began = late.at
		}

		began = time.Now()
		patient := send(h, len(large("3")), large("3"))
		time.Sleep(time.Second)
		_ = strangers[0].body.CloseWithError(io.ErrUnexpectedEOF)
		checkAnswer(t, <-patient.answer, 200)
		if took := patient.at.Sub(began); took != time.Second {
			t.Errorf("took %v", took)
		}
		for _, s := range strangers {
			_ = s.body.CloseWithError(io.ErrUnexpectedEOF)
			checkAnswer(t, <-s.answer, 400)
		}
		if left := b.BodyBudget(); left != bridge.LeastBudget {
			t.Errorf("%d bytes are left at the end", left)
		}
		w := httptest.NewRecorder()
		b.Admin().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		for _, want := range []string{
			`postbridge_refused_total{broker="kite",reason="busy"} 120`, `postbridge_received_total{broker="kite"} 139`,
			`postbridge_postbacks_total{broker="kite",fate="accepted"} 2`,
			`postbridge_postbacks_total{broker="kite",fate="refused"} 137`,
		} {
			if !strings.Contains(w.Body.String(), want+"\n") {
				t.Errorf("no %s in\n%s", want, w.Body)
			}
		}
	})
}

// TestBodiesAreLetGo has large bodies at once, and keeps the memory of none.
func TestBodiesAreLetGo(t *testing.T) {
	o := testOptions(t, io.Discard)
	o.MaxBody = 4 << 20
	h, b := bridge.Handler(o, open(t, o.DataDir, spool.Options{}))
	heap := func() int64 {
		runtime.GC() // once: what is in a pool stays
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	body := strings.Repeat(" ", 4<<20-1)
	var all []*sent
	for range 3 {
		all = append(all, send(h, 4<<20, body))
	}
	for b.BodyBudget() > bridge.LeastBudget-3*4<<20 {
		runtime.Gosched()
	}
	for _, s := range all {
		_, _ = io.WriteString(s.body, "[")
		_ = s.body.Close()
		checkAnswer(t, <-s.answer, 400)
	}
	if kept := heap() - before; kept > 2<<20 {
		t.Errorf("%d bytes are kept", kept)
	}
}

// TestWhileOpening posts while the spool is being opened: what is verified waits for it, two seconds at most, with its
// share of the body budget; anything else is refused at once.
func TestWhileOpening(t *testing.T) {
	inMemory(t, 64<<10, func(t *testing.T, h http.Handler, b *bridge.Bridge, s *spool.Spool) {
		began := time.Now()
		body := kiteBody("1", "OPEN", 1)
		checkAnswer(t, <-send(h, 2, "{}").answer, 403)
		if took := time.Since(began); took != 0 {
			t.Errorf("refused after %v", took)
		}
		early := send(h, len(body), body)
		time.Sleep(1500 * time.Millisecond)
		body = kiteBody("2", "OPEN", 1)
		late := send(h, len(body), body)
		large := kiteBody("3", "OPEN", 1) + strings.Repeat(" ", bridge.SmallBody)
		wide := send(h, len(large), large)
		w := <-early.answer
		checkAnswer(t, w, 503)
		if took := early.at.Sub(began); took != 2*time.Second || w.Header().Get("Retry-After") == "" {
			t.Errorf("answered after %v, Retry-After %q", took, w.Header().Get("Retry-After"))
		}
		if left := b.BodyBudget(); left != bridge.LeastBudget-int64(len(large))-1 {
			t.Errorf("%d bytes are left", left)
		}
		b.Open(s)
		checkAnswer(t, <-late.answer, 200)
		checkAnswer(t, <-wide.answer, 200)
		if took := late.at.Sub(began); took != 2*time.Second {
			t.Errorf("accepted after %v", took)
		}
	})
}

// TestOrderWhileOpening posts states of one order, one after the other, while the spool is being opened. They are
// appended in the order in which they came.
func TestOrderWhileOpening(t *testing.T) {
	inMemory(t, 64<<10, func(t *testing.T, h http.Handler, b *bridge.Bridge, s *spool.Spool) {
		const states = 20
		var waiting []*sent
		post := func() {
			body := kiteBody("1", "OPEN", len(waiting))
			waiting = append(waiting, send(h, len(body), body))
		}
		for range states {
			post()
			synctest.Wait()
		}
		b.Open(s)
		post() // it may be there before those that are woken
		for _, w := range waiting {
			checkAnswer(t, <-w.answer, 200)
		}
		for i := range waiting {
			r, err := s.Cursor("nats").Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if want := fmt.Sprintf(`"price":"%d"`, i); !bytes.Contains(r.Payload, []byte(want)) {
				t.Errorf("record %d is not that of %s", r.Sequence, want)
			}
		}
	})
}
