package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/spool"
	"github.com/postbridge/postbridge/brokers"
)

const spoolHelp = `Inspect or repair the spool in POSTBRIDGE_DATA_DIR. ls and dump run beside serve and change nothing.

Usage: postbridge spool ls
       postbridge spool dump [filters]
       postbridge spool repair [--dry-run]

ls      the segments, the saved position of each bus, the quarantined files, and whether a process
        has the spool open
dump    the events as JSON lines, as tail prints them and send --replay reads them; verifies the
        whole spool, and reports damage on stderr; exit 1 if there is any
repair  while serve is stopped: move each file that prevents serve from opening the spool to
        spool/quarantine-<time>; nothing is deleted, and their sequences are not used again

To publish the events of a quarantined segment, move it to spool/ of a data directory of its own and
run 'postbridge drain' there, in the version that wrote it.

Filters of dump:
  --from, --to WHEN     received at or after, before: a time (RFC 3339) or an age (10m)
  --broker NAME         only events of this broker
  --sequence NUMBER     only the event with this sequence, as in the log and /status

Examples:
  postbridge spool dump >/dev/null          # only the damage
  postbridge spool dump --from 2026-11-20T09:00:00+05:30 --broker kite >day.jsonl
`

// spool runs the subcommand in args[0].
func (p *process) spool(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return misuse("spool: no ls, dump or repair; run 'postbridge spool --help'")
	}
	switch rest := args[1:]; args[0] {
	case "ls":
		return p.spoolLs(rest)
	case "dump":
		return p.spoolDump(ctx, rest)
	case "repair":
		return p.spoolRepair(rest)
	case "-h", "-help", "--help":
		return flag.ErrHelp
	default:
		return misuse("spool: %q is not ls, dump or repair; run 'postbridge spool --help'", args[0])
	}
}

