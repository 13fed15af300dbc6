//go:build linux

// Command bench measures what postbridge costs next to the HTTP server it stands on, in one run: a bare net/http server
// that reads the body and answers 200, and the real postbridge, durable, without and with a bus to publish to.
// README.md says how to read it.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

// bareArgument, alone, makes this program the bare server.
const bareArgument = "serve-bare"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if len(os.Args) == 2 && os.Args[1] == bareArgument {
		err = serveBare(ctx)
	} else {
		err = run(ctx, os.Args[1:], os.Stdout)
	}
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	plan
	rounds   int
	maxRate  int
	dir      string // on the disk to measure; what is made there is removed
	binary   string
	minRatio float64
	drain    time.Duration
	out      io.Writer
}

func parse(args []string, out io.Writer) (*bench, error) {
	b := &bench{out: out}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.IntVar(&b.rounds, "rounds", 3, "how often each server is measured")
	fs.DurationVar(&b.duration, "duration", 5*time.Second, "length of one measurement")
	fs.DurationVar(&b.warmup, "warmup", time.Second, "load before each measurement that is not measured")
	fs.IntVar(&b.connections, "connections", 64, "keep-alive connections")
	fs.IntVar(&b.threads, "threads", max(1, runtime.NumCPU()/2), "threads that send")
	fs.IntVar(&b.maxRate, "max-rate", 200_000, "postbacks to prepare for each second of load")
	fs.StringVar(&b.dir, "dir", ".", "where to put a temporary directory: the disk that is measured")
	fs.StringVar(&b.binary, "binary", "", "the postbridge to measure (default: built from ./cmd/postbridge)")
	fs.Float64Var(&b.minRatio, "min-ratio", 0, "exit 1 if the ratio of publishing to bare is below")
	fs.DurationVar(&b.drain, "drain", time.Minute, "how long a backlog may take to reach JetStream")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 || b.rounds < 1 || b.duration <= 0 || b.warmup < 0 || b.threads < 1 || b.connections < b.threads {
		return nil, errors.New("rounds, duration, threads and connections are positive, with a connection for each thread; run with -help")
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
	w := newWorkload(int(float64(b.maxRate) * (b.warmup + b.duration).Seconds()))
	if err := b.introduce(); err != nil {
		return err
	}
	subjects := b.subjects()
	for round := range b.rounds {
		// Each round begins with another server, so that none always follows the same one.
		for i := range subjects {
			if err := b.measure(ctx, &subjects[(round+i)%len(subjects)], round, w); err != nil {
				return err
			}
		}
	}
	b.report(subjects)
	return b.judge(subjects)
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

// subject is a server to measure, and what was measured.
type subject struct {
	name     string
	start    func(context.Context) (*server, error)
	figures  []figures // of each round
	backlogs []backlog // of each round, if it publishes
}

// The places of the subjects.
const (
	bare = iota
	durable
	publishing
)

func (b *bench) subjects() []subject {
	postbridge := func(withBus bool) func(context.Context) (*server, error) {
		return func(ctx context.Context) (*server, error) { return startPostbridge(ctx, b.binary, b.dir, withBus) }
	}
	return []subject{
		bare:       {name: "bare net/http", start: func(ctx context.Context) (*server, error) { return startBare(ctx, b.dir) }},
		durable:    {name: "postbridge, bus unreachable", start: postbridge(false)},
		publishing: {name: "postbridge, publishing", start: postbridge(true)},
	}
}

// figures are what one measurement found.
type figures struct {
	rate                 float64 // answers a second
	p50, p99             time.Duration
	serverCPU, senderCPU time.Duration // for each answer
}

// measure starts a server, loads it, checks what it did and stops it.
func (b *bench) measure(ctx context.Context, s *subject, round int, w *workload) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", s.name, err)
		}
	}()
	srv, err := s.start(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, srv.stop()) }()
	f, r, err := b.load(ctx, srv, w)
	if err != nil {
		return err
	}
	line := fmt.Sprintf("round %d  %-28s %8.0f/s   p50 %s ms   p99 %s ms", round+1, s.name, f.rate, millis(f.p50), millis(f.p99))
	if srv.admin != "" {
		left, err := srv.check(ctx, r.answered, b.drain)
		if err != nil {
			return err
		}
		if left != nil {
			s.backlogs = append(s.backlogs, *left)
			line += "   " + left.String()
		}
	}
	s.figures = append(s.figures, *f)
	fmt.Fprintln(b.out, line)
	return nil
}

