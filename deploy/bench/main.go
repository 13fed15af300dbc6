//go:build linux

// Command bench measures what postbridge costs, in one run on one machine: beside a bare net/http server that reads the
// body and answers 200, and beside plain loops that publish the same bytes with the same client libraries. README.md says
// how to read it.
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

// What makes this program one of the servers.
const (
	bareArgument = "serve-bare"
	natsArgument = "serve-nats" // and where to store
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

// bench is one run.
type bench struct {
	plan
	rows     []string // to measure, by id
	rounds   int
	maxRate  int
	rate     int    // of the open loop, a second
	events   int    // that wait
	full     string // where they do, once that is filled
	dir      string // on the disk to measure; what is made there is removed
	binary   string
	minRatio float64
	minDrain float64
	drain    time.Duration
	out      io.Writer
}

// rowIDs name what can be measured, each beside its baseline.
func rowIDs() []string {
	return []string{"unreachable", "embedded", "jetstream", "kafka", "latency", "drain-jetstream", "drain-kafka", "waiting", "pieces"}
}

// peerIDs name the rows that are measured only if asked for: they need programs that the project does not bring.
func peerIDs() (ids []string) {
	for _, p := range peers() {
		ids = append(ids, p.id)
	}
	return ids
}

func parse(args []string, out io.Writer) (*bench, error) {
	b := &bench{out: out}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	rows := fs.String("rows", strings.Join(rowIDs(), ","), "what to measure; there are "+strings.Join(peerIDs(), ", ")+", too")
	fs.IntVar(&b.rounds, "rounds", 3, "how often each row is measured")
	fs.DurationVar(&b.duration, "duration", 5*time.Second, "length of one measurement of a rate")
	fs.DurationVar(&b.warmup, "warmup", time.Second, "load before each measurement that is not measured")
	fs.IntVar(&b.connections, "connections", 64, "keep-alive connections")
	fs.IntVar(&b.threads, "threads", max(1, runtime.NumCPU()/2), "threads that send")
	fs.IntVar(&b.maxRate, "max-rate", 200_000, "postbacks to prepare for each second of load")
	fs.IntVar(&b.rate, "rate", 5000, "postbacks a second for the latency")
	fs.IntVar(&b.events, "events", 1_000_000, "events that wait when a drain begins")
	fs.StringVar(&b.dir, "dir", ".", "where to put a temporary directory: the disk that is measured")
	fs.StringVar(&b.binary, "binary", "", "the postbridge to measure (default: built from ./cmd/postbridge)")
	fs.Float64Var(&b.minRatio, "min-ratio", 0, "exit 1 if the ratio of publishing to the embedded JetStream is below")
	fs.Float64Var(&b.minDrain, "min-drain", 0, "exit 1 if the ratio of a drain is below")
	fs.DurationVar(&b.drain, "drain", time.Minute, "how long a backlog may take to reach its bus")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 || b.rounds < 1 || b.duration <= 0 || b.warmup < 0 || b.threads < 1 || b.connections < b.threads || b.events < 1 || b.rate < 1 {
		return nil, errors.New("rounds, duration, rate, events, threads and connections are positive, with a connection for each thread; run with -help")
	}
	b.rows = strings.Split(*rows, ",")
	for _, id := range b.rows {
		if all := append(rowIDs(), peerIDs()...); !slices.Contains(all, id) {
			return nil, fmt.Errorf("there is no row %q; there are %s", id, strings.Join(all, ", "))
		}
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
	if err := b.introduce(); err != nil {
		return err
	}
	c, err := b.kafka(ctx)
	if err != nil {
		return err
	}
	if c != nil {
		defer c.Close()
	}
	rates, drains := b.rateRows(c), b.drainRows(c)
	if err := b.measureRates(ctx, rates); err != nil {
		return err
	}
	latencies, err := b.measureLatency(ctx)
	if err != nil {
		return err
	}
	if err := b.measureDrains(ctx, drains); err != nil {
		return err
	}
	waiting, err := b.measureWaiting(ctx)
	if err != nil {
		return err
	}
	pieces, err := b.measurePieces(ctx)
	if err != nil {
		return err
	}
	b.report(rates, drains, slices.Concat(latencies, waiting, pieces))
	return b.judge(rates, drains)
}

// build builds the real binary, unless one is given.
func (b *bench) build(ctx context.Context) (err error) {
	if b.binary != "" {
		b.binary, err = filepath.Abs(b.binary)
		return err
	}
	b.binary = filepath.Join(b.dir, "postbridge")
	if said, err := exec.CommandContext(ctx, "go", "build", "-o", b.binary, "./cmd/postbridge").CombinedOutput(); err != nil {
		return fmt.Errorf("cannot build postbridge (run this from the root of the repository): %w\n%s", err, said)
	}
	return nil
}

// wants reports whether one of the rows is to be measured.
func (b *bench) wants(ids ...string) bool {
	return slices.ContainsFunc(ids, func(id string) bool { return slices.Contains(b.rows, id) })
}

// kafka starts a Kafka if a row needs one. Where there can be none, the rows are left out.
func (b *bench) kafka(ctx context.Context) (*cluster, error) {
	ids := []string{"kafka", "drain-kafka"}
	if !b.wants(ids...) {
		return nil, nil
	}
	c, err := startKafka(ctx, b.dir)
	if !errors.Is(err, errNoKafka) {
		return c, err
	}
	fmt.Fprintf(b.out, "*** THE ROWS %s ARE LEFT OUT: %v ***\n\n", strings.Join(ids, " AND "), err)
	b.rows = slices.DeleteFunc(b.rows, func(id string) bool { return slices.Contains(ids, id) })
	if len(b.rows) == 0 {
		return nil, errors.New("nothing is left to measure")
	}
	return nil, nil
}

// judge fails the run if postbridge costs more than it may.
func (b *bench) judge(rates []*row, drains []*drain) error {
	var errs []error
	hold := func(r *row, least float64) {
		if got := middle(r.ratios()); got < least {
			errs = append(errs, fmt.Errorf("the ratio of %s is %.3f, below %.3f", r.name, got, least))
		}
	}
	for _, r := range rates {
		if r.id == "embedded" {
			hold(r, b.minRatio)
		}
	}
	for _, d := range drains {
		hold(d.postbridge, b.minDrain)
	}
	return errors.Join(errs...)
}
