package bridge

import (
	"cmp"
	"encoding/binary"
	"errors"
	"time"

	"github.com/postbridge/postbridge/bridge/event"
)

// Destination names a JetStream stream or a Kafka topic that copies of events go to.
type Destination string

// The destinations.
const (
	Orders      Destination = "orders"      // every understood event
	Rejects     Destination = "rejects"     // a second copy of each event with status rejected
	Deadletters Destination = "deadletters" // not understood, no order update, or refused by the bus for good
)

// Delivery is one event to publish: the encoded event, and its subject, key and headers on the bus. A spool record
// holds one.
type Delivery struct {
	// Spool is the id of the event's spool and Sequence its sequence there: they identify this acceptance. They are not
	// part of the record; the spool knows them.
	Spool    string
	Sequence uint64
	// Redelivered reports that an earlier run may have published this event; false guarantees that none did.
	Redelivered bool

	// Members of the event, for subjects, keys and headers.
	ID, Broker, UserID, OrderID string
	Status                      event.Status
	ReceivedAt                  time.Time
	// TraceParent is the W3C trace context of the postback.
	TraceParent string

	// Deadletter is true for a postback that was not understood or is no order update, and for an event that the bus
	// refused.
	Deadletter bool

	// Data is the event: one line of JSON.
	Data []byte
	// Type is the CloudEvents type; empty means event.TypeOrder. A record keeps no other type than event.TypeOther.
	Type string
}

// AsDeadletter returns the event as a dead letter, after the bus refused it for good.
func (d *Delivery) AsDeadletter() *Delivery {
	dead := *d
	dead.Deadletter = true
	return &dead
}

// Destinations returns the destinations of the event's copies.
func (d *Delivery) Destinations() []Destination {
	switch {
	case d.Deadletter:
		return []Destination{Deadletters}
	case d.Status == event.StatusRejected:
		return []Destination{Orders, Rejects}
	default:
		return []Destination{Orders}
	}
}

// Key returns the event's key: <broker>.<user_id>.<order_id>, escaped. Events of one key are published in order. Dead
// letters have no order; their key is <broker>.<event id>.
func (d *Delivery) Key() string {
	if d.Deadletter {
		return d.Broker + "." + d.ID
	}
	return event.Key(d.Broker, d.UserID, d.OrderID)
}

// Subject returns the event's NATS subject in a destination, without prefix.
func (d *Delivery) Subject(dest Destination) string {
	if dest == Deadletters {
		return string(dest) + "." + d.Broker
	}
	return string(dest) + "." + d.Key()
}

// MsgID identifies this acceptance of the event, so that a retry is stored once and a state that returns is stored
// again.
func (d *Delivery) MsgID() string {
	b := append(make([]byte, 0, 64), d.Spool...)
	return string(d.appendSequence(append(b, '.')))
}

// SequenceText returns the sequence with 20 digits, so that it sorts as text.
func (d *Delivery) SequenceText() string { return string(d.appendSequence(make([]byte, 0, 20))) }

func (d *Delivery) appendSequence(b []byte) []byte {
	var digits [20]byte // as many as the greatest has
	n := d.Sequence
	for i := len(digits) - 1; i >= 0; i-- {
		digits[i] = '0' + byte(n%10)
		n /= 10
	}
	return append(b, digits[:]...)
}

// Attributes returns the CloudEvents 1.0 attributes of the event, without the prefix of a binding. It leaves out
// datacontenttype, which each binding spells its own way, and traceparent, which has no prefix.
func (d *Delivery) Attributes() [9][2]string {
	b := make([]byte, 0, 128)
	b = append(append(b, "/postbridge/"...), d.Broker...)
	source := len(b)
	b = appendTime(b, d.ReceivedAt)
	received := len(b)
	b = append(append(append(b, d.UserID...), '/'), d.OrderID...)
	subject := len(b)
	all := string(d.appendSequence(b)) // one allocation for the four of them
	return [9][2]string{
		{"id", d.ID},
		{"source", all[:source]},
		{"specversion", "1.0"},
		{"type", cmp.Or(d.Type, event.TypeOrder)},
		{"time", all[source:received]},
		{"subject", all[received:subject]},
		{"orderstatus", string(d.Status)},
		{"spool", d.Spool},
		{"sequence", all[subject:]},
	}
}

