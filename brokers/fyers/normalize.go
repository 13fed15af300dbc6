package fyers

import (
	"cmp"
	"strconv"
	"strings"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/brokers/body"
)

// Normalize returns the order in a body. Member names match without regard to case, because the documentation has
// fyToken and fytoken; the last of several equal names counts. A body without members is a probe of the URL, and
// bridge.NotAnOrder. Other errors are that of body.Complete.
func (*Broker) Normalize(members []event.Member) (event.Order, error) {
	if len(members) == 0 {
		return event.Order{}, bridge.NotAnOrder("probe")
	}
	o := read(members)
	if err := body.Complete(&o.Order); err != nil {
		return event.Order{}, err
	}
	return o.Order, nil
}

// order collects the members of a body.
type order struct {
	event.Order
	status       int64 // Fyers' number; 0 if there is none
	market       market
	disclosedQty event.Quantity // the other spelling of discloseQty
	message      string
}

// market holds Fyers' numbers of an exchange and a segment.
type market struct{ exchange, segment int64 }

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
	o.DisclosedQuantity = cmp.Or(o.DisclosedQuantity, o.disclosedQty)
	o.Status = o.normalizedStatus()
	o.Exchange = o.exchangeName()
	o.UpdatedTime = o.OrderTime
	switch o.Status {
	case event.StatusRejected, event.StatusCancelled, event.StatusExpired, event.StatusUnknown:
		o.Reason = o.message // that of a traded order is Completed
	}
}

// member sets the field for one member, by the sample and the field table of the documentation, and by the names that
// the order book and the WebSocket add.
func (o *order) member(name string, v body.Value) {
	var buf [32]byte
	switch string(body.Lower(buf[:0], name)) {
	case "clientid":
		o.UserID = v.Text()
	case "id":
		o.OrderID = v.Text()
	case "exchordid":
		o.ExchangeOrderID = v.Text()
	case "parentid":
		o.ParentOrderID = v.Text()
	case "ordertag":
		o.Tag = tag(v.Text())
	case "status":
		o.BrokerStatus, o.status = v.Text(), number(v)
	case "message":
		o.message = v.Text()
	case "exchange":
		o.Exchange, o.market.exchange = strings.ToUpper(strings.TrimSpace(v.Text())), number(v)
	case "segment":
		o.market.segment = number(v)
	case "symbol":
		o.Symbol = v.Text()
	case "fytoken":
		o.InstrumentID = v.Text()
	case "side":
		o.Side = side(v)
	case "type":
		o.OrderType = orderType(v)
	case "producttype":
		o.Product = product(v)
	case "ordervalidity":
		o.Validity = v.Word()
	case "qty":
		o.Quantity = v.Quantity()
	case "filledqty":
		o.FilledQuantity = v.Quantity()
	case "remainingquantity":
		o.PendingQuantity = v.Quantity()
	case "discloseqty":
		o.DisclosedQuantity = v.Quantity()
	case "disclosedqty":
		o.disclosedQty = v.Quantity()
	case "limitprice":
		o.Price = v.Decimal()
	case "stopprice":
		o.TriggerPrice = v.Decimal()
	case "tradedprice":
		o.AveragePrice = v.Decimal()
	case "orderdatetime":
		o.OrderTime = timeOf(v).Time()
	}
}

// number returns an enumerated value, which Fyers sends as a number; 0, which no enumeration has, if it is not one.
func number(v body.Value) int64 {
	n, _ := v.Quantity().Get()
	return n
}

// timeOf returns the value of a time in a form that package body parses. The sample has 18-Jul-2023 11:44:29; the field
// table has seconds since 1970, which become RFC 3339.
func timeOf(v body.Value) body.Value {
	seconds := number(v)
	if seconds < 1e9 || seconds >= 1e10 { // 2001 to 2286
		return v
	}
	return body.Value(strconv.Quote(time.Unix(seconds, 0).UTC().Format(time.RFC3339)))
}

// State excludes pan, a person's tax number: the id is a hash of all members, and the event has the others, so the
// number could be guessed. It excludes ch, chp and lp, the last price of the instrument and its change, which rows of
// the order book have. No other member is known to differ between two postbacks of one state.
func (*Broker) State(m event.Member) string {
	v := body.Value(m.Value)
	var buf [32]byte
	switch string(body.Lower(buf[:0], m.Name)) {
	case "pan", "ch", "chp", "lp":
		return ""
	case "qty", "filledqty", "remainingquantity", "discloseqty", "disclosedqty", "dqqtyrem", "limitprice", "stopprice",
		"tradedprice", "takeprofit", "stoploss":
		return v.StateNumber()
	case "orderdatetime":
		return timeOf(v).StateTime()
	default:
		return v.State()
	}
}

// normalizedStatus maps Fyers' number. The documentation calls 3 not used. As far as is known, a stop order that waits
// for its trigger is a 6, too. Whether a 2 may have a remainder is not documented, so the quantities decide.
func (o *order) normalizedStatus() event.Status {
	switch o.status {
	case 1:
		return event.StatusCancelled
	case 2:
		if s := body.PartialFill(event.StatusOpen, o.FilledQuantity, o.Quantity); s == event.StatusPartiallyFilled {
			return s
		}
		return event.StatusFilled
	case 4: // in transit to the exchange
		return body.PartialFill(event.StatusPending, o.FilledQuantity, o.Quantity)
	case 5:
		return event.StatusRejected
	case 6: // pending
		return body.PartialFill(event.StatusOpen, o.FilledQuantity, o.Quantity)
	case 7:
		return event.StatusExpired
	default:
		return event.StatusUnknown
	}
}

// exchangeName maps Fyers' exchange and segment to the exchange names that Kite uses. For an unknown pair it returns
// the prefix of the symbol (NSE:), or else Fyers' own value.
func (o *order) exchangeName() string {
	switch o.market {
	case market{10, 10}:
		return "NSE"
	case market{10, 11}:
		return "NFO"
	case market{10, 12}:
		return "CDS"
	case market{11, 20}:
		return "MCX"
	case market{12, 10}:
		return "BSE"
	case market{12, 11}:
		return "BFO"
	case market{12, 12}:
		return "BCD"
	}
	if prefix, _, ok := strings.Cut(o.Symbol, ":"); ok {
		return strings.ToUpper(strings.TrimSpace(prefix))
	}
	return o.Exchange
}

func side(v body.Value) string {
	switch number(v) {
	case 1:
		return "buy"
	case -1:
		return "sell"
	default:
		return v.Word()
	}
}

func orderType(v body.Value) string {
	switch number(v) {
	case 1:
		return "limit"
	case 2:
		return "market"
	case 3:
		return "stop_market"
	case 4:
		return "stop_limit"
	default:
		return v.Word()
	}
}

func product(v body.Value) string {
	switch word := v.Word(); word {
	case "intraday":
		return "mis"
	case "margin":
		return "nrml"
	default:
		return word
	}
}

// tag returns the client's tag without Fyers' prefix 1:, and "" for Fyers' own tag, which has the prefix 2:, as in
// 2:Untagged.
func tag(text string) string {
	if strings.HasPrefix(text, "2:") {
		return ""
	}
	return strings.TrimPrefix(text, "1:")
}
