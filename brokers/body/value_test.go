package body

import (
	"strconv"
	"testing"
	"time"

	"github.com/postbridge/postbridge/bridge/event"
)

func TestText(t *testing.T) {
	for sent, want := range map[string]string{
		`"AB1234"`: "AB1234", `1953341975595868160`: "1953341975595868160",
		`"1953341975595868160"`: "1953341975595868160",
		`4.70`:                  "4.70", `" x "`: " x ", `"\u0041\n\"\\"`: "A\n\"\\", `"सोना"`: "सोना",
		"\"a\xffb\"":     "a\uFFFDb",
		`"\ud800x"`:      "\uFFFDx",
		`"\ud83d\ude00"`: "😀", `null`: "", `""`: "", `"NA"`: "", `" na "`: "", `" "`: "", `{}`: "", `["x"]`: "",
		`true`: "", `"NAB"`: "NAB",
	} {
		if got := Value(sent).Text(); got != want {
			t.Errorf("%s became %q, want %q", sent, got, want)
		}
	}
}

// TestLiteral keeps what a checksum is made over, whatever it means.
func TestLiteral(t *testing.T) {
	for sent, want := range map[string]string{`"NA"`: "NA", `" "`: " ", `1.0`: "1.0", `1e5`: "1e5", `null`: "",
		`false`: "", `{"a":1}`: ""} {
		if got := Value(sent).Literal(); got != want {
			t.Errorf("%s became %q, want %q", sent, got, want)
		}
	}
}

func TestDecimal(t *testing.T) {
	for sent, want := range map[string]string{
		`470`: "470", `470.0`: "470.0", `72.755`: "72.755", `0.0`: "0.0", `0`: "0", `"470.50"`: "470.50",
		`" 11.25 "`: "11.25", `-1.5`: "-1.5",
		`4.7e2`: "470", `4.70E+2`: "470", `4.7551e2`: "475.51", `1e-3`: "0.001", `12.5e-1`: "1.25", `-1e-2`: "-0.01",
		`1e0`: "1", `0.05e1`: "0.5", `0.05e3`: "50",
		`1e20`: "100000000000000000000", `1e21`: "", `1e-21`: "", `1e99999999999999999999`: "",
		`"1,000.5"`: "", `".5"`: "", `"5."`: "", `"+5"`: "", `"--5"`: "", `"0x10"`: "", `"1e"`: "", `"e5"`: "",
		`"Infinity"`: "", `"٣"`: "",
		`null`: "", `""`: "", `"NA"`: "", `{}`: "", `[1]`: "", `true`: "",
		`123456789012345678901234567890.123456789`: "123456789012345678901234567890.123456789",
	} {
		if got := Value(sent).Decimal(); got != want {
			t.Errorf("%s became %q, want %q", sent, got, want)
		}
	}
}

func TestQuantity(t *testing.T) {
	for sent, want := range map[string]event.Quantity{
		`50`: event.QuantityOf(50), `"50"`: event.QuantityOf(50), `50.0`: event.QuantityOf(50),
		`"50.00"`: event.QuantityOf(50), `0`: event.QuantityOf(0),
		`5e1`: event.QuantityOf(50), `-1`: event.QuantityOf(-1),
		`9223372036854775807`: event.QuantityOf(9223372036854775807),
		`9223372036854775808`: {}, `50.5`: {}, `"fifty"`: {}, `null`: {}, `""`: {}, `"NA"`: {}, `{}`: {}, `true`: {},
	} {
		if got := Value(sent).Quantity(); got != want {
			t.Errorf("%s became %v, want %v", sent, got, want)
		}
	}
}

