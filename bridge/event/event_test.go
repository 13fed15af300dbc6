package event_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"testing"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/postbridge/postbridge/bridge/event"
)

// eachField calls do for each field of the event and its order.
func eachField(e *event.Event, do func(i int, field reflect.Value)) {
	for _, of := range []reflect.Value{reflect.ValueOf(e).Elem(), reflect.ValueOf(&e.Order).Elem()} {
		for i := range of.NumField() {
			do(i, of.Field(i))
		}
	}
}

// TestAppend holds that Append writes what json.Marshal does, for each field alone and all together.
func TestAppend(t *testing.T) {
	check := func(e *event.Event) {
		t.Helper()
		want, err := jsonv2.Marshal(e, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true),
			jsontext.PreserveRawStrings(true))
		if err != nil {
			t.Fatal(err)
		}
		if got := e.Append(nil); string(got) != string(want) {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	full := &event.Event{
		ID: "i", Broker: "b", Order: event.Order{Status: "s"}, ReceivedAt: "r", VerifiedBy: "v", Source: "s",
	}
	check(full)
	eachField(full, func(i int, f reflect.Value) {
		switch f.Interface().(type) {
		case event.Quantity:
			f.Set(reflect.ValueOf(event.QuantityOf(int64(-i))))
		case json.RawMessage:
			f.SetBytes([]byte(`{"a":"\u0041"}`))
		case []byte:
			f.SetBytes([]byte("\xff\x00"))
		case event.Order:
		default:
			f.SetString(fmt.Sprintf("<%d> \"\\ \n\xff é \u2028", i))
		}
		check(full)
	})
}

// TestUnmarshal reads an event with encoding/json, as a consumer does, and writes it again.
func TestUnmarshal(t *testing.T) {
	sent := &event.Event{Order: event.Order{Status: event.StatusOpen}}
	eachField(sent, func(i int, f reflect.Value) {
		switch f.Interface().(type) {
		case event.Quantity:
			f.Set(reflect.ValueOf(event.QuantityOf(int64(i - 20))))
		case json.RawMessage:
			f.SetBytes([]byte(`{"a":"\u0041","a":1.50}`))
		case []byte:
			f.SetBytes([]byte("\xff\x00"))
		case event.Order, event.Status:
		default:
			f.SetString(fmt.Sprintf("<%d> \"\\ \n é \u2028", i))
		}
	})
	for _, want := range []*event.Event{sent, {ID: "i", Order: event.Order{Status: event.StatusUnknown}}} {
		var got event.Event
		if err := json.Unmarshal(want.Append(nil), &got); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(&got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
		var again event.Event
		marshalled, err := json.Marshal(want)
		if err == nil {
			err = json.Unmarshal(marshalled, &again)
		}
		if err != nil || string(again.Append(nil)) != string(want.Append(nil)) && want.Raw == nil {
			t.Errorf("json.Marshal: %v\ngot  %+v\nwant %+v", err, again, want)
		}
	}
}

func TestQuantity(t *testing.T) {
	if n, known := event.QuantityOf(0).Get(); n != 0 || !known {
		t.Error("0 is not known")
	}
	if _, known := (event.Quantity{}).Get(); known {
		t.Error("the zero value is known")
	}
}

func TestQuantityJSON(t *testing.T) {
	for text, want := range map[string]event.Quantity{
		"0": event.QuantityOf(0), "-5": event.QuantityOf(-5), "null": {},
		"9223372036854775807": event.QuantityOf(1<<63 - 1),
	} {
		var got event.Quantity
		if err := json.Unmarshal([]byte(text), &got); err != nil || got != want {
			t.Errorf("%s: got %v, %v, want %v", text, got, err, want)
		}
		if again, err := json.Marshal(got); err != nil || string(again) != text {
			t.Errorf("%s: marshalled as %s, %v", text, again, err)
		}
	}
	for _, text := range []string{`"5"`, "1.5", "9223372036854775808", "[]", "true"} {
		var got event.Quantity
		if err := json.Unmarshal([]byte(text), &got); err == nil || got != (event.Quantity{}) {
			t.Errorf("%s: got %v, %v, want an error", text, got, err)
		}
	}
}
