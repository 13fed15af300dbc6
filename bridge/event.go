package bridge

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Status is the state of an order in postbridge's words, the same for all brokers.
type Status string

// The states of an order. StatusUnknown is a word of the broker's that is not in the table of its adapter, or a
// postback that was not understood at all.
const (
	StatusPending         Status = "pending"
	StatusOpen            Status = "open"
	StatusTriggerPending  Status = "trigger_pending"
	StatusPartiallyFilled Status = "partially_filled"
	StatusFilled          Status = "filled"
	StatusPendingReplace  Status = "pending_replace"
	StatusPendingCancel   Status = "pending_cancel"
	StatusCancelled       Status = "cancelled"
	StatusRejected        Status = "rejected"
	StatusExpired         Status = "expired"
	StatusUnknown         Status = "unknown"
)

// Statuses returns every status, in the order of an order's life.
func Statuses() []Status {
	return []Status{
		StatusPending, StatusOpen, StatusTriggerPending, StatusPartiallyFilled, StatusFilled, StatusPendingReplace,
		StatusPendingCancel, StatusCancelled, StatusRejected, StatusExpired, StatusUnknown,
	}
}

// Event is one state of one order, as it is published: JSON, UTF-8, one schema for all brokers. A field that is not
// known is left out; null or empty never means anything. The JSON Schema in deploy/event.schema.json is made from
// this type and these comments.
type Event struct {
	// The same state of the same order has the same id, however often it is sent: 32 hex digits, a hash of every member
	// of the body except the few known to differ between two deliveries of one state. Of a postback that was not
	// understood: a hash of broker and body.
	ID string `json:"id"`
	// The stock broker that sent the postback: kite or dhan.
	Broker string `json:"broker"`

	Order

	// When the postback arrived: RFC 3339, UTC, nanoseconds.
	ReceivedAt string `json:"received_at"`
	// What proved the origin: checksum, checksum:user_id or token, and +token behind the first two if a token was checked as well.
	VerifiedBy string `json:"verified_by"`
	// Where the event comes from: postback.
	Source string `json:"source"`
	// The broker's body, if it is JSON; bytes that are not UTF-8 as U+FFFD. It may contain \u0000 and unpaired
	// surrogates (\ud800), as the broker sent them, and any text taken from it may contain \u0000. PostgreSQL's jsonb
	// refuses both; its json and text do not.
	Raw jsontext.Value `json:"raw,omitzero"`
	// The broker's body, if it is text but not JSON.
	RawText string `json:"raw_text,omitzero"`
	// The broker's body in base64, if it is neither JSON nor text.
	RawBase64 []byte `json:"raw_base64,omitzero"`
}

