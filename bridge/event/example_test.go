package event_test

import (
	"encoding/json"
	"fmt"

	"github.com/postbridge/postbridge/bridge/event"
)

// Each message is applied once, whatever comes again, also after a restart from the snapshot.
func ExampleTracker() {
	headers := map[string]string{"ce-type": "postbridge.order.v1", "ce-spool": "ec43e86e", "ce-sequence": "1"}
	partial := `{"id":"1","broker":"kite","user_id":"AB1234","order_id":"7","status":"partially_filled",
		"filled_quantity":40,"average_price":"470.10","updated_time":"2026-01-08T10:00:05+05:30"}`
	complete := `{"id":"2","broker":"kite","user_id":"AB1234","order_id":"7","status":"filled",
		"filled_quantity":100,"average_price":"470.25","updated_time":"2026-01-08T10:00:09+05:30"}`

	var tracker event.Tracker
	for _, data := range []string{partial, complete, partial, complete} {
		m, err := event.Decode([]byte(data), func(name string) string { return headers[name] })
		if err != nil {
			fmt.Println(err)
			return
		}
		change, err := tracker.Apply(&m)
		if err != nil { // end, without an acknowledgement
			fmt.Println(err)
			return
		}
		fmt.Printf("%s is %s: %d filled at %q\n", m.Key(), change.Verdict, change.NewFill, change.FillPrice)

		snapshot, _ := json.Marshal(tracker) // store it before you acknowledge the message
		tracker = event.Tracker{}
		if err := json.Unmarshal(snapshot, &tracker); err != nil {
			fmt.Println(err)
		}
	}
	// Output:
	// kite.AB1234.7 is new: 40 filled at "470.10"
	// kite.AB1234.7 is new: 60 filled at "470.35"
	// kite.AB1234.7 is late: 0 filled at ""
	// kite.AB1234.7 is repeat: 0 filled at ""
}
