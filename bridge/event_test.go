package bridge

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// stubBroker answers as it is told.
type stubBroker struct {
	refusal      *Refusal
	order        Order
	normalizeErr error
}

func (stubBroker) Name() string { return "stub" }

func (b stubBroker) Verify(*Postback) (string, error) {
	if b.refusal != nil {
		return "", b.refusal
	}
	return "token", nil
}

func (b stubBroker) Normalize(*Postback) (Order, error) { return b.order, b.normalizeErr }

// State takes every value as it stands, but for null, and leaves out the member skip.
func (stubBroker) State(m Member) string {
	switch {
	case m.Name == "skip" || m.Value == "null":
		return ""
	case m.Value[0] == '"':
		return Unquote(m.Value)
	}
	return m.Value
}

func eventAt() time.Time {
	return time.Date(2026, 1, 8, 15, 23, 46, 120, time.FixedZone("IST", 19800))
}

func TestNewEvent(t *testing.T) {
	order := Order{OrderID: "1", UserID: "U", Status: StatusOpen, BrokerStatus: "OPEN", Quantity: QuantityOf(0)}
	e, err := NewEvent(stubBroker{order: order}, &Postback{Body: []byte("{ \"a\" : 1.50,\"a\":2 }")}, eventAt())
	if err != nil {
		t.Fatal(err)
	}
	if !e.Understood() {
		t.Error("an order was not understood")
	}
	got := e.Append(nil)
	want := `{"id":"` + e.ID + `","broker":"stub","user_id":"U","order_id":"1","status":"open","broker_status":"OPEN",` +
		`"quantity":0,"received_at":"2026-01-08T09:53:46.000000120Z","verified_by":"token","source":"postback",` +
		`"raw":{ "a" : 1.50,"a":2 }}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestNewEventRefused(t *testing.T) {
	refusal := &Refusal{Status: http.StatusForbidden, Reason: "checksum", Detail: "no"}
	e, err := NewEvent(stubBroker{refusal: refusal}, &Postback{}, eventAt())
	if e != nil || !errors.Is(err, error(refusal)) {
		t.Errorf("got %v, %v", e, err)
	}
}

// TestNewEventNotUnderstood keeps what proved its origin and cannot be read, and nothing that was half read.
func TestNewEventNotUnderstood(t *testing.T) {
	b := stubBroker{order: Order{OrderID: "half read"}, normalizeErr: errors.New("no order")}
	e, err := NewEvent(b, &Postback{Body: []byte("x")}, eventAt())
	if err != nil {
		t.Fatal(err)
	}
	if e.Understood() || e.Status != StatusUnknown || e.ID != bodyID("stub", []byte("x")) || e.RawText != "x" {
		t.Errorf("got %+v", e)
	}
}

func TestRaw(t *testing.T) {
	for _, v := range []struct{ name, body, want string }{
		{"JSON", `{"a":[1, 2.0]}`, `"raw":{"a":[1, 2.0]}`},
		{"JSON on two lines", "{\"a\":\r\n[1, 2.0]}", `"raw":{"a":[1,2.0]}`},
		{"JSON nested too deeply", strings.Repeat("[", 2000) + strings.Repeat("]", 2000),
			`"raw_text":"` + strings.Repeat("[", 2000) + strings.Repeat("]", 2000) + `"`},
		{"escapes as sent", `{"a":"\u0041\/"}`, `"raw":{"a":"\u0041\/"}`},
		{"what jsonb refuses, as sent", `{"a":"\u0000\ud800"}`, `"raw":{"a":"\u0000\ud800"}`},
		{"JSON, not UTF-8", "{\"a\":\"\xff\"}", "\"raw\":{\"a\":\"\uFFFD\"}"},
		{"JSON null", `null`, `"raw":null`},
		{"text", "a\n\"b", `"raw_text":"a\n\"b"`},
		{"bytes", "\xff\x00", `"raw_base64":"/wA="`},
	} {
		t.Run(v.name, func(t *testing.T) {
			e, err := NewEvent(stubBroker{normalizeErr: errors.New("no order")}, &Postback{Body: []byte(v.body)}, eventAt())
			if err != nil {
				t.Fatal(err)
			}
			got := e.Append(nil)
			if !bytes.HasSuffix(got, []byte(`"source":"postback",`+v.want+`}`)) {
				t.Errorf("got %s, want it to end with %s", got, v.want)
			}
		})
	}
}

// TestEncode holds that Encode says what json.Marshal would, for each field alone and all together.
func TestEncode(t *testing.T) {
	check := func(e *Event) {
		t.Helper()
		want, err := json.Marshal(e, laxJSON, jsontext.PreserveRawStrings(true))
		if err != nil {
			t.Fatal(err)
		}
		if got := e.Append(nil); string(got) != string(want) {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	full := &Event{ID: "i", Broker: "b", Order: Order{Status: "s"}, ReceivedAt: "r", VerifiedBy: "v", Source: "s"}
	check(full)
	for _, of := range []reflect.Value{reflect.ValueOf(full).Elem(), reflect.ValueOf(&full.Order).Elem()} {
		for i := range of.NumField() {
			switch f := of.Field(i); f.Interface().(type) {
			case Quantity:
				f.Set(reflect.ValueOf(QuantityOf(int64(-i))))
			case jsontext.Value:
				f.SetBytes([]byte(`{"a":"\u0041"}`))
			case []byte:
				f.SetBytes([]byte("\xff\x00"))
			case Order:
			default:
				f.SetString(fmt.Sprintf("<%d> \"\\ \n\xff é \u2028", i))
			}
			check(full)
		}
	}
}

// TestEventID compares bodies in groups: those of one group are one state, and those of two are not.
func TestEventID(t *testing.T) {
	seen := make(map[string]string)
	for _, same := range [][]string{
		{`{}`, `{"a":""}`, `{"skip":1}`, `{"skip":2}`, `{"a":null}`, `{"a":null,"a":""}`, `{"skip":1,"skip":2}`,
			` {"b" : null, "a" : null} `},
		{`{"a":1,"b":2}`, `{"b":2,"a":1}`, `{ "b" : 2,"skip":0, "c":null, "\u0061":1 }`},
		{`{"a":2,"b":1}`}, {`{"a":1}`, `{"a":"1"}`}, {`{"A":1}`}, {`{"a":"b"}`}, {`{"ab":"c"}`}, {`{"a":"bc"}`},
		// The last of a repeated name counts, so their order does, too, and so does one that says nothing.
		{`{"a":1,"a":2}`, `{"b":null,"a":1,"a":2}`, `{"a":1,"a":2,"a":2}`}, {`{"a":2,"a":1}`}, {`{"a":1,"a":2,"a":1}`},
		{`{"a":2}`, `{"a":2,"b":null}`, `{"a":2,"a":2}`, `{"a":2,"a":"2"}`}, {`{"a":2,"a":null}`, `{"a":2,"a":""}`},
		{`{"a":null,"a":2}`},
		{`{"a":1,"A":2}`, `{"z":null,"a":1,"A":2}`}, {`{"A":2,"a":1}`}, {`{"a":1,"A":null}`},
		// One text, but not one value.
		{`{"a":true}`}, {`{"a":"true"}`}, {`{"a":{"b":1}}`}, {`{"a":"{\"b\":1}"}`}, {`{"a":[1]}`}, {`{"a":"[1]"}`},
		// A name and a value that contain what could be taken for the end of a field.
		{`{"a\u0001\u0000\u0000\u0000":1}`}, {`{"a":"1\u0001\u0000\u0000\u0000b\"\u0001\u0000\u0000\u00002"}`},
		{`{"a":1,"b":22}`},
		{`order=1`}, {`order=2`},
	} {
		var ids []string
		for _, body := range same {
			p := new(Postback)
			for _, before := range []string{"", body, `{"x":1,"a":2,"b":3}`, `{"b":1,"a":2}`} { // a postback is used again
				p.Reset("", "", []byte(before))
				_ = eventID(stubBroker{}, p)
				p.Reset("", "", []byte(body))
				ids = append(ids, eventID(stubBroker{}, p))
			}
		}
		for _, id := range ids {
			if id != ids[0] || len(id) != 32 {
				t.Errorf("%v have several ids: %v", same, ids)
				break
			}
		}
		if other, ok := seen[ids[0]]; ok {
			t.Errorf("%s has the id of %s", same[0], other)
		}
		seen[ids[0]] = same[0]
	}
	p := &Postback{Body: []byte(`{"a":1}`)}
	if eventID(stubBroker{}, p) == eventID(renamed{}, p) {
		t.Error("the id does not depend on the broker")
	}
}

type renamed struct{ stubBroker }

func (renamed) Name() string { return "renamed" }

// TestEventIDManyMembers has as many members as fit in a body, in the worst order: their number must not cost more
// than a sort of them.
func TestEventIDManyMembers(t *testing.T) {
	const n = 20_000
	var up, down []string
	for i := range n {
		up = append(up, fmt.Sprintf(`"%05d":%d`, i, i))
		down = append(down, fmt.Sprintf(`"%05d":%d`, n-1-i, n-1-i))
	}
	p := new(Postback)
	id := func(members []string) string {
		p.Reset("", "", []byte("{"+strings.Join(members, ",")+"}"))
		return eventID(stubBroker{}, p)
	}
	if id(up) != id(down) {
		t.Error("the id depends on the order of the members")
	}
}

func TestBodyID(t *testing.T) {
	if bodyID("ab", []byte("c")) == bodyID("a", []byte("bc")) {
		t.Error("broker and body run into each other")
	}
	if len(bodyID("a", nil)) != 32 {
		t.Error("not 32 hex digits")
	}
}

func TestQuantity(t *testing.T) {
	if n, known := QuantityOf(0).Get(); n != 0 || !known {
		t.Error("0 is not known")
	}
	if _, known := (Quantity{}).Get(); known {
		t.Error("the zero value is known")
	}
}

func TestEscapeToken(t *testing.T) {
	for id, want := range map[string]string{
		"":                      "_",
		"260108152046774":       "260108152046774",
		"AB_12-x":               "AB_12-x",
		"a.b":                   "a%2Eb",
		"*":                     "%2A",
		">":                     "%3E",
		"a b":                   "a%20b",
		"%2E":                   "%252E",
		"a\x00\xff":             "a%00%FF",
		"é":                     "%C3%A9",
		strings.Repeat("a", 64): strings.Repeat("a", 64),
		strings.Repeat("a", 65): "635361c48bb9eab14198e76ea8ab7f1a41685d6ad62aa9146d301d4f17eb0ae0",
		strings.Repeat(".", 21): strings.Repeat("%2E", 21),
	} {
		if got := EscapeToken(id); got != want {
			t.Errorf("%q became %q, want %q", id, got, want)
		}
	}
	if got := EscapeToken(strings.Repeat(".", 22)); len(got) != 64 || strings.Contains(got, "%") {
		t.Errorf("22 points became %q, which is no hash", got)
	}
}

// FuzzEscapeToken checks that no id makes a second token, a wildcard, or the token of another short id.
func FuzzEscapeToken(f *testing.F) {
	f.Add("a", "b")
	f.Add("%2E", ".")
	f.Add("", "_")
	f.Fuzz(func(t *testing.T, a, b string) {
		token := EscapeToken(a)
		if token == "" || len(token) > maxToken || strings.ContainsAny(token, ".*> \x00\r\n\t") {
			t.Errorf("%q became %q", a, token)
		}
		if b != a && a != "" && b != "" && EscapeToken(b) == token {
			t.Errorf("%q and %q both became %q", a, b, token)
		}
	})
}

func someDelivery() Delivery {
	return Delivery{
		ID: "0123456789abcdef0123456789abcdef", Broker: "kite", UserID: "AB.12", OrderID: "1", Status: StatusRejected,
		ReceivedAt: time.Unix(0, 1767866026123456789), TraceParent: "00-1-2-01", Data: []byte(`{"id":"x"}`),
	}
}

func TestRecord(t *testing.T) {
	d := someDelivery()
	for _, d.Deadletter = range []bool{false, true} {
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
	const want = "01" + "01" + "0100000000000000" + "0174" + "0169" + "0162" + "0175" + "016f" + "046f70656e" + "7b7d"
	if got := hex.EncodeToString(append(d.appendHead(nil), d.Data...)); got != want {
		t.Errorf("got %s, want %s", got, want)
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

func TestDestinations(t *testing.T) {
	for _, v := range []struct {
		d    Delivery
		want []Destination
	}{
		{Delivery{Status: StatusOpen}, []Destination{Orders}},
		{Delivery{Status: StatusUnknown}, []Destination{Orders}},
		{Delivery{Status: StatusRejected}, []Destination{Orders, Rejects}},
		{Delivery{Status: StatusRejected, Deadletter: true}, []Destination{Deadletters}},
	} {
		if got := v.d.Destinations(); !reflect.DeepEqual(got, v.want) {
			t.Errorf("%+v goes to %v, want %v", v.d, got, v.want)
		}
	}
}
