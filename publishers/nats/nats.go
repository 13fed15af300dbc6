// Package nats carries events to NATS JetStream.
//
// Order is kept per key by one rule: of each key, one event is un-acknowledged at a time. The next is sent only when
// the one before it is stored in all its destinations. Across keys nothing waits for anything.
//
//	Publish ──► lane of the key ──► ready ──► sender ──► JetStream
//	                 ▲                ▲                      │
//	                 └── next event ──┴── backoff, wake ◄── ack or error
//
// Each event is stored once. A retry carries the same Nats-Msg-Id, which the stream remembers for its duplicate window;
// what may have been sent longer ago, or by a run before, is looked up in the stream before it is offered again
// (lookup.go). An event names the stream it is for, and some are read back to see that they are stored under their
// subject (readback.go).
//
// The user on the bus needs to subscribe to _INBOX.> and to publish to
//
//	orders.>  rejects.>  deadletters.>
//	$JS.API.STREAM.INFO.<stream>      of ORDERS, REJECTS and DEADLETTERS
//	$JS.API.STREAM.CREATE.<stream>    the same, if they are not there yet
//	$JS.API.DIRECT.GET.<stream>       to look up what is stored, and whether it still is; without, an event
//	$JS.API.DIRECT.GET.<stream>.>     may be stored twice after an outage, and a loss or a subject mapping not be found
//	$JS.API.STREAM.MSG.GET.<stream>   instead of these two, if the stream has no allow_direct
//	$SYS.REQ.USER.INFO                for Check to see what the user may publish to
//
// Locks: nothing calls into nats.go while it holds mu, because nats.go holds its own lock while it dials, and some of
// its callbacks come with a lock held. Nothing logs or calls the bridge while it holds mu, because both may block.
package nats

import (
	"context"
	"log/slog"
	"sync"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers"
	"github.com/postbridge/postbridge/publishers/tlsfiles"
)

const (
	// ackTimeout is how long an acknowledgement, or an answer to a request, is waited for.
	ackTimeout = 5 * time.Second
	// firstRetry is how long the bus is left alone after it refused, the first time.
	firstRetry = 250 * time.Millisecond
	// maxInFlight is how many copies are un-acknowledged at a time. A stream takes 10,000 into its queue and refuses
	// the rest.
	maxInFlight = 4096
	// sendBatch is how many copies the sender takes in one hold of the lock.
	sendBatch = 128
)

// Publisher carries events to JetStream. It implements bridge.Publisher.
type Publisher struct {
	// Immutable after Open.
	cfg          Config
	log          *slog.Logger
	server       *embedded // nil if the bus is another process
	hosts        string    // where the bus is, without user info: for messages
	destinations map[bridge.Destination]*destination
	certificates *tlsfiles.Files // nil without TLS files
	spool        string          // that all events come from
	servers      string          // for the note
	checkpoints  *publishers.Checkpoints
	rewound      func(committed uint64, why error)
	report       bridge.Report
	ctx          context.Context
	stop         context.CancelFunc

	running sync.WaitGroup // every goroutine of the publisher
	wake    chan struct{}  // tells the sender that it may have something to do; holds one

	// life is held for reading while a result is processed and done is called, so that Close, which takes it for
	// writing, can promise that no done comes after it. Taken before mu.
	life   sync.RWMutex
	closed bool // guarded by life

	writing sync.Mutex // held by the sender from when it takes messages until they are written; taken before mu

	mu sync.Mutex
	// All below are guarded by mu.
	lanes    map[string]*lane           // by key; a lane that is empty is removed
	ready    laneQueue                  // lanes whose head may have something to send
	inFlight map[*natsgo.Msg]*eventCopy // what waits for an acknowledgement
	away     int                        // copies in flight or being looked up
	session  session                    // the connection there is
	inbox    error                      // why answers cannot arrive: no permission to subscribe to them
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

// NewBus returns the bus. It is not opened yet.
func NewBus(cfg Config, log *slog.Logger) bridge.Bus {
	return bridge.Bus{Name: "nats", Delay: cfg.Delay(), Open: func(o bridge.Opening) (bridge.Publisher, error) {
		p, err := Open(cfg, o, log)
		if err != nil {
			return nil, err
		}
		return p, nil
	}}
}

// Open makes a publisher. It does not wait for the bus, which may be down; it connects, and connects again, until
// Close. Its error is one in cfg, or why the embedded server cannot start.
func Open(cfg Config, o bridge.Opening, log *slog.Logger) (*Publisher, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	p := &Publisher{
		cfg:      cfg,
		log:      log,
		hosts:    cfg.hosts(),
		wake:     make(chan struct{}, 1),
		lanes:    make(map[string]*lane),
		inFlight: make(map[*natsgo.Msg]*eventCopy),
		report:   o.Report,
		spool:    o.Spool,
		rewound:  o.Rewound,
	}
	p.loadState(o.State)
	p.destinations = make(map[bridge.Destination]*destination)
	for _, d := range newDestinations(cfg.Prefix) {
		p.destinations[d.name] = d
	}
	p.certificates = newCertificates(cfg, func(err error) { p.report("certificate", err) })
	if cfg.Embedded != nil {
		var err error
		if p.server, err = startEmbedded(*cfg.Embedded, log); err != nil {
			return nil, err
		}
	}
	p.ctx, p.stop = context.WithCancel(context.Background())
	p.session.end = func() {}
	p.running.Go(p.stayConnected)
	p.running.Go(p.send)
	for _, d := range p.destinations {
		d.failing.Report, d.denied.Report = o.Report, o.Report
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

// Close ends the connection and everything the publisher does, an embedded server last. What is undone stays undone. It
// must not be called from within a done.
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
	if p.server != nil {
		p.server.shutdown()
	}
	return nil
}
