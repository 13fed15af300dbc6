package scan

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/postbridge/postbridge/bridge/event"
)

func TestMembers(t *testing.T) {
	for _, v := range []struct {
		text string
		want []string
		err  error
	}{
		{`{}`, nil, nil},
		{" \n{ \"a\" : 1 , \"b\":\"x\",\"a\":null , \"c\":{\"a\":[2]} } \t",
			[]string{`a 1`, `b "x"`, `a null`, `c {"a":[2]}`}, nil},
		{`{"\u0061":1,"b\n":2,"":3}`, []string{"a 1", "b\n 2", " 3"}, nil},
		{"{\"\xff\":\"\xfe\",\"\\ud800\":1}", []string{"\uFFFD \"\xfe\"", "\uFFFD 1"}, nil},
		{``, nil, ErrNotJSON},
		{` `, nil, ErrNotJSON},
		{`{`, nil, ErrNotJSON},
		{`{"a"`, nil, ErrNotJSON},
		{`{"a":1`, nil, ErrNotJSON},
		{`{"a":,}`, nil, ErrNotJSON},
		{`{"a":1,}`, nil, ErrNotJSON},
		{`{"a":01}`, nil, ErrNotJSON},
		{`{"a":NaN}`, nil, ErrNotJSON},
		{`{a:1}`, nil, ErrNotJSON},
		{`{"a":1}}`, nil, ErrNotJSON},
		{`{"a":1}{"b":2}`, nil, ErrNotJSON},
		{"\ufeff{}", nil, ErrNotJSON},
		{strings.Repeat(`{"a":`, 20000), nil, ErrNotJSON},
		{`order_id=1`, nil, ErrNotJSON},
		{`[`, nil, ErrNotJSON},
		{`[]`, nil, ErrNotObject},
		{`null`, nil, ErrNotObject},
		{` 12 `, nil, ErrNotObject},
		{`"{}"`, nil, ErrNotObject},
		{`[] []`, nil, ErrNotJSON},
	} {
		var got []string
		members, err := Members(nil, v.text)
		for _, m := range members {
			got = append(got, m.Name+" "+m.Value)
		}
		if !errors.Is(err, v.err) {
			t.Errorf("%.40q: error %v, want %v", v.text, err, v.err)
		}
		if err == nil && !slices.Equal(got, v.want) {
			t.Errorf("%.40q: got %q, want %q", v.text, got, v.want)
		}
	}
}

// TestMembersLikeJsontext compares Members with the decoder of jsontext, where the two may differ first.
func TestMembersLikeJsontext(t *testing.T) {
	nested := func(open, shut string, times int) string {
		return `{"a":` + strings.Repeat(open, times) + "1" + strings.Repeat(shut, times) + "}"
	}
	for _, text := range []string{
		nested("[", "]", maxDepth-1), nested("[", "]", maxDepth), nested(`{"b":`, "}", maxDepth-1), nested(`{"b":`, "}", maxDepth),
		strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth),
		strings.Repeat("[", maxDepth+1) + strings.Repeat("]", maxDepth+1),
		`{"a":[ ] , "b" : { } , "c" : [ 1 , { "d" : 2 } ] }`, `{"a":[1,]}`, `{"a":[,1]}`, `{"a":[1 2]}`, `{"a":{"b":1,}}`,
		`{"a":[1}`, `{"a":{1]}`, `{"a" 1}`, `{"a":1 "b":2}`, `{,"a":1}`, `{"a":1,,"b":2}`, `{1:2}`, `{"a"::1}`,
	} {
		compareMembers(t, text)
	}
	for _, number := range strings.Fields(`0 -0 - 00 -01 1. .5 1.5 1e 1e+ 1e+5 1E-05 1.e5 0.0e0 -a +1 0x1 1_0 1e5.5 1-2 Infinity`) {
		compareMembers(t, `{"a":`+number+`}`)
		compareMembers(t, number)
	}
	for _, literal := range strings.Fields(`null nul nulll true tru falsey false Null`) {
		compareMembers(t, `{"a":`+literal+`}`)
		compareMembers(t, literal)
	}
	for c := range 256 {
		for _, text := range []string{"%", `\%`, `\u00%0`, `\u%`} {
			text = strings.Replace(text, "%", string([]byte{byte(c)}), 1)
			compareMembers(t, `{"`+text+`":"`+text+`"}`)
			compareMembers(t, `{"a":"`+text)
			compareMembers(t, `{"a":1`+text+`}`)
		}
	}
}

