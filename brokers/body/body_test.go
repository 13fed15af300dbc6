package body

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestScan(t *testing.T) {
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
		err := Scan([]byte(v.text), func(name []byte, value Value) { got = append(got, string(name)+" "+string(value)) })
		if !errors.Is(err, v.err) {
			t.Errorf("%.40q: error %v, want %v", v.text, err, v.err)
		}
		if err == nil && !slices.Equal(got, v.want) {
			t.Errorf("%.40q: got %q, want %q", v.text, got, v.want)
		}
	}
}

// TestScanAllocates holds the cost of a scan: it does not grow with the number of members.
func TestScanAllocates(t *testing.T) {
	text, err := os.ReadFile("../kite/testdata/genuine/official.json")
	if err != nil {
		t.Fatal(err)
	}
	allocs := testing.AllocsPerRun(100, func() {
		if err := Scan(text, func([]byte, Value) {}); err != nil {
			t.Fatal(err)
		}
	})
	if allocs > 10 {
		t.Errorf("%v allocations", allocs)
	}
}

func BenchmarkScan(b *testing.B) {
	text, err := os.ReadFile("../kite/testdata/genuine/official.json")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := Scan(text, func([]byte, Value) {}); err != nil {
			b.Fatal(err)
		}
	}
}
