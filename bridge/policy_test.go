package bridge_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/bridge/spool"
	"github.com/postbridge/postbridge/brokers/fyers"
)

const (
	fyersToken = "fyers-token"
	// taxNumber is the personal data in fyersOrder.
	taxNumber  = "ABCDE1234F"
	fyersOrder = `{"id":"7","clientId":"FX00001","status":6,"qty":10,"pan":"` + taxNumber + `","side":1}`
)

// fyersOptions are the options for a bridge with Fyers, whose adapter uses all of a Policy, beside the other brokers.
func fyersOptions(t testing.TB, log io.Writer) bridge.Options {
	o := testOptions(t, log)
	o.Brokers = append(o.Brokers, fyers.New(func() fyers.Credentials {
		return fyers.Credentials{Tokens: []string{fyersToken}, ClientIDs: []string{"FX00001"}}
	}))
	return o
}

// TestProbes requests the routes of a broker that probes its URL, and of one that does not, with other methods than
// POST. None is counted as a postback.
func TestProbes(t *testing.T) {
	o := fyersOptions(t, io.Discard)
	s := open(t, o.DataDir, spool.Options{})
	h, b := bridge.Handler(o, s)
	for _, row := range []struct {
		method, path string
		status       int
		allow        string
	}{
		{"GET", "/fyers", 200, ""}, {"HEAD", "/fyers", 200, ""}, {"GET", "/fyers/", 200, ""},
		{"GET", "/fyers/" + fyersToken, 200, ""}, {"HEAD", "/fyers/wrong", 200, ""},
		{"GET", "/fyers/a/b", 200, ""}, {"GET", "//fyers?token=wrong", 200, ""},
		{"PUT", "/fyers/" + fyersToken, 405, "POST, GET, HEAD"}, {"OPTIONS", "/fyers", 405, "POST, GET, HEAD"},
		{"GET", "/kite", 405, "POST"}, {"HEAD", "/dhan/" + dhanToken, 405, "POST"}, {"GET", "/fyersx", 404, ""},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(row.method, row.path, strings.NewReader(fyersOrder)))
		if w.Code != row.status || w.Header().Get("Allow") != row.allow {
			t.Errorf("%s %s: %d, Allow %q", row.method, row.path, w.Code, w.Header().Get("Allow"))
		}
		if body := w.Body.String(); row.status == 200 && body != "{\"status\":\"ok\"}\n" {
			t.Errorf("%s %s: answered %s", row.method, row.path, body)
		}
	}
	w := httptest.NewRecorder()
	b.Admin().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if !strings.Contains(w.Body.String(), `postbridge_received_total{broker="fyers"} 0`) || s.Stats().Last != 0 {
		t.Errorf("a probe is counted as a postback: %s", w.Body)
	}
}

