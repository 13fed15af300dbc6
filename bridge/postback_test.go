package bridge

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestMembers(t *testing.T) {
	for _, v := range []struct {
		text string
		want []string
		err  error
	}{
		{`{}`, nil, nil},
		{" \n{ \"a\" : 1 , \"b\":\"x\",\"a\":null , \"c\":{\"a\":[2]} } \t", []string{`a 1`, `b "x"`, `a null`, `c {"a":[2]}`}, nil},
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
		members, err := (&Postback{Body: []byte(v.text)}).Members()
		for _, m := range members {
			got = append(got, string(m.Name)+" "+string(m.Value))
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
	text, err := os.ReadFile("../deploy/samples/kite.json")
	if err != nil {
		t.Fatal(err)
	}
	p := new(Postback)
	allocs := testing.AllocsPerRun(100, func() {
		if err := scan(p, text); err != nil {
			t.Fatal(err)
		}
	})
	if allocs > 10 {
		t.Errorf("%v allocations", allocs)
	}
}

func scan(p *Postback, text []byte) error {
	p.Reset("", "", text)
	_, err := p.Members()
	return err
}

func BenchmarkMembers(b *testing.B) {
	text, err := os.ReadFile("../deploy/samples/kite.json")
	if err != nil {
		b.Fatal(err)
	}
	p := new(Postback)
	b.ReportAllocs()
	for b.Loop() {
		if err := scan(p, text); err != nil {
			b.Fatal(err)
		}
	}
}
