package nats

import (
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
)

func delivery() *bridge.Delivery {
	return &bridge.Delivery{
		Spool: "0badcafe", Sequence: 42, ID: "00112233445566778899aabbccddeeff", Broker: "kite", UserID: "AB1234",
		OrderID: "220303000308932", Status: event.StatusOpen, TraceParent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
		ReceivedAt: time.Date(
			2022,
			3,
			3,
			9,
			24,
			25,
			123456789,
			time.UTC,
		), Data: []byte(`{"id":"00112233445566778899aabbccddeeff"}`),
	}
}

func TestHeaders(t *testing.T) {
	want := natsgo.Header{
		"Nats-Msg-Id":          {"0badcafe.00000000000000000042"},
		"Nats-Expected-Stream": {"ORDERS"},
		"ce-id":                {"00112233445566778899aabbccddeeff"},
		"ce-source":            {"/postbridge/kite"},
		"ce-specversion":       {"1.0"},
		"ce-type":              {"postbridge.order.v1"},
		"ce-time":              {"2022-03-03T09:24:25.123456789Z"},
		"ce-subject":           {"AB1234/220303000308932"},
		"ce-orderstatus":       {"open"},
		"ce-spool":             {"0badcafe"},
		"ce-sequence":          {"00000000000000000042"},
		"ce-datacontenttype":   {"application/json"},
		"traceparent":          {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"},
	}
	got := newHeaders().of(delivery(), "ORDERS")
	if !maps.EqualFunc(got, want, slices.Equal) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// TestHeadersUntraced: an event without a trace context has no header for it.
func TestHeadersUntraced(t *testing.T) {
	d := delivery()
	d.TraceParent = ""
	if v, ok := newHeaders().of(d, "ORDERS")["traceparent"]; ok {
		t.Errorf("traceparent %q", v)
	}
}

// TestHeadersAgain: nothing of a message is left in the headers of the next one.
func TestHeadersAgain(t *testing.T) {
	h := newHeaders()
	h.of(delivery(), "ORDERS")
	next := &bridge.Delivery{Spool: "1badcafe", Sequence: 7, Broker: "dhan", OrderID: "1", Status: event.StatusRejected}
	if got, want := h.of(next, "REJECTS"), newHeaders().of(next, "REJECTS"); !maps.EqualFunc(got, want, slices.Equal) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if got, want := h.of(delivery(), "ORDERS"), newHeaders().of(delivery(), "ORDERS"); !maps.EqualFunc(got, want, slices.Equal) {
		t.Errorf("then %q\nwant %q", got, want)
	}
}

func TestPercentEncode(t *testing.T) {
	for value, want := range map[string]string{
		"":                       "",
		"AB1234/220303000308932": "AB1234/220303000308932",
		"a b":                    "a%20b",
		`say "hi"`:               "say%20%22hi%22",
		"100%":                   "100%25",
		"Ünï":                    "%C3%9Cn%C3%AF",
		"€😀":                     "%E2%82%AC%F0%9F%98%80",
		"a\r\nb\x00\x7f":         "a%0D%0Ab%00%7F",
		"!#$&'()*+,-./:;<=>?@[]": "!#$&'()*+,-./:;<=>?@[]",
	} {
		got := percentEncode(value)
		if got != want {
			t.Errorf("%q: %q, want %q", value, got, want)
		}
		if back, err := url.PathUnescape(got); err != nil || back != value {
			t.Errorf("%q comes back as %q: %v", value, back, err)
		}
	}
}

// TestCloudEvents holds the headers to the CloudEvents specification 1.0 and its NATS binding, in binary mode.
func TestCloudEvents(t *testing.T) {
	d := delivery()
	d.UserID, d.OrderID = "Ünï cödé", `1"%`
	got := newHeaders().of(d, "ORDERS")
	attributeName := regexp.MustCompile(`^ce-[a-z0-9]{1,20}$`)
	printable := regexp.MustCompile(`^[\x21-\x7e]+$`)
	for name, values := range got {
		if strings.HasPrefix(name, "Nats-") || name == "traceparent" {
			continue
		}
		if !attributeName.MatchString(name) {
			t.Errorf("%s: not the name of an attribute", name)
		}
		if len(values) != 1 || !printable.MatchString(values[0]) {
			t.Errorf("%s: %q: not one value of printable ASCII", name, values)
		}
	}
	for _, required := range []string{"ce-id", "ce-source", "ce-specversion", "ce-type"} {
		if len(got[required]) == 0 {
			t.Errorf("no %s", required)
		}
	}
	if _, ok := got["Content-Type"]; ok {
		t.Error("Content-Type is how structured mode is told from binary mode")
	}
	if _, err := time.Parse(time.RFC3339, got["ce-time"][0]); err != nil {
		t.Error(err)
	}
	if _, err := url.Parse(got["ce-source"][0]); err != nil {
		t.Error(err)
	}
}

func TestReconnectWait(t *testing.T) {
	for attempt := 1; attempt < 100; attempt++ {
		if d := reconnectWait(attempt); d < minReconnectWait/2 || d > maxReconnectWait {
			t.Errorf("attempt %d: %v", attempt, d)
		}
	}
}
