package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/postbridge/postbridge/brokers"
	"github.com/postbridge/postbridge/brokers/book"
)

// booksKey is the key of the storyBooks among the values of a story.
type booksKey struct{}

// storyBooks plays the REST APIs of all brokers for one story.
type storyBooks struct {
	server *httptest.Server // nil until it is used

	mu       sync.Mutex
	answers  map[string]bookAnswer // by broker and credential; guarded by mu
	requests map[string]int        // by broker and credential; guarded by mu
}

// bookAnswer is the response of a broker.
type bookAnswer struct {
	status int
	body   []byte
}

// tokenErrors returns the documented response to an invalid token.
func tokenErrors() map[string]bookAnswer {
	return map[string]bookAnswer{
		"kite": {403, []byte(`{"status":"error","message":"Incorrect api_key or access_token.","data":null,` +
			`"error_type":"TokenException"}`)},
		"dhan": {401, []byte(`{"errorType":"Invalid_Authentication","errorCode":"DH-901",` +
			`"errorMessage":"Client ID or user generated access token is invalid or expired."}`)},
		"upstox": {401, []byte(`{"status":"error","errors":[{"errorCode":"UDAPI100050",` +
			`"message":"Invalid token used to access API"}]}`)},
		"fyers": {401, []byte(`{"s":"error","code":-16,"message":"Could not authenticate the user"}`)},
	}
}

// cmdBook sets the response to requests with a credential: book BROKER CREDENTIAL STATUS FILE. {now} in the file is the
// time of the command in India. Requests with any other credential get the broker's answer to an invalid token.
func cmdBook(ts *testscript.TestScript, _ bool, args []string) {
	status, err := strconv.Atoi(args[2])
	ts.Check(err)
	b := ts.Value(booksKey{}).(*storyBooks)
	b.mu.Lock()
	b.answers[args[0]+" "+args[1]] = bookAnswer{status, dated(ts, args[3])}
	b.mu.Unlock()
	if b.server != nil {
		return
	}
	b.server = httptest.NewServer(b)
	ts.Defer(b.server.Close)
	for _, name := range brokers.Names() {
		ts.Setenv("POSTBRIDGE_"+strings.ToUpper(name)+"_API_URL", b.server.URL+"/"+name)
	}
}

// cmdDated replaces {now} in files by the time in India.
func cmdDated(ts *testscript.TestScript, _ bool, files []string) {
	for _, file := range files {
		ts.Check(os.WriteFile(ts.MkAbs(file), dated(ts, file), 0o600))
	}
}

func dated(ts *testscript.TestScript, file string) []byte {
	now := time.Now().In(book.Midnight(time.Now()).Location()).Format(time.DateTime)
	return bytes.ReplaceAll([]byte(ts.ReadFile(file)), []byte("{now}"), []byte(now))
}

// cmdAsked waits until so many requests with a credential have come, and with ! fails if they have: asked BROKER
// CREDENTIAL N.
func cmdAsked(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[2])
	ts.Check(err)
	b := ts.Value(booksKey{}).(*storyBooks)
	count := func() int {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.requests[args[0]+" "+args[1]]
	}
	if neg {
		if n := count(); n >= want {
			ts.Fatalf("%d requests, want less than %d", n, want)
		}
		return
	}
	eventually(ts, "requests", func() error {
		if n := count(); n < want {
			return fmt.Errorf("%d requests, want %d", n, want)
		}
		return nil
	})
}

// cmdRows writes an order book of Kite with so many orders that were placed now: rows N FILE.
func cmdRows(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	var text bytes.Buffer
	text.WriteString(`{"status":"success","data":[`)
	for i := range n {
		if i > 0 {
			text.WriteString(",")
		}
		fmt.Fprintf(&text, `{"account_id":"AB1234","placed_by":"AB1234","order_id":"%015d","exchange_order_id":"%016d",`+
			`"status":"COMPLETE","status_message":null,"order_timestamp":"{now}","exchange_update_timestamp":"{now}",`+
			`"exchange_timestamp":"{now}","variety":"regular","exchange":"NFO","tradingsymbol":"NIFTY26JAN24400CE",`+
			`"instrument_token":10189826,"order_type":"MARKET","transaction_type":"BUY","validity":"DAY",`+
			`"product":"NRML","quantity":150,"price":0,"average_price":12.3,"filled_quantity":150,"pending_quantity":0,`+
			`"cancelled_quantity":0,"tag":null,"guid":null}`, i+1, i+1)
	}
	text.WriteString("]}")
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), text.Bytes(), 0o600))
}

// ServeHTTP answers a request for an order book, with the headers that the broker documents.
func (b *storyBooks) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	broker, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	orders, err := brokers.Book(broker)
	if err != nil || r.URL.Path != "/"+broker+orders.Path || r.Method != http.MethodGet ||
		!strings.HasPrefix(r.UserAgent(), "postbridge/") {
		http.Error(w, "no such request", http.StatusNotFound)
		return
	}
	credential := map[string]string{
		"kite":   strings.TrimPrefix(r.Header.Get("Authorization"), "token "),
		"dhan":   r.Header.Get("access-token"),
		"upstox": strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "),
		"fyers":  r.Header.Get("Authorization"),
	}[broker]
	b.mu.Lock()
	b.requests[broker+" "+credential]++
	answer, ok := b.answers[broker+" "+credential]
	b.mu.Unlock()
	if !ok {
		answer = tokenErrors()[broker]
	}
	w.WriteHeader(answer.status)
	_, _ = w.Write(answer.body) // the client reports an error
}

// cmdCounted wants so many messages in the stream of orders: counted NATS_ADDRESS N.
func cmdCounted(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(withJetStream(args[0], func(ctx context.Context, js jetstream.JetStream) error {
		s, err := js.Stream(ctx, "ORDERS")
		if err != nil {
			return err
		}
		if n := s.CachedInfo().State.Msgs; fmt.Sprint(n) != args[1] {
			return fmt.Errorf("%d messages, want %s", n, args[1])
		}
		return nil
	}))
}
