package main

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/postbridge/postbridge/brokers/kite"
)

// FuzzSecrets parses files of secrets or tokens: the result is complete entries, or an error that shows none of them.
func FuzzSecrets(f *testing.F) {
	for _, text := range []string{"1234=a=b,1234=c\r\n\n5=d\n", "1234=", "=s", ",", "token1,token2", "a/b",
		"\xff\x00", "\ufeff1=s", " "} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		secrets, err := parseKiteSecrets(text)
		tellsNothing(t, text, err)
		if err == nil && (len(secrets) == 0 || slices.ContainsFunc(secrets,
			func(s kite.Secret) bool { return s.AppID == "" || s.Secret == "" })) {
			t.Errorf("%q is %q", text, secrets)
		}
		tokens, err := parseTokens(text)
		tellsNothing(t, text, err)
		if err == nil && (len(tokens) == 0 || slices.ContainsFunc(tokens,
			func(s string) bool { return s == "" || strings.ContainsAny(s, "/?# \n") })) {
			t.Errorf("%q is %q", text, tokens)
		}
		token, err := parseBearerToken(text)
		tellsNothing(t, text, err)
		if err == nil && (token == "" || strings.ContainsFunc(token,
			func(r rune) bool { return r <= ' ' || r > '~' })) {
			t.Errorf("%q is %q", text, token)
		}
		word, err := parseWord(text)
		if (err == nil) != (word != "") {
			t.Errorf("%q is %q, %v", text, word, err)
		}
		if shown := secretList(text).String() + secret(text).String(); len(text) > 20 && strings.Contains(shown, text) {
			t.Errorf("%q is shown as %q", text, shown)
		}
	})
}

// tellsNothing checks that an error does not show the text. A short text may be part of any sentence.
func tellsNothing(t *testing.T, text string, err error) {
	t.Helper()
	if err == nil {
		return
	}
	for entry := range strings.FieldsFuncSeq(text, func(r rune) bool {
		return r == ',' || r == '=' || unicode.IsSpace(r)
	}) {
		if len(entry) > 20 && strings.Contains(err.Error(), entry) {
			t.Errorf("%q: the error shows it: %v", entry, err)
		}
	}
}

// FuzzSettings has anything in the environment: a configuration, or one line that names a setting, and never a secret.
func FuzzSettings(f *testing.F) {
	f.Add("LISTEN", ":8080", "MAX_BODY", "64KiB")
	f.Add("MAX_CONNECTIONS", "1024", "SPOOL_MAX_BYTES", "8GiB")
	f.Add("NATS_URL", "nats://u:p@a", "NATS_MAX_AGE", "1h")
	f.Add("PUBLISH", "kafka", "KAFKA_BROKERS", "a:1,b:2")
	f.Add("KITE_SECRETS", "1=2,3", "PORT_8080_TCP", "x")
	f.Add("ADMIN_TOKEN", "x", "KITE_TOKENS", "a/b")
	f.Fuzz(func(t *testing.T, name1, value1, name2, value2 string) {
		if strings.HasSuffix(name1, "_FILE") || strings.HasSuffix(name2, "_FILE") {
			return // files of this machine
		}
		c, _, err := readConfig(map[string]string{
			envPrefix + name1: value1, envPrefix + name2: value2,
			envPrefix + "DHAN_TOKENS": "a-token-that-nobody-is-to-see",
		})
		switch {
		case err == nil:
			if lines := c.lines(); strings.Contains(lines, "a-token-that-nobody") {
				t.Errorf("printed is\n%s", lines)
			}
		case strings.Contains(err.Error(), "a-token-that-nobody"):
			t.Errorf("the error is %v", err)
		}
	})
}

// FuzzByteSize writes a size again as it reads it.
func FuzzByteSize(f *testing.F) {
	for _, text := range []string{"64KiB", "8388608TiB", "9223372036854775808", "1.5GiB", "0KiB", "007"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var size, again byteSize
		if err := size.UnmarshalText([]byte(text)); err != nil {
			return
		}
		if err := again.UnmarshalText([]byte(size.String())); err != nil || again != size || size < 0 {
			t.Errorf("%q is %v, and that %v, %v", text, size, again, err)
		}
	})
}

// FuzzTail formats messages of any program: none has a control character.
func FuzzTail(f *testing.F) {
	f.Add([]byte(`{"id":"1","broker":"kite","order_id":"1","status":"filled","quantity":1,"filled_quantity":1,` +
		`"price":"1.5"}`))
	f.Add([]byte(`{"raw_text":"\u001b[2J","quantity":"x"}`))
	f.Add([]byte("\x1b]0;\x07\xff"))
	f.Add([]byte("null"))
	f.Fuzz(func(t *testing.T, data []byte) {
		line := humanLine(data, time.UTC)
		if strings.ContainsFunc(strings.TrimSuffix(string(line), "\n"),
			func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%q is printed as %q", data, line)
		}
		if whole := headersLine(&message{position: natsPosition{}, headers: map[string]string{"x": string(data)},
			data: []byte("{}")}); !json.Valid(whole) {
			t.Errorf("not JSON: %q", whole)
		}
	})
}

// FuzzFrom parses --from.
func FuzzFrom(f *testing.F) {
	for _, text := range []string{"start", "now", "10m", "2026-01-05T09:15:00+05:30", "-1s", "99999999h"} {
		f.Add(text)
	}
	now := time.Unix(1700000000, 0)
	f.Fuzz(func(t *testing.T, text string) {
		from, err := parseFrom(text, now)
		if err == nil && from.now && !from.at.IsZero() {
			t.Errorf("%q is %+v", text, from)
		}
	})
}

// FuzzSign signs files and parses answers.
func FuzzSign(f *testing.F) {
	f.Add([]byte(`{"order_id":"1","order_timestamp":"2026-01-02 10:00:00","checksum" : "x","a":1}`))
	f.Add([]byte(`{"status":"ok","id":"fdec7447842aef1b227b19f7948a0d08"}`))
	f.Add([]byte(`{"checksum":"\"","order_id":1}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		before := bytes.Clone(body)
		signed, _, err := sign(body, []kite.Secret{{AppID: "1", Secret: "s3cret"}})
		if !bytes.Equal(body, before) || err == nil && len(signed) < 64 ||
			bytes.Contains(signed, []byte("s3cret")) && !bytes.Contains(body, []byte("s3cret")) {
			t.Errorf("%q became %q", before, signed)
		}
		if id := eventID(body); id != "" && len(id) != 32 {
			t.Errorf("%q is an id", id)
		}
		_ = bodyOrderID(body)
	})
}
