// Package scan splits the JSON body of a postback into its members.
//
// It is the only package that uses go-json-experiment/json, which has no release yet. The checksum and the event id
// are made of all members, repeated names included, with their values byte for byte. The tokens of encoding/json have
// both, but cost nine times as much and hundreds of allocations per body, and encoding/json does not sort the names in
// an object. The package moves to encoding/json/jsontext once the standard library has it without GOEXPERIMENT.
package scan

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/postbridge/postbridge/bridge/event"
)

// Errors of Scanner.Members. Every broker documents its body as a JSON object.
var (
	ErrNotJSON   = errors.New("the body is not JSON")
	ErrNotObject = errors.New("the body is JSON, but not an object")
)

// Scanner scans bodies, one at a time. It reuses memory between calls and must not be used concurrently. The zero value
// is ready.
type Scanner struct{ decoder jsontext.Decoder }

// Members appends the members of the JSON object in body to members, in the sequence of the body. Repeated names (an
// official sample has one) and bytes that are not UTF-8 are accepted. The members share one copy of the body, so they
// stay valid when body changes. The error wraps ErrNotJSON, or is ErrNotObject if the body is JSON of another kind;
// the returned members are then nil.
func (s *Scanner) Members(members []event.Member, body []byte) ([]event.Member, error) {
	dec := &s.decoder
	dec.Reset(bytes.NewBuffer(body), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if dec.PeekKind() != jsontext.KindBeginObject {
		if jsontext.Value(body).IsValid(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)) {
			return nil, ErrNotObject
		}
		return nil, ErrNotJSON
	}
	members, err := s.object(string(body), members)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotJSON, err)
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: something follows the object", ErrNotJSON)
	}
	return members, nil
}

func (s *Scanner) object(text string, members []event.Member) ([]event.Member, error) {
	if _, err := s.decoder.ReadToken(); err != nil {
		return nil, err
	}
	for s.decoder.PeekKind() != jsontext.KindEndObject {
		name, err := s.value(text)
		if err != nil {
			return nil, err
		}
		value, err := s.value(text)
		if err != nil {
			return nil, err
		}
		members = append(members, event.Member{Name: Unquote(name), Value: value})
	}
	_, err := s.decoder.ReadToken()
	return members, err
}

// value returns the next value as a substring of text, the whole body.
func (s *Scanner) value(text string) (string, error) {
	v, err := s.decoder.ReadValue()
	if err != nil {
		return "", err
	}
	end := s.decoder.InputOffset()
	return text[end-int64(len(v)) : end], nil
}

// Unquote returns the text of a valid JSON string with its quotes. Each byte that is not UTF-8 and each unpaired
// surrogate becomes U+FFFD. The result is a substring of quoted if there is nothing to replace.
func Unquote(quoted string) string {
	if text := quoted[1 : len(quoted)-1]; strings.IndexByte(text, '\\') < 0 && utf8.ValidString(text) {
		return text
	}
	// An error reports only that something was replaced by U+FFFD.
	text, _ := jsontext.AppendUnquote(nil, quoted)
	return string(text)
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
