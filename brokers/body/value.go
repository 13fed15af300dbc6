// Package body converts the JSON values in the bodies of postbacks, which have no reliable type: an id may be a number,
// a quantity a string, and a missing value null, "", "NA" or a time in year one. A value that cannot be converted is
// absent, never an error, because the event has the broker's body in raw.
package body

import (
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/bridge/scan"
)

// Value is the JSON value of a member, as received.
type Value string

// Literal returns the text of a string, or the digits of a number exactly as received, and "" for any other value. A
// broker's checksum covers literals.
func (v Value) Literal() string {
	switch {
	case strings.HasPrefix(string(v), `"`):
		return scan.Unquote(string(v))
	case v != "" && (v[0] == '-' || '0' <= v[0] && v[0] <= '9'):
		return string(v)
	default:
		return ""
	}
}

// Text returns the literal, or "" if it is blank or "NA".
func (v Value) Text() string {
	s := v.Literal()
	if s != "" && s[0] > ' ' && s[0] < utf8.RuneSelf && s[0] != 'N' && s[0] != 'n' {
		return s // as most texts
	}
	if t := strings.TrimSpace(s); t == "" || strings.EqualFold(t, "NA") {
		return ""
	}
	return s
}

// Word returns the text of an enumerated field in lower case, without surrounding space.
func (v Value) Word() string { return strings.ToLower(strings.TrimSpace(v.Text())) }

// OrderType returns the order type, whose words SL and SL-M Kite and Upstox share.
func (v Value) OrderType() string {
	var buf [32]byte
	switch string(Fold(buf[:0], v.Text())) {
	case "sl":
		return "stop_limit"
	case "sl m":
		return "stop_market"
	default:
		return v.Word()
	}
}

// Fold appends the word in the form in which words are compared: ASCII letters in lower case, each run of white space,
// _ and - as one blank, and no blank at either end. A switch over string(Fold(…)) does not allocate.
func Fold(dst []byte, word string) []byte {
	start := len(dst)
	for i := range len(word) {
		c := word[i]
		switch {
		case c == ' ' || c == '_' || c == '-' || '\t' <= c && c <= '\r':
			if len(dst) == start || dst[len(dst)-1] == ' ' {
				continue
			}
			c = ' '
		case 'A' <= c && c <= 'Z':
			c += 'a' - 'A'
		}
		dst = append(dst, c)
	}
	if len(dst) > start && dst[len(dst)-1] == ' ' {
		dst = dst[:len(dst)-1]
	}
	return dst
}

// Lower appends a name with its ASCII letters in lower case. A switch over string(Lower(…)) does not
// allocate.
func Lower(dst []byte, name string) []byte {
	for i := range len(name) {
		c := name[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		dst = append(dst, c)
	}
	return dst
}

// Member returns the value of a member of an object, the last one if the name is repeated, or "" if there is none.
func (v Value) Member(name string) (of Value) {
	if len(v) > len("{}") && v[0] == '{' {
		members, _ := scan.Members(nil, string(v)) // valid: part of a scanned body
		for _, m := range members {
			if m.Name == name {
				of = Value(m.Value)
			}
		}
	}
	return of
}

// Quantity returns a whole number, received as 50, 50.0 or "50"; absent for any other value.
func (v Value) Quantity() event.Quantity {
	whole, fraction := string(v), ""
	if !isDigits(whole) { // as few quantities
		whole, fraction, _ = strings.Cut(v.Decimal(), ".")
	}
	n, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || strings.Trim(fraction, "0") != "" {
		return event.Quantity{}
	}
	return event.QuantityOf(n)
}

// Decimal returns a decimal number with the digits that the broker sent: 470 stays 470, and 470.0 stays 470.0. It is
// never parsed into a float. An exponent of up to 20 places is expanded. It is "" for any other value.
func (v Value) Decimal() string {
	s := strings.TrimSpace(v.Text())
	if isDecimal(s) {
		return s
	}
	mantissa, exponent := s, 0
	if i := strings.IndexAny(s, "eE"); i >= 0 {
		n, err := strconv.Atoi(s[i+1:])
		if err != nil || n < -maxExponent || n > maxExponent {
			return ""
		}
		mantissa, exponent = s[:i], n
	}
	if !isDecimal(mantissa) {
		return ""
	}
	return shift(mantissa, exponent)
}

// maxExponent is the largest exponent that is expanded; no price has more places.
const maxExponent = 20

// isDecimal reports whether s consists of digits, optionally with a minus before and a point between them.
func isDecimal(s string) bool {
	whole, fraction, point := strings.Cut(strings.TrimPrefix(s, "-"), ".")
	return isDigits(whole) && (isDigits(fraction) || !point)
}

func isDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// shift moves the decimal point to the right by the given number of places.
func shift(s string, places int) string {
	if places == 0 {
		return s
	}
	sign := ""
	if strings.HasPrefix(s, "-") {
		sign, s = "-", s[1:]
	}
	whole, fraction, _ := strings.Cut(s, ".")
	digits, point := whole+fraction, len(whole)+places
	if point <= 0 {
		digits, point = strings.Repeat("0", 1-point)+digits, 1
	}
	if point > len(digits) {
		digits += strings.Repeat("0", point-len(digits))
	}
	whole = strings.TrimLeft(digits[:point-1], "0") + digits[point-1:point]
	if point == len(digits) {
		return sign + whole
	}
	return sign + whole + "." + digits[point:]
}

// India has one time zone and no daylight saving, so no time zone database is needed.
const (
	istOffset = 5*time.Hour + 30*time.Minute
	istSuffix = "+05:30"
)

// TimeReader parses the times of one postback. It caches the last one, because most postbacks repeat one time two or
// three times.
type TimeReader struct {
	value Value
	time  string
}

// Time returns v.Time().
func (r *TimeReader) Time(v Value) string {
	if v != r.value {
		r.value, r.time = v, v.Time()
	}
	return r.time
}

// Time returns a time in RFC 3339, always in Indian time, so that one instant has one text; "" for any other value.
// Brokers send "2006-01-02 15:04:05" or "02-Jan-2006 15:04:05" in Indian time, or RFC 3339.
func (v Value) Time() string {
	s := strings.TrimSpace(v.Text())
	if isOrdinaryTime(s) {
		return s[:len(time.DateOnly)] + "T" + s[len(time.DateTime)-len(time.TimeOnly):] + istSuffix
	}
	wall, err := time.Parse(time.DateTime, s)
	if err != nil {
		wall, err = time.Parse("02-Jan-2006 15:04:05", s)
	}
	if err != nil {
		t, err := time.Parse(time.RFC3339, s)
		if err != nil {
			t, err = time.Parse("2006-01-02T15:04:05-0700", s) // gokiteconnect parses this one, too
		}
		if err != nil {
			return ""
		}
		wall = t.UTC().Add(istOffset)
	}
	if wall.Year() <= 1 || wall.Year() > 9999 {
		return "" // Go programs, such as Dhan's, print a time that was never set as year one
	}
	var buf [48]byte
	return string(append(wall.AppendFormat(buf[:0], "2006-01-02T15:04:05.999999999"), istSuffix...))
}

// isOrdinaryTime reports whether s is a time in the layout of time.DateTime, of a year that begins with 20 and a day
// that every month has: parsed and formatted, as almost every time in a postback would be, it has the same digits.
func isOrdinaryTime(s string) bool {
	return isWallTime(s) && s[:2] == "20" && s[5:7] >= "01" && s[5:7] <= "12" && s[8:10] >= "01" && s[8:10] <= "28" &&
		s[11:13] <= "23" && s[14:16] <= "59" && s[17:19] <= "59"
}
