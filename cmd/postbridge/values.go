package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// byteSize is a number of bytes, written like 64KiB, 8GiB or 4096.
type byteSize int64

// byteUnits returns the units in ascending order, each 1024 times the one before it.
func byteUnits() []string { return []string{"", "KiB", "MiB", "GiB", "TiB"} }

// UnmarshalText parses a size.
func (s *byteSize) UnmarshalText(text []byte) error {
	number, unit := string(text), byteSize(1)
	for i, name := range byteUnits() {
		if rest, ok := strings.CutSuffix(string(text), name); ok {
			number, unit = rest, 1<<(10*i)
		}
	}
	n, err := strconv.ParseUint(number, 10, 63)
	if err != nil || byteSize(n) > (1<<63-1)/unit {
		return errors.New("is not a size; write it like 64KiB, 512MiB, 8GiB or a plain number of bytes")
	}
	*s = byteSize(n) * unit
	return nil
}

// String formats the size in the largest unit without a fraction.
func (s byteSize) String() string {
	units := byteUnits()
	for s != 0 && s%1024 == 0 && len(units) > 1 {
		s, units = s/1024, units[1:]
	}
	return strconv.FormatInt(int64(s), 10) + units[0]
}

// secret is a value that is never printed.
type secret string

// String returns "(set)" for a secret that is set.
func (s secret) String() string {
	if s == "" {
		return ""
	}
	return "(set)"
}

// secretList is an unparsed list of secrets.
type secretList string

// String returns the number of secrets.
func (s secretList) String() string {
	switch n := len(splitEntries(string(s))); {
	case s == "":
		return ""
	case n == 1:
		return "(1 entry)"
	default:
		return fmt.Sprintf("(%d entries)", n)
	}
}

// list is a comma-separated list.
type list []string

// UnmarshalText appends the entries of a comma-separated list.
func (l *list) UnmarshalText(text []byte) error {
	for word := range strings.SplitSeq(string(text), ",") {
		word = strings.TrimSpace(word)
		if word == "" {
			return errors.New("has an empty entry; write it like one,two")
		}
		*l = append(*l, word)
	}
	return nil
}

// String joins the list with commas.
func (l list) String() string { return strings.Join(l, ",") }
