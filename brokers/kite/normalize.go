package kite

import (
	"cmp"
	"strings"

	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/brokers/body"
)

// Normalize returns the order in a body. Member names match exactly. The last of several equal names counts: an
// official sample repeats status_message. The error is that of body.Complete.
func (*Broker) Normalize(members []event.Member) (event.Order, error) {
	var o order
	for _, m := range members {
		o.member(m.Name, body.Value(m.Value))
	}
	if err := body.Complete(&o.Order); err != nil {
		return event.Order{}, err
	}
	o.derive()
	return o.Order, nil
}

// order collects the members of a body.
type order struct {
	event.Order
	times     body.TimeReader
	accountID string
}

// derive sets the fields that depend on more than one member.
func (o *order) derive() {
	o.UserID = cmp.Or(o.UserID, o.accountID)
	o.UpdatedTime = cmp.Or(o.UpdatedTime, o.OrderTime)
	o.Status = body.PartialFill(status(o.BrokerStatus), o.FilledQuantity, o.Quantity)
}

// member sets the field for one member, by the field table of https://kite.trade/docs/connect/v3/postbacks.
// unfilled_quantity is not read: captures have 0 there while the whole quantity is pending.
func (o *order) member(name string, v body.Value) {
	switch name {
	case "user_id":
		o.UserID = v.Text()
	case "account_id": // the name in the order book and on the WebSocket ticker
		o.accountID = v.Text()
	case "order_id":
		o.OrderID = v.Text()
	case "exchange_order_id":
		o.ExchangeOrderID = v.Text()
	case "parent_order_id":
		o.ParentOrderID = v.Text()
	case "meta":
		o.Leg = v.Member("iceberg").Member("leg").Word()
	case "status":
		o.BrokerStatus = v.Text()
	case "status_message":
		o.Reason = v.Text()
	case "status_message_raw":
		o.ReasonRaw = v.Text()
	case "tag":
		o.Tag = v.Text()
	case "exchange":
		o.Exchange = strings.ToUpper(strings.TrimSpace(v.Text()))
	case "tradingsymbol":
		o.Symbol = v.Text()
	case "instrument_token":
		o.InstrumentID = v.Text()
	case "transaction_type":
		o.Side = v.Word()
	case "order_type":
		o.OrderType = v.OrderType()
	case "product":
		o.Product = v.Word()
	case "validity":
		o.Validity = v.Word()
	case "variety":
		o.Variety = v.Word()
	case "quantity":
		o.Quantity = v.Quantity()
	case "filled_quantity":
		o.FilledQuantity = v.Quantity()
	case "cancelled_quantity":
		o.CancelledQuantity = v.Quantity()
	case "pending_quantity":
		o.PendingQuantity = v.Quantity()
	case "disclosed_quantity":
		o.DisclosedQuantity = v.Quantity()
	case "price":
		o.Price = v.Decimal()
	case "trigger_price":
		o.TriggerPrice = v.Decimal()
	case "average_price":
		o.AveragePrice = v.Decimal()
	case "order_timestamp":
		o.OrderTime = o.times.Time(v)
	case "exchange_timestamp":
		o.ExchangeTime = o.times.Time(v)
	case "exchange_update_timestamp":
		o.UpdatedTime = o.times.Time(v)
	}
}

// State excludes the members that are known to differ between two postbacks of one state. The evidence is a capture of
// one order that was placed, modified and cancelled (testdata/genuine/series-2026-*): frames 1 and 2 report one state,
// and so do 4 and 5.
func (*Broker) State(m event.Member) string {
	v := body.Value(m.Value)
	switch m.Name {
	case "guid", // differs in frames 1 and 2, and in 4 and 5; documented as the id of a request
		"checksum",          // a hash of the order id, the time and a secret: no information of its own
		"pending_quantity",  // 1 in frame 4 and 0 in frame 5, of an order of which 1 is cancelled in both
		"unfilled_quantity": // 0 in all frames, and in another capture while 900 are pending; missing in older ones
		return ""
	case "status":
		return statusState(v)
	case "quantity", "disclosed_quantity", "filled_quantity", "cancelled_quantity", "price", "trigger_price",
		"average_price":
		return v.StateNumber()
	case "order_timestamp", "exchange_timestamp", "exchange_update_timestamp":
		return v.StateTime()
	default:
		return v.State()
	}
}

// statusState returns the State of a status. Kite sends UPDATE and then OPEN for one change (frames 1 and 2), and its
// documentation has CANCEL where captures have CANCELLED.
func statusState(v body.Value) string {
	switch word := v.StateWord(); word {
	case "update":
		return "open"
	case "cancel":
		return "cancelled"
	default:
		return word
	}
}

// status maps Kite's status word. The documentation of the order history lists most words and says that others exist.
func status(word string) event.Status {
	var buf [32]byte
	switch string(body.Fold(buf[:0], word)) {
	case "put order req received", "put order request received", "validation pending", "open pending",
		"amo req received", "modify amo req received":
		return event.StatusPending
	case "open", "update", "modified", // UPDATE, in postbacks only: an open order was modified or filled in part
		"not modified", "not cancelled": // the exchange refused the request; the order is unchanged
		return event.StatusOpen
	case "trigger pending":
		return event.StatusTriggerPending
	case "modify validation pending", "modify pending":
		return event.StatusPendingReplace
	case "cancel pending", "cancel amo req received":
		return event.StatusPendingCancel
	case "complete":
		return event.StatusFilled
	case "cancel", "cancelled", "cancelled amo": // CANCEL in the postback page, CANCELLED in captures and SDKs
		return event.StatusCancelled
	case "rejected":
		return event.StatusRejected
	default:
		return event.StatusUnknown
	}
}
