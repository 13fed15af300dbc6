package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/spool"
	"github.com/postbridge/postbridge/publishers"
)

const replayHelp = `Publish events again that the spool still keeps (POSTBRIDGE_SPOOL_KEEP) and a bus has had, in the
order of the spool, beside serve. What still waits for the bus is left out: serve publishes it.

Each is a message of its own, with the event as it was: same id, key and subject, but another
ce-spool (the id of this run, which is printed) and ce-sequence (1, 2, ...). Who wants it takes it
by that; others leave out what was not received later than the last event they had of the order.

Usage: postbridge replay [filters] [flags]

  --bus NAME            nats or kafka (needed if POSTBRIDGE_PUBLISH names both)
  --all                 everything that is kept: without a filter it has to be asked for
  --after NUMBER        only events behind that number in the spool: to go on after a stop
  --rate N              events per second at most (default as fast as the bus takes them)
  --dry-run             say how many it would be, publish nothing
  --json                the result as JSON
` + filterHelp + `                        (of replay: and only the copy there)
Exit code 1 if it was stopped, an event could not be read, or the bus refuses one for good.

Example: postbridge replay --order 220303000308932 --dry-run
`

// replayOptions are the flags of replay.
type replayOptions struct {
	filter            eventFilter
	bus               string
	all, dryRun, json bool
	after             uint64
	rate              int
}

func (p *process) replay(ctx context.Context, args []string) error {
	o := new(replayOptions)
	fs := newFlags("replay")
	o.filter.flags(fs, time.Now())
	fs.StringVar(&o.bus, "bus", "", "")
	fs.BoolVar(&o.all, "all", false, "")
	fs.Uint64Var(&o.after, "after", 0, "")
	fs.IntVar(&o.rate, "rate", 0, "")
	fs.BoolVar(&o.dryRun, "dry-run", false, "")
	fs.BoolVar(&o.json, "json", false, "")
	if err := parseFlags(fs, args); err != nil {
		return err
	}
	if err := errors.Join(noArguments(fs), o.check()); err != nil {
		return err
	}
	c, credentials, err := readBusConfig(p.env)
	if err != nil {
		return err
	}
	if err := o.chooseBus(c); err != nil {
		return err
	}
	v, err := lookAtSpool(c)
	if err != nil {
		return err
	}
	r := &spoolReplay{replayOptions: o, view: v, stderr: p.stderr, said: make(map[string]bool)}
	had, ok := v.Cursor(o.bus)
	if !ok {
		return fmt.Errorf("replay: %s has had nothing of this spool yet (there is no spool/cursor-%s that can be read); serve publishes what waits", o.bus, o.bus)
	}
	r.report.Bus, r.report.DryRun, r.had = o.bus, o.dryRun, had.Committed
	if !o.dryRun {
		if err := r.open(c, credentials); err != nil {
			return err
		}
	}
	failure := r.run(ctx)
	return errors.Join(p.print(r.report.text(o.json)), failure)
}

func (o *replayOptions) check() error {
	if err := o.filter.check("replay"); err != nil {
		return err
	}
	switch {
	case o.bus != "" && !slices.Contains(busNames(), o.bus):
		return misuse("replay: --bus %q is not known; set it to %s", o.bus, strings.Join(busNames(), " or "))
	case o.filter.empty() && o.after == 0 && !o.all:
		return misuse("replay: no filter is given; set one, or --all for everything that the spool keeps")
	case o.rate < 0:
		return misuse("replay: --rate cannot be negative; leave it out for no limit")
	}
	return nil
}

func (o *replayOptions) chooseBus(c *config) error {
	switch {
	case o.bus == "" && len(c.Publish) > 1:
		return misuse("replay: there are two buses; set --bus to nats or kafka")
	case o.bus == "":
		o.bus = c.Publish[0]
	case !c.publishes(o.bus):
		return misuse("replay: --bus %s is not in POSTBRIDGE_PUBLISH; set that to %s or nats,kafka, too", o.bus, o.bus)
	}
	return nil
}

// spoolReplay is one run.
type spoolReplay struct {
	*replayOptions
	view   *spool.View
	had    uint64         // the number up to which the bus has had all
	replay *bridge.Replay // nil in a dry run
	stderr io.Writer
	report replayResult

	mu   sync.Mutex      // held while something is written to stderr
	said map[string]bool // what kept events from the bus; guarded by mu
}

