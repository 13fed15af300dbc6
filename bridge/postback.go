package bridge

import (
	"bytes"
	"encoding/json"
	"errors"
	"time"
	"unicode/utf8"

	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/bridge/scan"
)

// Postback is one POST from a broker, as it arrived. It belongs to one goroutine.
type Postback struct {
	// PathToken is what follows /<broker>/ in the path, QueryToken the parameter token; each empty if not given.
	PathToken, QueryToken string

	// Body is at most POSTBRIDGE_MAX_BODY bytes long. It is valid only until Verify returns.
	Body []byte

	// The body is scanned once, for Verify, Normalize and the id.
	scanned bool
	members []event.Member
	err     error
	scanner scan.Scanner
	ids     event.IDs
}

// Reset makes the postback one of another body. Its memory is used again.
func (p *Postback) Reset(pathToken, queryToken string, body []byte) {
	p.PathToken, p.QueryToken, p.Body = pathToken, queryToken, body
	p.scanned = false
}

// Members returns the members of the JSON object in the body: see scan.Scanner.Members. The slice is valid until Reset;
// the strings in it do not change.
func (p *Postback) Members() ([]event.Member, error) {
	if !p.scanned {
		p.scanned = true
		p.members, p.err = p.scanner.Members(p.members[:0], p.Body)
	}
	return p.members, p.err
}

// NewEvent normalizes a verified postback; verifiedBy is the result of Verify. A postback that cannot be normalized
// becomes an event too, with status unknown and no order id: see event.Event.Understood. The event may refer to p.Body.
func NewEvent(b Broker, p *Postback, verifiedBy string, received time.Time) *event.Event {
	e := &event.Event{
		Broker:     b.Name(),
		ReceivedAt: received.UTC().Format(event.TimeFormat),
		VerifiedBy: verifiedBy,
		Source:     event.SourcePostback,
	}
	members, err := p.Members()
	setRaw(e, p.Body, !errors.Is(err, scan.ErrNotJSON))
	var order event.Order
	if err == nil {
		order, err = b.Normalize(members)
	}
	if err != nil {
		e.Status = event.StatusUnknown
		e.ID = event.OfBody(e.Broker, p.Body)
		return e
	}
	e.Order = order
	e.ID = p.ids.Of(e.Broker, members, b.State)
	return e
}

// setRaw keeps the broker's body in the event, in the form that loses least: JSON as it is but on one line, text as
// text, anything else as bytes.
func setRaw(e *event.Event, body []byte, isJSON bool) {
	switch {
	case isJSON && !tooDeep(body):
		e.Raw = oneLine(replaceInvalidUTF8(body))
	case utf8.Valid(body):
		e.RawText = string(body)
	default:
		e.RawBase64 = body
	}
}

// tooDeep reports whether a body may be nested so deeply that it could not be read any more inside of the event: JSON
// readers stop at 10,000 levels or much earlier. No broker nests at all.
func tooDeep(body []byte) bool {
	return bytes.Count(body, []byte("["))+bytes.Count(body, []byte("{")) > 1000
}

// oneLine is JSON without line breaks, so that an event is a line whatever it came from.
func oneLine(text json.RawMessage) json.RawMessage {
	if !bytes.ContainsAny(text, "\r\n") {
		return text
	}
	var line bytes.Buffer
	_ = json.Compact(&line, text) // it was scanned, so it is JSON
	return line.Bytes()
}

// replaceInvalidUTF8 puts U+FFFD in place of each byte that is not UTF-8, as the readers of strings do.
func replaceInvalidUTF8(b []byte) []byte {
	if utf8.Valid(b) {
		return b
	}
	return []byte(string([]rune(string(b))))
}
