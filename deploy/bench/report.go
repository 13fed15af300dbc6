//go:build linux

package main

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

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
		"          signed Kite postbacks of %d to %d bytes, %d states for each order, none twice\n"+
		"latency   open loop at %d a second, counted from when a postback was due\n"+
		"drain     %d events, one round first that is not counted\n",
		b.connections, b.threads, b.rounds, b.duration, b.warmup, shortest, longest, len(life), b.rate, b.events)
	fmt.Fprintf(b.out, "durable   postbridge: a 200 after an fsync that all who wait share; spool on %s, where 4 KiB and an fsync take %s ms (p50), %s ms (p99)\n"+
		"          JetStream and Kafka: one server each, on the same disk and cores, acknowledge before their own fsync\n\n",
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
func (b *bench) report(rates []*row, drains []*drain, findings []*finding) {
	rows := slices.Clone(rates)
	for _, d := range drains {
		rows = append(rows, d.plain, d.postbridge)
	}
	fmt.Fprintln(b.out)
	t := tabwriter.NewWriter(b.out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "median (min–max)\tper second\tp50 ms\tp99 ms\tratio\tCPU µs each\tsender's")
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.name,
			spread("%.0f", r.each(func(f figures) float64 { return f.rate })),
			spread("%.2f", r.each(func(f figures) float64 { return inMillis(f.p50) })),
			spread("%.2f", r.each(func(f figures) float64 { return inMillis(f.p99) })),
			spread("%.3f", r.ratios()),
			spread("%.1f", r.each(func(f figures) float64 { return inMicros(f.serverCPU) })),
			spread("%.1f", r.each(func(f figures) float64 { return inMicros(f.senderCPU) })))
	}
	_ = t.Flush() // who no longer reads is not told
	fmt.Fprintln(b.out)
	for _, r := range rates {
		if len(r.backlogs) > 0 {
			fmt.Fprintln(b.out, r.sayBacklogs())
		}
	}
	fmt.Fprintln(b.out, "Every 200 is accounted for: what was accepted is on its bus, or where it waits for one.")
	fmt.Fprintln(b.out)
	t = tabwriter.NewWriter(b.out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "median (min–max)\tbaseline\tmeasured\tratio\tdifference\tto reach")
	for _, f := range slices.Concat(b.ratesFound(rows), findings) {
		fmt.Fprintf(t, "%s\t%s: %s\t%s\t%s\t%s\t%s\n", f.what, f.baseline, spread("%.2f "+f.unit, f.base), spread("%.2f "+f.unit, f.got),
			spread("%.2f", f.ratios()), spread("%+.2f "+f.unit, f.differences()), f.goal)
	}
	_ = t.Flush()
}

// finding is one figure beside its baseline, of each round.
type finding struct {
	what, baseline, unit, goal string
	base, got                  []float64
}

// ratesFound are the rows that are ratios of rates.
func (b *bench) ratesFound(rows []*row) (all []*finding) {
	goals := map[string]string{"unreachable": "0.60", "jetstream": "0.40", "drain-jetstream": "0.80", "drain-kafka": "0.80"}
	for _, r := range rows {
		if r.baseline == nil {
			continue
		}
		rate := func(f figures) float64 { return f.rate / 1000 }
		all = append(all, &finding{what: r.name, baseline: r.baseline.name, unit: "k/s", goal: goals[r.id], base: r.baseline.each(rate), got: r.each(rate)})
	}
	return all
}

// last says what the last round found.
func (f *finding) last() string {
	return fmt.Sprintf("%s: %.2f %s, %s %.2f %s", f.what, f.got[len(f.got)-1], f.unit, f.baseline, f.base[len(f.base)-1], f.unit)
}

func (f *finding) ratios() (values []float64) {
	for i := range f.got {
		values = append(values, f.got[i]/f.base[i])
	}
	return values
}

func (f *finding) differences() (values []float64) {
	if f.unit == "k/s" {
		return nil
	}
	for i := range f.got {
		values = append(values, f.got[i]-f.base[i])
	}
	return values
}

// sayBacklogs says whether the bus kept up with the load: a rate that it does not keep up with lasts only as long as
// the spool has room.
func (r *row) sayBacklogs() string {
	var left, rates []float64
	for _, l := range r.backlogs {
		left = append(left, 100*float64(l.waiting)/float64(l.accepted))
		if l.took >= leastDrain {
			rates = append(rates, l.rate())
		}
	}
	said := fmt.Sprintf("%s: when the load ended, %s %% of what was accepted was not stored yet", r.name, spread("%.1f", left))
	if len(rates) == 0 {
		return said + ": publishing kept up."
	}
	return said + fmt.Sprintf("; it drained at %s events/s.", spread("%.0f", rates))
}

// leastDrain is how long a backlog has to drain for a rate to mean anything.
const leastDrain = 100 * time.Millisecond

// each is one figure of every round; none where there is nothing to measure.
func (r *row) each(of func(figures) float64) (values []float64) {
	for _, f := range r.figures {
		if v := of(f); v > 0 {
			values = append(values, v)
		}
	}
	return values
}

// ratios are those of the rate to the baseline's in the same round.
func (r *row) ratios() (values []float64) {
	if r.baseline == nil {
		return nil
	}
	for round, f := range r.figures {
		values = append(values, f.rate/r.baseline.figures[round].rate)
	}
	return values
}

// spread is the median, the least and the greatest of some values; nothing if there are none.
func spread(format string, values []float64) string {
	if len(values) == 0 {
		return ""
	}
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
