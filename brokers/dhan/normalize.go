package dhan

import (
	"cmp"
	"strings"

	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/brokers/body"
)

// Normalize returns the order in a body. Member names match without regard to case, because the documentation and the
// postbacks differ in it; the last of several equal names counts. The error is that of body.Complete.
func (*Broker) Normalize(members []event.Member) (event.Order, error) {
	o := read(members)
	if err := body.Complete(&o.Order); err != nil {
		return event.Order{}, err
	}
	return o.Order, nil
}

// order collects the members of a body.
type order struct {
	event.Order
	times body.TimeReader

	// Values of alternative member names, used if the first name has no value.
	misspelledCode          string
	camelCaseFilled         event.Quantity
	averagePrice, lastPrice string
}

// read collects the members and derives the fields that depend on more than one.
func read(members []event.Member) (o order) {
	for _, m := range members {
		o.member(m.Name, body.Value(m.Value))
	}
	o.derive()
	return o
}

// derive sets the fields that depend on more than one member.
func (o *order) derive() {
	o.ReasonCode = cmp.Or(o.ReasonCode, o.misspelledCode)
	o.FilledQuantity = cmp.Or(o.FilledQuantity, o.camelCaseFilled)
	o.Status = body.PartialFill(status(o.BrokerStatus), o.FilledQuantity, o.Quantity)
	o.AveragePrice = o.fillPrice()
}

// fillPrice returns the first average price that has a value. Dhan's order book has been seen with 0.0 for a traded
// order and the price in another member, so for an order with fills the first price other than 0 is preferred.
func (o *order) fillPrice() string {
	filled, _ := o.FilledQuantity.Get()
	if filled > 0 || o.Status == event.StatusFilled || o.Status == event.StatusPartiallyFilled {
		for _, price := range [...]string{o.AveragePrice, o.averagePrice, o.lastPrice} {
			if strings.Trim(price, "-0.") != "" {
				return price
			}
		}
	}
	return cmp.Or(o.AveragePrice, o.averagePrice, o.lastPrice)
}

// member sets the field for one member, by the field table of https://dhanhq.co/docs/v2/postback and the names of the
// order API.
func (o *order) member(name string, v body.Value) {
	var buf [32]byte
	switch string(body.Lower(buf[:0], name)) {
	case "dhanclientid":
		o.UserID = v.Text()
	case "orderid":
		o.OrderID = v.Text()
	case "exchangeorderid":
		o.ExchangeOrderID = v.Text()
	case "legname":
		o.Leg = v.Word()
	case "correlationid":
		o.ClientOrderID = v.Text()
	case "orderstatus":
		o.BrokerStatus = v.Text()
	case "omserrorcode":
		o.ReasonCode = v.Text()
	case "omserroecode": // misspelled in the documentation
		o.misspelledCode = v.Text()
	case "omserrordescription":
		o.Reason = v.Text()
	case "exchangesegment":
		o.Exchange = exchange(v)
	case "tradingsymbol":
		o.Symbol = v.Text()
	case "securityid":
		o.InstrumentID = v.Text()
	case "transactiontype":
		o.Side = v.Word()
	case "ordertype":
		o.OrderType = orderType(v)
	case "producttype":
		o.Product = product(v)
	case "validity":
		o.Validity = v.Word()
	case "quantity":
		o.Quantity = v.Quantity()
	case "filled_qty": // the documented name, in an object that is otherwise in camel case
		o.FilledQuantity = v.Quantity()
	case "filledqty":
		o.camelCaseFilled = v.Quantity()
	case "remainingquantity":
		o.PendingQuantity = v.Quantity()
	case "disclosedquantity":
		o.DisclosedQuantity = v.Quantity()
	case "price":
		o.Price = v.Decimal()
	case "triggerprice":
		o.TriggerPrice = v.Decimal()
	case "averagetradedprice":
		o.AveragePrice = v.Decimal()
	case "averageprice":
		o.averagePrice = v.Decimal()
	case "tradedprice":
		o.lastPrice = v.Decimal()
	case "createtime":
		o.OrderTime = o.times.Time(v)
	case "exchangetime":
		o.ExchangeTime = o.times.Time(v)
	case "updatetime":
		o.UpdatedTime = o.times.Time(v)
	}
}

// State excludes no member: none is known to differ between two postbacks of one state.
func (*Broker) State(m event.Member) string {
	v := body.Value(m.Value)
	var buf [32]byte
	switch string(body.Lower(buf[:0], m.Name)) {
	case "orderstatus":
		return v.StateWord()
	case "quantity", "disclosedquantity", "filled_qty", "filledqty", "remainingquantity", "price", "triggerprice",
		"averagetradedprice", "averageprice", "tradedprice", "boprofitvalue", "bostoplossvalue", "drvstrikeprice":
		return v.StateNumber()
	case "createtime", "updatetime", "exchangetime":
		return v.StateTime()
	default:
		return v.State()
	}
}

// status maps Dhan's status word. PART_TRADED is documented for the order API only, CONFIRM and TRIGGERED for other
// interfaces of Dhan. CLOSED, the word for a super order whose entry and exit are placed, is not the state of one order
// and stays unknown.
func status(word string) event.Status {
	var buf [32]byte
	switch string(body.Fold(buf[:0], word)) {
	case "transit":
		return event.StatusPending
	case "pending", "confirm", "triggered": // TRIGGERED: a leg of a super order was sent to the exchange
		return event.StatusOpen
	case "part traded":
		return event.StatusPartiallyFilled
	case "traded":
		return event.StatusFilled
	case "cancelled":
		return event.StatusCancelled
	case "rejected":
		return event.StatusRejected
	case "expired":
		return event.StatusExpired
	default:
		return event.StatusUnknown
	}
}

// exchange maps Dhan's exchange segment to the exchange names that Kite uses.
func exchange(v body.Value) string {
	var buf [32]byte
	switch string(body.Fold(buf[:0], v.Text())) {
	case "nse eq":
		return "NSE"
	case "bse eq":
		return "BSE"
	case "nse fno":
		return "NFO"
	case "bse fno":
		return "BFO"
	case "nse currency":
		return "CDS"
	case "bse currency":
		return "BCD"
	case "mcx comm":
		return "MCX"
	default:
		return strings.ToUpper(strings.TrimSpace(v.Text()))
	}
}

func orderType(v body.Value) string {
	var buf [32]byte
	switch string(body.Fold(buf[:0], v.Text())) {
	case "stop loss":
		return "stop_limit"
	case "stop loss market":
		return "stop_market"
	default:
		return v.Word()
	}
}

func product(v body.Value) string {
	var buf [32]byte
	switch string(body.Fold(buf[:0], v.Text())) {
	case "intraday":
		return "mis"
	case "margin":
		return "nrml"
	default:
		return v.Word()
	}
}
