package body

import (
	"errors"

	"github.com/postbridge/postbridge/bridge/event"
)

// What every order has.
var (
	ErrNoOrderID = errors.New("the body has no order id")
	ErrNoStatus  = errors.New("the body has no order status")
)

// Complete returns what an order that was read lacks, if it lacks what every order has.
func Complete(o *event.Order) error {
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
func PartialFill(s event.Status, filled, quantity event.Quantity) event.Status {
	switch s {
	case event.StatusPending, event.StatusOpen, event.StatusTriggerPending:
		f, _ := filled.Get()
		if q, _ := quantity.Get(); 0 < f && f < q {
			return event.StatusPartiallyFilled
		}
	}
	return s
}
