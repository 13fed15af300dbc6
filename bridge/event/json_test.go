package event

import (
	"testing"

	"github.com/go-json-experiment/json/jsontext"
)

// FuzzAppendQuote compares appendQuote with jsontext.AppendQuote, byte for byte.
func FuzzAppendQuote(f *testing.F) {
	for c := range 0x100 {
		f.Add("", string([]byte{byte(c)}))
		f.Add("before", string([]byte{'a', byte(c), 'b'}))
	}
	for _, s := range []string{
		"", "plain text", `"\/`, "<script>&amp;</script>", "\x7f", "é", "€", "𝄞", "\u2028\u2029",
		"\uFFFD", "\uFEFF",
		"\xff\xfe", "\xc3", "\xc3\"", "a\xe2\x82", "\xe2\x82\xac\xe2\x82", "\xed\xa0\x80", "\xc0\x80",
		"\xf4\x90\x80\x80", "\xf0\x9d\x84", "\x00\x01\x1f \t\r\n\b\f\v", "é\nü", `{"a":"\u0041"}`,
	} {
		f.Add("", s)
		f.Add(`{"name":`, s)
	}
	f.Fuzz(func(t *testing.T, before, s string) {
		want, _ := jsontext.AppendQuote([]byte(before), s) // an error reports only that a byte became U+FFFD
		if got := appendQuote([]byte(before), s); string(got) != string(want) {
			t.Errorf("%q: got %s, want %s", s, got, want)
		}
	})
}
