// Package nats carries events to NATS JetStream.
//
// Order is kept per key by one rule: of each key, one event is un-acknowledged at a time. The next is sent only when
// the one before it is stored in all its destinations. Across keys nothing waits for anything.
//
//	Publish ──► lane of the key ──► ready ──► sender ──► JetStream
//	                 ▲                ▲                      │
//	                 └── next event ──┴── backoff, wake ◄── ack or error
//
// Each event is stored once. A retry carries the same Nats-Msg-Id, which the stream remembers for its duplicate
// window; what may have been sent longer ago is looked up in the stream before it is offered again (lookup.go).
//
// The user on the bus needs to publish to orders.>, rejects.>, deadletters.> and, for each stream,
// $JS.API.STREAM.INFO.<stream>, $JS.API.STREAM.CREATE.<stream> (to create it) and $JS.API.DIRECT.GET.<stream>.> (to look
// up what is stored; without, an event may be stored twice after an outage), and to subscribe to _INBOX.>.
//
// Locks: nothing calls into nats.go while it holds mu, because nats.go holds its own lock while it dials, and some of
// its callbacks come with a lock held.
package nats

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
)

const (
	// ackTimeout is how long an acknowledgement, or an answer to a request, is waited for.
	ackTimeout = 5 * time.Second
	// maxInFlight is how many copies are un-acknowledged at a time. A stream takes 10,000 into its queue and refuses
	// the rest.
	maxInFlight = 4096
	// sendBatch is how many copies the sender takes in one hold of the lock.
	sendBatch = 128
)

// Config says which JetStream, as whom, and what to do about its streams.
type Config struct {
	// URL is where the bus is: nats:// or tls://, several separated by commas.
	URL string
	// Server, if set, is a server in this process, which is connected to without a socket; URL is not used.
	Server natsgo.InProcessConnProvider

	// At most one of CredsFile, User and Token. Password and Token are asked at each connect, so that a secret that
	// was rotated counts from the next one on; they are called with locks held and must not wait.
	CredsFile string
	User      string
	Password  func() string
	Token     func() string

	// TLS files in PEM, read again at each dial; when they change, the connection is renewed. CertFile and KeyFile
	// come together.
	TLSCAFile, TLSCertFile, TLSKeyFile string

	// Prefix makes subjects <prefix>.orders.… and streams <PREFIX>_ORDERS.
	Prefix string

	// CreateStreams says to create missing streams, with the limits below. Zero MaxAge or MaxBytes is no limit.
	CreateStreams bool
	Replicas      int
	MaxAge        time.Duration
	MaxBytes      int64
	// DiscardOld makes a full stream drop its oldest events. Otherwise it refuses new ones, which then wait here.
	DiscardOld bool

	// LookAhead is how many events, from the first that Publish gets on, a run before may have offered already. They
	// are looked up if they are old. 0 is all that arrived before Open.
	LookAhead uint64
}

// Publisher carries events to JetStream. It implements bridge.Publisher.
type Publisher struct {
	// Immutable after Open.
	cfg          Config
	log          *slog.Logger
	hosts        string // of the URL, without user info: for messages
	destinations map[bridge.Destination]*destination
	certificates *certificates // nil without TLS files
	opened       time.Time     // events received before it may have been sent by the run before
	ctx          context.Context
	stop         context.CancelFunc

	running sync.WaitGroup // every goroutine of the publisher
	wake    chan struct{}  // tells the sender that it may have something to do; holds one

	// life is held for reading while a result is processed and done is called, so that Close, which takes it for
	// writing, can promise that no done comes after it. Taken before mu.
	life   sync.RWMutex
	closed bool // guarded by life

	mu sync.Mutex
	// All below are guarded by mu.
	lanes    map[string]*lane           // by key; a lane that is empty is removed
	ready    laneQueue                  // lanes whose head may have something to send
	inFlight map[*natsgo.Msg]*eventCopy // what waits for an acknowledgement
	away     int                        // copies in flight or being looked up
	session  session                    // the connection there is
	first    uint64                     // the number of the first event, 0 before it
	inbox    error                      // why answers cannot arrive: no permission to subscribe to them
	report   bridge.Report              // called with mu held, so that reports of a cause keep their order
}

var _ bridge.Publisher = (*Publisher)(nil)

// session is one stay on the bus, from a connect to the next.
type session struct {
	conn  *natsgo.Conn
	js    jetstream.JetStream
	up    bool
	epoch int // counts connects

	// ctx ends with the session: the library lets a request wait for its answer across a reconnect.
	ctx context.Context
	end context.CancelFunc
}

