package nats

import (
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
)

// Names of headers, which are case-sensitive in NATS.
const (
	headerSpool       = "ce-spool"
	headerSequence    = "ce-sequence"
	headerContentType = "ce-datacontenttype"
	headerTraceParent = "traceparent"
)

// maxHeaderValue limits a header value, in bytes. A stream refuses headers of more than 64 KiB together; longer ids are
// escaped as in the subject.
const maxHeaderValue = 8 << 10

// headers builds the headers of all messages in one map: nats.go encodes them before PublishMsgAsync returns and
// does not read them again. Owned by the sender goroutine.
type headers struct {
	header natsgo.Header
	msgID  []string
	stream []string
	names  []string // of the CloudEvents attributes, in the order of Delivery.Attributes
	values [][]string
	trace  []string
}

func newHeaders() *headers {
	h := &headers{
		header: make(natsgo.Header), msgID: make([]string, 1), stream: make([]string, 1), trace: make([]string, 1),
	}
	for _, attribute := range new(bridge.Delivery).Attributes() {
		value := make([]string, 1)
		h.names = append(h.names, "ce-"+attribute[0])
		h.values = append(h.values, value)
		h.header["ce-"+attribute[0]] = value
	}
	h.header[jetstream.MsgIDHeader] = h.msgID
	h.header[jetstream.ExpectedStreamHeader] = h.stream
	h.header[headerContentType] = []string{bridge.ContentType}
	return h
}

// of returns the headers of d for a stream: the CloudEvents attributes in binary mode, the message id, the trace
// context, and the expected stream, so that no other stores it. They are valid until the next call.
func (h *headers) of(d *bridge.Delivery, stream string) natsgo.Header {
	h.msgID[0], h.stream[0] = d.MsgID(), stream
	for i, attribute := range d.Attributes() {
		h.values[i][0] = percentEncode(attribute[1])
		if len(h.values[i][0]) > maxHeaderValue { // only ids from the broker can be so long
			h.values[i][0] = percentEncode(bridge.EscapeToken(d.UserID) + "/" + bridge.EscapeToken(d.OrderID))
		}
	}
	delete(h.header, headerTraceParent)
	if d.TraceParent != "" {
		h.trace[0] = d.TraceParent
		h.header[headerTraceParent] = h.trace
	}
	return h.header
}

// percentEncode encodes a value for the CloudEvents binding of NATS: every byte of its UTF-8 that is not printable
// ASCII, and space, " and %, become % and two hex digits.
func percentEncode(s string) string {
	extra := 0
	for i := range len(s) {
		if escaped(s[i]) {
			extra += 2
		}
	}
	if extra == 0 {
		return s
	}
	const digits = "0123456789ABCDEF"
	b := make([]byte, 0, len(s)+extra)
	for i := range len(s) {
		if c := s[i]; escaped(c) {
			b = append(b, '%', digits[c>>4], digits[c&15])
		} else {
			b = append(b, c)
		}
	}
	return string(b)
}

func escaped(c byte) bool { return c <= ' ' || c > '~' || c == '"' || c == '%' }
