// Command postbridge takes order postbacks from stock brokers and publishes each one as an event on a bus.
//
// This package is the only one that reads the environment and signals, and that ends the process.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/caarlos0/env/v10"

	"github.com/postbridge/postbridge/publishers"
)

func main() {
	stderr := openStderr()
	keepCrashesFromBlocking()
	os.Exit(run(context.Background(), os.Args[1:], os.Environ(), os.Stdin, os.Stdout, stderr))
}

// Exit codes. A supervisor restarts after a failure; misuse does not mend itself.
const (
	exitOK      = 0
	exitFailure = 1
	exitMisuse  = 2
	exitWarning = 3 // of doctor: something should be better
)

// run is the program as a function of everything it may touch.
func run(ctx context.Context, args, environ []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if !signal.Ignored(syscall.SIGHUP) { // nohup ignores it
		var forget func()
		ctx, forget = signal.NotifyContext(ctx, syscall.SIGHUP) // a terminal that closes may send several
		defer forget()
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // the first signal asks for an ordered stop, a second SIGINT or SIGTERM ends at once

	p := &process{env.ToMap(environ), stdin, stdout, newLogQueue(stderr)}
	defer p.stderr.close()
	return exitCode(p.dispatch(ctx, args), p.stderr)
}

// exitCode is what the end of a command comes to, which is told unless it was already.
func exitCode(err error, stderr io.Writer) int {
	var misuse *misuseError
	var logged *loggedError
	var checked *severityError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &checked) && checked.severity == publishers.Warn:
		return exitWarning
	case errors.As(err, &checked), errors.As(err, &logged):
		return exitFailure
	case errors.As(err, &misuse):
		fmt.Fprintln(stderr, "postbridge:", err)
		return exitMisuse
	default:
		fmt.Fprintln(stderr, "postbridge:", err)
		return exitFailure
	}
}

// process is what a command may touch of the world around it.
type process struct {
	env    map[string]string
	stdin  io.Reader
	stdout io.Writer
	stderr *logQueue
}

// command is one subcommand. Its help fits a screen and has an example that works.
type command struct {
	name, help string
	run        func(p *process, ctx context.Context, args []string) error
}

func commands() []command {
	return []command{
		{"serve", serveHelp, (*process).serve},
		{"send", sendHelp, (*process).send},
		{"tail", tailHelp, (*process).tail},
		{"drain", drainHelp, (*process).drain},
		{"spool", spoolHelp, (*process).spool},
		{"doctor", doctorHelp, (*process).doctor},
		{"config", configHelp, (*process).config},
		{"version", versionHelp, (*process).version},
	}
}

const mainHelp = `postbridge takes order postbacks from stock brokers and publishes each one on a bus.

Usage: postbridge COMMAND [flags]

  serve     take postbacks and publish them; runs until SIGTERM
  send      send postbacks to a running postbridge: generated orders, files, a recorded day
  tail      follow the events on the bus
  drain     publish everything that waits in a spool, then exit
  spool     list, check or export what lies in the spool, beside serve; repair it
  doctor    check what the buses, the disk and the clock promise, and say what to do
  config    check the configuration and print it, secrets redacted
  version   print the version
  help      print this, or with the name of a command its help

The configuration is the environment, names that start with POSTBRIDGE_. Exit code 0 is
success, 1 a failure, 2 misuse or a bad configuration.

Example, a Kite app 1234 and an embedded bus, in one shell and then in another:
  POSTBRIDGE_KITE_SECRETS=1234=0hdv7iw5examplesecret postbridge serve
  postbridge send --secret 1234=0hdv7iw5examplesecret && postbridge tail --from start --count 5
`

func (p *process) dispatch(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return misuse("no command; run 'postbridge help'")
	}
	name, rest := args[0], args[1:]
	switch name {
	case "help", "-h", "-help", "--help":
		return p.help(rest)
	case "-version", "--version":
		name = "version"
	}
	for _, c := range commands() {
		if c.name != name {
			continue
		}
		err := c.run(p, ctx, rest)
		if errors.Is(err, flag.ErrHelp) {
			return p.print(c.help)
		}
		return err
	}
	return misuse("%q is not a command; run 'postbridge help'", name)
}

func (p *process) help(args []string) error {
	if len(args) == 0 {
		return p.print(mainHelp)
	}
	for _, c := range commands() {
		if c.name == args[0] {
			return p.print(c.help)
		}
	}
	return misuse("%q is not a command; run 'postbridge help'", args[0])
}

func (p *process) print(text string) error {
	_, err := io.WriteString(p.stdout, text)
	return err
}

// misuseError is a mistake in the arguments or the configuration. Its text is one line and says what to do.
type misuseError struct{ text string }

func (e *misuseError) Error() string { return e.text }

func misuse(format string, args ...any) error {
	return &misuseError{fmt.Sprintf(format, args...)}
}

// loggedError is a failure that the log tells already.
type loggedError struct{ error }

// newFlags makes a flag set that prints nothing itself: what goes wrong is one line, and help is a screen that was
// written for people.
func newFlags(name string) *flag.FlagSet {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	return fs
}

// parseFlags reads args into fs; its error is flag.ErrHelp or a misuse.
func parseFlags(fs *flag.FlagSet, args []string) error {
	err := fs.Parse(args)
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return err
	}
	return misuse("%s: %s; run 'postbridge %s --help'", fs.Name(), strings.TrimSpace(err.Error()), fs.Name())
}

// noArguments refuses what is left after the flags.
func noArguments(fs *flag.FlagSet) error {
	if fs.NArg() == 0 {
		return nil
	}
	return misuse("%s: takes no argument %q; run 'postbridge %s --help'", fs.Name(), fs.Arg(0), fs.Name())
}

// isTerminal reports whether people read w. (The null device passes for one, which nobody can notice.)
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