// inspectSpool parses the arguments of a subcommand and inspects the spool in the data directory.
func (p *process) inspectSpool(flags *flag.FlagSet, args []string) (v *spool.View, dataDir string, err error) {
	if err := parseOnlyFlags(flags, args); err != nil {
		return nil, "", err
	}
	c, err := parseConfig(p.env)
	if err != nil {
		return nil, "", err
	}
	dir, err := spool.ReadDir(filepath.Join(c.DataDir, "spool"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, "", fmt.Errorf("there is no spool in %s; set POSTBRIDGE_DATA_DIR to the data of serve", c.DataDir)
	}
	if err == nil {
		v, err = spool.Inspect(dir)
	}
	if err != nil {
		return nil, "", fmt.Errorf("cannot read the spool: %w", err)
	}
	return v, c.DataDir, nil
}

// spoolLs prints the state of the spool without reading its records.
func (p *process) spoolLs(args []string) error {
	v, dataDir, err := p.inspectSpool(newFlags("spool ls"), args)
	if err != nil {
		return err
	}
	out := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	state := map[bool]string{false: "no process has it open", true: "a process has it open"}[v.InUse]
	fmt.Fprintf(out, "spool %s, %s\n", cmp.Or(v.ID, "without id"), state)
	fmt.Fprint(out, "SEGMENT\tBYTES\tEVENTS\n")
	for _, g := range v.Segments {
		events := "none"
		if g.Last >= g.First {
			events = fmt.Sprintf("%d to %d", g.First, g.Last)
		}
		fmt.Fprintf(out, "%s\t%d\t%s\n", g.Name, g.Bytes, events)
	}
	fmt.Fprint(out, "\nBUS\tCOMMITTED\tWAITING\n")
	for _, c := range v.Cursors {
		fmt.Fprintf(out, "%s\t%d\t%d\n", c.Bus, c.Committed, v.Next-1-c.Committed)
	}
	for _, f := range v.Faults {
		fmt.Fprintf(out, "unusable: %s: %v\n", f.File, f.Err)
	}
	data := os.DirFS(dataDir)
	// Earlier versions moved files to spool/aside-<time>.
	for _, pattern := range []string{"spool/*.bad", "spool/aside-*/*", "spool/quarantine-*/*", "quarantine-*.jsonl"} {
		files, _ := fs.Glob(data, pattern)
		for _, name := range files {
			if info, err := fs.Stat(data, name); err == nil {
				fmt.Fprintf(out, "quarantined: %s, %d bytes\n", name, info.Size())
			}
		}
	}
	return out.Flush()
}

// eventFilter selects events of the spool. The zero value selects all.
type eventFilter struct {
	from, to time.Time // bounds of ReceivedAt: from is included, to is not
	broker   string
	sequence uint64
}

func (f *eventFilter) flags(fs *flag.FlagSet, now time.Time) {
	when := func(at *time.Time) func(string) error {
		return func(text string) error {
			var ok bool
			if *at, ok = parseTime(text, now); !ok {
				return errors.New("set it to a time like 2026-01-05T09:15:00+05:30 or how long ago like 10m")
			}
			return nil
		}
	}
	fs.Func("from", "", when(&f.from))
	fs.Func("to", "", when(&f.to))
	fs.Func("broker", "", func(name string) error {
		f.broker = name
		if !slices.Contains(brokers.Names(), name) {
			return fmt.Errorf("set it to %s", strings.Join(brokers.Names(), " or "))
		}
		return nil
	})
	fs.Uint64Var(&f.sequence, "sequence", 0, "")
}

func (f *eventFilter) matches(d *bridge.Delivery) bool {
	return (f.broker == "" || f.broker == d.Broker) &&
		(f.from.IsZero() || !d.ReceivedAt.Before(f.from)) &&
		(f.to.IsZero() || d.ReceivedAt.Before(f.to)) &&
		(f.sequence == 0 || f.sequence == d.Sequence)
}

// spoolDump writes the events of the spool as JSON lines, and reports damage.
func (p *process) spoolDump(ctx context.Context, args []string) error {
	var f eventFilter
	flags := newFlags("spool dump")
	f.flags(flags, time.Now())
	v, _, err := p.inspectSpool(flags, args)
	if err != nil {
		return err
	}
	if !f.from.IsZero() && !f.to.IsZero() && !f.from.Before(f.to) {
		return misuse("spool dump: --from is not before --to; nothing can be between them")
	}
	damages := 0
	report := func(err error) {
		damages++
		fmt.Fprintf(p.stderr, "postbridge: spool dump: %v\n", err)
	}
	for _, fault := range v.Faults {
		if !fault.Refused() || filepath.Ext(fault.File) != ".seg" { // Records reports such a segment, with its numbers
			report(fmt.Errorf("%s: %w", fault.File, fault.Err))
		}
	}
	out := bufio.NewWriterSize(p.stdout, 64<<10)
	for r, err := range v.Records() {
		if ctx.Err() != nil {
			return errors.Join(out.Flush(), errors.New("spool dump: interrupted; not all of it was written"))
		}
		if err != nil {
			report(err)
			continue
		}
		d, err := bridge.ParseRecord(r.Payload)
		if err != nil {
			report(fmt.Errorf("event %d: %w; run the version that wrote it", r.Sequence, err))
			continue
		}
		if d.Sequence = r.Sequence; !f.matches(d) {
			continue
		}
		_, _ = out.Write(d.Data) // a bufio.Writer keeps the error for WriteByte
		if err := out.WriteByte('\n'); err != nil {
			return err
		}
	}
	if err := out.Flush(); err != nil {
		return err
	}
	if damages > 0 {
		return fmt.Errorf("spool dump: not all of the spool can be read (%d faults above); "+
			"compare missing events with the broker's order book", damages)
	}
	return nil
}

// spoolRepair quarantines the files that prevent serve from opening the spool.
func (p *process) spoolRepair(args []string) error {
	dryRun := false
	flags := newFlags("spool repair")
	flags.BoolVar(&dryRun, "dry-run", false, "")
	v, dataDir, err := p.inspectSpool(flags, args)
	if err != nil {
		return err
	}
	dir := filepath.Join(dataDir, "spool")
	if err := checkRepair(v, dir); err != nil {
		return fmt.Errorf("spool repair: %w", err)
	}
	refused := v.Refused()
	if len(refused) == 0 {
		return p.print("no file has to be quarantined: serve can open the spool\n")
	}
	to := filepath.Join(dir, "quarantine-"+time.Now().UTC().Format("20060102T150405Z"))
	log := func(done string, f spool.Fault) error {
		return p.print(fmt.Sprintf("%s %s to %s: %v; %s\n", done, f.File, to, f.Err, consequence(f.File)))
	}
	if dryRun {
		for _, f := range refused {
			err = errors.Join(err, log("would move", f))
		}
		return err
	}
	disk, err := spool.OSDir(dir)
	if err == nil {
		v, err = spool.Repair(disk, func(f spool.Fault) error {
			if err := moveFile(dir, f.File, to); err != nil {
				return err
			}
			return log("moved", f)
		})
	}
	if err != nil {
		return fmt.Errorf("spool repair: %w", err)
	}
	return p.print(fmt.Sprintf("serve can open the spool now; its next event is number %d\n", v.Next))
}

// checkRepair returns an error if the spool is in use, if this user cannot read one of its files, or if root would
// create files in the spool of another user, who could not open them.
func checkRepair(v *spool.View, dir string) error {
	if v.InUse {
		return errors.New("a process has the spool open; stop serve first")
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if uid, _, ok := owner(info); ok && uid != 0 && os.Geteuid() == 0 {
		return fmt.Errorf("the spool belongs to user %d, who cannot open files that root creates; "+
			"run repair as that user", uid)
	}
	for _, f := range v.Faults {
		if errors.Is(f.Err, os.ErrPermission) {
			return fmt.Errorf("%s is not readable by this user; "+
				"run repair as the user of serve, or fix its owner and mode", f.File)
		}
	}
	return nil
}

// consequence describes the effect on serve of quarantining a file of the spool.
func consequence(file string) string {
	switch {
	case filepath.Ext(file) == ".seg":
		return "its events are not published: see 'postbridge spool --help'"
	case strings.HasPrefix(file, "cursor-"):
		return "all events in the spool are published to the bus again"
	default:
		return "serve creates it again"
	}
}

// moveFile moves a file to another directory, which it creates if there is none. The move is durable on return.
func moveFile(dir, name, to string) error {
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(dir, name), filepath.Join(to, name)); err != nil {
		return err
	}
	return errors.Join(spool.SyncDir(to), spool.SyncDir(dir))
}
