package bridge

import (
	"encoding/base64"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
)

// Append appends the event as it is published: one line of JSON. It says what json.Marshal would, by hand because Marshal
// would read the broker's body twice more.
func (e *Event) Append(b []byte) []byte {
	w := objectWriter(append(b, '{'))
	w.text("id", e.ID)
	w.text("broker", e.Broker)
	w.order(&e.Order)
	w.text("received_at", e.ReceivedAt)
	w.text("verified_by", e.VerifiedBy)
	w.text("source", e.Source)
	if e.Raw != nil {
		w.name("raw")
		w = append(w, e.Raw...)
	}
	w.text("raw_text", e.RawText)
	w.text("raw_base64", base64.StdEncoding.EncodeToString(e.RawBase64))
	return append(w, '}')
}

// MaxEventSize is the size of the largest message that a postback of so many bytes can become on a bus, headers
// included. Each byte of the body takes six at most: a control character of a text is escaped as \u0000; a byte of JSON
// that is not UTF-8 is three bytes in raw, and three in the field that its member becomes. Base64 takes less. Headers
// take 64 KiB on NATS.
func MaxEventSize(body int64) int64 { return 6*body + 128<<10 }

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

// objectWriter is the start of a JSON object. What is not known is left out.
type objectWriter []byte

func (w *objectWriter) text(name, value string) {
	if value == "" {
		return
	}
	w.name(name)
	*w, _ = jsontext.AppendQuote(*w, value) // what is not UTF-8 becomes U+FFFD, and the error says only that
}

func (w *objectWriter) quantity(name string, q Quantity) {
	if q.known {
		w.name(name)
		*w = strconv.AppendInt(*w, q.n, 10)
	}
}

// name begins a member. Names need no escapes.
func (w *objectWriter) name(name string) {
	if (*w)[len(*w)-1] != '{' {
		*w = append(*w, ',')
	}
	*w = append(*w, '"')
	*w = append(*w, name...)
	*w = append(*w, '"', ':')
}
