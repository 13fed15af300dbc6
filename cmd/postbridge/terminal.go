package main

import (
	"io"
	"os"
	"strings"
	"unicode"
)

// isTerminal reports whether w is a terminal. The null device counts as one, without a visible effect.
func isTerminal(w io.Writer) bool {
	if q, ok := w.(*logQueue); ok {
		w = q.to
	}
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// printable replaces control characters, with which a broker could move the cursor of the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '.'
	}, s)
}
