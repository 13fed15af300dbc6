// Package brokertest is the contract that every bridge.Broker keeps, as tests. A new adapter brings postbacks; Run
// holds it to the rest, and -update writes down what it makes of them:
//
//	testdata/genuine/NAME.json     a body that proves its origin, JSON or not
//	testdata/unproven/NAME.json    a body for normalizing only: its proof is shortened or missing
//	testdata/events/NAME.json      written: the event made of the body
//	testdata/changes/NAME.txt      written: what comes of a body when a field of it is changed, and so what the proof
//	                               does not cover
package brokertest

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
)

var update = flag.Bool("update", false, "write the golden files of the broker contract anew")

// Suite is a broker under test.
type Suite struct {
	// Broker has credentials with which the genuine bodies are accepted.
	Broker bridge.Broker
	// PathToken is what the genuine bodies are sent with.
	PathToken string
	// Dir has the bodies, and gets the golden files: usually testdata.
	Dir string
	// Change names the genuine bodies whose fields are changed one by one.
	Change []string
	// Members has every member that the broker documents or that a body contains, with the reason why a state in which
	// nothing else has changed is a repeat. Without a reason it is published.
	Members map[string]string
}

// Run runs the contract.
func Run(t *testing.T, s Suite) {
	t.Run("golden", s.testGolden)
	t.Run("changes", s.testChanges)
	t.Run("members", s.testMembers)
	t.Run("spellings", s.testSpellings)
	t.Run("truncated", s.testTruncated)
	t.Run("wrong token", s.testWrongToken)
	t.Run("owns no bytes", s.testOwnsNoBytes)
	t.Run("concurrent", s.testConcurrent)
}

// received is when every postback of the suite arrives.
func received() time.Time { return time.Date(2026, 1, 8, 9, 53, 46, 123456789, time.UTC) }

// sample is a body and its name in the directory.
type sample struct {
	name string
	body []byte
}

func (s Suite) samples(t testing.TB, kind string) []sample {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.Dir, kind, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	var all []sample
	for _, f := range files {
		body, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, sample{strings.TrimSuffix(filepath.Base(f), ".json"), body})
	}
	return all
}

func (s Suite) genuine(t testing.TB) []sample {
	t.Helper()
	all := s.samples(t, "genuine")
	if len(all) == 0 {
		t.Fatalf("there is no genuine postback in %s", s.Dir)
	}
	return all
}

// event takes a body the way that the bridge does. The body is the broker's only until it returns.
func (s Suite) event(body []byte) (*event.Event, error) {
	p := &bridge.Postback{PathToken: s.PathToken, Body: body}
	verifiedBy, err := s.Broker.Verify(p)
	if err != nil {
		return nil, err
	}
	return bridge.Normalize(s.Broker, p, verifiedBy, received()), nil
}

// unverified is the event of a body that is not verified.
func (s Suite) unverified(body []byte) *event.Event {
	return bridge.Normalize(s.Broker, &bridge.Postback{Body: body}, "checksum", received())
}

// order is what Normalize makes of a body.
func (s Suite) order(body []byte) (event.Order, error) {
	members, err := (&bridge.Postback{Body: body}).Members()
	if err != nil {
		return event.Order{}, err
	}
	return s.Broker.Normalize(members)
}

func (s Suite) testGolden(t *testing.T) {
	schema := compileSchema(t)
	check := func(t *testing.T, b sample, e *event.Event) {
		encoded := encode(t, e)
		if err := schema.validate(encoded); err != nil {
			t.Errorf("the event does not fit the schema: %v", err)
		}
		if err := (*jsontext.Value)(&encoded).Indent(jsontext.WithIndent("  ")); err != nil {
			t.Fatal(err)
		}
		compareGolden(t, filepath.Join(s.Dir, "events", b.name+".json"), append(encoded, '\n'))
	}
	for _, b := range s.genuine(t) {
		t.Run(b.name, func(t *testing.T) {
			e, err := s.event(b.body)
			if err != nil {
				t.Fatalf("a genuine postback was refused: %v", err)
			}
			check(t, b, e)
		})
	}
	for _, b := range s.samples(t, "unproven") {
		t.Run(b.name, func(t *testing.T) {
			if _, err := s.event(b.body); err == nil {
				t.Error("a postback without proof was accepted")
			}
			check(t, b, s.unverified(b.body))
		})
	}
}

