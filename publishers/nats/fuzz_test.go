package nats

import (
	"strings"
	"testing"
)

// FuzzParseURL takes whatever is written for NATS servers: each has a host, and no error shows what may be a password.
func FuzzParseURL(f *testing.F) {
	for _, text := range []string{"nats://a:4222,tls://b", "nats://u:p@a", "a", "ws://[::1]:1", "nats://u:%zz@a", ",", "http://a"} {
		f.Add(text)
	}
	_, anyOther := ParseURL("http://a")
	f.Fuzz(func(t *testing.T, text string) {
		servers, err := ParseURL(text)
		if err != nil {
			if err.Error() != anyOther.Error() {
				t.Errorf("the error tells something of %q: %v", text, err)
			}
			return
		}
		c := Config{URL: text}
		_ = c.Validate()
		for i, server := range servers {
			if server.Hostname() == "" {
				t.Errorf("server %d of %q has no host", i, text)
			}
		}
		if strings.Contains(c.hosts(), "@") {
			t.Errorf("%q is shown with its login: %s", text, c.hosts())
		}
	})
}

// FuzzPercentEncode writes what a broker says into a header: no text ends it, or begins another.
func FuzzPercentEncode(f *testing.F) {
	for _, text := range []string{"AB1234/1", "a\r\nNats-Msg-Id: x", "\xff", "%41", "\"", "é"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		encoded := percentEncode(text)
		if i := strings.IndexFunc(encoded, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' }); i >= 0 {
			t.Errorf("%q became %q", text, encoded)
		}
	})
}