// Order is what a broker says of one order at one time. The zero value of a field is "not known".
type Order struct {
	// The broker's id of the user (Kite user_id, Dhan dhanClientId).
	UserID string `json:"user_id,omitzero"`
	// The broker's id of the order.
	OrderID string `json:"order_id,omitzero"`
	// The state of the order, the same words for all brokers.
	Status Status `json:"status"`
	// The broker's own word for the state.
	BrokerStatus string `json:"broker_status,omitzero"`
	// Why the order was rejected or cancelled.
	Reason string `json:"reason,omitzero"`
	// The broker's code for the reason.
	ReasonCode string `json:"reason_code,omitzero"`
	// The reason as the broker's order management system wrote it.
	ReasonRaw string `json:"reason_raw,omitzero"`
	// The exchange's id of the order.
	ExchangeOrderID string `json:"exchange_order_id,omitzero"`
	// The order that this one is a leg or a slice of.
	ParentOrderID string `json:"parent_order_id,omitzero"`
	// The leg of a multi-leg order, in lower case: entry_leg, target_leg or stop_loss_leg (Dhan legName), or the number
	// of the leg of an iceberg order (Kite).
	Leg string `json:"leg,omitzero"`
	// The id that the client gave when it placed the order (Dhan correlationId).
	ClientOrderID string `json:"client_order_id,omitzero"`
	// The tag that the client gave when it placed the order.
	Tag string `json:"tag,omitzero"`
	// NSE, BSE, NFO, BFO, CDS, BCD, MCX, or the broker's own word.
	Exchange string `json:"exchange,omitzero"`
	// The trading symbol.
	Symbol string `json:"symbol,omitzero"`
	// The broker's id of the instrument (Kite instrument_token, Dhan securityId).
	InstrumentID string `json:"instrument_id,omitzero"`
	// The side: buy or sell.
	Side string `json:"side,omitzero"`
	// market, limit, stop_limit, stop_market, or the broker's own word in lower case.
	OrderType string `json:"order_type,omitzero"`
	// cnc, mis, nrml, mtf, or the broker's own word in lower case.
	Product string `json:"product,omitzero"`
	// How long the order stands: the broker's word in lower case (day, ioc, ttl).
	Validity string `json:"validity,omitzero"`
	// The kind of order: the broker's word in lower case (regular, amo, co, iceberg, auction).
	Variety string `json:"variety,omitzero"`
	// The quantity ordered, as the broker counts (MCX: may be lots).
	Quantity Quantity `json:"quantity,omitzero"`
	// The quantity filled so far.
	FilledQuantity Quantity `json:"filled_quantity,omitzero"`
	// The quantity cancelled.
	CancelledQuantity Quantity `json:"cancelled_quantity,omitzero"`
	// The quantity still open.
	PendingQuantity Quantity `json:"pending_quantity,omitzero"`
	// The quantity shown in the market.
	DisclosedQuantity Quantity `json:"disclosed_quantity,omitzero"`
	// The limit price: decimal text with the broker's own digits.
	Price string `json:"price,omitzero"`
	// The trigger price: decimal text with the broker's own digits.
	TriggerPrice string `json:"trigger_price,omitzero"`
	// The average price of what is filled: decimal text with the broker's own digits. 0 is not a price of a fill: the
	// broker gave none.
	AveragePrice string `json:"average_price,omitzero"`
	// When the order was placed, as the broker says: RFC 3339 with zone.
	OrderTime string `json:"order_time,omitzero"`
	// When the exchange took the order: RFC 3339 with zone.
	ExchangeTime string `json:"exchange_time,omitzero"`
	// When the order last changed: RFC 3339 with zone.
	UpdatedTime string `json:"updated_time,omitzero"`
}

// Quantity is a whole number as the broker counts it. The zero value is not known, which is not 0.
type Quantity struct {
	n     int64
	known bool
}

// QuantityOf returns the known quantity n.
func QuantityOf(n int64) Quantity { return Quantity{n, true} }

// Get returns the number, 0 if it is not known, and whether it is.
func (q Quantity) Get() (n int64, known bool) { return q.n, q.known }

// IsZero reports that the quantity is not known; such a field is left out of the JSON.
func (q Quantity) IsZero() bool { return !q.known }

// MarshalJSONTo writes the number.
func (q Quantity) MarshalJSONTo(enc *jsontext.Encoder) error {
	return enc.WriteToken(jsontext.Int(q.n))
}

// UnmarshalJSONFrom reads a number.
func (q *Quantity) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	q.known = true
	return json.UnmarshalDecode(dec, &q.n)
}

// eventID hashes what the members of the body say of the order's state, in the order of their names.
func eventID(b Broker, p *Postback) string {
	members, err := p.Members()
	if err != nil {
		return bodyID(b.Name(), p.Body)
	}
	var buf [1536]byte
	text := appendField(buf[:0], b.Name())
	for order := p.byName(); len(order) > 0; {
		n := 1
		for n < len(order) && sameName(members[order[0]].Name, members[order[n]].Name) {
			n++
		}
		text = appendState(text, b, members, order[:n])
		order = order[n:]
	}
	return hashText(text)
}

