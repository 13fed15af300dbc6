// Package body reads the bodies of postbacks: JSON objects whose members are scalars of no reliable type. An id may
// be a number, a quantity a string, and "nothing" is null, "", "NA" or a time in year one. What cannot be read is
// absent, never an error, because the event keeps the broker's body as it came.
package body

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// The ways in which a body is not what every broker documents.
var (
	ErrNotJSON   = errors.New("the body is not JSON")
	ErrNotObject = errors.New("the body is JSON, but not an object")
)

// Scan calls member for each member of the object that the body is, in order, repeated names included; bytes that are
// not UTF-8 read as U+FFFD. Name and value are valid only during the call. If Scan returns an error, nothing that
// member was told counts.
func Scan(text []byte, member func(name []byte, v Value)) error {
	dec := jsontext.NewDecoder(bytes.NewBuffer(text), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if dec.PeekKind() != jsontext.KindBeginObject {
		return errNoObject(text)
	}
	if err := scanObject(dec, member); err != nil {
		return fmt.Errorf("%w: %w", ErrNotJSON, err)
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: something follows the object", ErrNotJSON)
	}
	return nil
}

func scanObject(dec *jsontext.Decoder, member func(name []byte, v Value)) error {
	if _, err := dec.ReadToken(); err != nil {
		return err
	}
	var name []byte
	for dec.PeekKind() != jsontext.KindEndObject {
		quoted, err := dec.ReadValue()
		if err != nil {
			return err
		}
		name = appendUnquoted(name[:0], quoted)
		value, err := dec.ReadValue()
		if err != nil {
			return err
		}
		member(name, Value(value))
	}
	_, err := dec.ReadToken()
	return err
}

func errNoObject(text []byte) error {
	if jsontext.Value(text).IsValid(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)) {
		return ErrNotObject
	}
	return ErrNotJSON
}

// appendUnquoted appends the text of a JSON string that the decoder has checked.
func appendUnquoted(dst, quoted []byte) []byte {
	if text := quoted[1 : len(quoted)-1]; bytes.IndexByte(text, '\\') < 0 && utf8.Valid(text) {
		return append(dst, text...)
	}
	// The error only says again that something was replaced by U+FFFD.
	dst, _ = jsontext.AppendUnquote(dst, quoted)
	return dst
}
