package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const sendHelp = `Send postbacks to a running postbridge: files as they are, or generated lives of orders (placed,
open, partial fills, then filled, cancelled or rejected), signed as the broker signs. One state
of an order waits for the answer to the one before. What got no answer is not sent again.

Usage: postbridge send [flags] [file ...]

  --url URL, --ca FILE  postbridge (default: POSTBRIDGE_LISTEN on this machine); the CA of its https
  --broker NAME         kite or dhan (default kite)
  --secret APP=SECRET   Kite app to sign with (default first of POSTBRIDGE_KITE_SECRETS)
  --token TOKEN         path token (default first of POSTBRIDGE_KITE_TOKENS or _DHAN_TOKENS)
  --sign                compute the checksum in the files again; a file - is stdin
  --count N, --for TIME when to stop (default 10 postbacks, or each file once)
  --rate N              postbacks per second (default 0, as fast as it goes)
  --connections N       orders under way at once, each on its own connection (default 1)
  --users N             users the orders belong to (default 100)
  --repeats F           fraction of states that are sent twice
  --late F              fraction of orders with a fill that comes after the end
  --seed N              the same seed sends the same orders (default by the clock)
  --acked FILE          append event id, order id and number of each acknowledged postback
  --tolerate            go on through refused connections, lost answers and 5xx
  --json                print the summary as JSON

Example: postbridge send --secret 1234=0hdv7iw5examplesecret --count 100 --rate 50
`

// sendOptions are the flags of send, checked.
type sendOptions struct {
	url, broker, secret, token string
	ca, certificate            string // files: what to trust, postbridge's own
	sign                       bool
	count                      int64
	duration                   time.Duration
	rate                       float64
	connections, users         int
	repeats, late              float64
	seed                       uint64
	acked                      string
	tolerate, json             bool
	files                      []string
}

func sendFlags(o *sendOptions) *flag.FlagSet {
	fs := newFlags("send")
	fs.StringVar(&o.url, "url", "", "")
	fs.StringVar(&o.ca, "ca", "", "")
	fs.StringVar(&o.broker, "broker", "kite", "")
	fs.StringVar(&o.secret, "secret", "", "")
	fs.StringVar(&o.token, "token", "", "")
	fs.BoolVar(&o.sign, "sign", false, "")
	fs.Int64Var(&o.count, "count", 0, "")
	fs.DurationVar(&o.duration, "for", 0, "")
	fs.Float64Var(&o.rate, "rate", 0, "")
	fs.IntVar(&o.connections, "connections", 1, "")
	fs.IntVar(&o.users, "users", 100, "")
	fs.Float64Var(&o.repeats, "repeats", 0, "")
	fs.Float64Var(&o.late, "late", 0, "")
	fs.Uint64Var(&o.seed, "seed", 0, "")
	fs.StringVar(&o.acked, "acked", "", "")
	fs.BoolVar(&o.tolerate, "tolerate", false, "")
	fs.BoolVar(&o.json, "json", false, "")
	return fs
}

func (p *process) send(ctx context.Context, args []string) error {
	o, err := p.sendOptions(args)
	if err != nil {
		return err
	}
	s := &sending{pace: newPace(o), tolerate: o.tolerate}
	if s.target, err = newTarget(o.url, o.route()); err != nil {
		return err
	}
	if err := s.target.trust(o.ca, o.certificate); err != nil {
		return err
	}
	if s.newSource, err = p.newSource(o); err != nil {
		return err
	}
	if s.acked, err = openAcked(o.acked); err != nil {
		return err
	}
	total, failure := s.run(ctx, o.connections)
	return errors.Join(failure, s.acked.close(), p.print(total.text(o.json)))
}

