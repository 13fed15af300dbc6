package scan

import (
	"bytes"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// RemoveMembers returns text without the members that have one of the names, at any depth and without regard to case.
// From text that is not JSON, such as a truncated body, it removes the members it recognizes. It returns text itself if
// it removes nothing.
func RemoveMembers(text []byte, names []string) []byte {
	if len(names) == 0 {
		return text
	}
	var kept []byte
	rest := 0 // the start of the text that is neither kept nor removed yet
	for at := 0; at < len(text); {
		if text[at] != '"' {
			at++
			continue
		}
		end := stringEnd(text, at)
		colon := skipSpace(text, end)
		if colon == len(text) || text[colon] != ':' || !isOneOf(text[at:end], names) {
			at = end
			continue
		}
		kept = append(kept, text[rest:at]...)
		at = skipSpace(text, valueEnd(text, skipSpace(text, colon+1)))
		if at < len(text) && text[at] == ',' {
			at++
		} else {
			kept = bytes.TrimSuffix(bytes.TrimRight(kept, space), []byte(","))
		}
		rest = at
	}
	if rest == 0 {
		return text
	}
	return append(kept, text[rest:]...)
}

const space = " \t\r\n"

// skipSpace returns the index of the next byte that is not white space.
func skipSpace(text []byte, at int) int {
	return len(text) - len(bytes.TrimLeft(text[at:], space))
}

// stringEnd returns the end of the JSON string that begins at a quote, or that of the text if it is not terminated.
func stringEnd(text []byte, at int) int {
	for at++; at < len(text); at++ {
		switch text[at] {
		case '\\':
			at++
		case '"':
			return at + 1
		}
	}
	return len(text)
}

// valueEnd returns the end of the JSON value that begins at an index. White space behind a literal is part of it.
func valueEnd(text []byte, at int) int {
	for depth := 0; at < len(text); at++ {
		switch text[at] {
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return at
			}
			if depth--; depth == 0 {
				return at + 1
			}
		case ',':
			if depth == 0 {
				return at
			}
		case '"':
			at = stringEnd(text, at)
			if depth == 0 {
				return at
			}
			at--
		}
	}
	return len(text)
}

// isOneOf reports whether a JSON string, with its quotes, is one of the names without regard to case.
func isOneOf(quoted []byte, names []string) bool {
	name := quoted[1 : len(quoted)-1]
	if bytes.IndexByte(name, '\\') >= 0 {
		name, _ = jsontext.AppendUnquote(nil, quoted) // of an invalid string the valid beginning
	}
	return slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, string(name)) })
}
