package bridge_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
)

// probed is a broker that recognizes an empty body.
type probed struct{ bridge.Broker }

func (p probed) Normalize(members []event.Member) (event.Order, error) {
	if len(members) == 0 {
		return event.Order{}, bridge.NotAnOrder("probe")
	}
	return p.Broker.Normalize(members)
}

// TestNotAnOrder posts bodies that are recognized and are no order updates. Each is published to the dead letters with
// its own type, even if it equals the one before it, and counted as other and as stored. One that the bus refuses for
// good is quarantined.
func TestNotAnOrder(t *testing.T) {
	f, log := newFakeBus(t), new(logBuffer)
	o := testOptions(t, log)
	o.Brokers = []bridge.Broker{probed{testBrokers()[1]}}
	o.Buses = []bridge.Bus{f.bus()}
	r := start(t, o, log)
	f.setRule(func(d *bridge.Delivery) verdict {
		if d.Sequence == 4 {
			return reject
		}
		return store
	})
	for _, body := range []string{"", "", "not JSON", " ", official(t, "dhan")} {
		r.mustPost("/dhan?token="+dhanToken, body)
	}
	r.bus("all done", func(b busStatus) bool {
		return b.Stored == 3 && b.Deadlettered == 1 && b.Quarantined == 1 && b.Committed == 5
	})
	if _, body := r.get("/status"); !strings.Contains(body, `"other": 3`) || !strings.Contains(body, `"accepted": 2`) {
		t.Errorf("the counts are %s", body)
	}
	if _, body := r.get("/metrics"); !strings.Contains(body, `postbridge_postbacks_total{broker="dhan",fate="other"} 3`) {
		t.Errorf("the metrics are %s", body)
	}
	for _, d := range f.stored {
		isOther := d.Sequence <= 2
		var e event.Event
		if err := json.Unmarshal(d.Data, &e); err != nil {
			t.Fatal(err)
		}
		attributes := make(map[string]string)
		for _, a := range d.Attributes() {
			attributes[a[0]] = a[1]
		}
		if (e.Other == "probe") != isOther || (attributes["type"] == event.TypeOther) != isOther ||
			isOther && (d.Subject(d.Destinations()[0]) != "deadletters.dhan" || d.Key() != "dhan."+e.ID) {
			t.Errorf("%d is published to %v as %v %s", d.Sequence, d.Destinations(), attributes, d.Data)
		}
	}
}
