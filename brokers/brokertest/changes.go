package brokertest

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
)

// testChanges changes each field of a body in four ways and compares the outcomes with the golden table. A field whose
// row has "accepted" is not covered by the checksum: a client that has seen the postback can change it.
func (s Suite) testChanges(t *testing.T) {
	if len(s.Change) == 0 {
		t.Error("Change names no body")
	}
	for _, b := range s.genuine(t) {
		if slices.Contains(s.Change, b.name) {
			t.Run(b.name, func(t *testing.T) {
				compareGolden(t, filepath.Join(s.Dir, "changes", b.name+".txt"), s.changes(t, b))
			})
		}
	}
}

// changes returns the table of outcomes, a row per field.
func (s Suite) changes(t *testing.T, b sample) []byte {
	t.Helper()
	original, err := s.event(b.body)
	if err != nil {
		t.Fatalf("a genuine postback was refused: %v", err)
	}
	members, ok := parseObject(b.body)
	if !ok {
		t.Fatal("the body has no fields to change")
	}
	var rows strings.Builder
	rows.WriteString("field\tchanged\tleft out\tsent again, changed\tsent again, changed, in upper case\n")
	for i, m := range members {
		rows.WriteString(m.name)
		for _, body := range [][]byte{
			members.with(i, m.changed()), members.without(i), members.and(m.changed()),
			members.and(m.changed().upper()),
		} {
			rows.WriteString("\t" + s.outcome(t, original, body))
		}
		rows.WriteByte('\n')
	}
	return aligned(t, rows.String())
}

// aligned returns the text with its tabs expanded to columns.
func aligned(t *testing.T, text string) []byte {
	t.Helper()
	var table bytes.Buffer
	w := tabwriter.NewWriter(&table, 0, 0, 3, ' ', 0)
	_, err := w.Write([]byte(text))
	if err := cmp.Or(err, w.Flush()); err != nil {
		t.Fatal(err)
	}
	return table.Bytes()
}

// outcome returns the outcome of a changed body, in words.
func (s Suite) outcome(t *testing.T, original *event.Event, body []byte) string {
	t.Helper()
	e, err := s.event(body)
	if r, ok := errors.AsType[*bridge.Refusal](err); ok {
		checkRefusal(t, err)
		return fmt.Sprintf("%d %s", r.Status, r.Reason)
	}
	if err != nil {
		t.Fatalf("the error is no refusal: %v", err)
	}
	encode(t, e)
	switch {
	case e.Other != "":
		return "accepted, " + e.Other
	case !e.Understood():
		return "accepted, dead letter"
	case e.ID == original.ID:
		return "accepted, same id"
	default:
		return "accepted, new id"
	}
}

// member is a name and its JSON value, as in the body.
type member struct{ name, value string }

// changed returns the member with another value, of the same JSON type if that has another one.
func (m member) changed() member {
	v := m.value
	switch v[0] {
	case '"':
		m.value = v[:1] + changeLast(v[1:len(v)-1]) + `"`
	case 't':
		m.value = "false"
	case 'f':
		m.value = "true"
	case 'n', '{', '[':
		m.value = `"1"`
	default:
		m.value = changeLast(v)
	}
	return m
}

func (m member) upper() member {
	m.name = strings.ToUpper(m.name)
	return m
}

// changeLast returns the text with another last letter or digit, or with a digit more.
func changeLast(s string) string {
	if s == "" {
		return "1"
	}
	last := s[len(s)-1]
	switch {
	case last == '9':
		last = '8'
	case '0' <= last && last < '9', 'a' <= last && last < 'z', 'A' <= last && last < 'Z':
		last++
	default:
		return s + "1"
	}
	return s[:len(s)-1] + string(last)
}

type object []member

// parseObject parses the top level of a body. It does not use package body, which it tests.
func parseObject(text []byte) (members object, ok bool) {
	dec := jsontext.NewDecoder(bytes.NewReader(text),
		jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if t, err := dec.ReadToken(); err != nil || t.Kind() != jsontext.KindBeginObject {
		return nil, false
	}
	for dec.PeekKind() != jsontext.KindEndObject {
		name, err := dec.ReadToken()
		if err != nil {
			return nil, false
		}
		m := member{name: name.String()}
		value, err := dec.ReadValue()
		if err != nil {
			return nil, false
		}
		m.value = string(value)
		members = append(members, m)
	}
	return members, true
}

// with returns the body with the member at i replaced.
func (o object) with(i int, m member) []byte {
	changed := append(object(nil), o...)
	changed[i] = m
	return changed.text()
}

// without returns the body without the member at i.
func (o object) without(i int) []byte { return append(o[:i:i], o[i+1:]...).text() }

// and returns the body with a member appended.
func (o object) and(m member) []byte { return append(o[:len(o):len(o)], m).text() }

func (o object) text() []byte {
	var b []byte
	for i, m := range o {
		b = append(b, `{,`[min(i, 1)])
		b, _ = jsontext.AppendQuote(b, m.name)
		b = append(append(b, ':'), m.value...)
	}
	if len(o) == 0 {
		return []byte("{}")
	}
	return append(b, '}')
}