// Open makes a publisher. It does not wait for the bus, which may be down; it connects, and connects again, until
// Close. Its error is one in cfg. The publisher calls report with locks held: report must not call the publisher.
func Open(cfg Config, report bridge.Report, log *slog.Logger) (*Publisher, error) {
	hosts, err := cfg.validate()
	if err != nil {
		return nil, err
	}
	p := &Publisher{
		cfg:      cfg,
		log:      log,
		hosts:    hosts,
		opened:   time.Now(),
		wake:     make(chan struct{}, 1),
		lanes:    make(map[string]*lane),
		inFlight: make(map[*natsgo.Msg]*eventCopy),
		report:   report,
	}
	p.destinations = map[bridge.Destination]*destination{
		bridge.Orders:      newDestination(bridge.Orders, cfg.Prefix, "*.*.*"),
		bridge.Rejects:     newDestination(bridge.Rejects, cfg.Prefix, "*.*.*"),
		bridge.Deadletters: newDestination(bridge.Deadletters, cfg.Prefix, "*"),
	}
	if cfg.TLSCAFile != "" || cfg.TLSCertFile != "" {
		p.certificates = newCertificates(cfg, func(err error) { report("certificate", err) })
	}
	p.ctx, p.stop = context.WithCancel(context.Background())
	p.session.end = func() {}
	p.running.Go(p.stayConnected)
	p.running.Go(p.send)
	for _, d := range p.destinations {
		p.running.Go(func() { p.watchStream(d) })
	}
	return p, nil
}

// Publish queues the delivery behind those of its key. It never waits. With ctx ended it does nothing; what ended ctx
// is expected to Close the publisher too.
func (p *Publisher) Publish(ctx context.Context, d *bridge.Delivery, done func(error)) {
	if ctx.Err() != nil {
		return
	}
	key := d.Key()

	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.newEntry(d, done)
	l := p.lanes[key]
	if l == nil {
		l = &lane{key: key}
		p.lanes[key] = l
	}
	l.push(e)
	if l.head == e {
		p.enqueue(l)
	}
}

// Close ends the connection and everything the publisher does. What is undone stays undone. It must not be called from
// within a done.
func (p *Publisher) Close() error {
	p.life.Lock()
	p.closed = true
	p.life.Unlock()
	p.stop()
	p.running.Wait()

	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.lanes {
		l.calm()
	}
	return nil
}

// validate returns the hosts of the URL, or what is wrong with the configuration. Its errors name no secret: a URL may
// hold one.
func (c *Config) validate() (hosts string, err error) {
	if c.Prefix != "" && bridge.EscapeToken(c.Prefix) != c.Prefix {
		return "", fmt.Errorf("prefix %q: it becomes part of a stream's name: up to 64 letters, digits, _ and -", c.Prefix)
	}
	if (c.TLSCertFile == "") != (c.TLSKeyFile == "") {
		return "", errors.New("a TLS certificate needs its key, and the key its certificate: give both files or none")
	}
	proofs := 0
	for _, set := range []bool{c.CredsFile != "", c.User != "", c.Token != nil} {
		if set {
			proofs++
		}
	}
	if c.Server != nil {
		hosts = "this process"
	} else {
		var user bool
		if hosts, user, err = hostsOf(c.URL); err != nil {
			return "", err
		}
		if user {
			proofs++
		}
	}
	if proofs > 1 {
		return "", errors.New("give one of: credentials file, user with password, token, user in the URL")
	}
	return hosts, nil
}

// hostsOf returns the hosts of comma-separated URLs, and whether one of them names a user.
func hostsOf(urls string) (hosts string, user bool, err error) {
	var names []string
	for i, s := range strings.Split(urls, ",") {
		s = strings.TrimSpace(s)
		if !strings.Contains(s, "://") {
			s = "nats://" + s
		}
		u, err := url.Parse(s)
		if err != nil || u.Hostname() == "" {
			// The text may hold a password.
			return "", false, fmt.Errorf("URL %d of the bus is not of the form nats://host:port", i+1)
		}
		switch u.Scheme {
		case "nats", "tls", "ws", "wss":
		default:
			return "", false, fmt.Errorf("URL %d of the bus: the scheme is nats or tls", i+1)
		}
		user = user || u.User != nil
		names = append(names, u.Host)
	}
	return strings.Join(names, ","), user, nil
}
