//go:build linux

package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// group holds rows that are measured in turns and compared with each other.
type group struct {
	title   string
	rows    []*row
	prepare func(context.Context) error // before the first round; nil for nothing
}

// row is a line of the report: one thing to measure, and its measurements.
type row struct {
	name     string
	baseline *row   // nil if this is one
	goal     string // what it has to reach; empty for none
	measure  func(context.Context) (*figures, error)
	figures  []*figures // by round
}

// figures holds one measurement. Zero is not measured.
type figures struct {
	rate           float64       // answers or events a second
	p50, p99, p999 time.Duration // until the answer, or until a batch is on disk
	stored         time.Duration // from arrival to stored in the stream, p50
	cpu            time.Duration // for each answer or event
	backlog        float64       // percent of the accepted events that were unpublished when the load ended
}

// measure measures the rows of a group. Each round begins with another row, so that none always follows the same one.
func (b *bench) measure(ctx context.Context, g *group) error {
	if g.prepare != nil {
		if err := g.prepare(ctx); err != nil {
			return fmt.Errorf("%s: %w", g.title, err)
		}
	}
	for round := range b.rounds {
		for i := range g.rows {
			r := g.rows[(round+i)%len(g.rows)]
			runtime.GC() // garbage of the previous measurement is not this one's cost
			f, err := r.measure(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
			r.figures = append(r.figures, f)
			fmt.Fprintf(b.out, "round %d of %d  %s\n", round+1, b.rounds, r.name)
		}
	}
	return nil
}

// column is a figure of the report, or its relation to the baseline's in the same round.
type column struct {
	title, format string
	of            func(r *row, round int) (value float64, ok bool)
}

func columns() []column {
	value := func(of func(*figures) float64) func(*row, int) (float64, bool) {
		return func(r *row, round int) (float64, bool) {
			v := of(r.figures[round])
			return v, v > 0
		}
	}
	compared := func(of func(*figures) float64, with func(got, base float64) float64) func(*row, int) (float64, bool) {
		return func(r *row, round int) (float64, bool) {
			if r.baseline == nil {
				return 0, false
			}
			got, base := of(r.figures[round]), of(r.baseline.figures[round])
			return with(got, base), got > 0 && base > 0
		}
	}
	ratio := func(got, base float64) float64 { return got / base }
	difference := func(got, base float64) float64 { return got - base }
	rate := func(f *figures) float64 { return f.rate }
	p50 := func(f *figures) float64 { return millis(f.p50) }
	p99 := func(f *figures) float64 { return millis(f.p99) }
	p999 := func(f *figures) float64 { return millis(f.p999) }
	cpu := func(f *figures) float64 { return float64(f.cpu) / float64(time.Microsecond) }
	return []column{
		{"per second", "%.0f", value(rate)},
		{"ratio", "%.3f", compared(rate, ratio)},
		{"p50 ms", "%.2f", value(p50)},
		{"more", "%+.2f", compared(p50, difference)},
		{"times", "%.2f", compared(p50, ratio)},
		{"p99 ms", "%.2f", value(p99)},
		{"more", "%+.2f", compared(p99, difference)},
		{"p99.9 ms", "%.2f", value(p999)},
		{"more", "%+.2f", compared(p999, difference)},
		{"stored p50 ms", "%.2f", value(func(f *figures) float64 { return millis(f.stored) })},
		{"CPU µs each", "%.1f", value(cpu)},
		{"times", "%.2f", compared(cpu, ratio)},
		{"backlog %", "%.1f", value(func(f *figures) float64 { return f.backlog })},
	}
}

// report prints the median of each column over the rounds, with its range; columns without a value are left out.
func (g *group) report(out io.Writer) {
	if len(g.rows) == 0 {
		return
	}
	t := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	lines := make([]string, 1+len(g.rows))
	lines[0] = g.title
	for i, r := range g.rows {
		lines[1+i] = r.name
	}
	for _, c := range columns() {
		cells, some := make([]string, len(g.rows)), false
		for i, r := range g.rows {
			cells[i] = spread(c.format, c.values(r))
			some = some || cells[i] != ""
		}
		if !some {
			continue
		}
		lines[0] += "\t" + c.title
		for i, cell := range cells {
			lines[1+i] += "\t" + cell
		}
	}
	if slices.ContainsFunc(g.rows, func(r *row) bool { return r.goal != "" }) {
		lines[0] += "\tgoal"
		for i, r := range g.rows {
			lines[1+i] += "\t" + r.goal
		}
	}
	fmt.Fprintf(t, "\n%s\n", strings.Join(lines, "\n"))
	_ = t.Flush() // nothing can be done about a closed stdout
}

func (c *column) values(r *row) (values []float64) {
	for round := range r.figures {
		if v, ok := c.of(r, round); ok {
			values = append(values, v)
		}
	}
	return values
}

// spread formats the median, the least and the greatest value; "" for none.
func spread(format string, values []float64) string {
	if len(values) == 0 {
		return ""
	}
	return fmt.Sprintf(format+" ("+format+"–"+format+")", median(values), slices.Min(values), slices.Max(values))
}

func median(values []float64) float64 {
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}

// describe prints what is measured, where and how.
func (b *bench) describe() error {
	fsync, err := fsyncTimes(b.dir)
	if err != nil {
		return err
	}
	life := orderLife(netip.MustParseAddrPort("127.0.0.1:65535"))
	fmt.Fprintf(b.out, "machine   %d cores, %s, %s; 4 KiB and an fsync take %.2f ms (p50), %.2f ms (p99)\n"+
		"load      %d keep-alive connections, %d sending thread(s) on the same cores;\n"+
		"          %d rounds of %s after %s of warm-up;\n"+
		"          signed Kite postbacks of some %d bytes, %d states for each order, no repeat\n"+
		"open loop %d a second; time counts from when a postback was due\n"+
		"drain     %d events\n"+
		"bus       one server, on the same disk and cores; JetStream and Kafka acknowledge before their own fsync\n\n",
		runtime.NumCPU(), runtime.GOARCH, runtime.Version(), millis(fsync.quantile(0.5)), millis(fsync.quantile(0.99)),
		b.connections, b.threads, b.rounds, b.duration, b.warmup,
		len(life[0].text)-life[0].body, len(life), b.openRate, b.events)
	return nil
}

// fsyncTimes measures the disk alone: a ratio means little on a disk whose fsync costs nothing.
func fsyncTimes(dir string) (t times, err error) {
	f, err := os.Create(filepath.Join(dir, "fsync"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for range 200 {
		from := time.Now()
		_, err := f.Write(make([]byte, 4096))
		if err := cmp.Or(err, f.Sync()); err != nil {
			return nil, err
		}
		t = append(t, time.Since(from))
	}
	return t, nil
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
