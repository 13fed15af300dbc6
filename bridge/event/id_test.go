package event_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/bridge/scan"
)

// idMaker scans bodies and makes their ids, one after the other, as a postback does.
type idMaker struct {
	members []event.Member
	ids     event.IDs
}

func (m *idMaker) id(broker, body string) string {
	members, err := scan.Members(m.members[:0], body)
	if err != nil {
		return event.OfBody(broker, []byte(body))
	}
	m.members = members
	return m.ids.Of(broker, members, state)
}

// state returns a value as it stands, and nothing for null and for the member skip.
func state(m event.Member) string {
	switch {
	case m.Name == "skip" || m.Value == "null":
		return ""
	case m.Value[0] == '"':
		return scan.Unquote(m.Value)
	}
	return m.Value
}

// TestID compares bodies in groups: those of one group are one state, and those of two are not.
func TestID(t *testing.T) {
	seen := make(map[string]string)
	for _, same := range [][]string{
		{`{}`, `{"a":""}`, `{"skip":1}`, `{"skip":2}`, `{"a":null}`, `{"a":null,"a":""}`, `{"skip":1,"skip":2}`,
			` {"b" : null, "a" : null} `},
		{`{"a":1,"b":2}`, `{"b":2,"a":1}`, `{ "b" : 2,"skip":0, "c":null, "\u0061":1 }`},
		{`{"a":2,"b":1}`}, {`{"a":1}`, `{"a":"1"}`}, {`{"A":1}`}, {`{"a":"b"}`}, {`{"ab":"c"}`}, {`{"a":"bc"}`},
		// The last of a repeated name counts, so their order does, too, and so does one without a state.
		{`{"a":1,"a":2}`, `{"b":null,"a":1,"a":2}`, `{"a":1,"a":2,"a":2}`}, {`{"a":2,"a":1}`}, {`{"a":1,"a":2,"a":1}`},
		{`{"a":2}`, `{"a":2,"b":null}`, `{"a":2,"a":2}`, `{"a":2,"a":"2"}`}, {`{"a":2,"a":null}`, `{"a":2,"a":""}`},
		{`{"a":null,"a":2}`},
		{`{"a":1,"A":2}`, `{"z":null,"a":1,"A":2}`}, {`{"A":2,"a":1}`}, {`{"a":1,"A":null}`},
		// One text, but not one value.
		{`{"a":true}`}, {`{"a":"true"}`}, {`{"a":{"b":1}}`}, {`{"a":"{\"b\":1}"}`}, {`{"a":[1]}`}, {`{"a":"[1]"}`},
		// A name and a value that contain what could be taken for the end of a field.
		{`{"a\u0001\u0000\u0000\u0000":1}`}, {`{"a":"1\u0001\u0000\u0000\u0000b\"\u0001\u0000\u0000\u00002"}`},
		{`{"a":1,"b":22}`},
		{`order=1`}, {`order=2`},
	} {
		var ids []string
		for _, body := range same {
			m := new(idMaker)
			for _, before := range []string{"", body, `{"x":1,"a":2,"b":3}`, `{"b":1,"a":2}`} { // IDs keeps its order
				_ = m.id("stub", before)
				ids = append(ids, m.id("stub", body))
			}
		}
		for _, id := range ids {
			if id != ids[0] || len(id) != 32 {
				t.Errorf("%v have several ids: %v", same, ids)
				break
			}
		}
		if other, ok := seen[ids[0]]; ok {
			t.Errorf("%s has the id of %s", same[0], other)
		}
		seen[ids[0]] = same[0]
	}
	m := new(idMaker)
	if m.id("stub", `{"a":1}`) == m.id("renamed", `{"a":1}`) {
		t.Error("the id does not depend on the broker")
	}
}

// TestIDManyMembers has as many members as fit in a body, in the worst order: their number must not cost more than a
// sort of them.
func TestIDManyMembers(t *testing.T) {
	const n = 20_000
	var up, down []string
	for i := range n {
		up = append(up, fmt.Sprintf(`"%05d":%d`, i, i))
		down = append(down, fmt.Sprintf(`"%05d":%d`, n-1-i, n-1-i))
	}
	m := new(idMaker)
	id := func(members []string) string { return m.id("stub", "{"+strings.Join(members, ",")+"}") }
	if id(up) != id(down) {
		t.Error("the id depends on the order of the members")
	}
}

func TestOfBody(t *testing.T) {
	if event.OfBody("ab", []byte("c")) == event.OfBody("a", []byte("bc")) {
		t.Error("broker and body run into each other")
	}
	if len(event.OfBody("a", nil)) != 32 {
		t.Error("not 32 hex digits")
	}
}
