package body

import (
	"errors"

	"github.com/postbridge/postbridge/bridge/event"
)

// Errors of Complete.
var (
	ErrNoOrderID = errors.New("the body has no order id")
	ErrNoStatus  = errors.New("the body has no order status")
)

// Complete returns ErrNoOrderID or ErrNoStatus if the order lacks that field, and else nil.
func Complete(o *event.Order) error {
	switch {
	case o.OrderID == "":
		return ErrNoOrderID
	case o.BrokerStatus == "":
		return ErrNoStatus
	}
	return nil
}

// PartialFill returns partially_filled in place of an open status if a part of the quantity is filled: no broker sends
// a status word of its own for that in a postback.
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