// formatTime returns a time in the layout event.TimeFormat.
func formatTime(t time.Time) string {
	return string(appendTime(make([]byte, 0, len(event.TimeFormat)), t))
}

// appendTime appends a time in the layout event.TimeFormat. time.Format parses a layout each time, except those of RFC
// 3339, whose fraction has no zeros at its end.
func appendTime(b []byte, t time.Time) []byte {
	start := len(b)
	b = t.UTC().AppendFormat(b, time.RFC3339Nano)
	b = b[:len(b)-len("Z")]
	if len(b)-start == len("2006-01-02T15:04:05") {
		b = append(b, '.')
	}
	for len(b)-start < len(event.TimeFormat)-len("Z") {
		b = append(b, '0')
	}
	return append(b, 'Z')
}

// ContentType is the media type of Data.
const ContentType = "application/json"

// recordVersion is the first byte of a record. This build reads no other version.
const recordVersion = 1

// recordOther is the status in the record of an event of event.TypeOther, a dead letter to a release before that
// type.
const recordOther = "other"

// appendHead appends the head of a spool record to b: version, flags, received (Unix nanoseconds, little endian), then
// the texts, each after its length as a uvarint. The event follows to the end of the record.
func (d *Delivery) appendHead(b []byte) []byte {
	var flags byte
	if d.Deadletter {
		flags = 1
	}
	status := string(d.Status)
	if d.Type == event.TypeOther {
		status = recordOther
	}
	b = append(b, recordVersion, flags)
	b = binary.LittleEndian.AppendUint64(b, uint64(d.ReceivedAt.UnixNano()))
	for _, s := range [...]string{d.TraceParent, d.ID, d.Broker, d.UserID, d.OrderID, status} {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	return b
}

var errRecord = errors.New("the record has a version that this postbridge does not read, or is damaged")

// ParseRecord decodes a spool record. Data shares the bytes of b, which must not change any more.
func ParseRecord(b []byte) (*Delivery, error) {
	if len(b) < 10 || b[0] != recordVersion || b[1] > 1 {
		return nil, errRecord
	}
	d := &Delivery{
		Deadletter: b[1] == 1,
		ReceivedAt: time.Unix(0, int64(binary.LittleEndian.Uint64(b[2:]))),
	}
	texts := [...]*string{&d.TraceParent, &d.ID, &d.Broker, &d.UserID, &d.OrderID, (*string)(&d.Status)}
	var from, to [len(texts)]int
	end := 10
	for i := range texts {
		n, w := binary.Uvarint(b[end:])
		if w <= 0 || n > uint64(len(b)-end-w) {
			return nil, errRecord
		}
		from[i] = end + w
		to[i] = from[i] + int(n)
		end = to[i]
	}
	all := string(b[:end]) // one allocation for all of them
	for i, s := range texts {
		*s = all[from[i]:to[i]]
	}
	if d.Deadletter && d.Status == recordOther {
		d.Type, d.Status = event.TypeOther, event.StatusUnknown
	}
	d.Data = b[end:]
	return d, nil
}

// MaxEventSize returns the maximum size in bytes of the message that a postback of so many bytes becomes on a bus,
// headers included. Each byte of the body becomes six at most: a control character of a text is escaped as \u0000; a
// byte of JSON that is not UTF-8 is three bytes in raw, and three in the field of its member. Base64 needs less. The
// limit of headers is 64 KiB on NATS.
func MaxEventSize(body int64) int64 { return 6*body + 128<<10 }
