package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/brokers"
	"github.com/postbridge/postbridge/brokers/kite"
)

const sendHelp = `Send postbacks to a running postbridge, signed as the broker signs: generated orders, files as they
are, or a recorded day; or one canary, to check that it reaches the bus. The next state of an order
is sent after the answer to the one before. A postback without an answer is not sent again.

Usage: postbridge send [flags] [file ...]

  --url URL, --ca FILE  postbridge (default: POSTBRIDGE_LISTEN on this machine); the CA of its https
  --broker NAME         kite, dhan, upstox or fyers (default kite)
  --secret APP=SECRET   Kite app to sign with (default first of POSTBRIDGE_KITE_SECRETS)
  --token TOKEN         path token (default first of POSTBRIDGE_<BROKER>_TOKENS)
  --sign                sign the files as the app that they name, else the first; a file - is stdin
  --replay FILE         the output of tail, at its own pace; --speed N: N times as fast, or max
  --worst NAMES         all, or some of doubled,words,cancels,late,storm,split; checks the buses
  --canary              one order of --user ID (default CANARY), on each bus within --timeout TIME
  --count N, --for TIME when to stop (default 10 postbacks, or each file once)
  --rate N              postbacks per second (default 0, as fast as they are answered)
  --connections N       orders in flight at once, each on its own connection (default 1)
  --users N, --seed N   number of users (default 100); the same seed sends the same orders
  --repeats F, --late F fraction of states sent twice; of orders with a fill after their end
  --acked FILE          append event id, order id and number of each acknowledged postback
  --tolerate, --json    continue after lost answers and 5xx; print the summary as JSON

Example: postbridge send --secret 1234=0hdv7iw5examplesecret --count 100 --rate 50
`

// sendOptions holds the flags of send and what is derived from them.
type sendOptions struct {
	url, ca, broker, secret, token string
	sign                           bool
	count                          int64
	duration                       time.Duration
	rate                           float64
	connections, users             int
	repeats, late                  float64
	seed                           uint64
	acked                          string
	tolerate, json                 bool
	replay                         string
	speed                          float64 // 0 for as fast as postbacks are answered
	worst                          behaviours
	canary                         bool
	user                           string // of the canary
	timeout                        time.Duration
	files                          []string

	// Derived.
	profile      profile
	certificate  string              // the certificate file of serve on this machine, which is trusted; may be empty
	apps         []kite.Secret       // to sign with; without one a recording is sent as it is
	tokens       map[string][]string // by broker
	burst, split bool                // for --worst
}

func sendFlags(o *sendOptions) *flag.FlagSet {
	o.speed = 1
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
	fs.StringVar(&o.acked, "acked", os.DevNull, "")
	fs.BoolVar(&o.tolerate, "tolerate", false, "")
	fs.BoolVar(&o.json, "json", false, "")
	fs.StringVar(&o.replay, "replay", "", "")
	fs.Func("speed", "", o.setSpeed)
	fs.Func("worst", "", o.worst.set)
	fs.BoolVar(&o.canary, "canary", false, "")
	fs.StringVar(&o.user, "user", "CANARY", "")
	fs.DurationVar(&o.timeout, "timeout", 10*time.Second, "")
	return fs
}

func (p *process) send(ctx context.Context, args []string) error {
	o := new(sendOptions)
	fs := sendFlags(o)
	if err := parseFlags(fs, args); err != nil {
		return err
	}
	o.files = fs.Args()
	err := cmp.Or(o.check(), o.checkMode(fs), p.sendSettings(o))
	if err == nil {
		err = p.runSend(ctx, o)
	}
	if err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return nil
}

