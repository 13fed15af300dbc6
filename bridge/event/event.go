// Package event defines the events that postbridge publishes. Each is one state of one order, in the same form for all
// brokers. A consumer in Go decodes the messages of a bus, and applies them to a Tracker, which knows what is new:
//
//	m, err := event.Decode(message.Data(), message.Headers().Get)
//	…
//	if change := tracker.Apply(&m); change.NewFill > 0 {
//
// The package imports the standard library only.
package event

import (
	"encoding/json"
	"strconv"
)

// Status is the normalized state of an order: one of the constants below, the same for all brokers.
type Status string

// The states of an order. StatusUnknown means that the broker's word is not in the table of its adapter, or that the
// postback was not understood at all.
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

// Statuses returns every status, in the sequence of an order's life.
func Statuses() []Status {
	return []Status{
		StatusPending, StatusOpen, StatusTriggerPending, StatusPartiallyFilled, StatusFilled, StatusPendingReplace,
		StatusPendingCancel, StatusCancelled, StatusRejected, StatusExpired, StatusUnknown,
	}
}

// Terminal reports whether an order in this state does not change any more, corrections by the exchange aside.
func (s Status) Terminal() bool {
	switch s {
	case StatusFilled, StatusCancelled, StatusRejected, StatusExpired:
		return true
	}
	return false
}

// Event is one state of one order, as it is published: JSON, UTF-8, one schema for all brokers. A field that is not
// known is left out; null or empty never means anything. The JSON Schema in deploy/event.schema.json is made from
// this type and these comments.
type Event struct {
	// The same state of the same order has the same id, however often it is sent: 32 hex digits, a hash of every member
	// of the body except the few known to differ between two deliveries of one state. Of a postback that was not
	// understood or is no order update: a hash of broker and body. A row of the order book has other members than a
	// postback, and so, as a rule, another id.
	ID string `json:"id"`
	// The stock broker that sent the postback or has the order book: kite, dhan, upstox or fyers.
	Broker string `json:"broker"`

	Order

	// When the postback arrived or the order book was requested: RFC 3339, UTC, nanoseconds.
	ReceivedAt string `json:"received_at"`
	// What proved the origin: checksum, checksum:user_id or token, and +token behind the first two if a token was
	// checked as well. order_book if the event comes from the broker's order book.
	VerifiedBy string `json:"verified_by"`
	// Where the event comes from: postback, or order_book for a row of the broker's order book, which may report an
	// order that was placed elsewhere, such as by hand.
	Source string `json:"source"`
	// What the body is, if it is recognized and is no order update: gtt_order, position or holding (Upstox), probe
	// (Fyers). Such an event has no order; its CloudEvents type is postbridge.other.v1.
	Other string `json:"other,omitzero"`
	// The broker's body or the row of its order book, if it is JSON; bytes that are not UTF-8 as U+FFFD. Personal data
	// that is no part of the order is removed, at any depth: pan, a person's tax number (Fyers). It may contain \u0000
	// and unpaired surrogates (\ud800), as the broker sent them, and any text taken from it may contain \u0000.
	// PostgreSQL's jsonb refuses both; its json and text do not.
	Raw json.RawMessage `json:"raw,omitzero"`
	// The broker's body, if it is text but not JSON, or if only a part of it could be read; without personal data, as
	// in raw.
	RawText string `json:"raw_text,omitzero"`
	// The broker's body in base64, if it is neither JSON nor text, such as one in an encoding that cannot be read;
	// personal data in it is not removed.
	RawBase64 []byte `json:"raw_base64,omitzero"`
}

// Order is what a broker says of one order at one time. The zero value of a field is "not known".
type Order struct {
	// The broker's id of the user (Kite user_id, Dhan dhanClientId, Upstox placed_by, Fyers clientId); for a row of the
	// order book that has none, the user whose order book it is.
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
	// The broker's id of the instrument (Kite instrument_token, Dhan securityId, Upstox instrument_key, Fyers fyToken).
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

// Quantity is a whole number as the broker counts it, in shares or lots, or unknown. The zero value is unknown, which
// is not 0. Quantities are comparable with ==.
type Quantity struct {
	n     int64
	known bool
}

// QuantityOf returns the known quantity n.
func QuantityOf(n int64) Quantity { return Quantity{n, true} }

// Get returns the number and true, or 0 and false if the quantity is unknown.
func (q Quantity) Get() (n int64, known bool) { return q.n, q.known }

// IsZero reports whether the quantity is unknown. The JSON of an event omits such a field.
func (q Quantity) IsZero() bool { return !q.known }

// MarshalJSON returns the number in decimal digits, or null if the quantity is unknown. The error is always nil.
func (q Quantity) MarshalJSON() ([]byte, error) {
	if !q.known {
		return []byte("null"), nil
	}
	return strconv.AppendInt(nil, q.n, 10), nil
}

// UnmarshalJSON reads a whole number; null leaves the quantity as it is. Text, a fraction or a number beyond int64 is
// an error.
func (q *Quantity) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		return nil
	}
	var n int64
	if err := json.Unmarshal(b, &n); err != nil {
		return err
	}
	*q = QuantityOf(n)
	return nil
}

// TimeFormat is the layout of Event.ReceivedAt for time.Format: RFC 3339 with nine digits of a second, so that times
// sort as text. It is correct for times in UTC only.
const TimeFormat = "2006-01-02T15:04:05.000000000Z"

// Values of Event.Source.
const (
	SourcePostback  = "postback"
	SourceOrderBook = "order_book" // also the Event.VerifiedBy of such an event
)

// Understood reports whether the postback was normalized: the event has an order id and a status. Otherwise it has only
// the raw body, with StatusUnknown, and is published to the dead-letter destination; Other is empty if the postback was
// not understood.
func (e *Event) Understood() bool { return e.OrderID != "" }
