// Command postbridge accepts order postbacks from stock brokers and publishes each one as an event on a bus.
//
// Only this package reads the environment, handles signals and ends the process.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/caarlos0/env/v10"

	"github.com/postbridge/postbridge/publishers"
)

func main() {
	stderr := openStderr()
	keepCrashesFromBlocking()
	os.Exit(run(context.Background(), os.Args[1:], os.Environ(), os.Stdin, os.Stdout, stderr))
}

// Exit codes. A supervisor should restart after a failure, but not after misuse.
const (
	exitOK      = 0
	exitFailure = 1
	exitMisuse  = 2
	exitWarning = 3 // of doctor
)

// run runs the program with its inputs and outputs as arguments and returns the exit code.
func run(ctx context.Context, args, environ []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if !signal.Ignored(syscall.SIGHUP) { // nohup ignores it
		var stopHangup func()
		ctx, stopHangup = signal.NotifyContext(ctx, syscall.SIGHUP) // a terminal that closes may send several
		defer stopHangup()
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // the first signal stops in order, a second SIGINT or SIGTERM ends at once

	p := &process{env.ToMap(environ), stdin, stdout, newLogQueue(stderr)}
	defer p.stderr.close()
	return exitCode(p.dispatch(ctx, args), p.stderr)
}

// exitCode maps a command's error to the process exit code and prints the error unless it was already reported.
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

// process holds the environment and the standard streams of a command.
type process struct {
	env    map[string]string
	stdin  io.Reader
	stdout io.Writer
	stderr *logQueue
}

// command is a subcommand. Its help fits a screen and has a working example.
type command struct {
	name, help string
	run        func(p *process, ctx context.Context, args []string) error
}

func commands() []command {
	return []command{
		{"serve", serveHelp, (*process).serve},
		{"send", sendHelp, (*process).send},
		{"tail", tailHelp, (*process).tail},
		{"reconcile", reconcileHelp, (*process).reconcile},
		{"drain", drainHelp, (*process).drain},
		{"spool", spoolHelp, (*process).spool},
		{"doctor", doctorHelp, (*process).doctor},
		{"config", configHelp, (*process).config},
		{"version", versionHelp, (*process).version},
	}
}

const mainHelp = `postbridge accepts order postbacks from stock brokers and publishes each one on a bus.

Usage: postbridge COMMAND [flags]

  serve     accept postbacks and publish them; runs until SIGTERM
  send      send postbacks to a running postbridge: generated orders, files, a recorded day
  tail      follow the events on the bus
  reconcile publish what is missing on the bus, by the order books of the brokers
  drain     publish every event in a spool, then exit
  spool     list the files of the spool, dump its events as JSON, or repair it
  doctor    check the buses, the disk, the clock, the routes and the secrets; print remedies
  config    check the configuration and print it, secrets redacted
  version   print the version
  help      print this, or with the name of a command its help

The configuration is the environment, names that start with POSTBRIDGE_. Exit code 0 is
success, 1 a failure, 2 misuse or a bad configuration, 3 a warning of doctor.

Example, a Kite app 1234 and an embedded bus, in one shell and then in another:
  POSTBRIDGE_KITE_SECRETS=1234=0hdv7iw5examplesecret POSTBRIDGE_LISTEN=127.0.0.1:8080 \
    postbridge serve
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
	c, err := findCommand(name)
	if err != nil {
		return err
	}
	if err := c.run(p, ctx, rest); !errors.Is(err, flag.ErrHelp) {
		return err
	}
	return p.print(c.help)
}

func (p *process) help(args []string) error {
	if len(args) == 0 {
		return p.print(mainHelp)
	}
	c, err := findCommand(args[0])
	if err != nil {
		return err
	}
	return p.print(c.help)
}

func findCommand(name string) (command, error) {
	for _, c := range commands() {
		if c.name == name {
			return c, nil
		}
	}
	return command{}, misuse("%q is not a command; run 'postbridge help'", name)
}

func (p *process) print(text string) error {
	_, err := io.WriteString(p.stdout, text)
	return err
}

// loggedError marks an error that was logged: exitCode does not print it again.
type loggedError struct{ error }