// TestEveryBodyIsAnswered posts bodies of all kinds to a broker whose verified postbacks are never refused. What cannot
// be read becomes a dead letter, with the part that arrived.
func TestEveryBodyIsAnswered(t *testing.T) {
	const limit = 64 << 10
	zip := zipped(t, fyersOrder)
	for _, row := range []struct {
		name, coding, body string
		length             int64 // -1 for an unknown one
		want               string
		raw                string // the beginning of the kept body; "" if it is not kept as text
	}{
		{"an order", "", fyersOrder, 0, "order", ""},
		{"an order in gzip", "gzip", zip, -1, "order", ""},
		{"empty", "", "", 0, "probe", ""},
		{"empty, no length", "", "", -1, "probe", ""},
		{"empty, in gzip", "gzip", "", 0, "probe", ""},
		{"empty object", "", "{}", 0, "probe", ""},
		{"not JSON", "", "id=7&pan=", 0, "dead letter", "id=7&pan="},
		{"JSON, not an order", "", `["` + fyersOrder[:5], 0, "dead letter", `["{"id"`},
		{"not text", "", "\xff\x00", 0, "dead letter", ""},
		{"too large", "", fyersOrder + strings.Repeat(" ", limit), 0, "dead letter", `{"id":"7",`},
		{"too large, no length", "", fyersOrder + strings.Repeat(" ", limit), -1, "dead letter", `{"id":"7",`},
		{"much too large", "", strings.Repeat(fyersOrder, 40_000), 0, "dead letter", `{"id":"7",`},
		{"incomplete", "", fyersOrder, int64(len(fyersOrder)) + 1, "dead letter", `{"id":"7",`},
		{"incomplete, a part", "", fyersOrder[:70], int64(len(fyersOrder)), "dead letter", `{"id":"7",`},
		{"incomplete, nothing", "", "", int64(len(fyersOrder)), "dead letter", ""},
		{"too large in gzip", "gzip", zipped(t, fyersOrder+strings.Repeat(" ", limit)), 0, "dead letter", ""},
		{"a bomb", "gzip", zipped(t, strings.Repeat(" ", 16<<20)), -1, "dead letter", ""},
		{"gzip, truncated", "gzip", zip[:len(zip)-9], 0, "dead letter", ""},
		{"not gzip", "gzip", fyersOrder, 0, "dead letter", `{"id":"7",`},
		{"an encoding that is not read", "br", fyersOrder, 0, "dead letter", `{"id":"7",`},
		{"an encoding that is not read, too large", "br", fyersOrder + strings.Repeat(" ", limit), -1, "dead letter", `{"id":"7",`},
		{"gzip twice", "gzip, gzip", zipped(t, zip), 0, "dead letter", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			log := new(logBuffer)
			o := fyersOptions(t, log)
			o.MaxBody = limit
			s := open(t, o.DataDir, spool.Options{})
			h, b := bridge.Handler(o, s)
			post := func(path string) *httptest.ResponseRecorder {
				req := httptest.NewRequest("POST", path, io.MultiReader(strings.NewReader(row.body), atEOF(row.length, row.body)))
				req.ContentLength = row.length
				if row.length == 0 {
					req.ContentLength = int64(len(row.body))
				}
				req.Header.Set("Content-Type", "text/plain")
				if row.coding != "" {
					req.Header.Set("Content-Encoding", row.coding)
				}
				w := httptest.NewRecorder()
				h.ServeHTTP(w, req)
				return w
			}
			for path, status := range map[string]int{
				"/fyers": 401, "/fyers/wrong": 401, "/fyers?token=wrong": 401, "/fyers/" + fyersToken + "/x": 404,
			} {
				checkAnswer(t, post(path), status)
			}
			if s.Stats().Last != 0 {
				t.Error("an event without a verified origin")
			}
			checkAnswer(t, post("/fyers/"+fyersToken), 200)
			d := nextEvent(t, s)
			var e event.Event
			if err := json.Unmarshal(d.Data, &e); err != nil {
				t.Fatal(err)
			}
			got := e.Other
			if got == "" {
				got = map[bool]string{true: "order", false: "dead letter"}[e.Understood()]
			}
			if got != row.want || (got == "order") == (d.Destinations()[0] == bridge.Deadletters) {
				t.Errorf("became %s for %v", d.Data, d.Destinations())
			}
			if !strings.HasPrefix(e.RawText, row.raw) || strings.Contains(string(d.Data), taxNumber) {
				t.Errorf("keeps %.999s", d.Data)
			}
			if int64(len(d.Data)) > bridge.MaxEventSize(limit) {
				t.Errorf("the event has %d bytes", len(d.Data))
			}
			if left := b.BodyBudget(); left != bridge.LeastBudget {
				t.Errorf("%d bytes of the budget are left", left)
			}
			if strings.Contains(log.String(), taxNumber) || strings.Contains(log.String(), fyersToken) {
				t.Errorf("the log has a secret: %s", log)
			}
		})
	}
}

// atEOF returns what a request of a length ends with after its body: an error if the body is shorter.
func atEOF(length int64, body string) io.Reader {
	if length <= int64(len(body)) {
		return bytes.NewReader(nil)
	}
	return failingReader{}
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// TestUnreadableOnTheWire posts over TCP a body that ends early and one that is too large, on one side of the connection
// only. The client reads 200.
func TestUnreadableOnTheWire(t *testing.T) {
	f, log := newFakeBus(t), new(logBuffer)
	o := fyersOptions(t, log)
	o.Buses = []bridge.Bus{f.bus()}
	r := start(t, o, log)
	for _, row := range []struct {
		length int
		body   string
	}{{len(fyersOrder) + 1, fyersOrder}, {2 << 20, strings.Repeat(fyersOrder, 2<<20/len(fyersOrder))}} {
		c, err := net.Dial("tcp", strings.TrimPrefix(r.ingest, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		head := fmt.Sprintf("POST /fyers/%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", fyersToken, row.length)
		go func() {
			_, _ = io.WriteString(c, head+row.body) // the server may stop reading
			_ = c.(*net.TCPConn).CloseWrite()
		}()
		answer, _ := io.ReadAll(c) // the server may reset the connection after its answer
		_ = c.Close()
		if !bytes.HasPrefix(answer, []byte("HTTP/1.1 200 OK\r\n")) {
			t.Errorf("a body of %d bytes is answered %q", len(row.body), answer)
		}
	}
	f.waitStored(2)
	log.waitFor(t, regexp.MustCompile(`level=WARN msg="a verified postback cannot be read.*broker=fyers`))
}