func TestTime(t *testing.T) {
	for sent, want := range map[string]string{
		"2022-03-03 09:24:25": "2022-03-03T09:24:25+05:30", "2022-03-03  9:24:25": "2022-03-03T09:24:25+05:30",
		" 2022-03-03 09:24:25 ":     "2022-03-03T09:24:25+05:30",
		"2022-03-03 09:24:25.120":   "2022-03-03T09:24:25.12+05:30",
		"2022-03-03T09:24:25+05:30": "2022-03-03T09:24:25+05:30",
		"2022-03-03T03:54:25Z":      "2022-03-03T09:24:25+05:30",
		"2022-03-03T09:24:25+0530":  "2022-03-03T09:24:25+05:30",
		"2021-12-31T20:00:00Z":      "2022-01-01T01:30:00+05:30",
		"0001-01-01 00:00:00":       "", "0001-01-01T00:00:00Z": "", "0000-12-31T23:00:00Z": "", "9999-12-31T23:00:00Z": "",
		"18-Jul-2023 11:44:29": "2023-07-18T11:44:29+05:30", " 09-MAR-2023 09:34:38 ": "2023-03-09T09:34:38+05:30",
		"30-Feb-2023 11:44:29": "", "18-07-2023 11:44:29": "", "01-Jan-0001 00:00:00": "", "18-Jul-2023": "",
		"2022-02-30 09:24:25": "", "09:24:25": "", "2022-03-03": "", "NA": "", "": "", "yesterday": "",
	} {
		if got := Value(strconv.Quote(sent)).Time(); got != want {
			t.Errorf("%q became %q, want %q", sent, got, want)
		}
	}
	for _, sent := range []string{`null`, `1646279665`, `{}`} {
		if got := Value(sent).Time(); got != "" {
			t.Errorf("%s became %q", sent, got)
		}
	}
}

// TestOrdinaryTime compares times with what the standard library makes of them, where the two may differ first.
func TestOrdinaryTime(t *testing.T) {
	two := func(n int) string { return string([]byte{'0' + byte(n/10), '0' + byte(n%10)}) }
	for n := range 100 {
		for _, s := range []string{
			two(n) + "26-01-05 09:24:25", "20" + two(n) + "-01-05 09:24:25", "2026-" + two(n) + "-05 09:24:25",
			"2026-01-" + two(n) + " 09:24:25", "2026-02-" + two(n) + " 09:24:25", "2026-01-05 " + two(n) + ":24:25",
			"2026-01-05 09:" + two(n) + ":25", "2026-01-05 09:24:" + two(n),
		} {
			want := ""
			if wall, err := time.Parse(time.DateTime, s); err == nil && wall.Year() > 1 {
				want = wall.Format("2006-01-02T15:04:05") + "+05:30"
			}
			if got := Value(strconv.Quote(s)).Time(); got != want {
				t.Errorf("%q became %q, want %q", s, got, want)
			}
		}
	}
}

func TestTimeReader(t *testing.T) {
	var r TimeReader
	for range 2 {
		if got := r.Time(`"2022-03-03 09:24:25"`); got != "2022-03-03T09:24:25+05:30" {
			t.Errorf("the time became %q", got)
		}
	}
	if got := r.Time(`"2022-03-03 09:24:26"`); got != "2022-03-03T09:24:26+05:30" {
		t.Errorf("another time became %q", got)
	}
}

func TestFold(t *testing.T) {
	for word, want := range map[string]string{
		"OPEN": "open", "Trigger Pending": "trigger pending", "TRIGGER_PENDING": "trigger pending",
		"trigger-pending":           "trigger pending",
		"  AMO \t_-REQ\nRECEIVED _": "amo req received", "PART_TRADED": "part traded", "SL-M": "sl m", "": "", " ": "",
		"-": "", "a1é": "a1é",
	} {
		if got := string(Fold(nil, word)); got != want {
			t.Errorf("%q became %q, want %q", word, got, want)
		}
		if got := string(Fold([]byte("x "), word)); got != "x "+want {
			t.Errorf("%q behind another text became %q", word, got)
		}
	}
}

func TestLower(t *testing.T) {
	for name, want := range map[string]string{"fyToken": "fytoken", "ORDER_ID": "order_id", "": "", "É1": "É1"} {
		if got := string(Lower([]byte("x"), name)); got != "x"+want {
			t.Errorf("%q became %q, want x%s", name, got, want)
		}
	}
}

func TestMember(t *testing.T) {
	for of, want := range map[string]Value{
		`{"leg":1}`: "1", `{ "a" : {"leg":2}, "leg" : "3" }`: `"3"`, `{"leg":1,"leg":2}`: "2", `{"\u006ceg":4}`: "4",
		`{"Leg":1}`: "", `{}`: "", `[{"leg":1}]`: "", `"leg"`: "", `null`: "", `1`: "", ``: "",
	} {
		if got := Value(of).Member("leg"); got != want {
			t.Errorf("%s has %q, want %q", of, got, want)
		}
	}
}

func TestWord(t *testing.T) {
	if got := Value(`" SL-M "`).Word(); got != "sl-m" {
		t.Errorf("%q", got)
	}
}
