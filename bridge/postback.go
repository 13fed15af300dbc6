package bridge

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// The ways in which a body is not what every broker documents.
var (
	ErrNotJSON   = errors.New("the body is not JSON")
	ErrNotObject = errors.New("the body is JSON, but not an object")
)

// Postback is one POST from a broker, as it arrived. It belongs to one goroutine.
type Postback struct {
	// PathToken is what follows /<broker>/ in the path, QueryToken the parameter token; each empty if not given.
	PathToken, QueryToken string

	// Body is at most POSTBRIDGE_MAX_BODY long. It is valid only until Verify or Normalize returns.
	Body []byte

	// The body is scanned once, for Verify, Normalize and what is kept of it.
	scanned bool
	members []Member
	err     error
	order   []int
	decoder jsontext.Decoder
}

// Member is one member of the JSON object that a body is. All members of a body are parts of one string: what is kept of
// them needs no memory of its own.
type Member struct {
	// Name is the text of the name; bytes that are not UTF-8 are U+FFFD.
	Name string
	// Value is the JSON text of the value, as it stands in the body.
	Value string
}

// Members returns the members of the object that the body is, in order, repeated names included, or an error that wraps
// ErrNotJSON or ErrNotObject.
func (p *Postback) Members() ([]Member, error) {
	if !p.scanned {
		p.scanned = true
		p.members, p.err = p.scan(p.members[:0])
	}
	return p.members, p.err
}

// byName returns the indexes of the members by name without regard to case, those of a repeated name in the order of
// the body. The sort starts from the order of the previous body: a broker's bodies are alike, so it is usually sorted
// already.
func (p *Postback) byName() []int {
	if len(p.order) != len(p.members) {
		p.order = p.order[:0]
		for i := range p.members {
			p.order = append(p.order, i)
		}
	}
	byName := func(i, j int) int {
		if c := compareFold(p.members[i].Name, p.members[j].Name); c != 0 {
			return c
		}
		return i - j
	}
	if !slices.IsSortedFunc(p.order, byName) {
		slices.SortFunc(p.order, byName)
	}
	return p.order
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

// Reset makes the postback one of another body. Its memory is used again.
func (p *Postback) Reset(pathToken, queryToken string, body []byte) {
	p.PathToken, p.QueryToken, p.Body = pathToken, queryToken, body
	p.scanned, p.err = false, nil
}

func (p *Postback) scan(members []Member) ([]Member, error) {
	dec := &p.decoder
	dec.Reset(bytes.NewBuffer(p.Body), laxJSON)
	if dec.PeekKind() != jsontext.KindBeginObject {
		if jsontext.Value(p.Body).IsValid(laxJSON) {
			return nil, ErrNotObject
		}
		return nil, ErrNotJSON
	}
	members, err := p.scanObject(string(p.Body), members)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotJSON, err)
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: something follows the object", ErrNotJSON)
	}
	return members, nil
}

func (p *Postback) scanObject(text string, members []Member) ([]Member, error) {
	if _, err := p.decoder.ReadToken(); err != nil {
		return nil, err
	}
	for p.decoder.PeekKind() != jsontext.KindEndObject {
		name, err := p.readValue(text)
		if err != nil {
			return nil, err
		}
		value, err := p.readValue(text)
		if err != nil {
			return nil, err
		}
		members = append(members, Member{Unquote(name), value})
	}
	_, err := p.decoder.ReadToken()
	return members, err
}

// readValue returns the next value as the part of the body's text that it is.
func (p *Postback) readValue(text string) (string, error) {
	v, err := p.decoder.ReadValue()
	if err != nil {
		return "", err
	}
	end := p.decoder.InputOffset()
	return text[end-int64(len(v)) : end], nil
}

// Unquote returns the text of a JSON string. Without escapes that is a part of it, not a copy.
func Unquote(quoted string) string {
	if text := quoted[1 : len(quoted)-1]; strings.IndexByte(text, '\\') < 0 && utf8.ValidString(text) {
		return text
	}
	// The error only says again that something was replaced by U+FFFD.
	text, _ := jsontext.AppendUnquote(nil, quoted)
	return string(text)
}