// appendState appends what the members of one name say; usually there is one. If none says anything, nothing is
// appended. Which of several counts depends on their order, so all are appended in it, but for one that only repeats
// the one before.
func appendState(text []byte, b Broker, members []Member, of []int) []byte {
	start, last, said := len(text), len(text), false
	for _, i := range of {
		m, at := members[i], len(text)
		text = appendField(text, m.Name)
		state := b.State(m)
		if state != "" {
			said = true
			text = append(text, kind(m.Value))
		}
		text = appendField(text, state)
		if bytes.Equal(text[last:at], text[at:]) {
			text = text[:at]
			continue
		}
		last = at
	}
	if !said {
		return text[:start]
	}
	return text
}

// kind tells apart what has the same text: true from "true", and an object from a string that contains it. Numbers and
// strings are one kind, because brokers send one value as either.
func kind(value string) byte {
	if k := jsontext.Value(value).Kind(); k != jsontext.KindNumber {
		return byte(k)
	}
	return byte(jsontext.KindString)
}

// bodyID hashes broker and body, for a postback that was not understood.
func bodyID(broker string, body []byte) string {
	return hashText(append(appendField(nil, broker), body...))
}

func hashText(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

func appendField(b []byte, s string) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// timeFormat is RFC 3339 with all nine digits, so that times sort as text. It is for times in UTC.
const timeFormat = "2006-01-02T15:04:05.000000000Z"

// SourcePostback is the source of an event that a broker's postback brought.
const SourcePostback = "postback"

// NewEvent is the way of a postback up to the spool: verify, then normalize. An error is the broker's *Refusal. A
// postback that proved its origin but cannot be understood becomes an event too, with status unknown and no order id;
// see Understood.
func NewEvent(b Broker, p *Postback, received time.Time) (*Event, error) {
	how, err := b.Verify(p)
	if err != nil {
		return nil, err
	}
	e := &Event{
		Broker:     b.Name(),
		ReceivedAt: received.UTC().Format(timeFormat),
		VerifiedBy: how,
		Source:     SourcePostback,
	}
	e.setRaw(p)
	order, err := b.Normalize(p)
	if err != nil {
		e.Status = StatusUnknown
		e.ID = bodyID(e.Broker, p.Body)
		return e, nil
	}
	e.Order = order
	e.ID = eventID(b, p)
	return e, nil
}

// Understood reports whether the event says anything of an order. One that does not goes to the dead letters.
func (e *Event) Understood() bool { return e.OrderID != "" }

// setRaw keeps the broker's body in the event, in the form that loses least: JSON as it is but on one line, text as
// text, anything else as bytes.
func (e *Event) setRaw(p *Postback) {
	_, err := p.Members()
	switch {
	case !errors.Is(err, ErrNotJSON) && !tooDeep(p.Body):
		e.Raw = oneLine(replaceInvalidUTF8(p.Body))
	case utf8.Valid(p.Body):
		e.RawText = string(p.Body)
	default:
		e.RawBase64 = p.Body
	}
}

// tooDeep reports whether a body may be nested so deeply that it could not be read any more inside of the event: JSON
// readers stop at 10,000 levels or much earlier. No broker nests at all.
func tooDeep(body []byte) bool {
	return bytes.Count(body, []byte("["))+bytes.Count(body, []byte("{")) > 1000
}

// oneLine is JSON without line breaks, so that an event is a line whatever it came from.
func oneLine(v jsontext.Value) jsontext.Value {
	if bytes.ContainsAny(v, "\r\n") {
		v = v.Clone()
		_ = v.Compact(laxJSON, jsontext.PreserveRawStrings(true)) // it was read before, so it is JSON
	}
	return v
}

// laxJSON takes what brokers really send: repeated keys (an official sample has one) and bytes that are not UTF-8.
var laxJSON = json.JoinOptions(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)) //nolint:gochecknoglobals // a constant

// replaceInvalidUTF8 puts U+FFFD in place of each byte that is not UTF-8, as the readers of strings do.
func replaceInvalidUTF8(b []byte) []byte {
	if utf8.Valid(b) {
		return b
	}
	return []byte(string([]rune(string(b))))
}
