package event

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// The CloudEvents types of events.
const (
	TypeOrder = "postbridge.order.v1" // of an order, and of a dead letter
	TypeOther = "postbridge.other.v1" // of a recognized postback that is no order update; in deadletters only
)

// ErrSchema is the error of Decode for an event of a schema that this version of the package does not know.
var ErrSchema = errors.New("unknown schema of an event; update github.com/postbridge/postbridge")

// Message is an event as a bus delivers it.
type Message struct {
	Event
	// Spool and Sequence are the headers ce-spool and ce-sequence: where the event comes from, and its number there.
	// Events of one spool are numbered in the order in which they were received.
	Spool    string
	Sequence uint64
}

// Decode decodes the payload of a NATS message or Kafka record. The function header returns the value of a header, or ""
// if there is none: the method Get of nats.Header is such a function. On Kafka, names have _ in place of -; Decode asks
// for both. The error wraps ErrSchema if the event is of a newer schema; a consumer must stop then, not skip it.
func Decode(data []byte, header func(name string) string) (Message, error) {
	get := func(name string) string { return cmp.Or(header("ce-"+name), header("ce_"+name)) }
	if t := get("type"); t != "" && t != TypeOrder && t != TypeOther {
		return Message{}, fmt.Errorf("%w: it is of type %q, want %q", ErrSchema, t, TypeOrder)
	}
	m := Message{Spool: get("spool")}
	if err := json.Unmarshal(data, &m.Event); err != nil {
		return Message{}, fmt.Errorf("the message is not an event of postbridge: %w", err)
	}
	if m.ID == "" || m.Broker == "" || m.Status == "" {
		return Message{}, errors.New("the message is not an event of postbridge: it has no id, broker or status")
	}
	m.Sequence, _ = strconv.ParseUint(get("sequence"), 10, 64)
	return m, nil
}

// Key returns the key of the order, which is the Kafka key of its events and the NATS subject behind the destination.
func (e *Event) Key() string { return Key(e.Broker, e.UserID, e.OrderID) }

// Key returns the key of an order: <broker>.<user_id>.<order_id>, escaped. Events of one key are published in order.
func Key(broker, userID, orderID string) string {
	return broker + "." + EscapeToken(userID) + "." + EscapeToken(orderID)
}

// StateKey returns the key of the order's State: Key and, of an order of Dhan with legs, which share its id, the leg.
func (e *Event) StateKey() string {
	if strings.HasSuffix(e.Leg, "_leg") {
		return e.Key() + "." + EscapeToken(e.Leg)
	}
	return e.Key()
}

// maxToken is the longest token of a subject, in bytes; a longer one is hashed.
const maxToken = 64

// EscapeToken escapes an id of any content as one token of a NATS subject or Kafka key: letters, digits, _ and - stay,
// every other byte becomes % and two hex digits; an empty id becomes _, and one that would be longer than 64 bytes the
// SHA-256 of the id in hex.
func EscapeToken(id string) string {
	if id == "" {
		return "_"
	}
	n := 0
	for n < len(id) && plain(id[n]) {
		n++
	}
	if n == len(id) && n <= maxToken {
		return id // as nearly all ids: no copy
	}
	const digits = "0123456789ABCDEF"
	escaped := make([]byte, 0, maxToken+3)
	for i := 0; i < len(id) && len(escaped) <= maxToken; i++ {
		if c := id[i]; plain(c) {
			escaped = append(escaped, c)
		} else {
			escaped = append(escaped, '%', digits[c>>4], digits[c&15])
		}
	}
	if len(escaped) > maxToken {
		sum := sha256.Sum256([]byte(id))
		return hex.EncodeToString(sum[:])
	}
	return string(escaped)
}

func plain(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c == '_' || c == '-'
}