// replayResult is what a run came to.
type replayResult struct {
	Bus    string `json:"bus"`
	DryRun bool   `json:"dry_run"`
	Run    string `json:"run,omitempty"` // what stands in the place of the spool's id
	// Events are those that were asked for and read; Stored and Refused what the bus made of them.
	Events  uint64 `json:"events"`
	Stored  uint64 `json:"stored"`
	Refused uint64 `json:"refused"`
	// Waiting are those that were asked for and left out, as the bus has not had them yet.
	Waiting    uint64 `json:"waiting"`
	Unreadable uint64 `json:"unreadable"` // parts of the spool
	// First and Last are numbers in the spool, of Events.
	First uint64 `json:"first,omitempty"`
	Last  uint64 `json:"last,omitempty"`
	// Through is the number in the spool up to which all is done, of a run that was stopped.
	Through uint64 `json:"through,omitempty"`

	stopped bool // it did not come to the end
}

func (r *replayResult) text(asJSON bool) string {
	if asJSON {
		line, _ := json.Marshal(r) // of text and numbers
		return string(line) + "\n"
	}
	var b strings.Builder
	switch {
	case r.Events == 0 && r.stopped: // what comes behind it is not known
	case r.Events == 0:
		fmt.Fprintf(&b, "no event that the spool keeps and %s has had is one of these\n", r.Bus)
	case r.DryRun:
		fmt.Fprintf(&b, "would publish %d events again to %s, of the numbers %d to %d\n", r.Events, r.Bus, r.First, r.Last)
	case r.Stored < r.Events:
		fmt.Fprintf(&b, "published %d of %d events again to %s; their ce-spool is %s\n", r.Stored, r.Events, r.Bus, r.Run)
	default:
		fmt.Fprintf(&b, "published %d events again to %s, of the numbers %d to %d; their ce-spool is %s\n", r.Stored, r.Bus, r.First, r.Last, r.Run)
	}
	if r.Waiting > 0 {
		fmt.Fprintf(&b, "left out: %d that wait for %s, or came in the last seconds; serve publishes them\n", r.Waiting, r.Bus)
	}
	return b.String()
}

