package nats

import (
	"fmt"
	"strings"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
)

// Names of headers, which are case-sensitive in NATS.
const (
	headerSpool       = "ce-spool"
	headerSequence    = "ce-sequence"
	headerContentType = "ce-datacontenttype"
	headerTraceParent = "traceparent"
)

// maxHeaderValue limits a header value, in bytes before it is encoded. A stream refuses headers of more than 64 KiB
// together; longer ids are escaped as in the subject.
const maxHeaderValue = 8 << 10

// message returns the message that publishes the copy.
func (c *eventCopy) message() *natsgo.Msg {
	d := c.entry.delivery
	return &natsgo.Msg{Subject: c.subject(), Header: headers(d, c.dest.stream), Data: d.Data}
}

// headers returns the headers of d for a stream: the CloudEvents attributes in binary mode, the message id, the trace
// context, and the expected stream, so that no other stores it.
func headers(d *bridge.Delivery, stream string) natsgo.Header {
	h := natsgo.Header{
		jetstream.MsgIDHeader:          {d.MsgID()},
		jetstream.ExpectedStreamHeader: {stream},
		headerContentType:              {bridge.ContentType},
	}
	for _, attribute := range d.Attributes() {
		value := attribute[1]
		if len(value) > maxHeaderValue { // only ids from the broker can be so long
			value = event.EscapeToken(d.UserID) + "/" + event.EscapeToken(d.OrderID)
		}
		h["ce-"+attribute[0]] = []string{percentEncode(value)}
	}
	if d.TraceParent != "" {
		h[headerTraceParent] = []string{d.TraceParent}
	}
	return h
}

// percentEncode encodes a value for the CloudEvents binding of NATS: every byte of its UTF-8 that is not printable
// ASCII, and space, " and %, become % and two hex digits.
func percentEncode(s string) string {
	escaped := func(c rune) bool { return c <= ' ' || c > '~' || c == '"' || c == '%' }
	if !strings.ContainsFunc(s, escaped) {
		return s
	}
	var b strings.Builder
	for _, c := range []byte(s) {
		if escaped(rune(c)) {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
