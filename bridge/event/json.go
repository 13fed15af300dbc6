package event

import (
	"encoding/base64"
	"strconv"
	"unicode/utf8"
)

// Append appends the event to b as it is published: one JSON object in UTF-8 on one line, without a line break at its
// end. Bytes of a text that are not UTF-8 become U+FFFD; Raw is copied and must be valid JSON without line breaks. The
// result means the same as that of json.Marshal, which would parse the broker's body twice more.
func (e *Event) Append(b []byte) []byte {
	w := objectWriter(append(b, '{'))
	w.text("id", e.ID)
	w.text("broker", e.Broker)
	w.order(&e.Order)
	w.text("received_at", e.ReceivedAt)
	w.text("verified_by", e.VerifiedBy)
	w.text("source", e.Source)
	w.text("other", e.Other)
	if e.Raw != nil {
		w.name("raw")
		w = append(w, e.Raw...)
	}
	w.text("raw_text", e.RawText)
	w.text("raw_base64", base64.StdEncoding.EncodeToString(e.RawBase64))
	return append(w, '}')
}

func (w *objectWriter) order(o *Order) {
	w.text("user_id", o.UserID)
	w.text("order_id", o.OrderID)
	w.text("status", string(o.Status))
	w.text("broker_status", o.BrokerStatus)
	w.text("reason", o.Reason)
	w.text("reason_code", o.ReasonCode)
	w.text("reason_raw", o.ReasonRaw)
	w.text("exchange_order_id", o.ExchangeOrderID)
	w.text("parent_order_id", o.ParentOrderID)
	w.text("leg", o.Leg)
	w.text("client_order_id", o.ClientOrderID)
	w.text("tag", o.Tag)
	w.text("exchange", o.Exchange)
	w.text("symbol", o.Symbol)
	w.text("instrument_id", o.InstrumentID)
	w.text("side", o.Side)
	w.text("order_type", o.OrderType)
	w.text("product", o.Product)
	w.text("validity", o.Validity)
	w.text("variety", o.Variety)
	w.quantity("quantity", o.Quantity)
	w.quantity("filled_quantity", o.FilledQuantity)
	w.quantity("cancelled_quantity", o.CancelledQuantity)
	w.quantity("pending_quantity", o.PendingQuantity)
	w.quantity("disclosed_quantity", o.DisclosedQuantity)
	w.text("price", o.Price)
	w.text("trigger_price", o.TriggerPrice)
	w.text("average_price", o.AveragePrice)
	w.text("order_time", o.OrderTime)
	w.text("exchange_time", o.ExchangeTime)
	w.text("updated_time", o.UpdatedTime)
}

// objectWriter is a JSON object that is not closed yet. Unknown values are omitted.
type objectWriter []byte

func (w *objectWriter) text(name, value string) {
	if value == "" {
		return
	}
	w.name(name)
	*w = appendQuote(*w, value)
}

func (w *objectWriter) quantity(name string, q Quantity) {
	if q.known {
		w.name(name)
		*w = strconv.AppendInt(*w, q.n, 10)
	}
}

// name begins a member. The name must need no escapes.
func (w *objectWriter) name(name string) {
	if (*w)[len(*w)-1] != '{' {
		*w = append(*w, ',')
	}
	*w = append(*w, '"')
	*w = append(*w, name...)
	*w = append(*w, '"', ':')
}

// appendQuote appends s as a JSON string, byte for byte like jsontext.AppendQuote: it escapes only what JSON requires,
// and each byte that is not UTF-8 becomes U+FFFD. encoding/json has no such function.
func appendQuote(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	start := 0 // of the part of s that is not appended yet
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c < utf8.RuneSelf && c != '"' && c != '\\' {
			i++
			continue
		}
		if _, size := utf8.DecodeRuneInString(s[i:]); size > 1 {
			i += size
			continue
		}
		b = append(b, s[start:i]...)
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\b':
			b = append(b, '\\', 'b')
		case '\f':
			b = append(b, '\\', 'f')
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			if c < utf8.RuneSelf {
				b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&0xf])
			} else {
				b = append(b, "\uFFFD"...)
			}
		}
		i++
		start = i
	}
	return append(append(b, s[start:]...), '"')
}
