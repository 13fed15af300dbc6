// Package scan splits the JSON body of a postback into its members.
//
// The checksum and the event id are made of all members, repeated names included, with their values byte for byte. A
// decoder has to make tokens for that: those of jsontext cost more than twice as much as this scanner, and those of
// encoding/json far more, with hundreds of allocations per body.
//
// What is rare in a postback, escapes and nested values, is left to jsontext. The package is the only one that uses
// go-json-experiment/json, which has no release yet. It moves to encoding/json/jsontext once the standard library has
// that without GOEXPERIMENT.
package scan

import (
	"errors"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/postbridge/postbridge/bridge/event"
)

// Errors of Members. Every broker documents its body as a JSON object.
var (
	ErrNotJSON   = errors.New("the body is not JSON")
	ErrNotObject = errors.New("the body is JSON, but not an object")
)

// maxDepth is the maximum number of objects and arrays around a value, as in encoding/json and jsontext.
const maxDepth = 10000

// Members appends the members of the JSON object in body to members, in the sequence of the body. Repeated names (an
// official sample has one) and bytes that are not UTF-8 are accepted. Values are substrings of body, and so are names
// without escapes. The error is ErrNotJSON, or ErrNotObject if the body is JSON of another kind; the returned members
// are then nil.
func Members(members []event.Member, body string) ([]event.Member, error) {
	s := scanner{text: body}
	s.space()
	isObject := s.peek() == '{'
	ok := isObject && s.object(1, &members) || !isObject && s.value(1)
	s.space()
	switch {
	case !ok || s.at < len(body):
		return nil, ErrNotJSON
	case !isObject:
		return nil, ErrNotObject
	}
	return members, nil
}

// scanner is a position in a JSON text. A method that scans something moves the position behind it, and returns false
// if that is not there.
type scanner struct {
	text string
	at   int
}

// peek returns the byte at the position; 0, which is never valid JSON, at the end of the text.
func (s *scanner) peek() byte {
	if s.at < len(s.text) {
		return s.text[s.at]
	}
	return 0
}

func (s *scanner) space() {
	for c := s.peek(); c == ' ' || c == '\n' || c == '\t' || c == '\r'; c = s.peek() {
		s.at++
	}
}

// delimiter scans one byte, and white space before it.
func (s *scanner) delimiter(c byte) bool {
	s.space()
	found := s.peek() == c
	if found {
		s.at++
	}
	return found
}

// value scans a value of any kind. An object or array in it has the given depth.
func (s *scanner) value(depth int) bool {
	switch c := s.peek(); c {
	case '"':
		_, ok := s.string()
		return ok
	case '{':
		return s.object(depth, nil)
	case '[':
		return s.array(depth)
	case 'n':
		return s.literal("null")
	case 't':
		return s.literal("true")
	case 'f':
		return s.literal("false")
	default:
		return s.number()
	}
}

// object scans an object, and appends its members to members unless that is nil.
func (s *scanner) object(depth int, members *[]event.Member) bool {
	if !s.delimiter('{') || depth > maxDepth {
		return false
	}
	if s.delimiter('}') {
		return true
	}
	for {
		s.space()
		name := s.at
		plain, ok := s.string()
		if !ok {
			return false
		}
		nameEnd := s.at
		if !s.delimiter(':') {
			return false
		}
		s.space()
		value := s.at
		if !s.value(depth + 1) {
			return false
		}
		if members != nil {
			m := event.Member{Name: s.text[name+1 : nameEnd-1], Value: s.text[value:s.at]}
			if !plain {
				m.Name = Unquote(s.text[name:nameEnd])
			}
			*members = append(*members, m)
		}
		if !s.delimiter(',') {
			return s.delimiter('}')
		}
	}
}

func (s *scanner) array(depth int) bool {
	if !s.delimiter('[') || depth > maxDepth {
		return false
	}
	if s.delimiter(']') {
		return true
	}
	for {
		s.space()
		if !s.value(depth + 1) {
			return false
		}
		if !s.delimiter(',') {
			return s.delimiter(']')
		}
	}
}

// string scans a string with its quotes, and reports whether it is plain: in ASCII without escapes. Bytes that are not
// UTF-8 and surrogates without a pair are accepted.
func (s *scanner) string() (plain, ok bool) {
	if s.peek() != '"' {
		return false, false
	}
	text := s.text[s.at:]
	var all byte // of the bytes, combined
	for i := 1; i < len(text); i++ {
		c := text[i]
		all |= c
		switch {
		case c == '"':
			s.at += i + 1
			return all < utf8.RuneSelf, true
		case c == '\\':
			n := escapeLen(text[i:])
			if n == 0 {
				return false, false
			}
			i += n - 1
			all |= utf8.RuneSelf
		case c < ' ':
			return false, false
		}
	}
	return false, false
}

// escapeLen returns the length of the escape sequence that a text begins with; 0 if it is not valid.
func escapeLen(text string) int {
	if len(text) < len(`\n`) {
		return 0
	}
	switch text[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return len(`\n`)
	case 'u':
		if len(text) >= len(`\u0000`) && strings.Trim(text[len(`\u`):len(`\u0000`)], "0123456789abcdefABCDEF") == "" {
			return len(`\u0000`)
		}
	}
	return 0
}

func (s *scanner) literal(word string) bool {
	ok := strings.HasPrefix(s.text[s.at:], word)
	if ok {
		s.at += len(word)
	}
	return ok
}

// number scans a number. A digit behind a leading zero is not part of it, and so an error of whatever contains it.
func (s *scanner) number() bool {
	if s.peek() == '-' {
		s.at++
	}
	if s.peek() == '0' {
		s.at++
	} else if !s.digits() {
		return false
	}
	if s.peek() == '.' {
		s.at++
		if !s.digits() {
			return false
		}
	}
	if c := s.peek(); c == 'e' || c == 'E' {
		s.at++
		if c := s.peek(); c == '+' || c == '-' {
			s.at++
		}
		return s.digits()
	}
	return true
}

// digits scans one digit or more.
func (s *scanner) digits() bool {
	from := s.at
	for c := s.peek(); '0' <= c && c <= '9'; c = s.peek() {
		s.at++
	}
	return s.at > from
}

// Unquote returns the text of a valid JSON string with its quotes. Each byte that is not UTF-8 and each unpaired
// surrogate becomes U+FFFD. The result is a substring of quoted if there is nothing to replace.
func Unquote(quoted string) string {
	text := quoted[1 : len(quoted)-1]
	if isPlain(text) || strings.IndexByte(text, '\\') < 0 && utf8.ValidString(text) {
		return text
	}
	// An error reports only that something was replaced by U+FFFD.
	unquoted, _ := jsontext.AppendUnquote(nil, quoted)
	return string(unquoted)
}

// isPlain reports whether a text is in ASCII without escapes.
func isPlain(text string) bool {
	for i := range len(text) {
		if c := text[i]; c == '\\' || c >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// Normalize returns a JSON object or array in one form: without white space, with sorted names and resolved escapes.
// It is not ok if a name is repeated, since the sequence of both may make a difference, or if a text is not Unicode.
func Normalize(value string) (normal string, ok bool) {
	text := jsontext.Value(value)
	if err := text.Format(jsontext.ReorderRawObjects(true)); err != nil {
		return "", false
	}
	return string(text), true
}
