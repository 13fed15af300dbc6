package brokertest

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
)

// testMembers changes each member of each body, one at a time. The event id must change, so that the state is
// published, unless the table has a reason.
func (s Suite) testMembers(t *testing.T) {
	for _, b := range s.orders(t) {
		for _, m := range b.members {
			if _, ok := s.reason(m.name); !ok {
				t.Errorf("%s: the member %s is not in the table", b.name, m.name)
			}
		}
		for name, reason := range s.Members {
			for _, changed := range b.members.changes(name) {
				if same := s.id(t, changed) == b.id; same != (reason != "") {
					t.Errorf("%s with another %s: collapsed %v, and the reason is %q\n%s",
						b.name, name, same, reason, changed)
				}
			}
		}
		if unknown := b.members.and(member{"postbridge_unknown", "1"}); s.id(t, unknown) == b.id {
			t.Errorf("%s: a change of an unknown member is not published", b.name)
		}
	}
}

// testSpellings writes each body in other, equivalent ways. The event id must not change.
func (s Suite) testSpellings(t *testing.T) {
	for _, b := range s.orders(t) {
		for _, spelled := range b.members.spellings(t) {
			if s.id(t, spelled) != b.id {
				t.Errorf("%s: the id differs for the equivalent body\n%s", b.name, spelled)
			}
		}
	}
	for _, b := range s.genuine(t) {
		members, isObject := parseObject(b.body)
		if !isObject || !slices.Contains(s.Others, b.name) {
			continue
		}
		kind := s.unverified(b.body).Other
		for _, spelled := range members.spellings(t) {
			if got := s.unverified(spelled).Other; got != kind {
				t.Errorf("%s becomes %q instead of %q when it is spelled\n%s", b.name, got, kind, spelled)
			}
		}
	}
}

// readOrder is a sample that is an order.
type readOrder struct {
	name    string
	members object
	id      string
}

func (s Suite) orders(t *testing.T) (all []readOrder) {
	t.Helper()
	for _, b := range append(s.genuine(t), s.samples(t, "unproven")...) {
		if _, err := s.order(b.body); err == nil {
			members, _ := parseObject(b.body)
			all = append(all, readOrder{b.name, members, s.id(t, b.body)})
		}
	}
	return all
}

// id returns the event id of a body without verifying it.
func (s Suite) id(t testing.TB, body []byte) string {
	t.Helper()
	return s.unverified(body).ID
}

// reason returns the table's entry for a member; the name matches without regard to case.
func (s Suite) reason(name string) (reason string, ok bool) {
	if reason, ok = s.Members[name]; ok {
		return reason, true
	}
	for known, reason := range s.Members {
		if strings.EqualFold(known, name) {
			return reason, true
		}
	}
	return "", false
}

// changes returns bodies in which the member differs: another value, another nested value, or none. A body without the
// member gets it.
func (o object) changes(name string) (bodies [][]byte) {
	i := slices.IndexFunc(o, func(m member) bool { return strings.EqualFold(m.name, name) })
	if i < 0 {
		return [][]byte{o.and(member{name, `"1"`}), o.and(member{name, "1"})}
	}
	bodies = append(bodies, o.with(i, o[i].changed()))
	if last := strings.LastIndexFunc(o[i].value, isAlphanumeric); strings.ContainsAny(o[i].value[:1], "{[") &&
		last > 0 {
		nested := changeLast(o[i].value[:last+1]) + o[i].value[last+1:]
		bodies = append(bodies, o.with(i, member{o[i].name, nested}))
	}
	if !o[i].isEmpty() {
		bodies = append(bodies, o.with(i, member{o[i].name, "null"}), o.with(i, member{o[i].name, `""`}), o.without(i))
	}
	return bodies
}

func isAlphanumeric(r rune) bool {
	return '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z'
}

// isEmpty reports whether the value may be equivalent to none. That includes 0 and a time never set, although they are
// values in members that are neither a number nor a time.
func (m member) isEmpty() bool {
	text := strings.TrimSpace(strings.Trim(m.value, `"`))
	return strings.Trim(text, "0.") == "" || strings.HasPrefix(text, "0001-01-01") || m.isNull()
}

// isNull reports whether the value is equivalent to none in every member.
func (m member) isNull() bool {
	return slices.Contains([]string{"null", `""`, `"NA"`, "{}", "[]"}, m.value)
}

// spellings returns equivalent bodies: with other white space, other orders of the members, other forms of no value,
// and whole numbers as decimals and strings.
func (o object) spellings(t *testing.T) (bodies [][]byte) {
	t.Helper()
	indented := jsontext.Value(bytes.Clone(o.text()))
	if err := indented.Indent(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)); err != nil {
		t.Fatal(err)
	}
	bodies = append(bodies, indented)
	if o.hasUniqueNames() {
		reversed := slices.Clone(o)
		slices.Reverse(reversed)
		bodies = append(bodies, reversed.text(), append(slices.Clone(o[len(o)/2:]), o[:len(o)/2]...).text())
	}
	for i, m := range o {
		if m.isNull() && o.hasUniqueNames() {
			bodies = append(bodies, o.without(i), o.with(i, member{m.name, "null"}), o.with(i, member{m.name, `""`}))
		}
		if strings.Trim(m.value, "0123456789") == "" {
			bodies = append(
				bodies,
				o.with(i, member{m.name, m.value + ".0"}),
				o.with(i, member{m.name, `"` + m.value + `"`}),
			)
		}
	}
	return bodies
}

func (o object) hasUniqueNames() bool {
	names := make(map[string]bool)
	for _, m := range o {
		names[strings.ToLower(m.name)] = true
	}
	return len(names) == len(o)
}
