package bridge

import (
	"bytes"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/bridge/scan"
)

// stubBroker returns its fields.
type stubBroker struct {
	refusal      *Refusal
	order        event.Order
	normalizeErr error
}

func (stubBroker) Name() string { return "stub" }

func (b stubBroker) Verify(*Postback) (string, error) {
	if b.refusal != nil {
		return "", b.refusal
	}
	return "token", nil
}

func (b stubBroker) Normalize([]event.Member) (event.Order, error) { return b.order, b.normalizeErr }

func (stubBroker) State(m event.Member) string { return m.Value }

// personalBroker has a member that is personal data.
type personalBroker struct{ stubBroker }

func (personalBroker) Policy() Policy { return Policy{Personal: []string{"pan"}} }

// TestPersonalDataIsNotInTheID: whoever has the event could guess a short secret from a hash of both.
func TestPersonalDataIsNotInTheID(t *testing.T) {
	id := func(body string) string {
		b := personalBroker{stubBroker{order: event.Order{OrderID: "1"}}}
		return Normalize(b, &Postback{Body: []byte(body)}, "token", eventAt()).ID
	}
	for _, v := range []string{`{"id":1,"more":{"pan":"A","x":2}}`, `{"id":1,"more":[{"x":2,"PAN":"A"}]}`} {
		if id(v) != id(strings.Replace(v, `"A"`, `"B"`, 1)) {
			t.Errorf("the id of %s depends on personal data", v)
		}
		if id(v) == id(strings.Replace(v, "2", "3", 1)) {
			t.Errorf("the id of %s does not depend on the other members", v)
		}
	}
}

func eventAt() time.Time {
	return time.Date(2026, 1, 8, 15, 23, 46, 120, time.FixedZone("IST", 19800))
}

func TestNormalize(t *testing.T) {
	order := event.Order{
		OrderID: "1", UserID: "U", Status: event.StatusOpen, BrokerStatus: "OPEN", Quantity: event.QuantityOf(0),
	}
	p := &Postback{Body: []byte("{ \"a\" : 1.50,\"a\":2 }")}
	e := Normalize(stubBroker{order: order}, p, "token", eventAt())
	if !e.Understood() {
		t.Error("an order was not understood")
	}
	got := e.Append(nil)
	want := `{"id":"` + e.ID + `","broker":"stub","user_id":"U","order_id":"1","status":"open",` +
		`"broker_status":"OPEN","quantity":0,"received_at":"2026-01-08T09:53:46.000000120Z","verified_by":"token","source":"postback",` +
		`"raw":{ "a" : 1.50,"a":2 }}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestVerify(t *testing.T) {
	r := new(receiver)
	if verifiedBy, err := r.verify(stubBroker{}, &Postback{}); verifiedBy != "token" || err != nil {
		t.Errorf("got %q, %v", verifiedBy, err)
	}
	refusal := &Refusal{Status: http.StatusForbidden, Reason: "checksum", Detail: "no"}
	verifiedBy, err := r.verify(stubBroker{refusal: refusal}, &Postback{})
	if verifiedBy != "" || !errors.Is(err, error(refusal)) {
		t.Errorf("got %q, %v", verifiedBy, err)
	}
}

// TestNormalizeNotUnderstood keeps a verified body that cannot be normalized, and no part of a half-read order.
func TestNormalizeNotUnderstood(t *testing.T) {
	b := stubBroker{order: event.Order{OrderID: "half read"}, normalizeErr: errors.New("no order")}
	for _, body := range []string{"x", "{}"} {
		e := Normalize(b, &Postback{Body: []byte(body)}, "token", eventAt())
		if e.Understood() || e.Status != event.StatusUnknown || e.ID != event.OfBody("stub", []byte(body)) ||
			e.RawText+string(e.Raw) != body {
			t.Errorf("got %+v", e)
		}
	}
}

// TestNormalizeNotAnOrder keeps the kind of a body that is no order update. An empty body is normalized too.
func TestNormalizeNotAnOrder(t *testing.T) {
	b := stubBroker{order: event.Order{OrderID: "half read"}, normalizeErr: NotAnOrder("position")}
	for _, body := range []string{"{}", `{"a":1}`, "", " \n"} {
		e := Normalize(b, &Postback{Body: []byte(body)}, "token", eventAt())
		if e.Understood() || e.Other != "position" || e.Status != event.StatusUnknown ||
			e.ID != event.OfBody("stub", []byte(body)) || !strings.Contains(string(e.Append(nil)), `"other":"position"`) {
			t.Errorf("%q became %+v", body, e)
		}
	}
	for _, body := range []string{"x", "[]", "null", "\xff"} { // nothing that an adapter could recognize
		if e := Normalize(b, &Postback{Body: []byte(body)}, "token", eventAt()); e.Other != "" || e.Understood() {
			t.Errorf("%q became %+v", body, e)
		}
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
			b, p := stubBroker{normalizeErr: errors.New("no order")}, &Postback{Body: []byte(v.body)}
			e := Normalize(b, p, "token", eventAt())
			got := e.Append(nil)
			if !bytes.HasSuffix(got, []byte(`"source":"postback",`+v.want+`}`)) {
				t.Errorf("got %s, want it to end with %s", got, v.want)
			}
		})
	}
}

// TestPostbackReset reads one body after the other into one Postback: nothing of an earlier body is left.
func TestPostbackReset(t *testing.T) {
	p, b := new(Postback), stubBroker{order: event.Order{OrderID: "1"}}
	for _, body := range []string{`{"a":1}`, `x`, `{"b":2,"a":1}`, `[]`, `{"a":1}`, ``, `{}`} {
		p.Reset("", "", []byte(body))
		fresh := &Postback{Body: []byte(body)}
		members, err := p.Members()
		wantMembers, wantErr := fresh.Members()
		if !slices.Equal(members, wantMembers) || !sameCause(err, wantErr) {
			t.Errorf("%s: got %v, %v, want %v, %v", body, members, err, wantMembers, wantErr)
		}
		got, want := Normalize(b, p, "token", eventAt()), Normalize(b, fresh, "token", eventAt())
		if got.ID != want.ID {
			t.Errorf("%s: the id depends on an earlier body", body)
		}
	}
}

func sameCause(a, b error) bool {
	return (a == nil) == (b == nil) && errors.Is(a, scan.ErrNotJSON) == errors.Is(b, scan.ErrNotJSON)
}