// load loads the server and takes the processor times at both ends of the measurement.
func (b *bench) load(ctx context.Context, srv *server, w *workload) (*figures, *result, error) {
	runtime.GC() // what is left of the last server is not this one's cost
	var begin, end usage
	over := make(chan struct{})
	go func() {
		defer close(over)
		time.Sleep(b.warmup)
		begin = usageNow(srv)
		time.Sleep(b.duration)
		end = usageNow(srv)
	}()
	r, err := b.run(ctx, srv.ingest, w)
	if err != nil {
		return nil, nil, err
	}
	<-over
	n := time.Duration(r.latencies.total)
	if err := errors.Join(begin.err, end.err); err != nil || n == 0 {
		return nil, nil, errors.Join(errors.New("nothing was measured"), err)
	}
	return &figures{
		rate:      float64(n) / b.duration.Seconds(),
		p50:       r.latencies.quantile(0.5),
		p99:       r.latencies.quantile(0.99),
		serverCPU: (end.server - begin.server) / n,
		senderCPU: (end.sender - begin.sender) / n,
	}, r, nil
}

// usage is processor time used so far.
type usage struct {
	server, sender time.Duration
	err            error
}

func usageNow(srv *server) (u usage) {
	u.server, u.err = srv.cpu()
	var self syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &self); err != nil {
		u.err = errors.Join(u.err, err)
	}
	u.sender = time.Duration(self.Utime.Nano() + self.Stime.Nano())
	return u
}

// judge fails the run if postbridge costs more than it may.
func (b *bench) judge(subjects []subject) error {
	if got := middle(ratios(subjects, publishing)); got < b.minRatio {
		return fmt.Errorf("the ratio of publishing to bare is %.3f, below %.3f", got, b.minRatio)
	}
	return nil
}

// introduce says what is measured, where and how.
func (b *bench) introduce() error {
	fsync, err := fsyncTimes(b.dir)
	if err != nil {
		return err
	}
	life := orderLife(netip.MustParseAddrPort("127.0.0.1:65535"))
	shortest, longest := len(life[0].text)-life[0].body, 0
	for _, r := range life {
		shortest, longest = min(shortest, len(r.text)-r.body), max(longest, len(r.text)-r.body)
	}
	fmt.Fprintf(b.out, "machine   %s; %d cores; Linux %s %s; %s; load average before the run %s\n",
		cpuModel(), runtime.NumCPU(), firstWord("/proc/sys/kernel/osrelease"), runtime.GOARCH, runtime.Version(), firstWord("/proc/loadavg"))
	fmt.Fprintf(b.out, "load      %d keep-alive connections, closed loop, %d sending thread(s) on the same cores; %d rounds of %s, after %s of warm-up each;\n"+
		"          signed Kite postbacks of %d to %d bytes, %d states for each order, none twice\n",
		b.connections, b.threads, b.rounds, b.duration, b.warmup, shortest, longest, len(life))
	fmt.Fprintf(b.out, "durable   postbridge: a 200 after an fsync that all who wait share; spool on %s, where 4 KiB and an fsync take %s ms (p50), %s ms (p99)\n"+
		"          JetStream: embedded in postbridge, file storage, acknowledges before its own fsync\n\n",
		fileSystem(b.dir), millis(fsync.quantile(0.5)), millis(fsync.quantile(0.99)))
	return nil
}