func (p *process) sendOptions(args []string) (*sendOptions, error) {
	o := new(sendOptions)
	fs := sendFlags(o)
	if err := parseFlags(fs, args); err != nil {
		return nil, err
	}
	o.files = fs.Args()
	switch {
	case o.count != 0 || o.duration != 0:
	case len(o.files) > 0:
		o.count = int64(len(o.files))
	default:
		o.count = 10
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	if err := p.sendURL(o); err != nil {
		return nil, err
	}
	return o, p.sendSecrets(o)
}

// sendURL fills in a URL that the flags left out: serve on this machine, if it runs from the same environment.
func (p *process) sendURL(o *sendOptions) error {
	if o.url != "" {
		return nil
	}
	listen := orElse(p.env[envPrefix+"LISTEN"], ":8080")
	o.url = "http://" + onThisMachine(listen)
	if o.certificate = p.env[envPrefix+"TLS_CERT_FILE"]; o.certificate != "" {
		o.url = "https://" + onThisMachine(listen)
	}
	return checkAddress("LISTEN", listen)
}

func (o *sendOptions) check() error {
	if err := checkBroker("send", o.broker); err != nil {
		return err
	}
	switch {
	case o.count < 0 || o.duration < 0 || o.rate < 0:
		return misuse("send: --count, --for and --rate cannot be negative; leave out what is not to limit it")
	case o.connections < 1 || o.users < 1:
		return misuse("send: --connections and --users must be at least 1")
	case o.repeats < 0 || o.repeats > 1 || o.late < 0 || o.late > 1:
		return misuse("send: --repeats and --late are fractions; set them between 0 and 1")
	case o.sign && (o.broker != "kite" || len(o.files) == 0):
		return misuse("send: --sign is for files of --broker kite; leave it out")
	}
	return nil
}

// signs reports whether a secret is needed.
func (o *sendOptions) signs() bool { return o.broker == "kite" && (o.sign || len(o.files) == 0) }

// sendSecrets fills in what the flags left out from the settings of serve, so that both run from one environment.
func (p *process) sendSecrets(o *sendOptions) (err error) {
	if o.secret == "" && o.signs() {
		o.secret, err = p.firstOf("KITE_SECRETS")
	}
	if o.token == "" && err == nil {
		o.token, err = p.firstOf(strings.ToUpper(o.broker) + "_TOKENS")
	}
	switch {
	case err != nil:
		return err
	case o.signs() && !strings.Contains(o.secret, "="):
		return misuse("send: no Kite app to sign with; set --secret or POSTBRIDGE_KITE_SECRETS to app_id=api_secret")
	case o.broker == "dhan" && o.token == "":
		return misuse("send: Dhan's route needs a path token; set --token or POSTBRIDGE_DHAN_TOKENS")
	}
	return nil
}

// firstOf is the first entry of a list of secrets in the environment or in the file that it names.
func (p *process) firstOf(name string) (string, error) {
	text := p.env[envPrefix+name]
	if path := p.env[envPrefix+name+"_FILE"]; path != "" {
		content, _, err := readSecretFile(path)
		if err != nil {
			return "", bad(name+"_FILE", "%v", err)
		}
		text = string(content)
	}
	if entries := splitEntries(text); len(entries) > 0 {
		return entries[0], nil
	}
	return "", nil
}

// route is the path to post to.
func (o *sendOptions) route() string {
	if o.token == "" {
		return "/" + o.broker
	}
	return "/" + o.broker + "/" + o.token
}

// postback is one to be sent.
type postback struct {
	body  []byte // valid until the next one is asked for
	order string // its order id
	n     int    // which of its order it is, from 0
}

// source makes the postbacks of one connection, for ever.
type source func() postback

func (p *process) newSource(o *sendOptions) (func() source, error) {
	if len(o.files) > 0 {
		return p.fileSource(o)
	}
	return orderSource(o), nil
}

// sending is one run of send: some connections, each with an order of its own under way.
type sending struct {
	target    *target
	newSource func() source
	pace      *pace
	tolerate  bool
	acked     ackedFile
}

// run sends until it is enough. The error is the first postback that ended it.
func (s *sending) run(parent context.Context, connections int) (*summary, error) {
	ctx, fail := context.WithCancelCause(parent)
	defer fail(nil)
	totals := make([]*summary, connections)
	var workers sync.WaitGroup
	began := time.Now()
	for i := range connections {
		totals[i] = newSummary()
		workers.Go(func() {
			if err := s.work(ctx, totals[i]); err != nil {
				fail(err)
			}
		})
	}
	workers.Wait()
	total := newSummary()
	for _, t := range totals {
		total.add(t)
	}
	total.elapsed = time.Since(began)
	if parent.Err() != nil {
		return total, nil // interrupted
	}
	return total, context.Cause(ctx)
}

// work is one connection.
func (s *sending) work(ctx context.Context, total *summary) error {
	c := &connection{target: s.target}
	defer c.close()
	next := s.newSource()
	for {
		due, ok := s.pace.wait(ctx)
		if !ok {
			return nil
		}
		if ok, err := s.connect(ctx, c, total); !ok {
			return err
		}
		pb := next()
		status, answer, err := c.post(pb.body)
		total.count(status, err, time.Since(due))
		if err := s.judge(pb, status, answer, err); err != nil {
			return err
		}
	}
}

const (
	// redialAfter is how long a refused connection waits, giveUpAfter how long it goes on.
	redialAfter = 20 * time.Millisecond
	giveUpAfter = time.Minute
)

// connect makes sure that there is a connection. What was not sent for want of one is sent later: that is no repeat.
func (s *sending) connect(ctx context.Context, c *connection, total *summary) (ok bool, err error) {
	for began := time.Now(); ; {
		err := c.open(ctx)
		switch {
		case err == nil:
			return true, nil
		case ctx.Err() != nil:
			return false, nil
		}
		total.refused++
		if !s.tolerate || time.Since(began) > giveUpAfter {
			return false, fmt.Errorf("send: %w; is postbridge running?", err)
		}
		if !pause(ctx, redialAfter) || s.pace.over(time.Now()) {
			return false, nil
		}
	}
}

// judge decides what an answer means: nil to go on.
func (s *sending) judge(pb postback, status int, answer []byte, err error) error {
	switch {
	case err != nil && s.tolerate, status >= 500 && s.tolerate:
		return nil
	case err != nil:
		return fmt.Errorf("send: no answer to a postback of order %s: %w", pb.order, err)
	case status != 200:
		return fmt.Errorf("send: a postback of order %s was answered %d: %s", pb.order, status, bytes.TrimSpace(answer))
	}
	id, ok := eventID(answer)
	if !ok {
		return fmt.Errorf("send: a postback of order %s was answered 200 without an event id: %s", pb.order, answer)
	}
	return s.acked.add(id, pb)
}

// ackedFile records what was acknowledged, if anybody asked for that. Each line is one write, so that nothing of it is
// lost with this process.
type ackedFile struct{ file *os.File }

func openAcked(path string) (ackedFile, error) {
	if path == "" {
		return ackedFile{}, nil
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	return ackedFile{f}, ofFile(err)
}

func (a ackedFile) add(id string, pb postback) error {
	if a.file == nil {
		return nil
	}
	_, err := fmt.Fprintf(a.file, "%s\t%s\t%d\n", id, pb.order, pb.n)
	return ofFile(err)
}

func (a ackedFile) close() error {
	if a.file == nil {
		return nil
	}
	return ofFile(a.file.Close())
}

// ofFile says whose error that of a file is.
func ofFile(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("send: %w", err)
}

// pace says when each postback is due: at a fixed rate, however long the answers take, or at once.
type pace struct {
	start, deadline time.Time
	interval        float64 // nanoseconds
	count           int64
	taken           atomic.Int64
}

func newPace(o *sendOptions) *pace {
	p := &pace{start: time.Now(), count: o.count}
	if o.duration > 0 {
		p.deadline = p.start.Add(o.duration)
	}
	if o.rate > 0 {
		p.interval = float64(time.Second) / o.rate
	}
	return p
}

// wait returns when the next postback is due, or false if there is none. Latency counts from due, so that a stall is
// not hidden by the postbacks that could not be sent during it.
func (p *pace) wait(ctx context.Context) (due time.Time, ok bool) {
	n := p.taken.Add(1) - 1
	due = time.Now()
	if p.interval > 0 {
		due = p.start.Add(time.Duration(float64(n) * p.interval))
	}
	if ctx.Err() != nil || p.count > 0 && n >= p.count || p.over(due) || p.over(time.Now()) {
		return due, false
	}
	return due, pause(ctx, time.Until(due))
}

func (p *pace) over(t time.Time) bool { return !p.deadline.IsZero() && t.After(p.deadline) }

// pause waits; false if ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
