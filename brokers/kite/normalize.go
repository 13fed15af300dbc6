package kite

import (
	"cmp"
	"strings"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/brokers/body"
)

// Normalize reads the order. Names are matched exactly; of a name that is repeated the last counts, as an official
// sample repeats status_message.
func (*Broker) Normalize(p *bridge.Postback) (bridge.Order, error) {
	var o order
	if err := body.Scan(p, o.member); err != nil {
		return bridge.Order{}, err
	}
	if err := body.Complete(&o.Order); err != nil {
		return bridge.Order{}, err
	}
	o.settle()
	return o.Order, nil
}

// order is an order while its body is read.
type order struct {
	bridge.Order
	read      body.Reader
	accountID string
}

// settle fills in what depends on more than one member.
func (o *order) settle() {
	o.Unread = o.read.Unread
	o.UserID = cmp.Or(o.UserID, o.accountID)
	o.UpdatedTime = cmp.Or(o.UpdatedTime, o.OrderTime)
	o.Status = body.PartialFill(status(o.BrokerStatus), o.FilledQuantity, o.Quantity)
}

// member is the field table of https://kite.trade/docs/connect/v3/postbacks. unfilled_quantity is not in it: captures
// have 0 there while the whole quantity is pending.
func (o *order) member(name string, v body.Value) {
	switch name {
	case "user_id":
		o.UserID = v.Text()
	case "account_id": // the same order in the order book and on the ticker's socket has this name for it
		o.accountID = v.Text()
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
		o.Exchange = strings.ToUpper(v.Word())
	case "tradingsymbol":
		o.Symbol = v.Text()
	case "instrument_token":
		o.InstrumentID = v.Text()
	case "transaction_type":
		o.Side = v.Word()
	case "order_type":
		o.OrderType = orderType(v.Word())
	case "product":
		o.Product = v.Word()
	case "validity":
		o.Validity = v.Word()
	case "variety":
		o.Variety = v.Word()
	case "quantity":
		o.Quantity = o.read.Quantity(v)
	case "filled_quantity":
		o.FilledQuantity = o.read.Quantity(v)
	case "cancelled_quantity":
		o.CancelledQuantity = o.read.Quantity(v)
	case "pending_quantity":
		o.PendingQuantity = v.Quantity()
	case "disclosed_quantity":
		o.DisclosedQuantity = v.Quantity()
	case "price":
		o.Price = o.read.Decimal(v)
	case "trigger_price":
		o.TriggerPrice = o.read.Decimal(v)
	case "average_price":
		o.AveragePrice = o.read.Decimal(v)
	case "order_timestamp":
		o.OrderTime = o.read.StateTime(v)
	case "exchange_timestamp":
		o.ExchangeTime = o.read.Time(v)
	case "exchange_update_timestamp":
		o.UpdatedTime = o.read.StateTime(v)
	}
}

// status reads Kite's word. The documentation of the order history lists most of them and says that there are others.
func status(word string) bridge.Status {
	switch strings.ToLower(strings.TrimSpace(word)) {
	case "put order req received", "validation pending", "open pending", "amo req received":
		return bridge.StatusPending
	case "open", "update", "modified": // UPDATE, in postbacks only: an open order was modified or filled in part
		return bridge.StatusOpen
	case "trigger pending":
		return bridge.StatusTriggerPending
	case "modify validation pending", "modify pending":
		return bridge.StatusPendingReplace
	case "cancel pending":
		return bridge.StatusPendingCancel
	case "complete":
		return bridge.StatusFilled
	case "cancel", "cancelled": // the postback page says CANCEL, captures and the SDKs say CANCELLED
		return bridge.StatusCancelled
	case "rejected":
		return bridge.StatusRejected
	default:
		return bridge.StatusUnknown
	}
}

func orderType(word string) string {
	switch word {
	case "sl":
		return "stop_limit"
	case "sl-m":
		return "stop_market"
	default:
		return word
	}
}
