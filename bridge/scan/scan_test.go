package scan

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

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
		members, err := new(Scanner).Members(nil, []byte(v.text))
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

// TestMembersAllocate holds the cost of a scan: it does not grow with the number of members.
func TestMembersAllocate(t *testing.T) {
	text, err := os.ReadFile("../../deploy/samples/kite.json")
	if err != nil {
		t.Fatal(err)
	}
	var s Scanner
	var members []event.Member
	allocs := testing.AllocsPerRun(100, func() {
		if members, err = s.Members(members[:0], text); err != nil {
			t.Fatal(err)
		}
	})
	if allocs > 10 {
		t.Errorf("%v allocations", allocs)
	}
}

func BenchmarkMembers(b *testing.B) {
	text, err := os.ReadFile("../../deploy/samples/kite.json")
	if err != nil {
		b.Fatal(err)
	}
	var s Scanner
	var members []event.Member
	b.ReportAllocs()
	for b.Loop() {
		if members, err = s.Members(members[:0], text); err != nil {
			b.Fatal(err)
		}
	}
}

func TestMembersAppends(t *testing.T) {
	before := []event.Member{{Name: "before", Value: "0"}}
	got, err := new(Scanner).Members(before, []byte(`{"a":1}`))
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
