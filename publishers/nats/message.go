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

// message returns the message that publishes the copy, with the headers in h.
func (c *eventCopy) message(h *headers) *natsgo.Msg {
	d := c.entry.delivery
	return &natsgo.Msg{Subject: c.subject(), Header: h.of(d, c.dest.stream), Data: d.Data}
}

// headers holds the headers of one message at a time. The sender uses one for all messages: a map for each took an
// eighth of the processor time of an event.
type headers struct {
	all    natsgo.Header
	values [][]string // in all: the message id, the stream and the attributes, one value each
	trace  []string   // in all if there is a trace context
}

func newHeaders() *headers {
	h := &headers{all: natsgo.Header{headerContentType: {bridge.ContentType}}, trace: make([]string, 1)}
	names := []string{jetstream.MsgIDHeader, jetstream.ExpectedStreamHeader}
	for _, attribute := range new(bridge.Delivery).Attributes() {
		names = append(names, "ce-"+attribute[0])
	}
	for _, name := range names {
		h.all[name] = make([]string, 1)
		h.values = append(h.values, h.all[name])
	}
	return h
}

// of returns the headers of d for a stream: the CloudEvents attributes in binary mode, the message id, the trace
// context, and the expected stream, so that no other stores it. They are valid until the next call.
func (h *headers) of(d *bridge.Delivery, stream string) natsgo.Header {
	h.values[0][0], h.values[1][0] = d.MsgID(), stream
	attributes := d.Attributes()
	for i := range attributes {
		value := attributes[i][1]
		if len(value) > maxHeaderValue { // only ids from the broker can be so long
			value = event.EscapeToken(d.UserID) + "/" + event.EscapeToken(d.OrderID)
		}
		h.values[2+i][0] = percentEncode(value)
	}
	if h.trace[0] = d.TraceParent; d.TraceParent == "" {
		delete(h.all, headerTraceParent)
	} else {
		h.all[headerTraceParent] = h.trace
	}
	return h.all
}

// percentEncode encodes a value for the CloudEvents binding of NATS: every byte of its UTF-8 that is not printable
// ASCII, and space, " and %, become % and two hex digits.
func percentEncode(s string) string {
	escaped := func(c byte) bool { return c <= ' ' || c > '~' || c == '"' || c == '%' }
	n := 0
	for n < len(s) && !escaped(s[n]) {
		n++
	}
	if n == len(s) {
		return s // as nearly all values: no copy
	}
	var b strings.Builder
	for _, c := range []byte(s) {
		if escaped(c) {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