// open opens the bus. The embedded one is reached as any client does, through the serve that it is in.
func (r *spoolReplay) open(c *config, credentials *credentials) error {
	n := c.natsConfig(credentials)
	if r.bus == "nats" && c.embedded() {
		conn, err := net.DialTimeout("tcp", onThisMachine(c.NATSListen), 2*time.Second)
		if err != nil {
			return fmt.Errorf("replay: the embedded bus is in serve, and nothing listens at %s; start serve", onThisMachine(c.NATSListen))
		}
		_ = conn.Close() // was only to see
		n.Embedded, n.URL, n.CreateStreams = nil, c.natsAddress(), false
	}
	log := slog.New(slog.NewTextHandler(r.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	bus, err := publishers.New(r.bus, publishers.Config{NATS: n, Kafka: c.kafkaConfig(credentials)}, log)
	if err != nil {
		return err
	}
	r.replay, err = bridge.NewReplay(bus, r.trouble, r.refused)
	if err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	r.report.Run = r.replay.ID()
	return nil
}

// trouble says what keeps events from the bus, the same once.
func (r *spoolReplay) trouble(cause string, err error) {
	if err == nil {
		return
	}
	text := fmt.Sprintf("waiting for %s: %s: %v", r.bus, cause, err)
	r.mu.Lock()
	told := r.said[text]
	r.said[text] = true
	r.mu.Unlock()
	if !told {
		r.say("%s", text)
	}
}

func (r *spoolReplay) refused(_ *bridge.Delivery, sequence uint64, err error) {
	r.say("event %d is refused; 'postbridge spool export --sequence %d' shows it: %v", sequence, sequence, err)
}

func (r *spoolReplay) say(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if isTerminal(r.stderr) {
		fmt.Fprint(r.stderr, "\r\033[K") // over the progress
	}
	fmt.Fprintf(r.stderr, "postbridge: replay: "+format+"\n", args...)
}

// settleWithin is how long an interrupted replay waits for what is under way.
const settleWithin = 5 * time.Second

// run publishes what was asked for.
func (r *spoolReplay) run(ctx context.Context) error {
	if r.replay == nil {
		if err := r.readAll(ctx, func(*bridge.Delivery) error { return nil }); err != nil {
			r.report.stopped = true
			return errors.New("replay: stopped before the end")
		}
		return r.failure()
	}
	endProgress := r.showProgress()
	start := time.Now()
	err := r.readAll(ctx, func(d *bridge.Delivery) error {
		if r.rate > 0 {
			due := start.Add(time.Duration(r.report.Events-1) * time.Second / time.Duration(r.rate))
			if !pause(ctx, time.Until(due)) {
				return context.Cause(ctx)
			}
		}
		return r.replay.Offer(ctx, d)
	})
	if err == nil {
		err = r.replay.Wait(ctx)
	}
	if ctx.Err() != nil {
		settle, stop := context.WithTimeout(context.Background(), settleWithin)
		_ = r.replay.Wait(settle) // what is not done by then is told below
		stop()
	}
	closed := r.replay.Close()
	endProgress()
	st := r.replay.State()
	r.report.Stored, r.report.Refused = st.Stored, st.Refused
	if r.report.stopped = err != nil; err != nil {
		r.report.Through = max(st.Through, r.after)
		why := err
		if ctx.Err() != nil {
			why = errors.New("stopped before the end")
		}
		err = fmt.Errorf("replay: %w", why)
		if r.report.Through > 0 {
			err = fmt.Errorf("%w; to go on, run it again with --after %d, too", err, r.report.Through)
		}
	}
	return errors.Join(err, closed, r.failure())
}

// failure is that some of the events could not be published.
func (r *spoolReplay) failure() error {
	switch {
	case r.report.Refused > 0:
		return fmt.Errorf("replay: %s refused %d events for good; they are named above", r.bus, r.report.Refused)
	case r.report.Unreadable > 0:
		return fmt.Errorf("replay: not all of the spool can be read (%d findings above); run 'postbridge spool verify'", r.report.Unreadable)
	}
	return nil
}

// readAll hands over each event that was asked for and that the bus has had.
func (r *spoolReplay) readAll(ctx context.Context, take func(*bridge.Delivery) error) error {
	for record, err := range r.view.Records() {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var d *bridge.Delivery
		if err == nil && record.Sequence > r.after {
			d, err = parseEvent(record)
		}
		switch {
		case atItsEnd(err):
			continue
		case err != nil:
			r.report.Unreadable++ // also what serve has removed meanwhile: it was asked for
			r.say("left out: %v", err)
			continue
		case d == nil || !r.filter.wants(d):
			continue
		case record.Sequence > r.had:
			r.report.Waiting++
			continue
		}
		d.Only = r.filter.destination
		d.Data = slices.Clone(d.Data) // the bus has it until it is stored
		r.report.Events++
		if r.report.First == 0 {
			r.report.First = record.Sequence
		}
		if err := take(d); err != nil {
			r.report.Events--
			return err
		}
		r.report.Last = record.Sequence
	}
	return nil
}

// showProgress keeps people up to date, if any look.
func (r *spoolReplay) showProgress() (end func()) {
	if !isTerminal(r.stderr) || len(r.view.Segments) == 0 {
		return func() {}
	}
	first, start := max(r.view.Segments[0].First, r.after+1), time.Now()
	stop := make(chan struct{})
	var shown sync.WaitGroup
	shown.Go(func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				text := replayProgress(r.replay.State(), first, r.had, time.Since(start))
				r.mu.Lock()
				fmt.Fprintf(r.stderr, "\r%s\033[K", text)
				r.mu.Unlock()
			case <-stop:
				fmt.Fprint(r.stderr, "\r\033[K")
				return
			}
		}
	})
	return func() {
		close(stop)
		shown.Wait()
	}
}

// replayProgress is a bar by numbers in the spool, of which those from first to last can be read.
func replayProgress(st bridge.ReplayState, first, last uint64, since time.Duration) string {
	const width = 30
	come := 0.0
	if st.Through >= first && last >= first {
		come = min(1, float64(st.Through-first+1)/float64(last-first+1))
	}
	bar := strings.Repeat("#", int(come*width))
	return fmt.Sprintf("[%-*s] %3.0f%%  %d published, %.0f/s", width, bar, 100*come, st.Stored, float64(st.Stored)/max(since.Seconds(), 0.001))
}
