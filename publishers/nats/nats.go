// Package nats publishes events to NATS JetStream.
//
//	Publish ──► key queue ──► ready ──► sender ──► PublishMsg
//	                ▲           ▲                      │
//	                └─ next ────┴── backoff, wake ◄── ack or error
//
// Publish appends an event to the queue of its key. The sender goroutine takes the heads of the ready queues. It
// looks up an event that may be stored already, else publishes it; the acknowledgement finishes it, an error
// schedules a retry.
//
// Invariants:
//
//   - Order per key: one queue per key, and one event in flight per key. The next event of a key is sent when the
//     one before it is stored, or refused for good, in all its destinations. Keys do not wait for each other.
//   - Stored once: a retry carries the same Nats-Msg-Id, which the stream remembers for its duplicate window. An
//     event that may have been sent longer ago, or by an earlier run, is looked up before it is sent (lookup.go). A
//     user without the right to look up gets at-least-once storage.
//   - Right stream and subject: Nats-Expected-Stream names the stream of each event. The first event of a
//     destination on each connection is read back, before the others are sent, to detect subject mappings
//     (readback.go).
//   - Fitting stream: nothing is sent before the stream's configuration was checked on this connection, and again every
//     checkInterval (stream.go).
//   - Rewind: checkpoints record where events are stored. If a checked stream no longer holds one, the stream was
//     restored from an older copy or recreated, and the bridge is asked to publish again from there
//     (checkpoints.go).
//
// The NATS user needs to subscribe to _INBOX.> and to publish to
//
//	orders.>  rejects.>  deadletters.>
//	$JS.API.STREAM.INFO.<stream>      of ORDERS, REJECTS and DEADLETTERS
//	$JS.API.STREAM.CREATE.<stream>    to create missing streams
//	$JS.API.DIRECT.GET.<stream>       for lookups; without them, an event may be stored twice after an outage, and
//	$JS.API.DIRECT.GET.<stream>.>     neither lost events nor a subject mapping are detected
//	$JS.API.STREAM.MSG.GET.<stream>   instead of these two, if the stream has no allow_direct
//	$SYS.REQ.USER.INFO                for Check to see what the user may publish to
//
// With Config.Domain, $JS.API is $JS.<domain>.API on servers outside the domain.
//
// Locks: mu is not held in calls of nats.go, which holds a lock of its own while it dials and in some callbacks. Nor
// is it held while logging or calling done, which may block.
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
	// ackTimeout limits the wait for an acknowledgement or a response.
	ackTimeout = 5 * time.Second
	// firstRetry is the first backoff after an error.
	firstRetry = 250 * time.Millisecond
	// maxInFlight is the size of the in-flight window, in copies. A stream queues 10,000 messages and refuses more.
	maxInFlight = 4096
	// sendBatch is how many copies the sender collects under one lock.
	sendBatch = 128
)

// Publisher publishes events to JetStream. It implements bridge.Publisher.
type Publisher struct {
	// Immutable after Open.
	cfg          Config
	log          *slog.Logger
	server       *embedded // nil if the bus is another process
	hosts        string    // Config.hosts
	destinations map[bridge.Destination]*destination
	certificates *tlsfiles.Files // nil without TLS files
	spool        string          // that all events come from
	checkpoints  *publishers.Checkpoints
	rewound      func(committed uint64, why error)
	report       bridge.Report
	ctx          context.Context
	stop         context.CancelFunc

	running sync.WaitGroup // every goroutine of the publisher
	wake    chan struct{}  // signals the sender that a copy may be sendable; capacity 1

	// life is read-locked while a result that may complete an event is processed and done is called. Close ends ctx with
	// it write-locked, so that no done is called after Close returns. Acquired before mu.
	life sync.RWMutex

	writing sync.Mutex // held by the sender while it collects and writes a batch; acquired before mu
	headers *headers   // of the message that is being written

	mu sync.Mutex
	// Guarded by mu:
	queues   map[string]*keyQueue  // by key; empty queues are removed
	ready    []*keyQueue           // queues whose head may be sendable, first in, first out
	inFlight map[uint64]*eventCopy // by attempt: a publish, a lookup or a read-back
	attempts uint64                // number of attempts so far
	session  session               // the current or last one
	inbox    error                 // why responses cannot arrive: no permission to subscribe to them
}

var _ bridge.Publisher = (*Publisher)(nil)

// session lasts from a connect to the disconnect.
type session struct {
	conn *natsgo.Conn
	js   jetstream.JetStream
	// answers begins the subjects of answers to publishes.
	answers string
	// ctx ends with the disconnect; the library would wait for a response across a reconnect.
	ctx context.Context
	end context.CancelFunc
}

// NewBus returns the bus, not yet opened.
func NewBus(cfg Config, log *slog.Logger) bridge.Bus {
	return bridge.Bus{Name: "nats", Delay: cfg.Delay(), Open: func(o bridge.Opening) (bridge.Publisher, error) {
		p, err := Open(cfg, o, log)
		if err != nil {
			return nil, err
		}
		return p, nil
	}}
}

// Open returns a publisher that connects, and reconnects, until Close. It does not wait for the bus. It fails only
// if cfg is invalid or the embedded server cannot start.
func Open(cfg Config, o bridge.Opening, log *slog.Logger) (*Publisher, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	p := &Publisher{
		cfg:      cfg,
		log:      log,
		hosts:    cfg.hosts(),
		wake:     make(chan struct{}, 1),
		queues:   make(map[string]*keyQueue),
		inFlight: make(map[uint64]*eventCopy),
		headers:  newHeaders(),
		report:   o.Report,
		spool:    o.Spool,
		rewound:  o.Rewound,
	}
	p.loadState(o.State)
	p.destinations = make(map[bridge.Destination]*destination)
	for _, d := range newDestinations(&cfg) {
		p.destinations[d.name] = d
	}
	p.certificates = cfg.certificates(func(err error) {
		p.report("certificate", publishers.WithRemedy(err, filesRemedy))
	})
	if cfg.Embedded != nil {
		var err error
		if p.server, err = startEmbedded(*cfg.Embedded, log); err != nil {
			return nil, err
		}
	}
	p.ctx, p.stop = context.WithCancel(context.Background())
	p.session.ctx, p.session.end = context.WithCancel(p.ctx)
	p.session.end() // not connected
	p.running.Go(p.stayConnected)
	p.running.Go(p.send)
	p.running.Go(p.expire)
	for _, d := range p.destinations {
		d.failing.Report, d.denied.Report = o.Report, o.Report
		p.running.Go(func() { p.watchStream(d) })
	}
	return p, nil
}

// Publish appends the delivery to the queue of its key, without waiting. After the end of ctx it does nothing: the
// caller is about to call Close.
func (p *Publisher) Publish(ctx context.Context, d *bridge.Delivery, done func(error)) {
	if ctx.Err() != nil {
		return
	}
	key := d.Key()

	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.newEntry(d, done)
	q := p.queues[key]
	if q == nil {
		q = &keyQueue{key: key}
		p.queues[key] = q
	}
	q.push(e)
	if q.head == e {
		p.enqueue(q)
	}
}

// Close stops all goroutines and closes the connection and then the embedded server. Deliveries still in flight are
// abandoned. It must not be called from a done.
func (p *Publisher) Close() error {
	p.life.Lock()
	p.stop()
	p.life.Unlock()
	p.running.Wait()

	p.mu.Lock()
	defer p.mu.Unlock()
	for _, q := range p.queues {
		q.stopTimer()
	}
	if p.server != nil {
		p.server.shutdown()
	}
	return nil
}