// fsyncTimes measures the disk alone: a ratio means little on one whose fsync costs nothing.
func fsyncTimes(dir string) (*histogram, error) {
	f, err := os.Create(filepath.Join(dir, "fsync"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	times, block := new(histogram), make([]byte, 4096)
	for range 200 {
		from := time.Now()
		if _, err := f.Write(block); err != nil {
			return nil, err
		}
		if err := f.Sync(); err != nil {
			return nil, err
		}
		times.record(time.Since(from))
	}
	return times, nil
}

func cpuModel() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	_, rest, _ := bytes.Cut(info, []byte("model name"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	if name := strings.Trim(string(line), "\t :"); name != "" {
		return name
	}
	return "unknown processor"
}

func firstWord(path string) string {
	text, _ := os.ReadFile(path)
	word, _, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	return word
}

// fileSystem names what the directory is on.
func fileSystem(dir string) string {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return "an unknown file system"
	}
	switch kind := uint32(fs.Type); kind {
	case 0xEF53:
		return "ext4"
	case 0x58465342:
		return "XFS"
	case 0x9123683E:
		return "Btrfs"
	case 0x2FC12FC1:
		return "ZFS"
	case 0x794C7630:
		return "overlayfs"
	case 0x01021994:
		return "tmpfs (memory: nothing here is durable; use -dir)"
	default:
		return fmt.Sprintf("file system %#x", kind)
	}
}

// report prints the medians over the rounds, each with the least and the greatest.
func (b *bench) report(subjects []subject) {
	fmt.Fprintln(b.out)
	t := tabwriter.NewWriter(b.out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "median (min–max)\trequests/s\tp50 ms\tp99 ms\tratio to bare\tCPU µs/request\tsender's")
	for i := range subjects {
		s := &subjects[i]
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", s.name,
			spread("%.0f", s.each(func(f figures) float64 { return f.rate })),
			spread("%.2f", s.each(func(f figures) float64 { return inMillis(f.p50) })),
			spread("%.2f", s.each(func(f figures) float64 { return inMillis(f.p99) })),
			spread("%.3f", ratios(subjects, i)),
			spread("%.1f", s.each(func(f figures) float64 { return inMicros(f.serverCPU) })),
			spread("%.1f", s.each(func(f figures) float64 { return inMicros(f.senderCPU) })))
	}
	_ = t.Flush() // who no longer reads is not told
	fmt.Fprintf(b.out, "\n%s\nEvery 200 was counted as accepted, and JetStream stored as many events as were accepted.\n",
		sayBacklogs(subjects[publishing].backlogs))
}

// sayBacklogs says whether the bus kept up with the load: a rate that it does not keep up with lasts only as long as
// the spool has room.
func sayBacklogs(backlogs []backlog) string {
	var left, rates []float64
	for _, l := range backlogs {
		left = append(left, 100*float64(l.waiting)/float64(l.accepted))
		if l.took >= leastDrain {
			rates = append(rates, l.rate())
		}
	}
	said := fmt.Sprintf("When the load ended, %s %% of what was accepted was not yet in JetStream", spread("%.1f", left))
	if len(rates) == 0 {
		return said + ": publishing kept up."
	}
	return said + fmt.Sprintf("; it drained at %s events/s.", spread("%.0f", rates))
}

// leastDrain is how long a backlog has to drain for a rate to mean anything.
const leastDrain = 100 * time.Millisecond

// each is one figure of every round.
func (s *subject) each(of func(figures) float64) (values []float64) {
	for _, f := range s.figures {
		values = append(values, of(f))
	}
	return values
}

// ratios are those of a subject's rate to the bare server's in the same round.
func ratios(subjects []subject, i int) (values []float64) {
	for round, f := range subjects[i].figures {
		values = append(values, f.rate/subjects[bare].figures[round].rate)
	}
	return values
}

func spread(format string, values []float64) string {
	return fmt.Sprintf(format+" ("+format+"–"+format+")", middle(values), slices.Min(values), slices.Max(values))
}

// middle is the median.
func middle(values []float64) float64 {
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}

func (l *backlog) rate() float64 { return float64(l.waiting) / l.took.Seconds() }

func (l *backlog) String() string {
	said := fmt.Sprintf("backlog %d of %d, gone after %s ms", l.waiting, l.accepted, millis(l.took))
	if l.took >= leastDrain {
		said += fmt.Sprintf(": %.0f/s", l.rate())
	}
	return said
}

func inMillis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func inMicros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func millis(d time.Duration) string { return fmt.Sprintf("%.2f", inMillis(d)) }
