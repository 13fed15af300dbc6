package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/brokers"
	"github.com/postbridge/postbridge/brokers/book"
)

const reconcileHelp = `Read the order books of the brokers, compare each order with its last event on the bus, and publish
the states that the bus does not have: postbacks that were lost while postbridge was down, that the
broker never sent, or that were forged. It keeps no state: it may be killed and run again.

Usage: postbridge reconcile [flags]

  --account BROKER/USER  only this account; may be repeated (default all that have a token)
  --grace TIME           how old a state has to be: its postback may be on its way (default 30s)
  --known-only           only orders of which the bus has an event, not those placed elsewhere
  --dry-run              publish nothing; print the events that would be published
  --json                 print JSON lines; with --dry-run the events on stdout, the rest on stderr
  --every TIME           run as a service: once at the start, and then at this interval
  --market-hours=false   with --every also outside 08:45 to 23:55 IST on weekdays
  --admin ADDRESS        with --every serve /livez, /readyz, /metrics (default 127.0.0.1:9091)

The accounts and their access tokens are in POSTBRIDGE_KITE_ACCESS_TOKENS_FILE and the like of other
brokers, which are read again when they change: see cmd/postbridge/README.md. The buses are those of
serve. Exit code: 0 if every order book was read, 2 for a bad configuration, 1 for any other end.

Example:
  POSTBRIDGE_KITE_ACCESS_TOKENS=AB1234=api_key:access_token postbridge reconcile --dry-run
`

// reconcileOptions holds the flags of reconcile.
type reconcileOptions struct {
	accounts          []string // broker/user
	grace, every      time.Duration
	knownOnly, dryRun bool
	json, marketHours bool
	admin             string
}

func reconcileFlags(o *reconcileOptions) *flag.FlagSet {
	fs := newFlags("reconcile")
	fs.Func("account", "", func(account string) error {
		broker, user, ok := strings.Cut(account, "/")
		if !ok || user == "" || !slices.Contains(brokers.Names(), broker) {
			return errors.New("write it like kite/AB1234")
		}
		o.accounts = append(o.accounts, account)
		return nil
	})
	fs.DurationVar(&o.grace, "grace", 30*time.Second, "")
	fs.BoolVar(&o.knownOnly, "known-only", false, "")
	fs.BoolVar(&o.dryRun, "dry-run", false, "")
	fs.BoolVar(&o.json, "json", false, "")
	fs.DurationVar(&o.every, "every", 0, "")
	fs.BoolVar(&o.marketHours, "market-hours", true, "")
	fs.StringVar(&o.admin, "admin", "127.0.0.1:9091", "")
	return fs
}

func (o *reconcileOptions) check(fs *flag.FlagSet) error {
	given := make(map[string]bool)
	fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
	switch {
	case o.grace < 0:
		return misuse("reconcile: --grace must not be negative")
	case given["every"] && o.every < time.Second:
		return misuse("reconcile: --every is less than a second; brokers count requests, set it like 1m")
	case given["every"] && (o.dryRun || o.json):
		return misuse("reconcile: --dry-run and --json are for one run; leave out --every")
	case !given["every"] && (given["admin"] || given["market-hours"]):
		return misuse("reconcile: --admin and --market-hours are for a service; set --every, too")
	}
	return nil
}

func (p *process) reconcile(ctx context.Context, args []string) error {
	o := new(reconcileOptions)
	fs := reconcileFlags(o)
	if err := cmp.Or(parseOnlyFlags(fs, args), o.check(fs)); err != nil {
		return err
	}
	c, credentials, err := readReconcileConfig(p.env)
	if err != nil {
		return err
	}
	r := &reconciler{reconcileOptions: o, config: c, credentials: credentials, client: bookClient()}
	if missing := r.missingAccount(); missing != "" {
		return misuse("reconcile: --account %s has no access token; add one to POSTBRIDGE_%s_ACCESS_TOKENS",
			missing, strings.ToUpper(missing[:strings.Index(missing, "/")]))
	}
	registry := prometheus.NewRegistry()
	r.log = p.openLog(c, registry)
	r.buses = &openBuses{config: c, credentials: credentials, log: r.log}
	defer r.buses.close()
	if o.every > 0 {
		return r.serve(ctx, registry)
	}
	return r.once(ctx, p)
}

// reconciler compares the order books of all accounts with the buses.
type reconciler struct {
	*reconcileOptions
	config      *config
	credentials *credentials
	client      *book.Client
	buses       *openBuses
	log         *slog.Logger
	dryRun      func(*bridge.Delivery) // nil: publish
}

// bookClient returns the client of all order books. It follows no redirect, which would carry the token elsewhere.
func bookClient() *book.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.ResponseHeaderTimeout = 15 * time.Second
	transport.HTTP2 = &http.HTTP2Config{SendPingTimeout: 15 * time.Second} // finds a connection that a firewall dropped
	return &book.Client{
		HTTP: &http.Client{
			Transport: transport,
			// The rows are read as fast as the bus answers.
			Timeout:       5 * time.Minute,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		UserAgent: "postbridge/" + readBuild().version,
		MaxBytes:  256 << 20,
	}
}

// account is an account whose order book is read.
type account struct {
	book.Account
	bookBroker
	entry  int // of the setting, from 1: what a log may show
	orders book.Book
}

