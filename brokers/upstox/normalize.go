package upstox

import (
	"cmp"
	"errors"
	"strings"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/brokers/body"
)

var errUpdateType = errors.New("the body has an unknown update_type")

// Normalize returns the order in a body. Member names match exactly; the last of several equal names counts. A GTT
// order (a rule for future orders), a position and a holding are bridge.NotAnOrder. Other errors are that of
// body.Complete and errUpdateType.
func (*Broker) Normalize(members []event.Member) (event.Order, error) {
	o := read(members)
	switch o.kind {
	case "order":
	case "gtt_order", "position", "holding":
		return event.Order{}, bridge.NotAnOrder(o.kind)
	default:
		return event.Order{}, errUpdateType
	}
	if err := body.Complete(&o.Order); err != nil {
		return event.Order{}, err
	}
	return o.Order, nil
}

// order collects the members of a body.
type order struct {
	event.Order
	kind  string // order, gtt_order, position or holding; empty if the update_type is none of them
	times body.TimeReader

	// Values of alternative member names, used if the first name has no value.
	userID, oldUserID, oldSymbol, oldInstrument string
}

// read collects the members and derives the fields that depend on more than one.
func read(members []event.Member) (o order) {
	o.kind = "order" // bodies of 2023 have no update_type
	for _, m := range members {
		o.member(m.Name, body.Value(m.Value))
	}
	o.derive()
	return o
}

// derive sets the fields that depend on more than one member.
func (o *order) derive() {
	o.UserID = cmp.Or(o.UserID, o.userID, o.oldUserID)
	o.Symbol = cmp.Or(o.Symbol, o.oldSymbol)
	o.InstrumentID = cmp.Or(o.InstrumentID, o.oldInstrument)
	o.Product = product(o.Product, o.Exchange)
	o.UpdatedTime = cmp.Or(o.ExchangeTime, o.OrderTime)
	o.Status = body.PartialFill(status(o.BrokerStatus), o.FilledQuantity, o.Quantity)
}

// member sets the field for one member, by the sample in https://upstox.com/developer/api-documentation/webhook. The
// user is placed_by, which the order book has too; user_id and userId are in postbacks only.
func (o *order) member(name string, v body.Value) {
	switch name {
	case "update_type":
		o.kind = kind(v)
	case "placed_by":
		o.UserID = v.Text()
	case "user_id":
		o.userID = v.Text()
	case "userId": // deprecated
		o.oldUserID = v.Text()
	case "order_id":
		o.OrderID = v.Text()
	case "exchange_order_id":
		o.ExchangeOrderID = v.Text()
	case "parent_order_id":
		o.ParentOrderID = v.Text()
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
	case "trading_symbol":
		o.Symbol = v.Text()
	case "tradingsymbol": // deprecated
		o.oldSymbol = v.Text()
	case "instrument_key":
		o.InstrumentID = v.Text()
	case "instrument_token": // deprecated
		o.oldInstrument = v.Text()
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
	case "exchange_timestamp": // "when the order was placed or updated"
		o.ExchangeTime = o.times.Time(v)
	}
}

// State excludes no member: none is known to differ between two postbacks of one state. No capture of a postback is
// public, so nothing is known of guid, order_ref_id and order_request_id either.
func (*Broker) State(m event.Member) string {
	v := body.Value(m.Value)
	switch m.Name {
	case "status":
		return v.StateWord()
	case "quantity", "filled_quantity", "pending_quantity", "disclosed_quantity", "price", "trigger_price",
		"average_price":
		return v.StateNumber()
	case "order_timestamp", "exchange_timestamp":
		return v.StateTime()
	default:
		return v.State()
	}
}

// kind maps the update_type to order, gtt_order, position or holding, and to "" if it is none of them. Without a value
// the update is an order.
func kind(updateType body.Value) string {
	var buf [32]byte
	switch string(body.Fold(buf[:0], updateType.Literal())) {
	case "order":
		return "order"
	case "gtt order":
		return "gtt_order"
	case "position":
		return "position"
	case "holding":
		return "holding"
	}
	if updateType.State() == "" {
		return "order"
	}
	return ""
}

// status maps the 17 words of https://upstox.com/developer/api-documentation/appendix/order-status. None of them means
// partially filled or expired.
func status(word string) event.Status {
	var buf [64]byte
	switch string(body.Fold(buf[:0], word)) {
	case "put order req received", "validation pending", "open pending", "after market order req received",
		"modify after market order req received": // the order waits for the market to open
		return event.StatusPending
	case "open", "modified",
		"not modified", "not cancelled": // the exchange refused the request; the order is unchanged
		return event.StatusOpen
	case "trigger pending":
		return event.StatusTriggerPending
	case "modify pending", "modify validation pending":
		return event.StatusPendingReplace
	case "cancel pending":
		return event.StatusPendingCancel
	case "complete":
		return event.StatusFilled
	case "cancelled", "cancelled after market order":
		return event.StatusCancelled
	case "rejected":
		return event.StatusRejected
	default:
		return event.StatusUnknown
	}
}

// product maps Upstox's product to the names that Kite uses. D (delivery) is also the product of derivatives that are
// carried overnight.
func product(word, exchange string) string {
	switch {
	case word == "i":
		return "mis"
	case word != "d" || exchange == "":
		return word
	case exchange == "NSE" || exchange == "BSE":
		return "cnc"
	default:
		return "nrml"
	}
}
