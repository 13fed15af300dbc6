package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/spool"
)

const filterHelp = `Filters of export:
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

// parseEvent reads the event in a record of the spool.
func parseEvent(r spool.Record) (*bridge.Delivery, error) {
	d, err := bridge.ParseRecord(r.Payload)
	if err == nil {
		d.Sequence = r.Sequence
	}
	return d, err
}

func (p *process) spoolExport(ctx context.Context, args []string) error {
	f := new(eventFilter)
	fs := newFlags("spool export")
	f.flags(fs, time.Now())
	if err := parseFlags(fs, args); err != nil {
		return err
	}
	if err := errors.Join(noArguments(fs), f.check("spool export")); err != nil {
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
	w := bufio.NewWriterSize(p.stdout, 64<<10)
	missing := 0
	for r, err := range v.Records() {
		var d *bridge.Delivery
		if err == nil {
			d, err = parseEvent(r)
		}
		switch {
		case ctx.Err() != nil:
			return errors.Join(w.Flush(), errors.New("spool export: interrupted; not all of it was written"))
		case atItsEnd(err):
		case err != nil:
			if !errors.Is(err, spool.ErrRemoved) {
				missing++
			}
			fmt.Fprintf(p.stderr, "postbridge: spool export: left out: %v\n", err)
		case f.wants(d):
			_, _ = w.Write(d.Data) // Flush says what goes wrong, and WriteByte does at once
			if err := w.WriteByte('\n'); err != nil {
				return err
			}
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if missing > 0 {
		return fmt.Errorf("spool export: not all of the spool can be read (%d findings above); run 'postbridge spool verify'", missing)
	}
	return nil
}

// atItsEnd reports whether what does not check is no more than the end of the last write.
func atItsEnd(err error) bool {
	return errors.Is(err, spool.ErrWriting) || errors.Is(err, spool.ErrUnfinished)
}