// FuzzMembers compares Members with the decoder of jsontext.
func FuzzMembers(f *testing.F) {
	for _, text := range []string{
		`{"a":"\u00e9\n","b":[1.5e-3,{"c":null}],"a":true,"":-0}`, " {\"\xff\" : \"\\ud800\" } ", `[{}]`, `{"a":1}}`,
	} {
		f.Add(text)
	}
	f.Fuzz(compareMembers)
}

func compareMembers(t *testing.T, text string) {
	got, err := Members(nil, text)
	want, wantErr := decodeMembers(text)
	if !slices.Equal(got, want) || !errors.Is(err, wantErr) {
		t.Errorf("%.60q: got %.60q, %v, want %.60q, %v", text, got, err, want, wantErr)
	}
}

// decodeMembers is Members by the decoder of jsontext.
func decodeMembers(text string) (members []event.Member, err error) {
	options := []jsontext.Options{jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)}
	dec := jsontext.NewDecoder(strings.NewReader(text), options...)
	switch {
	case !jsontext.Value(text).IsValid(options...):
		return nil, ErrNotJSON
	case dec.PeekKind() != jsontext.KindBeginObject:
		return nil, ErrNotObject
	}
	_, err = dec.ReadToken()
	for err == nil && dec.PeekKind() != jsontext.KindEndObject {
		var name, value jsontext.Value
		name, err = dec.ReadValue()
		name = name.Clone()
		if err == nil {
			value, err = dec.ReadValue()
		}
		unquoted, _ := jsontext.AppendUnquote(nil, name) // an error reports only that something was replaced by U+FFFD
		members = append(members, event.Member{Name: string(unquoted), Value: string(value)})
	}
	return members, err
}

// TestMembersAllocate holds the cost of a scan: it does not grow with the number of members.
func TestMembersAllocate(t *testing.T) {
	text := sample(t)
	members, err := Members(nil, text)
	allocs := testing.AllocsPerRun(100, func() {
		if members, err = Members(members[:0], text); err != nil {
			t.Fatal(err)
		}
	})
	if allocs > 0 {
		t.Errorf("%v allocations", allocs)
	}
}

func BenchmarkMembers(b *testing.B) {
	text := sample(b)
	var members []event.Member
	var err error
	b.ReportAllocs()
	for b.Loop() {
		if members, err = Members(members[:0], text); err != nil {
			b.Fatal(err)
		}
	}
}

func sample(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile("../../deploy/samples/kite.json")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestMembersAppends(t *testing.T) {
	before := []event.Member{{Name: "before", Value: "0"}}
	got, err := Members(before, `{"a":1}`)
	want := []event.Member{{Name: "before", Value: "0"}, {Name: "a", Value: "1"}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
}

func TestUnquote(t *testing.T) {
	for quoted, want := range map[string]string{
		`""`: "", `"a"`: "a",
		`"\u0061\n\/"`: "a\n/", `"\ud83d\ude00"`: "😀", `"\ud800"`: "\uFFFD", "\"\xff\"": "\uFFFD",
	} {
		if got := Unquote(quoted); got != want {
			t.Errorf("%s: got %q, want %q", quoted, got, want)
		}
	}
}

func TestNormalize(t *testing.T) {
	for _, v := range []struct {
		value, want string
		ok          bool
	}{
		{`{}`, `{}`, true},
		{`[ 1, "2" ]`, `[1,"2"]`, true},
		{`{ "b" : [ {"d":1,"c":2} ], "\u0061":"\u0041" }`, `{"a":"A","b":[{"c":2,"d":1}]}`, true},
		{`[1.50]`, `[1.50]`, true},
		{`{"a":1,"a":2}`, ``, false},
		{"[\"\xff\"]", ``, false},
		{`["\ud800"]`, ``, false},
	} {
		if got, ok := Normalize(v.value); got != v.want || ok != v.ok {
			t.Errorf("%s: got %s, %v, want %s, %v", v.value, got, ok, v.want, v.ok)
		}
	}
}
