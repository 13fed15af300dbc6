// Package brokertest is the contract suite for implementations of bridge.Broker. A new adapter supplies the bodies of
// postbacks, Run checks the contract, and the flag -update writes the golden files:
//
//	testdata/genuine/NAME.json     input: a body that passes Verify, JSON or not
//	testdata/unproven/NAME.json    input: a body for Normalize only; its checksum is shortened or missing
//	testdata/events/NAME.json      golden: the event of the body
//	testdata/changes/NAME.txt      golden: the outcome of a change of each field: what the checksum does not cover
package brokertest

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
)

var update = flag.Bool("update", false, "write the golden files of the broker contract")

// Suite is a broker under test.
type Suite struct {
	// Broker has credentials that verify the genuine bodies.
	Broker bridge.Broker
	// PathToken is the path token of the genuine bodies.
	PathToken string
	// Dir is the directory of the bodies and of the golden files, usually testdata.
	Dir string
	// Others names the genuine bodies that the broker recognizes as no order update, without .json.
	Others []string
	// Change names the genuine bodies whose fields are changed one by one, for testdata/changes.
	Change []string
	// Members has every member that the broker documents or that a body contains. The value is the reason why a
	// postback in which only this member has changed is a repeat; "" if it is published.
	Members map[string]string
}

// Run runs the contract suite.
func Run(t *testing.T, s Suite) {
	t.Run("golden", s.testGolden)
	t.Run("changes", s.testChanges)
	t.Run("members", s.testMembers)
	t.Run("spellings", s.testSpellings)
	t.Run("truncated", s.testTruncated)
	t.Run("personal data", s.testPersonalData)
	t.Run("wrong token", s.testWrongToken)
	t.Run("owns no bytes", s.testOwnsNoBytes)
	t.Run("concurrent", s.testConcurrent)
}

// received is the time of receipt of every postback of the suite.
func received() time.Time { return time.Date(2026, 1, 8, 9, 53, 46, 123456789, time.UTC) }

// sample is a body and the name of its file.
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

// event verifies and normalizes a body, as the bridge does.
func (s Suite) event(body []byte) (*event.Event, error) {
	p := &bridge.Postback{PathToken: s.PathToken, Body: body}
	verifiedBy, err := s.Broker.Verify(p)
	if err != nil {
		return nil, err
	}
	return bridge.Normalize(s.Broker, p, verifiedBy, received()), nil
}

// unverified returns the event of a body without verifying it.
func (s Suite) unverified(body []byte) *event.Event {
	return bridge.Normalize(s.Broker, &bridge.Postback{Body: body}, "checksum", received())
}

// order normalizes a body.
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
			if got, want := e.Other != "", slices.Contains(s.Others, b.name); got != want || got && e.Understood() {
				t.Errorf("it became %q with order %q; no order update: want %v", e.Other, e.OrderID, want)
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

// encode returns the event as it is published.
func encode(t testing.TB, e *event.Event) []byte {
	t.Helper()
	encoded := e.Append(nil)
	// raw is as the broker sent it: names may be repeated, and an escape may be half of a surrogate pair.
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
		t.Errorf("differs from %s; go test -update rewrites it. Got:\n%s", file, got)
	}
}

// testTruncated truncates each body at every byte. The rest must never be read as an order, nor be recognized, unless
// it is empty: that may be a probe.
func (s Suite) testTruncated(t *testing.T) {
	step := 1
	if testing.Short() {
		step = 7
	}
	for _, b := range s.genuine(t) {
		whole := len(bytes.TrimRight(b.body, " \t\r\n"))
		for n := 0; n < whole; n += step {
			e, err := s.event(b.body[:n])
			if err != nil {
				checkRefusal(t, err)
				continue
			}
			if e.Understood() || e.Other != "" && n > 0 {
				t.Errorf("%s, cut after %d bytes, became an order or %q", b.name, n, e.Other)
			}
			encode(t, e)
		}
	}
}

// testPersonalData adds the members that the adapter declares as personal data to each body, whole and truncated. No
// event may contain them, and no id of an order may depend on them.
func (s Suite) testPersonalData(t *testing.T) {
	p, ok := s.Broker.(bridge.PolicyBroker)
	if !ok {
		return
	}
	for _, name := range p.Policy().Personal {
		personal := member{name, `"#####"`}
		for _, b := range append(s.genuine(t), s.samples(t, "unproven")...) {
			members, _ := parseObject(b.body)
			members = slices.DeleteFunc(members, func(m member) bool { return strings.EqualFold(m.name, name) })
			body := members.and(personal)
			for n := range len(body) + 1 {
				if e := encode(t, s.unverified(body[:n])); bytes.ContainsRune(e, '#') {
					t.Errorf("%s, cut after %d bytes, has %s in its event:\n%s", b.name, n, name, e)
				}
			}
			if _, err := s.order(body); err == nil && s.id(t, body) != s.id(t, members.text()) {
				t.Errorf("%s: the id depends on %s", b.name, name)
			}
		}
	}
}

// testWrongToken verifies each body, whole and truncated, with invalid tokens.
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

// checkRefusal checks that the error is a complete Refusal.
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
		t.Errorf("the refusal has no reason or no detail: %+v", r)
	}
}

// testOwnsNoBytes checks that the broker neither changes the body nor retains a reference to it.
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
			t.Errorf("%s: the order changed with its body", b.name)
		}
	}
}

// testConcurrent verifies and normalizes each body in several goroutines. Run it with -race.
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
					t.Errorf("%s: in several goroutines: %s, alone: %s", b.name, got, want[i])
				}
			}
		})
	}
	wg.Wait()
}

// read returns all results of the broker for a body, as text.
func (s Suite) read(body []byte) string {
	how, err := s.Broker.Verify(&bridge.Postback{PathToken: s.PathToken, Body: body})
	order, normalizeErr := s.order(body)
	return fmt.Sprint(how, err, order, normalizeErr)
}
