package event_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/postbridge/postbridge/bridge/event"
)

func TestDecode(t *testing.T) {
	const order = `{"id":"i","broker":"kite","user_id":"AB.12","order_id":"1","status":"filled","new_field":{}}`
	for _, prefix := range []string{"ce-", "ce_"} {
		m, err := event.Decode([]byte(order), func(name string) string {
			return map[string]string{
				prefix + "type": event.TypeOrder, prefix + "spool": "a", prefix + "sequence": "00000000000000000012",
			}[name]
		})
		if err != nil || m.ID != "i" || m.Status != event.StatusFilled || m.Spool != "a" || m.Sequence != 12 ||
			m.Key() != "kite.AB%2E12.1" {
			t.Errorf("%s: %+v, %v", prefix, m, err)
		}
	}
	none := func(string) string { return "" }
	if m, err := event.Decode([]byte(order), none); err != nil || m.Spool != "" || m.Sequence != 0 {
		t.Errorf("without headers: %+v, %v", m, err)
	}
	for _, data := range []string{"", "{", "[]", "{}", `{"id":1}`, `{"id":"i","status":"open"}`} {
		if m, err := event.Decode([]byte(data), none); err == nil || errors.Is(err, event.ErrSchema) {
			t.Errorf("%s: %+v, %v", data, m, err)
		}
	}
	newer := func(name string) string { return map[string]string{"ce-type": "postbridge.order.v2"}[name] }
	_, err := event.Decode([]byte(order), newer)
	const want = `unknown schema of an event; update github.com/postbridge/postbridge: ` +
		`it is of type "postbridge.order.v2", want "postbridge.order.v1"`
	if !errors.Is(err, event.ErrSchema) || err.Error() != want {
		t.Errorf("%v\nwant %s", err, want)
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
		if got := event.EscapeToken(id); got != want {
			t.Errorf("%q became %q, want %q", id, got, want)
		}
	}
	if got := event.EscapeToken(strings.Repeat(".", 22)); len(got) != 64 || strings.Contains(got, "%") {
		t.Errorf("22 points became %q, which is no hash", got)
	}
}

// FuzzEscapeToken checks that no id makes a second token, a wildcard, or the token of another short id.
func FuzzEscapeToken(f *testing.F) {
	f.Add("a", "b")
	f.Add("%2E", ".")
	f.Add("", "_")
	f.Fuzz(func(t *testing.T, a, b string) {
		token := event.EscapeToken(a)
		if token == "" || len(token) > 64 || strings.ContainsAny(token, ".*> \x00\r\n\t") {
			t.Errorf("%q became %q", a, token)
		}
		if b != a && a != "" && b != "" && event.EscapeToken(b) == token {
			t.Errorf("%q and %q both became %q", a, b, token)
		}
	})
}
