package body

import (
	"errors"

	"github.com/postbridge/postbridge/bridge"
)

// What every order has.
var (
	ErrNoOrderID = errors.New("the body has no order id")
	ErrNoStatus  = errors.New("the body has no order status")
)

// Scan calls member for each member of the object that the body is, in order, repeated names included. Its error is
// that of Postback.Members.
func Scan(p *bridge.Postback, member func(name string, v Value)) error {
	members, err := p.Members()
	for _, m := range members {
		member(m.Name, Value(m.Value))
	}
	return err
}

// Complete returns what an order that was read lacks, if it lacks what every order has.
func Complete(o *bridge.Order) error {
	switch {
	case o.OrderID == "":
		return ErrNoOrderID
	case o.BrokerStatus == "":
		return ErrNoStatus
	}
	return nil
}

// PartialFill is the status of an order of which that much is filled: no broker has a word of its own in the postback
// for an order that stands and is filled in part.
func PartialFill(s bridge.Status, filled, quantity bridge.Quantity) bridge.Status {
	switch s {
	case bridge.StatusPending, bridge.StatusOpen, bridge.StatusTriggerPending:
		f, _ := filled.Get()
		if q, _ := quantity.Get(); 0 < f && f < q {
			return bridge.StatusPartiallyFilled
		}
	}
	return s
}
