package body

import (
	"strings"
	"testing"
)

// checkStates compares values in groups: those of one group have one state, those of two do not. The first group says
// nothing.
func checkStates(t *testing.T, state func(Value) string, groups [][]string) {
	t.Helper()
	seen := make(map[string]string)
	for i, same := range groups {
		first := state(Value(same[0]))
		for _, v := range same {
			if got := state(Value(v)); got != first || (got == "") != (i == 0) {
				t.Errorf("%s became %q, and %s %q", v, got, same[0], first)
			}
		}
		if other, ok := seen[first]; ok {
			t.Errorf("%s and %s are one state", other, same[0])
		}
		seen[first] = same[0]
	}
}

func TestState(t *testing.T) {
	checkStates(t, Value.State, [][]string{
		{`null`, `""`, `" "`, `"NA"`, `" na "`, `{}`, `[]`, `{ }`, "[\n]"},
		{`0`, `0.0`, `-0`, `0e5`, `"0"`}, {`"0.0"`}, {`false`}, {`true`},
		{`470`, `470.0`, `4.7e2`, `"470"`}, {`"470.0"`}, {`4700`}, {`47`}, {`-470`, `-470.00`}, {`470.5`}, {`470.05`},
		{`"0470"`},
		{`1e21`}, {`1e22`}, {`1953341975595868160`, `"1953341975595868160"`}, {`1953341975595868161`},
		{`"A"`, `"\u0041"`}, {`"a"`}, {`" A"`}, {`"A "`}, {`"NAB"`}, {`"2022-03-03 09:24:25"`},
		{`"2022-03-03T09:24:25+05:30"`},
		{`{"a":1,"b":[1,2]}`, `{"b":[1,2],"a":1}`, "{\n\"b\" : [ 1 , 2 ], \"\\u0061\":1}"}, {`{"a":1,"b":[2,1]}`},
		{`{"a":1}`}, {`{"a":2}`},
		{"\"\xff\""}, {"\"\xfe\""}, {`"\ud800"`}, {`"\ud801"`}, {`["\ud800"]`}, {`["\ud801"]`}, {"[\"\xff\"]"},
		{`"😀"`, `"\ud83d\ude00"`},
		{`{"a":1.0}`}, {`{"a":"1"}`}, {`{"a":{"c":1,"b":2}}`, `{"a":{"b":2,"c":1}}`}, {`{"a":null}`},
		{`{"a":1953341975595868160}`},
		{
			`{"a":1953341975595868161}`,
		}, {`{"a":1,"a":2}`}, {`{"a":2,"a":1}`}, {`["a"]`}, {`["a",null]`}, {`[[]]`}, {`[{}]`},
	})
}

func TestStateNumber(t *testing.T) {
	checkStates(t, Value.StateNumber, [][]string{
		{`0`, `0.0`, `-0.00`, `"0"`, `"0.000"`, `"-0"`, `"000"`, `null`, `""`, `"NA"`, `{}`},
		{`470`, `470.0`, `"470"`, `"470.00"`, `" 470 "`, `"0470"`, `4.7e2`}, {`4700`}, {`47`, `47.000`},
		{`-1.5`, `"-01.50"`}, {`1.5`},
		{`0.05`, `"00.050"`, `5e-2`}, {`".05"`}, {`10.01`, `10.010`}, {`"1,100.50"`}, {`"1,200.50"`}, {`50.5`},
		{`"fifty"`}, {`1e21`}, {`true`}, {`{"a":1}`},
		{`"+470"`}, {`"470."`},
	})
}

func TestStateTime(t *testing.T) {
	checkStates(t, Value.StateTime, [][]string{
		{`null`, `""`, `"NA"`, `"0001-01-01 00:00:00"`, `"0001-01-01T00:00:00"`, `"0001-01-01T00:00:00Z"`},
		{`"2022-03-03 09:24:25"`, `"2022-03-03T09:24:25+05:30"`, `"2022-03-03T03:54:25Z"`, `"2022-03-03T09:24:25+0530"`,
			`"2022-03-03  9:24:25"`, `" 2022-03-03 09:24:25 "`},
		{
			`"2022-03-03 09:24:26"`,
		}, {`"2022-03-03 09:24:25.1"`, `"2022-03-03 09:24:25.100"`, `"2022-03-03T03:54:25.10Z"`},
		{
			`"2022-02-30 09:24:25"`,
		}, {`"2022-02-31 09:24:25"`}, {`"0001-01-01 00:00:01"`}, {`"09:24:25"`}, {`"yesterday"`},
		{`"today"`},
		{`1646279665`, `"1646279665"`}, {`1646279666`}, {`{"a":1}`},
	})
}

func TestStateWord(t *testing.T) {
	checkStates(t, Value.StateWord, [][]string{
		{`null`, `""`, `"NA"`, `"-"`}, {`"OPEN PENDING"`, `"open_pending"`, `" Open  Pending"`}, {`"OPEN"`},
		{`"OPENPENDING"`},
		{`"` + strings.Repeat("x", 100) + `"`}, {`5`, `"5"`},
	})
}

func TestTrimDecimal(t *testing.T) {
	for want, all := range map[string][]string{
		"":      {""},
		"0":     {"0", "0.0", "-0", "-0.00", "000"},
		"470":   {"470", "470.0", "0470.00"},
		"4700":  {"4700"},
		"47":    {"47", "47.000"},
		"-1.5":  {"-1.5", "-1.50", "-01.5"},
		"0.05":  {"0.05", "00.050"},
		"10.01": {"10.01", "10.010"},
	} {
		for _, s := range all {
			if got := trimDecimal(s); got != want {
				t.Errorf("%q became %q, want %q", s, got, want)
			}
		}
	}
}
