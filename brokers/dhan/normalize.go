package dhan

import (
	"cmp"
	"strings"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/brokers/body"
)

// Normalize reads the order. Names are matched without regard to case: Dhan's documentation and what it sends differ in
// it. Of names that are then the same the last counts.
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
	read body.Reader

	// Other spellings of one thing, used where the first has no value.
	misspelledCode          string
	camelCaseFilled         bridge.Quantity
	averagePrice, lastPrice string
}

// settle fills in what depends on more than one member.
func (o *order) settle() {
	o.Unread = o.read.Unread
	o.ReasonCode = cmp.Or(o.ReasonCode, o.misspelledCode)
	o.FilledQuantity = cmp.Or(o.FilledQuantity, o.camelCaseFilled)
	o.AveragePrice = cmp.Or(o.AveragePrice, o.averagePrice, o.lastPrice)
	o.Status = body.PartialFill(status(o.BrokerStatus), o.FilledQuantity, o.Quantity)
}

// member is the field table of https://dhanhq.co/docs/v2/postback, and what the order API calls the rest.
func (o *order) member(name string, v body.Value) {
	var buf [32]byte
	switch string(lower(buf[:0], name)) {
	case "dhanclientid":
		o.UserID = v.Text()
	case "orderid":
		o.OrderID = v.Text()
	case "exchangeorderid":
		o.ExchangeOrderID = v.Text()
	case "correlationid":
		o.ClientOrderID = v.Text()
	case "orderstatus":
		o.BrokerStatus = v.Text()
	case "omserrorcode":
		o.ReasonCode = v.Text()
	case "omserroecode": // so in the field table of the documentation
		o.misspelledCode = v.Text()
	case "omserrordescription":
		o.Reason = v.Text()
	case "exchangesegment":
		o.Exchange = exchange(v.Word())
	case "tradingsymbol":
		o.Symbol = v.Text()
	case "securityid":
		o.InstrumentID = v.Text()
	case "transactiontype":
		o.Side = v.Word()
	case "ordertype":
		o.OrderType = orderType(v.Word())
	case "producttype":
		o.Product = product(v.Word())
	case "validity":
		o.Validity = v.Word()
	case "quantity":
		o.Quantity = o.read.Quantity(v)
	case "filled_qty": // the documented name, in an object that is otherwise in camel case
		o.FilledQuantity = o.read.Quantity(v)
	case "filledqty":
		o.camelCaseFilled = o.read.Quantity(v)
	case "remainingquantity":
		o.PendingQuantity = v.Quantity()
	case "disclosedquantity":
		o.DisclosedQuantity = v.Quantity()
	case "price":
		o.Price = o.read.Decimal(v)
	case "triggerprice":
		o.TriggerPrice = o.read.Decimal(v)
	case "averagetradedprice":
		o.AveragePrice = o.read.Decimal(v)
	case "averageprice":
		o.averagePrice = o.read.Decimal(v)
	case "tradedprice":
		o.lastPrice = o.read.Decimal(v)
	case "createtime":
		o.OrderTime = o.read.Time(v)
	case "exchangetime":
		o.ExchangeTime = o.read.Time(v)
	case "updatetime":
		o.UpdatedTime = o.read.StateTime(v)
	}
}

// lower appends the name with its ASCII letters in lower case: strings.ToLower would cost an allocation per member.
func lower(dst []byte, name string) []byte {
	for i := range len(name) {
		c := name[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		dst = append(dst, c)
	}
	return dst
}

// status reads Dhan's word. PART_TRADED is documented for the order API only.
func status(word string) bridge.Status {
	switch strings.ToLower(strings.TrimSpace(word)) {
	case "transit":
		return bridge.StatusPending
	case "pending":
		return bridge.StatusOpen
	case "part_traded":
		return bridge.StatusPartiallyFilled
	case "traded":
		return bridge.StatusFilled
	case "cancelled":
		return bridge.StatusCancelled
	case "rejected":
		return bridge.StatusRejected
	case "expired":
		return bridge.StatusExpired
	default:
		return bridge.StatusUnknown
	}
}

// exchange reads Dhan's exchange segment, as Kite writes it.
func exchange(word string) string {
	switch word {
	case "nse_eq":
		return "NSE"
	case "bse_eq":
		return "BSE"
	case "nse_fno":
		return "NFO"
	case "bse_fno":
		return "BFO"
	case "nse_currency":
		return "CDS"
	case "bse_currency":
		return "BCD"
	case "mcx_comm":
		return "MCX"
	default:
		return strings.ToUpper(word)
	}
}

func orderType(word string) string {
	switch word {
	case "stop_loss":
		return "stop_limit"
	case "stop_loss_market":
		return "stop_market"
	default:
		return word
	}
}

func product(word string) string {
	switch word {
	case "intraday":
		return "mis"
	case "margin":
		return "nrml"
	default:
		return word
	}
}