// id returns the account as --account has it.
func (a *account) id() string { return a.name + "/" + a.UserID }

// current returns the accounts that have a token now, and are not left out by --account.
func (r *reconciler) current() (all []*account) {
	for _, b := range r.config.books() {
		orders, _ := b.book() // the name is that of a broker
		for i, a := range load(b.current(r.credentials)) {
			one := &account{a, b, i + 1, orders}
			if r.accounts == nil || slices.Contains(r.accounts, one.id()) {
				all = append(all, one)
			}
		}
	}
	return all
}

// missingAccount returns the first --account that has no token; "" if all have one.
func (r *reconciler) missingAccount() string {
	for _, name := range r.accounts {
		if !slices.ContainsFunc(r.current(), func(a *account) bool { return a.id() == name }) {
			return name
		}
	}
	return ""
}

// pass returns the pass of an account.
func (r *reconciler) pass(a *account) *book.Pass {
	return &book.Pass{
		Client: r.client, Book: a.orders, Account: a.Account, Grace: r.grace, KnownOnly: r.knownOnly,
		DryRun: r.dryRun, Log: r.log.With("broker", a.name, "entry", a.entry),
	}
}

// run runs a pass on the open buses.
func (r *reconciler) run(ctx context.Context, pass *book.Pass) (counts book.Counts, err error) {
	err = r.buses.use(ctx, func(buses []book.Bus) (err error) {
		pass.Buses = buses
		counts, err = pass.Run(ctx)
		return err
	})
	return counts, err
}

// parallel is how many order books are read at once.
const parallel = 4

// once reads each order book once.
func (r *reconciler) once(ctx context.Context, p *process) error {
	out := p.stdout
	if r.reconcileOptions.dryRun {
		printed := &dryRun{w: p.stdout, json: r.json}
		r.dryRun = printed.print
		if r.json {
			out = p.stderr
		}
	}
	accounts := r.current()
	results := make([]passResult, len(accounts))
	slots := make(chan struct{}, parallel)
	var running sync.WaitGroup
	for i, a := range accounts {
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			counts, err := r.attempt(ctx, r.pass(a))
			results[i] = passResult{a, counts, err}
		})
	}
	running.Wait()
	write := writeTable
	if r.json {
		write = writeJSON
	}
	if err := write(out, results, r.reconcileOptions.dryRun); err != nil {
		return err
	}
	failed := 0
	for _, result := range results {
		if result.err != nil {
			failed++
		}
	}
	if failed > 0 {
		return fmt.Errorf("reconcile: %d of %d order books could not be reconciled", failed, len(results))
	}
	return nil
}

// attempts is how often one run tries to read an order book in an outage of the broker.
const attempts = 3

// attempt runs a pass, and again after an outage.
func (r *reconciler) attempt(ctx context.Context, pass *book.Pass) (counts book.Counts, err error) {
	wait := bridge.RetryForever(time.Second)
	for range attempts {
		counts, err = r.run(ctx, pass)
		if !errors.Is(err, book.ErrOutage) || !pause(ctx, max(time.Second, wait.NextBackOff())) {
			break
		}
	}
	if unexpected, ok := errors.AsType[*book.Unexpected](err); ok && r.dryRun == nil {
		if keepErr := r.keepResponse(ctx, pass, unexpected); keepErr != nil {
			err = keepErr
		}
	}
	return counts, err
}

// keepResponse stores a response that is not understood as a dead letter.
func (r *reconciler) keepResponse(ctx context.Context, pass *book.Pass, unexpected *book.Unexpected) error {
	return r.buses.use(ctx, func(buses []book.Bus) error {
		pass.Buses = buses
		return pass.Keep(ctx, unexpected)
	})
}

// passResult is the outcome of one run of an account.
type passResult struct {
	*account
	counts book.Counts
	err    error
}

// text returns ok or the error.
func (r *passResult) text() string {
	if r.err != nil {
		return r.err.Error()
	}
	return "ok"
}

// writeTable writes the results as a table.
func writeTable(w io.Writer, results []passResult, dryRun bool) error {
	published := "PUBLISHED"
	if dryRun {
		published = "TO PUBLISH"
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "BROKER\tACCOUNT\tROWS\tEQUAL\tEARLY\t%s\tCONTRADICTIONS\tMISSING\tRESULT\n", published)
	for _, r := range results {
		fmt.Fprintf(table, "%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%s\n", r.name, printable(r.UserID), r.counts.Rows,
			r.counts.Equal, r.counts.Early, r.counts.Published, r.counts.Contradictions, r.counts.Missing, r.text())
	}
	return table.Flush()
}

// writeJSON writes the results as JSON lines.
func writeJSON(w io.Writer, results []passResult, _ bool) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	for _, r := range results {
		err := encoder.Encode(struct {
			Broker  string `json:"broker"`
			Account string `json:"account"`
			book.Counts
			Result string `json:"result"`
		}{r.name, r.UserID, r.counts, r.text()})
		if err != nil {
			return err
		}
	}
	return nil
}

// dryRun prints the events that would be published.
type dryRun struct {
	mu   sync.Mutex
	w    io.Writer
	json bool
}

func (d *dryRun) print(event *bridge.Delivery) {
	line := humanLine(event.Data, time.Local)
	if d.json {
		line = append(bytes.Clone(event.Data), '\n')
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	_, _ = d.w.Write(line) // the table fails, too
}
