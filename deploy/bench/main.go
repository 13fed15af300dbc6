//go:build linux

// Command bench measures what postbridge costs, in one run on one machine: beside a bare net/http server that reads the
// body and answers 200, and beside plain loops that publish the same bytes with the same client libraries. README.md
// says how to read it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Arguments that make this program one of the servers.
const (
	bareArgument = "serve-bare"
	natsArgument = "serve-nats" // and the store directory
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	switch args := os.Args[1:]; {
	case len(args) == 1 && args[0] == bareArgument:
		err = serveBare(ctx)
	case len(args) == 2 && args[0] == natsArgument:
		err = serveNATS(ctx, args[1])
	default:
		err = run(ctx, args, os.Stdout)
	}
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench holds the configuration and the state of one run.
type bench struct {
	plan
	rows     []string // ids to measure
	rounds   int
	openRate int           // postbacks a second of the latency rows
	events   int           // in the spool when a drain begins
	timeout  time.Duration // for a backlog to reach its bus
	dir      string        // temporary, on the disk to measure
	binaries []binary
	kafka    *cluster // nil without Kafka rows
	out      io.Writer
}

// binary is a postbridge to measure.
type binary struct{ label, path string }

// rowIDs returns the ids of all rows.
func rowIDs() []string {
	return []string{"sync", "unreachable", "jetstream", "kafka", "latency", "drain-jetstream", "drain-kafka"}
}

func parse(args []string, out io.Writer) (*bench, error) {
	b := &bench{out: out}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(out)
	rows := fs.String("rows", strings.Join(rowIDs(), ","), "what to measure")
	fs.IntVar(&b.rounds, "rounds", 3, "measurements of each row")
	fs.DurationVar(&b.duration, "duration", 5*time.Second, "length of one measurement under load")
	fs.DurationVar(&b.warmup, "warmup", time.Second, "load before it that is not measured")
	fs.IntVar(&b.connections, "connections", 64, "keep-alive connections")
	fs.IntVar(&b.threads, "threads", max(1, runtime.NumCPU()/2), "threads that send")
	fs.IntVar(&b.openRate, "rate", 2000, "postbacks a second of the row latency")
	fs.IntVar(&b.events, "events", 1_000_000, "events in the spool when a drain begins")
	fs.DurationVar(&b.timeout, "drain", time.Minute, "time limit for a backlog to reach its bus")
	fs.StringVar(&b.dir, "dir", ".", "where to put a temporary directory: the disk that is measured")
	path := fs.String("binary", "", "the postbridge to measure (default: built from ./cmd/postbridge)")
	old := fs.String("old", "", "another postbridge, measured in turns with it")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 || min(b.rounds, b.threads, b.openRate, b.events) < 1 ||
		b.duration <= 0 || b.warmup < 0 || b.connections < b.threads {
		return nil, errors.New(
			"rounds, duration, rate, events and threads must be positive, and connections >= threads",
		)
	}
	b.rows = strings.Split(*rows, ",")
	for _, id := range b.rows {
		if !slices.Contains(rowIDs(), id) {
			return nil, fmt.Errorf("there is no row %q; set -rows to some of %s", id, strings.Join(rowIDs(), ","))
		}
	}
	b.binaries = []binary{{"postbridge", *path}}
	if *old != "" {
		b.binaries = append(b.binaries, binary{"old postbridge", *old})
	}
	return b, nil
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	b, err := parse(args, out)
	if err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp(b.dir, ".bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	if b.dir, err = filepath.Abs(b.dir); err != nil {
		return err
	}
	if err := b.build(ctx); err != nil {
		return err
	}
	if err := b.startKafka(ctx); err != nil {
		return err
	}
	if b.kafka != nil {
		defer b.kafka.Close()
	}
	if err := b.describe(); err != nil {
		return err
	}
	groups := b.groups()
	for _, g := range groups {
		if err := b.measure(ctx, g); err != nil {
			return err
		}
	}
	fmt.Fprintln(
		b.out,
		"\nEvery 200 is accounted for: what was accepted is on its bus, or in the spool if there is none."+
			"\nMedian (min–max):",
	)
	for _, g := range groups {
		g.report(b.out)
	}
	return nil
}

// build builds the real binary, unless one is given, and makes the paths absolute.
func (b *bench) build(ctx context.Context) (err error) {
	if b.binaries[0].path == "" {
		b.binaries[0].path = filepath.Join(b.dir, "postbridge")
		output, err := exec.CommandContext(ctx, "go", "build", "-o", b.binaries[0].path,
			"./cmd/postbridge").CombinedOutput()
		if err != nil {
			return fmt.Errorf("cannot build postbridge (run this in the root of the repository): %w\n%s", err, output)
		}
	}
	for i := range b.binaries {
		if b.binaries[i].path, err = filepath.Abs(b.binaries[i].path); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) wants(id string) bool { return slices.Contains(b.rows, id) }

// startKafka starts a Kafka if a row needs one. Without Java or the jars the rows are left out.
func (b *bench) startKafka(ctx context.Context) (err error) {
	ids := []string{"kafka", "drain-kafka"}
	if !slices.ContainsFunc(ids, b.wants) {
		return nil
	}
	b.kafka, err = startKafka(ctx, b.dir)
	if !errors.Is(err, errNoKafka) {
		return err
	}
	fmt.Fprintf(b.out, "*** ROWS LEFT OUT: %s: %v ***\n\n", strings.Join(ids, ", "), err)
	b.rows = slices.DeleteFunc(b.rows, func(id string) bool { return slices.Contains(ids, id) })
	if len(b.rows) == 0 {
		return errors.New("no row is left to measure")
	}
	return nil
}
