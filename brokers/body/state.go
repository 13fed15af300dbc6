package body

import (
	"cmp"
	"strings"

	"github.com/postbridge/postbridge/bridge/scan"
)

// State is the value for bridge.Broker.State, of a member of which no more is known than what JSON says. Numbers are
// equal if their value is, strings if their text is, and a number is equal to a string of its digits. null, blanks,
// "NA", {} and [] say nothing. In nested values only white space, escapes and the order of members make no
// difference: in doubt a value is another one.
func (v Value) State() string {
	switch v[0] {
	case 'n':
		return ""
	case '"':
		if text := v.Text(); !strings.Contains(text, "\uFFFD") { // it may stand for anything that is not a character
			return text
		}
	case '{', '[':
		return v.nestedState()
	case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
		return cmp.Or(v.decimalState(), string(v))
	}
	return string(v)
}

// nestedState is the text of an object or array in one form. One in which a name is repeated, or that is not
// Unicode, is left as it stands: the order of two members of one name may make a difference.
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

// StateNumber is the State of a quantity or a price. 470, 470.0 and "470" are equal. 0 says nothing, because brokers
// send 0 or leave it out at will. What is not a number is its text.
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

// decimalState is the Decimal in one form, empty if there is none.
func (v Value) decimalState() string {
	if isDigits(string(v)) {
		return string(v) // a whole number, which JSON writes without needless zeros
	}
	return trimDecimal(v.Decimal())
}

// trimDecimal returns a decimal number without needless zeros, and without a sign if it is 0.
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

// StateTime is the State of a time. One instant is equal in all spellings that Time reads. A time that was never set
// says nothing. What is not a time is its text.
func (v Value) StateTime() string {
	switch s := v.Text(); {
	case s == "0001-01-01 00:00:00" || s == "0001-01-01T00:00:00" || s == "0001-01-01T00:00:00Z":
		return ""
	case isWallTime(s):
		return s // the form that the others are brought to
	}
	if t := v.Time(); t != "" {
		return strings.Replace(strings.TrimSuffix(t, istSuffix), "T", " ", 1)
	}
	return v.State()
}

// isWallTime reports whether s is digits in the layout of time.DateTime. They need not be those of a time that exists.
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

// StateWord is the State of a word.
func (v Value) StateWord() string {
	var buf [32]byte
	return string(Fold(buf[:0], v.Text()))
}