// encode is the event as it is published.
func encode(t testing.TB, e *event.Event) []byte {
	t.Helper()
	encoded := e.Append(nil)
	// In raw a name may be repeated, and half of a surrogate pair be escaped, as the broker sent it.
	valid := jsontext.Value(encoded).IsValid(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if !valid || !utf8.Valid(encoded) || bytes.ContainsAny(encoded, "\r\n") {
		t.Fatalf("the event is not one line of JSON in UTF-8: %q", encoded)
	}
	return encoded
}

func compareGolden(t testing.TB, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v; go test -update writes it", err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("differs from %s; go test -update writes it anew. Got:\n%s", file, got)
	}
}

// testTruncated cuts each body at every byte. What is left must never be read as an order.
func (s Suite) testTruncated(t *testing.T) {
	for _, b := range s.genuine(t) {
		whole := len(bytes.TrimRight(b.body, " \t\r\n"))
		for n := range whole {
			e, err := s.event(b.body[:n])
			if err != nil {
				checkRefusal(t, err)
				continue
			}
			if e.Understood() {
				t.Errorf("%s, cut after %d bytes, became an order", b.name, n)
			}
			encode(t, e)
		}
	}
}

// testWrongToken sends each body, and each of its beginnings, with a token that nobody has.
func (s Suite) testWrongToken(t *testing.T) {
	tokens := []string{"wrong", s.PathToken + "x", strings.ToUpper(s.PathToken) + " "}
	if s.PathToken != "" {
		tokens = append(tokens, "", s.PathToken[1:])
	}
	for _, b := range s.genuine(t) {
		for _, token := range tokens {
			for _, n := range []int{0, len(b.body) / 2, len(b.body)} {
				_, err := s.Broker.Verify(&bridge.Postback{PathToken: token, Body: b.body[:n]})
				if err == nil {
					t.Errorf("%s, cut after %d bytes, was accepted with the token %q", b.name, n, token)
					continue
				}
				checkRefusal(t, err)
			}
		}
	}
}

// checkRefusal checks that the receiver can answer with the error.
func checkRefusal(t testing.TB, err error) {
	t.Helper()
	r, ok := errors.AsType[*bridge.Refusal](err)
	if !ok {
		t.Fatalf("the error is no refusal: %v", err)
	}
	switch r.Status {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound:
	default:
		t.Errorf("refused with status %d", r.Status)
	}
	if r.Reason == "" || r.Detail == "" {
		t.Errorf("the refusal says too little: %+v", r)
	}
}

// testOwnsNoBytes checks that the broker leaves the body as it is, and keeps nothing of it.
func (s Suite) testOwnsNoBytes(t *testing.T) {
	for _, b := range s.genuine(t) {
		text := bytes.Clone(b.body)
		how, _ := s.Broker.Verify(&bridge.Postback{PathToken: s.PathToken, Body: text})
		order, _ := s.order(text)
		if !bytes.Equal(text, b.body) {
			t.Errorf("%s: the body was changed", b.name)
		}
		for i := range text {
			text[i] = '#'
		}
		again, _ := s.order(b.body)
		if order != again || strings.Contains(how, "#") {
			t.Errorf("%s: the order changed with the body it was read from", b.name)
		}
	}
}

// testConcurrent reads each body many times at once. Run it with -race.
func (s Suite) testConcurrent(t *testing.T) {
	all := s.genuine(t)
	want := make([]string, len(all))
	for i, b := range all {
		want[i] = s.read(b.body)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i, b := range all {
				if got := s.read(b.body); got != want[i] {
					t.Errorf("%s: read at the same time as others: %s, alone: %s", b.name, got, want[i])
				}
			}
		})
	}
	wg.Wait()
}

// read is all that the broker says of a body, as text.
func (s Suite) read(body []byte) string {
	how, err := s.Broker.Verify(&bridge.Postback{PathToken: s.PathToken, Body: body})
	order, normalizeErr := s.order(body)
	return fmt.Sprint(how, err, order, normalizeErr)
}
