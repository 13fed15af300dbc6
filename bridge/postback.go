package bridge

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
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
	ids     event.IDs
}

// Reset reuses the postback and its memory for another body.
func (p *Postback) Reset(pathToken, queryToken string, body []byte) {
	p.PathToken, p.QueryToken, p.Body = pathToken, queryToken, body
	p.scanned = false
}

// Members returns the members of the JSON object in the body: see scan.Members. The slice is valid until Reset;
// the strings in it do not change.
func (p *Postback) Members() ([]event.Member, error) {
	if !p.scanned {
		p.scanned = true
		p.members, p.err = scan.Members(p.members[:0], string(p.Body))
	}
	return p.members, p.err
}

// markUnreadable makes Members fail: the body is only a part of the one that was sent, or its encoded form.
func (p *Postback) markUnreadable() {
	p.scanned, p.members, p.err = true, p.members[:0], errUnreadable
}

var errUnreadable = fmt.Errorf("the body cannot be read: %w", scan.ErrNotJSON)

// Normalize makes the event of a verified postback; verifiedBy is the result of Verify. A postback that is no order
// update or cannot be normalized becomes an event too, with status unknown and no order id: see event.Event.Understood.
// The event may refer to p.Body.
func Normalize(b Broker, p *Postback, verifiedBy string, received time.Time) *event.Event {
	e := &event.Event{
		Broker:     b.Name(),
		ReceivedAt: formatTime(received),
		VerifiedBy: verifiedBy,
		Source:     event.SourcePostback,
	}
	personal := policyOf(b).Personal
	body := scan.RemoveMembers(p.Body, personal)
	members, err := p.Members()
	setRaw(e, body, !errors.Is(err, scan.ErrNotJSON))
	if err == nil || len(bytes.TrimSpace(p.Body)) == 0 && !errors.Is(err, errUnreadable) {
		e.Order, err = b.Normalize(members)
	}
	if err != nil {
		if kind, ok := errors.AsType[NotAnOrder](err); ok {
			e.Other = string(kind)
		}
		e.Order = event.Order{Status: event.StatusUnknown}
		e.ID = event.OfBody(e.Broker, body)
		return e
	}
	e.ID = p.ids.Of(e.Broker, members, stateWithout(personal, b.State))
	return e
}

// stateWithout returns the function for the state of a member without the personal data that is nested in its value.
func stateWithout(personal []string, state func(event.Member) string) func(event.Member) string {
	if len(personal) == 0 {
		return state
	}
	return func(m event.Member) string {
		if m.Value[0] == '{' || m.Value[0] == '[' {
			m.Value = string(scan.RemoveMembers([]byte(m.Value), personal))
		}
		return state(m)
	}
}

// setRaw keeps the broker's body in the event: JSON on one line, other UTF-8 as text, anything else as bytes.
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

// tooDeep reports whether a body may be nested so deeply that consumers could not parse the event around it: JSON
// parsers stop at 10,000 levels or much earlier. Brokers do not nest at all.
func tooDeep(body []byte) bool {
	return bytes.Count(body, []byte("["))+bytes.Count(body, []byte("{")) > 1000
}

// oneLine removes line breaks from JSON, so that every event is one line.
func oneLine(text json.RawMessage) json.RawMessage {
	if bytes.IndexByte(text, '\n') < 0 && bytes.IndexByte(text, '\r') < 0 {
		return text
	}
	var line bytes.Buffer
	_ = json.Compact(&line, text) // it was scanned, so it is JSON
	return line.Bytes()
}

// replaceInvalidUTF8 replaces each byte that is not UTF-8 with U+FFFD, as JSON decoders do.
func replaceInvalidUTF8(b []byte) []byte {
	if utf8.Valid(b) {
		return b
	}
	return []byte(string([]rune(string(b))))
}
