package body

import (
	"cmp"
	"strings"

	"github.com/postbridge/postbridge/bridge/scan"
)

// State returns the value for bridge.Broker.State of a member of unknown meaning. Equal numbers and equal strings have
// equal states, and a number equals a string of its digits. null, blanks, "NA", {} and [] are empty. Nested values may
// differ only in white space, escapes and the order of members: when in doubt, values are different.
func (v Value) State() string {
	switch v[0] {
	case 'n':
		return ""
	case '"':
		if text := v.Text(); !strings.Contains(text, "\uFFFD") { // it may replace any invalid byte
			return text
		}
	case '{', '[':
		return v.nestedState()
	case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
		return cmp.Or(v.decimalState(), string(v))
	}
	return string(v)
}

// nestedState returns the canonical text of an object or array. One with a repeated name, or with invalid Unicode, is
// returned as it is: the order of two members of one name may matter.
func (v Value) nestedState() string {
	if len(v) == len("{}") {
		return ""
	}
	text, ok := scan.Normalize(string(v))
	switch {
	case !ok:
		return string(v)
	case len(text) == len("{}"):
		return ""
	}
	return text
}

// StateNumber returns the State of a quantity or a price. 470, 470.0 and "470" are equal. 0 is empty, because brokers
// send or omit it without a rule. The state of any other value is its State.
func (v Value) StateNumber() string {
	switch d := v.decimalState(); d {
	case "":
		return v.State()
	case "0":
		return ""
	default:
		return d
	}
}

// decimalState returns the Decimal in canonical form, or "".
func (v Value) decimalState() string {
	if isDigits(string(v)) {
		return string(v) // a whole number: JSON allows no leading zeros
	}
	return trimDecimal(v.Decimal())
}

// trimDecimal returns a decimal number without leading and trailing zeros, and without a sign if it is 0.
func trimDecimal(d string) string {
	if strings.Contains(d, ".") {
		d = strings.TrimRight(strings.TrimRight(d, "0"), ".")
	}
	digits := strings.TrimPrefix(d, "-")
	sign := d[:len(d)-len(digits)]
	for len(digits) > 1 && digits[0] == '0' && digits[1] != '.' {
		digits = digits[1:]
	}
	if digits == "0" || sign == "" {
		return digits
	}
	return sign + digits
}

// StateTime returns the State of a time. One instant has one state in all formats that Time parses. A time in year one,
// which was never set, is empty. The state of any other value is its State.
func (v Value) StateTime() string {
	switch s := v.Text(); {
	case s == "0001-01-01 00:00:00" || s == "0001-01-01T00:00:00" || s == "0001-01-01T00:00:00Z":
		return ""
	case isWallTime(s):
		return s // already canonical
	}
	if t := v.Time(); t != "" {
		return strings.Replace(strings.TrimSuffix(t, istSuffix), "T", " ", 1)
	}
	return v.State()
}

// isWallTime reports whether s has digits where time.DateTime has them; the time need not exist.
func isWallTime(s string) bool {
	const layout = "0000-00-00 00:00:00"
	if len(s) != len(layout) {
		return false
	}
	for i := range len(layout) {
		digit := layout[i] == '0' && '0' <= s[i] && s[i] <= '9'
		if !digit && s[i] != layout[i] {
			return false
		}
	}
	return true
}

// StateWord returns the State of a word, as Fold compares words.
func (v Value) StateWord() string {
	var buf [32]byte
	return string(Fold(buf[:0], v.Text()))
}
