package bridge

import (
	"bytes"
	"encoding/hex"
	"reflect"
	"testing"
	"time"

	"github.com/postbridge/postbridge/bridge/event"
)

func someDelivery() Delivery {
	return Delivery{
		ID: "0123456789abcdef0123456789abcdef", Broker: "kite", UserID: "AB.12", OrderID: "1", Status: event.StatusRejected,
		ReceivedAt: time.Unix(0, 1767866026123456789), TraceParent: "00-1-2-01", Data: []byte(`{"id":"x"}`),
	}
}

func TestRecord(t *testing.T) {
	order := someDelivery()
	dead, other := order, order
	dead.Deadletter = true
	other.Deadletter, other.Type, other.Status = true, event.TypeOther, event.StatusUnknown
	for _, d := range []Delivery{order, dead, other} {
		record := append(d.appendHead([]byte("before")), d.Data...)
		got, err := ParseRecord(record[len("before"):])
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(*got, d) {
			t.Errorf("got %+v, want %+v", *got, d)
		}
	}
}

// TestRecordBytes pins the record: a release has to read what the one before it wrote.
func TestRecordBytes(t *testing.T) {
	d := Delivery{
		ID: "i", Broker: "b", UserID: "u", OrderID: "o", Status: "open", ReceivedAt: time.Unix(0, 1), TraceParent: "t",
		Deadletter: true, Data: []byte("{}"),
	}
	const head = "01" + "01" + "0100000000000000" + "0174" + "0169" + "0162" + "0175" + "016f"
	if got := hex.EncodeToString(append(d.appendHead(nil), d.Data...)); got != head+"046f70656e"+"7b7d" {
		t.Errorf("got %s", got)
	}
	d.Type = event.TypeOther // a dead letter to the release before
	if got := hex.EncodeToString(append(d.appendHead(nil), d.Data...)); got != head+"056f74686572"+"7b7d" {
		t.Errorf("got %s", got)
	}
}

// TestRecordTorn cuts a record before its event: it is an error at every byte.
func TestRecordTorn(t *testing.T) {
	d := someDelivery()
	record := append(d.appendHead(nil), d.Data...)
	for n := range len(record) - len(d.Data) {
		if got, err := ParseRecord(record[:n]); err == nil {
			t.Errorf("%d bytes became %+v", n, got)
		}
	}
	for _, at := range []int{0, 1} { // another version, unknown flags
		other := bytes.Clone(record)
		other[at] = 9
		if _, err := ParseRecord(other); err == nil {
			t.Errorf("9 at byte %d was read", at)
		}
	}
	if _, err := ParseRecord(append(bytes.Repeat([]byte{1}, 2), bytes.Repeat([]byte{0xff}, 30)...)); err == nil {
		t.Error("a length without end was read")
	}
}

func TestAddresses(t *testing.T) {
	d := someDelivery()
	d.Spool, d.Sequence = "0a1b2c3d", 42
	for _, v := range []struct{ what, got, want string }{
		{"key", d.Key(), "kite.AB%2E12.1"},
		{"subject", d.Subject(Orders), "orders.kite.AB%2E12.1"},
		{"subject of a reject", d.Subject(Rejects), "rejects.kite.AB%2E12.1"},
		{"subject of a dead letter", d.Subject(Deadletters), "deadletters.kite"},
		{"message id", d.MsgID(), "0a1b2c3d.00000000000000000042"},
		{"key of a dead letter", d.AsDeadletter().Key(), "kite.0123456789abcdef0123456789abcdef"},
	} {
		if v.got != v.want {
			t.Errorf("%s: got %s, want %s", v.what, v.got, v.want)
		}
	}
	if d.Deadletter {
		t.Error("AsDeadletter changed the delivery it was made from")
	}
}

// TestTimes is that a time is the same text as that of time.Format, whatever its fraction and zone are.
func TestTimes(t *testing.T) {
	ist := time.FixedZone("", 5*3600+1800)
	for _, nanos := range []int64{0, 1, 999_999_999, 120_000_000, 1000, 500_000_000, 123_456_789, 100} {
		for _, at := range []time.Time{time.Unix(1700000000, nanos), time.Unix(0, nanos).In(ist), time.Unix(-1e10, nanos)} {
			d := Delivery{ReceivedAt: at}
			if got, want := d.Attributes()[4][1], at.UTC().Format(event.TimeFormat); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		}
	}
}

func TestDestinations(t *testing.T) {
	for _, v := range []struct {
		d    Delivery
		want []Destination
	}{
		{Delivery{Status: event.StatusOpen}, []Destination{Orders}},
		{Delivery{Status: event.StatusUnknown}, []Destination{Orders}},
		{Delivery{Status: event.StatusRejected}, []Destination{Orders, Rejects}},
		{Delivery{Status: event.StatusRejected, Deadletter: true}, []Destination{Deadletters}},
	} {
		if got := v.d.Destinations(); !reflect.DeepEqual(got, v.want) {
			t.Errorf("%+v goes to %v, want %v", v.d, got, v.want)
		}
	}
}
