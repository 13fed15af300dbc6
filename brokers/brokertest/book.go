package brokertest

import (
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/postbridge/postbridge/brokers/book"
)

// BookSuite is an order book under test.
type BookSuite struct {
	Book    book.Book
	Account book.Account
	// Headers are those of a request, for the Account.
	Headers map[string]string
	// Dir has the sample of a response, orders.json, and gets the events of its rows, events.json.
	Dir string
	// Responses are the documented responses without rows, and others that the broker has been seen to send. Want is
	// nil for an empty book.
	Responses []struct {
		Status int
		Body   string
		Want   error
	}
}

// RunBook runs the contract suite of an order book.
func RunBook(t *testing.T, s BookSuite) {
	t.Run("golden", s.testGolden)
	t.Run("responses", s.testResponses)
	t.Run("truncated", s.testTruncated)
}

// read requests the book from a server with that response.
func (s BookSuite) read(t *testing.T, status int, body []byte) (rows [][]byte, err error) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.URL.Path != s.Book.Path || r.UserAgent() != "postbridge/test" {
			t.Errorf("the request is %s %s from %q", r.Method, r.URL, r.UserAgent())
		}
		for name, want := range s.Headers {
			if got := r.Header.Get(name); got != want {
				t.Errorf("header %s is %q, want %q", name, got, want)
			}
		}
		w.WriteHeader(status)
		_, _ = w.Write(body) // an error shows in the client
	}))
	defer server.Close()
	b := s.Book
	b.URL = server.URL
	client := book.Client{
		HTTP: &http.Client{Timeout: time.Minute}, UserAgent: "postbridge/test", MaxBytes: 4 << 20,
	}
	err = client.Read(t.Context(), b, s.Account, func(row []byte) { rows = append(rows, bytes.Clone(row)) })
	return rows, err
}

// testGolden reads the sample and compares the events of its rows.
func (s BookSuite) testGolden(t *testing.T) {
	rows, err := s.read(t, http.StatusOK, s.sample(t))
	if err != nil || len(rows) == 0 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	schema := compileSchema(t)
	var events []byte
	for _, row := range rows {
		e := s.Book.Event(s.Account, row, received())
		if !e.Understood() {
			t.Errorf("a row is no order: %s", row)
		}
		encoded := encode(t, e)
		if err := schema.validate(encoded); err != nil {
			t.Errorf("the event does not fit the schema: %v", err)
		}
		if err := (*jsontext.Value)(&encoded).Indent(jsontext.WithIndent("  ")); err != nil {
			t.Fatal(err)
		}
		events = append(append(events, encoded...), '\n')
	}
	compareGolden(t, filepath.Join(s.Dir, "events.json"), events)
}

func (s BookSuite) sample(t *testing.T) []byte {
	t.Helper()
	body, err := os.ReadFile(filepath.Join(s.Dir, "orders.json"))
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// testResponses reads the responses without rows, and those that no broker documents.
func (s BookSuite) testResponses(t *testing.T) {
	type response = struct {
		Status int
		Body   string
		Want   error
	}
	for _, r := range append(s.Responses,
		response{http.StatusTooManyRequests, "", book.ErrRateLimited},
		response{http.StatusTooManyRequests, "<html>slow down</html>", book.ErrRateLimited},
		response{http.StatusInternalServerError, "", book.ErrOutage},
		response{http.StatusBadGateway, "<html>bad gateway</html>", book.ErrOutage},
		response{http.StatusServiceUnavailable, "{}", book.ErrOutage},
		response{http.StatusOK, "", book.ErrOutage},
		response{http.StatusOK, "<html>log in</html>", book.ErrNotUnderstood},
		response{http.StatusOK, "{}", book.ErrNotUnderstood},
		response{http.StatusOK, `"orders"`, book.ErrNotUnderstood},
		response{http.StatusOK, `{"orders":[` + strings.Repeat(" ", 4<<20) + `]}`, book.ErrNotUnderstood},
		response{http.StatusOK, `[{"message":"` + strings.Repeat("x", 3<<20) + `"}]`, book.ErrNotUnderstood},
		response{http.StatusForbidden, "error code: 1010", book.ErrNotUnderstood},
		response{http.StatusNotFound, "404 page not found", book.ErrNotUnderstood},
		response{http.StatusNoContent, "", book.ErrNotUnderstood},
	) {
		rows, err := s.read(t, r.Status, []byte(r.Body))
		if len(rows) != 0 || !errors.Is(err, r.Want) {
			t.Errorf("%d %.80s: %d rows, %v, want %v", r.Status, r.Body, len(rows), err, r.Want)
		}
		unexpected, ok := errors.AsType[*book.Unexpected](err)
		if ok && (unexpected.Status != r.Status || !strings.HasPrefix(r.Body, string(unexpected.Body))) {
			t.Errorf("%d %.80s: kept %d %.80s", r.Status, r.Body, unexpected.Status, unexpected.Body)
		}
		if err != nil && strings.Contains(err.Error(), s.Account.Credential) {
			t.Errorf("%d %.80s: the error has the credential: %v", r.Status, r.Body, err)
		}
	}
}

// testTruncated truncates the sample at every byte: no such book is complete.
func (s BookSuite) testTruncated(t *testing.T) {
	whole := bytes.TrimRight(s.sample(t), " \n")
	for n := 0; n < len(whole); n += 1 + len(whole)/200 {
		if _, err := s.read(t, http.StatusOK, whole[:n]); !errors.Is(err, book.ErrOutage) {
			t.Errorf("truncated after %d bytes: %v, want %v", n, err, book.ErrOutage)
		}
	}
}
