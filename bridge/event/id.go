package event

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"slices"
)

// Member is one member of the JSON object in the body of a postback.
type Member struct {
	// Name is the name without quotes and escapes; each byte that is not UTF-8 is U+FFFD.
	Name string
	// Value is the JSON text of the value, byte for byte as in the body; never empty.
	Value string
}

// IDs makes the ids of events. It reuses memory between calls and must not be used concurrently. The zero value is
// ready.
type IDs struct {
	order []int  // indexes of the previous body's members, sorted by name
	text  []byte // that was hashed last
}

// Of returns the id of an event, 32 hex digits: a hash of the broker and of the state of each member, sorted by name.
// The function state returns the state of one member, in one spelling for all values that mean the same, or "" if the
// member is not part of the order's state.
func (ids *IDs) Of(broker string, members []Member, state func(Member) string) string {
	text := appendField(slices.Grow(ids.text[:0], 1024), broker) // enough for most, so that it grows once
	for order := ids.byName(members); len(order) > 0; {
		n := 1
		for n < len(order) && sameName(members[order[0]].Name, members[order[n]].Name) {
			n++
		}
		text = appendState(text, members, order[:n], state)
		order = order[n:]
	}
	ids.text = text
	return hashText(text)
}

// appendState appends the states of the members of one name, usually one; nothing if none of them has a state. Which of
// several counts depends on their sequence in the body, so all are appended in it, except one that equals the one
// before it.
func appendState(text []byte, members []Member, of []int, stateOf func(Member) string) []byte {
	start, last, hasState := len(text), len(text), false
	for _, i := range of {
		m, at := members[i], len(text)
		text = appendField(text, m.Name)
		state := stateOf(m)
		if state != "" {
			hasState = true
			text = append(text, kind(m.Value))
		}
		text = appendField(text, state)
		if bytes.Equal(text[last:at], text[at:]) {
			text = text[:at]
			continue
		}
		last = at
	}
	if !hasState {
		return text[:start]
	}
	return text
}

// kind returns the first byte of a value, which tells values of the same text apart: true from "true", and an object
// from a string that contains it. Numbers and strings are of one kind, because brokers send one value as either.
func kind(value string) byte {
	if c := value[0]; c != '-' && (c < '0' || '9' < c) {
		return c
	}
	return '"'
}

// OfBody returns the id of an event whose body was not understood, 32 hex digits: a hash of broker and body.
func OfBody(broker string, body []byte) string {
	return hashText(append(appendField(nil, broker), body...))
}

func hashText(b []byte) string {
	sum := sha256.Sum256(b)
	var text [32]byte
	hex.Encode(text[:], sum[:16])
	return string(text[:])
}

func appendField(b []byte, s string) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// byName returns the indexes of the members sorted by name without regard to case, those of a repeated name in the
// sequence of the body. The sort starts from the order of the previous body: a broker's bodies are alike, so it is
// usually sorted already.
func (ids *IDs) byName(members []Member) []int {
	if len(ids.order) != len(members) {
		ids.order = ids.order[:0]
		for i := range members {
			ids.order = append(ids.order, i)
		}
	}
	byName := func(i, j int) int {
		if c := compareFold(members[i].Name, members[j].Name); c != 0 {
			return c
		}
		return i - j
	}
	if !slices.IsSortedFunc(ids.order, byName) {
		slices.SortFunc(ids.order, byName)
	}
	return ids.order
}

// sameName reports whether two names are equal without regard to case.
func sameName(a, b string) bool { return len(a) == len(b) && compareFold(a, b) == 0 }

// compareFold compares two names with their ASCII letters in lower case.
func compareFold(a, b string) int {
	for i := range min(len(a), len(b)) {
		if a[i] == b[i] {
			continue
		}
		if x, y := lower(a[i]), lower(b[i]); x != y {
			return int(x) - int(y)
		}
	}
	return len(a) - len(b)
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}
