package main

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// byteSize is a number of bytes, written like 64KiB, 8GiB or 4096.
type byteSize int64

type byteUnit struct {
	name  string
	bytes byteSize
}

// byteUnits are the units from the largest down.
func byteUnits() []byteUnit {
	return []byteUnit{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}
}

var errByteSize = errors.New("is not a size; write it like 64KiB, 512MiB, 8GiB or a plain number of bytes")

// UnmarshalText reads a size.
func (s *byteSize) UnmarshalText(text []byte) error {
	number, unit := string(text), byteSize(1)
	for _, u := range byteUnits() {
		if rest, ok := strings.CutSuffix(number, u.name); ok {
			number, unit = rest, u.bytes
			break
		}
	}
	n, err := strconv.ParseUint(number, 10, 63)
	if err != nil || byteSize(n) > (1<<63-1)/unit {
		return errByteSize
	}
	*s = byteSize(n) * unit
	return nil
}

// String writes the size in the largest unit that leaves no fraction.
func (s byteSize) String() string {
	for _, u := range byteUnits() {
		if s != 0 && s%u.bytes == 0 {
			return strconv.FormatInt(int64(s/u.bytes), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// onThisMachine is where a program on this machine reaches what listens at an address.
func onThisMachine(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if ip := net.ParseIP(host); err != nil || host != "" && !ip.IsUnspecified() {
		return listen
	}
	return net.JoinHostPort("127.0.0.1", port)
}

// secret is a value that nothing prints.
type secret string

// String says only whether there is one.
func (s secret) String() string {
	if s == "" {
		return ""
	}
	return "(set)"
}

// secretList is a list of secrets, not yet taken apart.
type secretList string

// String says only how many there are.
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

// list is words separated by commas.
type list []string

var errEmptyEntry = errors.New("has an empty entry; write it like one,two")

// UnmarshalText takes the list apart.
func (l *list) UnmarshalText(text []byte) error {
	for word := range strings.SplitSeq(string(text), ",") {
		word = strings.TrimSpace(word)
		if word == "" {
			return errEmptyEntry
		}
		*l = append(*l, word)
	}
	return nil
}

// String puts the list together again.
func (l list) String() string { return strings.Join(l, ",") }