// runSend sends in the mode that the flags chose and prints the summary.
func (p *process) runSend(ctx context.Context, o *sendOptions) (err error) {
	s := newSender(o)
	if s.target, err = o.newTarget(ctx); err != nil {
		return err
	}
	if s.route, err = s.target.route(o.broker); err != nil && o.replay == "" {
		return misuse("%v", err)
	}
	if o.canary {
		return p.sendCanary(ctx, s)
	}
	if len(o.worst) > 0 {
		filter := busFilter{broker: o.broker, destination: string(bridge.Orders)}
		if s.watch, err = p.watchBuses(ctx, filter, o.timeout); err != nil {
			return err
		}
		defer s.watch.close()
	}
	if s.source, err = p.openSource(s); err != nil {
		return err
	}
	acked, err := os.OpenFile(o.acked, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	s.acked = acked
	failure := s.run(ctx)
	if s.watch != nil {
		s.total.Worst = s.watch.await(ctx)
		s.total.Worst.Behaviours = o.worst.String()
		if failure == nil && ctx.Err() == nil {
			failure = s.total.Worst.failure()
		}
	}
	return errors.Join(failure, acked.Close(), p.print(s.total.text(o.json)))
}

// openSource returns the source of the mode: a recording, files or generated orders.
func (p *process) openSource(s *sender) (source, error) {
	switch {
	case s.replay == "-":
		return newRecording(s, p.stdin).next, nil
	case s.replay != "":
		file, err := os.Open(s.replay) // until the process ends
		return newRecording(s, file).next, err
	case len(s.files) > 0:
		return p.fileSource(s.sendOptions)
	}
	return newGenerator(s.sendOptions).next, nil
}

// sendSettings derives profile, URL, secrets and tokens from the flags, and for those not set from the settings of
// serve.
func (p *process) sendSettings(o *sendOptions) error {
	c, err := parseConfig(p.env)
	if err != nil {
		return err
	}
	secrets, err := readCredentials(slices.DeleteFunc(c.brokerSecrets(), func(s secretSource) bool {
		// A setting that a flag replaces may be wrong.
		return o.secret != "" && s.name == "KITE_SECRETS" ||
			o.token != "" && s.name == strings.ToUpper(o.broker)+"_TOKENS"
	}))
	if err != nil {
		return err
	}
	o.profile = profiles()[o.broker]
	o.tokens = map[string][]string{"kite": load(&secrets.kiteTokens)}
	for _, b := range c.tokenBrokers() {
		o.tokens[b.name] = load(b.current(secrets))
	}
	if o.token != "" {
		o.tokens[o.broker] = []string{o.token}
	}
	if o.apps = load(&secrets.kiteSecrets); o.secret != "" {
		o.apps, err = parseKiteSecrets(o.secret)
	}
	signs := o.profile.signed && o.replay == "" && (o.sign || len(o.files) == 0)
	if err != nil || signs && len(o.apps) == 0 {
		return misuse("no Kite app to sign with; set --secret or POSTBRIDGE_KITE_SECRETS to app_id=api_secret")
	}
	if o.url == "" {
		o.url = "http://" + localAddress(c.Listen)
		if o.certificate = c.TLSCertFile; o.certificate != "" {
			o.url = "https://" + localAddress(c.Listen)
		}
		return checkAddress("LISTEN", c.Listen)
	}
	return nil
}

func (o *sendOptions) check() error {
	switch {
	case !slices.Contains(brokers.Names(), o.broker):
		return unknownBroker(o.broker)
	case o.count < 0 || o.duration < 0 || o.rate < 0:
		return misuse("--count, --for and --rate must not be negative; 0 is no limit")
	case o.timeout <= 0:
		return misuse("--timeout must be positive; set it like 10s")
	case o.user == "" || event.EscapeToken(o.user) != o.user:
		return misuse("--user %q has to be letters, digits, - and _", o.user)
	case o.connections < 1 || o.users < 1:
		return misuse("--connections and --users must be at least 1")
	case o.repeats < 0 || o.repeats > 1 || o.late < 0 || o.late > 1:
		return misuse("--repeats and --late are fractions; set them between 0 and 1")
	case o.sign && (o.broker != "kite" || len(o.files) == 0):
		return misuse("--sign is for files of --broker kite; leave it out")
	}
	return nil
}

// checkMode rejects flags and files that have no effect in the mode, and sets the defaults of the mode.
func (o *sendOptions) checkMode(fs *flag.FlagSet) (err error) {
	mode, flags, count := "", "sign connections count for rate users seed repeats late acked tolerate", 10
	switch {
	case o.canary:
		mode, flags = "canary", "user timeout"
	case o.replay != "":
		mode, flags, count = "replay", "speed connections count for acked tolerate", 0
	case len(o.worst) > 0:
		mode, flags, count = "worst", "timeout connections count for rate users seed acked tolerate", 1000
	case len(o.files) > 0:
		count = len(o.files)
	}
	valid := strings.Fields(mode + " url ca broker secret token json " + flags)
	if mode != "" && len(o.files) > 0 {
		err = misuse("--%s takes no file %q; leave one of them out", mode, o.files[0])
	}
	fs.Visit(func(f *flag.Flag) {
		switch {
		case slices.Contains(valid, f.Name):
		case mode == "":
			err = misuse("--%s needs --replay, --worst or --canary; run 'postbridge send --help'", f.Name)
		default:
			err = misuse("--%s takes no --%s; leave one of them out", mode, f.Name)
		}
	})
	if o.count == 0 && o.duration == 0 {
		o.count = int64(count)
	}
	o.worst.apply(o)
	return err
}
