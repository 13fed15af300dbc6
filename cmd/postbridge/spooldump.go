package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/spool"
)

const filterHelp = `Filters of dump:
  --from, --to WHEN     received then or later; before: a time (RFC 3339) or how long ago: 10m
  --broker NAME, --user ID, --order ID, --status WORD,...
  --destination NAME    only what goes to orders, rejects or deadletters
  --sequence NUMBER     only the event of that number in the spool, as the log and /status name it
`

// eventFilter says which events of the spool are wanted.
type eventFilter struct {
	broker, user, order string
	destination         bridge.Destination
	statuses            list
	from, to            time.Time // of their arrival
	sequence            uint64    // 0 for all
}

// flags adds the filters to those of a command.
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
	for name, value := range map[string]*string{
		"broker": &f.broker, "user": &f.user, "order": &f.order, "destination": (*string)(&f.destination),
	} {
		fs.Func(name, "", func(text string) error {
			if text == "" { // of a variable that is not set, most likely: without a filter it would be too many
				return errors.New("set it or leave it out")
			}
			*value = text
			return nil
		})
	}
	fs.Uint64Var(&f.sequence, "sequence", 0, "")
	fs.Func("status", "", func(words string) error { return f.statuses.UnmarshalText([]byte(words)) })
}

// check says what is wrong with the filters, which are parsed.
func (f *eventFilter) check(command string) error {
	if err := checkBroker(command, f.broker); f.broker != "" && err != nil {
		return err
	}
	destinations := []bridge.Destination{"", bridge.Orders, bridge.Rejects, bridge.Deadletters}
	if !slices.Contains(destinations, f.destination) {
		return misuse("%s: --destination %q is not known; set it to one of orders, rejects, deadletters", command, f.destination)
	}
	for _, s := range f.statuses {
		if !slices.Contains(bridge.Statuses(), bridge.Status(s)) {
			return misuse("%s: --status %q is not known; set it to one of %s", command, s, statusWords())
		}
	}
	if !f.from.IsZero() && !f.to.IsZero() && !f.from.Before(f.to) {
		return misuse("%s: --from is not before --to; nothing can be between them", command)
	}
	return nil
}

// wants reports whether an event is one of those that were asked for.
func (f *eventFilter) wants(d *bridge.Delivery) bool {
	return (f.broker == "" || f.broker == d.Broker) &&
		(f.user == "" || f.user == d.UserID) &&
		(f.order == "" || f.order == d.OrderID) &&
		(len(f.statuses) == 0 || slices.Contains(f.statuses, string(d.Status))) &&
		(f.destination == "" || slices.Contains(d.Destinations(), f.destination)) &&
		(f.from.IsZero() || !d.ReceivedAt.Before(f.from)) &&
		(f.to.IsZero() || d.ReceivedAt.Before(f.to)) &&
		(f.sequence == 0 || f.sequence == d.Sequence)
}

func (p *process) spoolDump(ctx context.Context, args []string) error {
	f := new(eventFilter)
	fs := newFlags("spool dump")
	f.flags(fs, time.Now())
	if err := parseFlags(fs, args); err != nil {
		return err
	}
	if err := errors.Join(noArguments(fs), f.check("spool dump")); err != nil {
		return err
	}
	c, err := parseConfig(p.env)
	if err != nil {
		return err
	}
	v, err := lookAtSpool(c)
	if err != nil {
		return err
	}
	d := &dump{filter: f, out: bufio.NewWriterSize(p.stdout, 64<<10), damage: p.stderr}
	return d.run(ctx, v)
}

// dump writes the events of a spool as lines of JSON, and reports what cannot be read where it stands.
type dump struct {
	filter   *eventFilter
	out      *bufio.Writer
	damage   io.Writer
	findings int
}

