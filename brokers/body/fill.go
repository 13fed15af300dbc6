package body

import "github.com/postbridge/postbridge/bridge"

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
