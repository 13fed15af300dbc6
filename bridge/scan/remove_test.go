package scan

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
)

func TestRemoveMembers(t *testing.T) {
	for _, v := range []struct{ text, want string }{
		{`{"a":1}`, `{"a":1}`},
		{`{"pan":"X"}`, `{}`},
		{`{"pan":"X","a":1}`, `{"a":1}`},
		{`{"a":1,"pan":"X"}`, `{"a":1}`},
		{`{"a":1 , "pan" : "X" , "b":2}`, `{"a":1 ,  "b":2}`},
		{"{\"a\":1,\r\n\t\"PAN\":\"X\"\n}", "{\"a\":1}"},
		{`{"pan":"X","Pan":"Y","a":1,"tax":"Z","paN":null}`, `{"a":1}`},
		{`{"p\u0061n":"X"}`, `{}`},
		{`{"pan":"X\"},\\"}`, `{}`},
		{`{"pan":{"a":["]}"],"b":{}},"c":1}`, `{"c":1}`},
		{`{"c":1,"pan":[[1],"]"]}`, `{"c":1}`},
		{`{"pan":-1.5e3}`, `{}`},
		{`{"pan":true ,"a":1}`, `{"a":1}`},
		{`[{"pan":"X"},{"a":{"pan":"Y"}}]`, `[{},{"a":{}}]`},
		{`{"a":"pan","pan2":"b","span":"c"}`, `{"a":"pan","pan2":"b","span":"c"}`},
		{`{"a":"\"pan\":\"X\""}`, `{"a":"\"pan\":\"X\""}`},
		{`["pan","X"]`, `["pan","X"]`},
		{``, ``},
		// Not JSON.
		{`{"a":1,"pan":"X`, `{"a":1`},
		{`{"a":1,"pan":"X\`, `{"a":1`},
		{`{"a":1,"pan":`, `{"a":1`},
		{`{"a":1,"pan"`, `{"a":1,"pan"`},
		{`{"a":1,"pan":[{"X"`, `{"a":1`},
		{`{"a": ,"pan":"X","b": }`, `{"a": ,"b": }`},
		{`"pan":"X"`, ``},
		{`"pan":}}]`, `}}]`},
		{`data={"pan":"X"}&b=1`, `data={}&b=1`},
		{"{\"\xff\":\"\xff\",\"pan\":\"\xff\"}", "{\"\xff\":\"\xff\"}"},
	} {
		text := []byte(v.text)
		if got := RemoveMembers(text, []string{"pan", "tax"}); string(got) != v.want || string(text) != v.text {
			t.Errorf("%q became %q, want %q", v.text, got, v.want)
		}
		if got := RemoveMembers(text, nil); string(got) != v.text {
			t.Errorf("%q without a name became %q", v.text, got)
		}
	}
}

// TestRemoveMembersFromPart cuts a body at every byte. No part of the value is left.
func TestRemoveMembersFromPart(t *testing.T) {
	const text = `{"id":"1", "pan" : "#####" , "o":{"a":[1],"PAN":["###",{"b":"##"}]},"status":6}`
	for n := range len(text) + 1 {
		if got := RemoveMembers([]byte(text[:n]), []string{"pan"}); bytes.ContainsRune(got, '#') {
			t.Errorf("%q is left of %q", got, text[:n])
		}
	}
}

// FuzzRemoveMembers compares RemoveMembers with a parser, for texts that are JSON.
func FuzzRemoveMembers(f *testing.F) {
	for _, text := range []string{
		`{"pan":"X","a":[{"Pan":{"b":1}},"pan"],"c":null}`, `[1,"pan",{"p\u0061n":[]}]`, `{"a":"\"pan\":1"}`, `{`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		got := RemoveMembers(text, []string{"pan"})
		if len(got) > len(text) {
			t.Errorf("%q became longer: %q", text, got)
		}
		want, err := parseWithout(t, text, "pan")
		if err != nil {
			return // not JSON
		}
		compact, err := parseWithout(t, got, "")
		if err != nil || compact != want {
			t.Errorf("%q became %q (%v), want %q", text, got, err, want)
		}
	})
}

// parseWithout parses JSON and returns its tokens on a line each, without the members of a name.
func parseWithout(t *testing.T, text []byte, name string) (string, error) {
	t.Helper()
	var tokens strings.Builder
	dec := jsontext.NewDecoder(bytes.NewReader(text), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	for {
		token, err := dec.ReadToken()
		if errors.Is(err, io.EOF) {
			return tokens.String(), nil
		}
		if err != nil {
			return "", err
		}
		kind, n := dec.StackIndex(dec.StackDepth())
		isName := kind == jsontext.KindBeginObject && n%2 == 1
		if isName && name != "" && strings.EqualFold(token.String(), name) {
			if err := dec.SkipValue(); err != nil {
				return "", err
			}
			continue
		}
		tokens.WriteString(string(token.Kind()) + token.String() + "\n")
	}
}