func (d *dump) run(ctx context.Context, v *spool.View) error {
	d.faults(v)
	for r, err := range v.Records() {
		if ctx.Err() != nil {
			return errors.Join(d.out.Flush(), errors.New("spool dump: interrupted; not all of it was written"))
		}
		if err != nil {
			d.unread(err)
			continue
		}
		if err := d.event(r); err != nil {
			return err
		}
	}
	if err := d.out.Flush(); err != nil {
		return err
	}
	if d.findings > 0 {
		return fmt.Errorf("spool dump: not all of the spool can be read (%d findings above)", d.findings)
	}
	return nil
}

// faults reports the files that are at fault. A segment among them is reported again, with the missing events, by Records.
func (d *dump) faults(v *spool.View) {
	for _, f := range v.Faults {
		segment := slices.ContainsFunc(v.Segments, func(g spool.SegmentInfo) bool { return g.Name == f.File })
		if !segment || !f.Aside {
			d.report(true, f.File, f.Err.Error(), adviceOf(f.File, f.Err))
		}
	}
}

// unread reports a part of the spool that gave no record. What a running serve is writing, or removes meanwhile, is no
// finding.
func (d *dump) unread(err error) {
	damage := &spool.Damage{Segment: "spool", Err: err, From: 1}
	errors.As(err, &damage)
	what := damage.Err.Error()
	if damage.Bytes > 0 {
		what += fmt.Sprintf(" (%d bytes at offset %d)", damage.Bytes, damage.Offset)
	}
	if damage.From <= damage.To {
		what += fmt.Sprintf("; events %d to %d are missing", damage.From, damage.To)
	}
	benign := errors.Is(err, spool.ErrWriting) || errors.Is(err, spool.ErrUnfinished) || errors.Is(err, spool.ErrRemoved)
	d.report(!benign, damage.Segment, what, adviceOf(damage.Segment, damage.Err))
}

func (d *dump) event(r spool.Record) error {
	e, err := bridge.ParseRecord(r.Payload)
	if err != nil {
		d.report(true, fmt.Sprintf("event %d", r.Sequence), err.Error(), "run the version that wrote it")
		return nil
	}
	e.Sequence = r.Sequence
	if !d.filter.wants(e) {
		return nil
	}
	_, _ = d.out.Write(e.Data) // WriteByte returns its error, too
	return d.out.WriteByte('\n')
}

func (d *dump) report(finding bool, where, what, advice string) {
	if finding {
		d.findings++
	}
	if advice != "" {
		what += ": " + advice
	}
	fmt.Fprintf(d.damage, "postbridge: spool dump: %s: %s\n", where, what)
}

// adviceOf returns what to do about a part of the spool that cannot be used; "" if the error itself says it.
func adviceOf(file string, err error) string {
	small := !strings.HasSuffix(file, ".seg")
	var disk *os.PathError
	switch {
	case errors.As(err, &disk):
		return "see that the user of serve may read it, and whether the disk is sound"
	case errors.Is(err, spool.ErrWriting), errors.Is(err, spool.ErrRemoved):
		return ""
	case errors.Is(err, spool.ErrUnfinished):
		return "nobody was told of it, and serve cuts it off"
	case errors.Is(err, spool.ErrGap):
		return "a loss of power leaves that, and so does a segment that was taken away; compare with the broker's order book"
	case errors.Is(err, spool.ErrNewer):
		return "" // says it
	case errors.Is(err, spool.ErrForeign), errors.Is(err, spool.ErrLostID):
		return "stop serve and move it away with 'postbridge spool repair'"
	case errors.Is(err, spool.ErrCutOff):
		return "serve cuts it off at its next start, 'postbridge spool repair' keeps a copy; compare with the broker's order book"
	case errors.Is(err, spool.ErrDamaged) && small:
		return "serve does without it at its next start: the bus is offered again all that is kept"
	case errors.Is(err, spool.ErrDamaged):
		return "serve skips it, keeps it as .bad and publishes what is behind it; compare with the broker's order book"
	default:
		return "serve mends it at its next start"
	}
}
