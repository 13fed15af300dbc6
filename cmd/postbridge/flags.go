package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"time"
)

// misuseError is a mistake in the arguments or the configuration. Its text is one line and includes the remedy.
type misuseError struct{ text string }

func (e *misuseError) Error() string { return e.text }

func misuse(format string, args ...any) error {
	return &misuseError{fmt.Sprintf(format, args...)}
}

// newFlags returns a flag set that prints nothing itself: errors are one line, and the help texts are written by hand.
func newFlags(name string) *flag.FlagSet {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	return fs
}

// parseFlags parses args. Its error is flag.ErrHelp or a misuse.
func parseFlags(fs *flag.FlagSet, args []string) error {
	err := fs.Parse(args)
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return err
	}
	return misuse("%s: %s; run 'postbridge %s --help'", fs.Name(), strings.TrimSpace(err.Error()), fs.Name())
}

// noArguments rejects arguments after the flags.
func noArguments(fs *flag.FlagSet) error {
	if fs.NArg() == 0 {
		return nil
	}
	return misuse("%s: takes no argument %q; run 'postbridge %s --help'", fs.Name(), fs.Arg(0), fs.Name())
}

// parseOnlyFlags parses args, which must not have arguments after the flags.
func parseOnlyFlags(fs *flag.FlagSet, args []string) error {
	if err := parseFlags(fs, args); err != nil {
		return err
	}
	return noArguments(fs)
}

// parseTime parses a time (RFC 3339), or a duration before now.
func parseTime(text string, now time.Time) (at time.Time, ok bool) {
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return now.Add(-ago), true
	}
	at, err := time.Parse(time.RFC3339, text)
	return at, err == nil
}
