package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postbridge/postbridge/bridge"
)

const sendHelp = `Send postbacks to a running postbridge, signed as the broker signs: generated lives of orders, files
as they are, or a recorded day; or one canary, to see that it reaches the bus. One state of an order
waits for the answer to the one before. What got no answer is not sent again.

Usage: postbridge send [flags] [file ...]

  --url URL, --ca FILE  postbridge (default: POSTBRIDGE_LISTEN on this machine); the CA of its https
  --broker NAME         kite or dhan (default kite)
  --secret APP=SECRET   Kite app to sign with (default first of POSTBRIDGE_KITE_SECRETS)
  --token TOKEN         path token (default first of POSTBRIDGE_KITE_TOKENS or _DHAN_TOKENS)
  --sign                compute the checksum in the files again; a file - is stdin
  --replay FILE         what tail printed, at its own pace; --speed N: N times as fast, or max
  --worst NAMES         all, or some of doubled,words,cancels,late,storm,split; checks the bus
  --canary              one order of --user ID (default CANARY), on the bus within --timeout TIME
  --count N, --for TIME when to stop (default 10 postbacks, or each file once)
  --rate N              postbacks per second (default 0, as fast as it goes)
  --connections N       orders under way at once, each on its own connection (default 1)
  --users N, --seed N   how many users have orders (100); the same seed sends the same orders
  --repeats F, --late F fraction of states that come twice; of orders with a fill after the end
  --acked FILE          append event id, order id and number of each acknowledged postback
  --tolerate, --json    go on through lost answers and 5xx; print the summary as JSON

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

	replay  string // a file
	speed   speed
	worst   misbehaviours
	canary  bool
	user    string // of the canary
	timeout time.Duration
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
	fs.StringVar(&o.replay, "replay", "", "")
	o.speed = 1
	fs.TextVar(&o.speed, "speed", o.speed, "")
	fs.TextVar(&o.worst, "worst", o.worst, "")
	fs.BoolVar(&o.canary, "canary", false, "")
	fs.StringVar(&o.user, "user", "CANARY", "")
	fs.DurationVar(&o.timeout, "timeout", 10*time.Second, "")
	return fs
}

func (p *process) send(ctx context.Context, args []string) error {
	o, err := p.sendOptions(args)
	if err != nil {
		return err
	}
	switch {
	case o.canary:
		return p.sendCanary(ctx, o)
	case o.replay != "":
		return p.sendReplay(ctx, o)
	case len(o.worst) > 0:
		return p.sendWorst(ctx, o)
	}
	s, err := p.newSending(o)
	if err != nil {
		return err
	}
	total, failure := s.run(ctx, o.connections)
	return errors.Join(failure, s.acked.close(), p.print(total.text(o.json)))
}

func (p *process) newSending(o *sendOptions) (s *sending, err error) {
	s = &sending{pace: newPace(o), tolerate: o.tolerate}
	if s.target, err = o.target(o.route()); err != nil {
		return nil, err
	}
	if s.newSource, err = p.newSource(o); err != nil {
		return nil, err
	}
	s.acked, err = openAcked(o.acked)
	return s, err
}

func (p *process) sendOptions(args []string) (*sendOptions, error) {
	o := new(sendOptions)
	fs := sendFlags(o)
	if err := parseFlags(fs, args); err != nil {
		return nil, err
	}
	o.files = fs.Args()
	if err := firstError(o.check, func() error { return o.checkMode(fs) }); err != nil {
		return nil, err
	}
	o.settle()
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
	case o.timeout <= 0:
		return misuse("send: --timeout %v is no time to wait; set it like 10s", o.timeout)
	case o.user == "" || bridge.EscapeToken(o.user) != o.user:
		return misuse("send: --user %q has to be letters, digits, - and _", o.user)
	case o.connections < 1 || o.users < 1:
		return misuse("send: --connections and --users must be at least 1")
	case o.repeats < 0 || o.repeats > 1 || o.late < 0 || o.late > 1:
		return misuse("send: --repeats and --late are fractions; set them between 0 and 1")
	case o.sign && (o.broker != "kite" || len(o.files) == 0):
		return misuse("send: --sign is for files of --broker kite; leave it out")
	}
	return nil
}

// checkMode refuses what would do nothing beside another flag: whoever set it believes that it counts.
func (o *sendOptions) checkMode(fs *flag.FlagSet) error {
	set := make(map[string]bool)
	fs.Visit(func(f *flag.Flag) { set[f.Name] = true })
	modes := []struct {
		name string
		on   bool
		also []string // that it takes, beside those that every mode does
	}{
		{"canary", o.canary, []string{"user", "timeout"}},
		{"replay", o.replay != "", []string{"speed", "connections", "count", "for", "acked", "tolerate"}},
		{"worst", len(o.worst) > 0, []string{"timeout", "connections", "count", "for", "rate", "users", "seed", "acked", "tolerate"}},
		{"", true, []string{"sign", "connections", "count", "for", "rate", "users", "seed", "repeats", "late", "acked", "tolerate"}},
	}
	for _, m := range modes {
		if !m.on {
			continue
		}
		every := []string{m.name, "url", "ca", "broker", "secret", "token", "json"}
		for _, name := range slices.Sorted(maps.Keys(set)) {
			switch {
			case slices.Contains(every, name) || slices.Contains(m.also, name):
			case m.name == "":
				return misuse("send: --%s is for another way to send; run 'postbridge send --help'", name)
			default:
				return misuse("send: --%s takes no --%s; leave one of them out", m.name, name)
			}
		}
		if m.name != "" && len(o.files) > 0 {
			return misuse("send: --%s takes no file %q; leave one of them out", m.name, o.files[0])
		}
		return nil
	}
	return nil
}

// settle fills in when to stop, and how many connections there are.
func (o *sendOptions) settle() {
	switch {
	case o.count != 0 || o.duration != 0 || o.replay != "":
	case len(o.files) > 0:
		o.count = int64(len(o.files))
	case len(o.worst) > 0:
		o.count = 1000
	default:
		o.count = 10
	}
	for _, m := range o.worst {
		o.connections = max(o.connections, m.connections)
		if o.rate == 0 {
			o.rate = m.rate
		}
	}
}

// signs reports whether a secret is needed.
func (o *sendOptions) signs() bool {
	return o.broker == "kite" && o.replay == "" && (o.sign || len(o.files) == 0)
}

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
	entries, err := p.allOf(name)
	if len(entries) == 0 {
		return "", err
	}
	return entries[0], nil
}

// allOf are all of them.
func (p *process) allOf(name string) ([]string, error) {
	text := p.env[envPrefix+name]
	if path := p.env[envPrefix+name+"_FILE"]; path != "" {
		content, _, err := readSecretFile(path)
		if err != nil {
			return nil, bad(name+"_FILE", "%v", err)
		}
		text = string(content)
	}
	return splitEntries(text), nil
}

// target is where to post to on a route.
func (o *sendOptions) target(route string) (*target, error) {
	t, err := newTarget(o.url, route)
	if err == nil {
		err = t.trust(o.ca, o.certificate)
	}
	return t, err
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
	body  []byte
	order string // its order id
	n     int    // which of its order it is, from 0
	line  int    // of the recording, from 1; 0 if there is none
	// unordered is set if another postback of its order may be under way at the same time.
	unordered bool
}

// String names the postback in an error.
func (p postback) String() string {
	if p.line > 0 {
		return fmt.Sprintf("a postback of order %s (line %d)", p.order, p.line)
	}
	return "a postback of order " + p.order
}

// source makes the postbacks of one connection, for ever.
type source func() postback

func (p *process) newSource(o *sendOptions) (func() source, error) {
	if len(o.files) > 0 {
		return p.fileSource(o)
	}
	g := newGenerator(o)
	shared, made := source(g.postbacks(true)), 0
	return func() source {
		if made++; o.worst.split() && made%2 == 1 {
			return shared
		}
		return g.postbacks(false)
	}, nil
}

// sending is one run of send: some connections, each with an order of its own under way.
type sending struct {
	target    *target
	newSource func() source
	pace      *pace
	tolerate  bool
	acked     ackedFile
	// witness, if there is one, hears of each postback that was sent: the id of its event, or nothing if nobody knows.
	witness func(pb postback, id string)
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
		next := s.newSource()
		workers.Go(func() {
			if err := s.work(ctx, next, totals[i]); err != nil {
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
func (s *sending) work(ctx context.Context, next source, total *summary) error {
	c := &connection{target: s.target}
	defer c.close()
	for {
		due, ok := s.pace.wait(ctx)
		if !ok {
			return nil
		}
		if ok, err := s.connect(ctx, c, total); !ok {
			return err
		}
		if _, err := s.deliver(c, next(), due, total); err != nil {
			return err
		}
	}
}

// deliver sends one postback. The id is that of its event, or nothing if there was no such answer and it is tolerated.
func (s *sending) deliver(c *connection, pb postback, due time.Time, total *summary) (id string, err error) {
	status, answer, err := c.post(pb.body)
	total.count(status, err, time.Since(due))
	if id, err = s.judge(pb, status, answer, err); err != nil {
		return "", err
	}
	if s.witness != nil {
		s.witness(pb, id)
	}
	if id == "" {
		return "", nil
	}
	return id, s.acked.add(id, pb)
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

// judge decides what an answer means: no error to go on.
func (s *sending) judge(pb postback, status int, answer []byte, err error) (id string, _ error) {
	switch {
	case err != nil && s.tolerate, status >= 500 && s.tolerate:
		return "", nil
	case err != nil:
		return "", fmt.Errorf("send: no answer to %v: %w", pb, err)
	case status != 200:
		return "", fmt.Errorf("send: %v was answered %d: %s", pb, status, answer)
	}
	id, ok := eventID(answer)
	if !ok {
		return "", fmt.Errorf("send: %v was answered 200 without an event id: is this postbridge?", pb)
	}
	return id, nil
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
	burst           int64   // so many are due at the same time
	count           int64
	taken           atomic.Int64
}

func newPace(o *sendOptions) *pace {
	p := &pace{start: time.Now(), count: o.count, burst: 1}
	if o.duration > 0 {
		p.deadline = p.start.Add(o.duration)
	}
	if o.rate > 0 {
		p.interval = float64(time.Second) / o.rate
	}
	if o.worst.burst() {
		p.burst = max(1, int64(o.rate)) // those of a second come at its beginning
	}
	return p
}

// wait returns when the next postback is due, or false if there is none. Latency counts from due, so that a stall is
// not hidden by the postbacks that could not be sent during it.
func (p *pace) wait(ctx context.Context) (due time.Time, ok bool) {
	n := p.taken.Add(1) - 1
	due = time.Now()
	if p.interval > 0 {
		due = p.start.Add(time.Duration(float64(n/p.burst*p.burst) * p.interval))
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
