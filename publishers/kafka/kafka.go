// Package kafka carries events to Kafka.
//
// Order is kept per partition by one rule: each partition is a lane with one batch in flight, and the next is sent when
// the broker has answered for the one before it. The key <broker>.<user_id>.<order_id> chooses the partition as Java
// clients do, so an order's events stay in one lane. Lanes do not wait for each other.
//
//	Publish ──► topic ──► lane ──► batch ──► leader of the partition
//	           by key      ▲                        │
//	                       └── retry, look, next ◄──┘
//
// Each event is stored once. Each lane is an idempotent producer of its own: a batch carries the producer's id and the
// number of its first record, and a broker stores a number only behind the one before it. That outlives a process: id,
// number and offset of each lane are kept with the cursor (note.go), and what the partition holds beyond them is looked
// at before anything is offered again (look.go).
//
// The user on the bus needs, on the topics orders, rejects and deadletters: Write; Describe; Read, to look at what is
// there; Create, or the same on the cluster, if they are not there yet; and DescribeConfigs, for Check to see what the
// topics promise.
package kafka

import (
	"context"
	"log/slog"
	"sync"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers"
	"github.com/postbridge/postbridge/publishers/tlsfiles"
)

// Limits of what goes to the bus, and of how long it may take.
const (
	// batchRecords and batchBytes are how much a batch holds at most, before compression. A broker takes 1 MiB, unless
	// it is told otherwise.
	batchRecords = 500
	batchBytes   = 512 << 10
	// produceTimeout is how long a broker may take to store a batch on all replicas; requestTimeout, to answer anything
	// else.
	produceTimeout = 10 * time.Second
	requestTimeout = 5 * time.Second
	// firstRetry is the first pause after a failure. While a broker cannot be reached pauses get no longer than
	// dialRetry, so that a lane goes on soon after it is back.
	firstRetry = 50 * time.Millisecond
	dialRetry  = 2 * time.Second
)

// Publisher publishes to one Kafka cluster.
type Publisher struct {
	cfg          Config
	log          *slog.Logger
	limits       limits
	saveState    func() error
	transport    *transport
	client       *kafkago.Client
	certificates *tlsfiles.Files // nil without TLS files
	topics       map[bridge.Destination]*topic
	ctx          context.Context
	stop         context.CancelFunc
	running      sync.WaitGroup // every goroutine of the publisher
	refresh      chan struct{}  // asks for fresh metadata; holds one
	notes        notes
	spool        string // that all events come from
	checkpoints  *publishers.Checkpoints
	rewound      func(committed uint64, why error)
	report       bridge.Report

	// mu is not held while anything is logged or a function of the Opening is called, which may block. Report does not.
	mu sync.Mutex
	// Guarded by mu.
	up      bool     // the cluster answered last time
	brokers []string // where to ask for metadata: those known, then those configured
	session int      // counts how often the cluster answered again
}

var _ bridge.Publisher = (*Publisher)(nil)

// entry is one event until it is done.
type entry struct {
	delivery *bridge.Delivery
	key      string // of the delivery
	done     func(error)

	// Guarded by Publisher.mu.
	copies  int   // not settled yet
	refused error // why the bus can never take one of them
}

func newEntry(d *bridge.Delivery, done func(error)) *entry {
	return &entry{delivery: d, key: d.Key(), done: done, copies: len(d.Destinations())}
}

// NewBus returns the bus. It is not opened yet.
func NewBus(cfg Config, log *slog.Logger) bridge.Bus {
	return bridge.Bus{Name: "kafka", Open: func(o bridge.Opening) (bridge.Publisher, error) {
		p, err := Open(cfg, o, log)
		if err != nil {
			return nil, err
		}
		return p, nil
	}}
}

// Open makes a publisher. It does not wait for the bus, which may be down. Its error is one in cfg.
func Open(cfg Config, o bridge.Opening, log *slog.Logger) (*Publisher, error) {
	return open(cfg, o, log, defaultLimits())
}

// limits are those that a test has no time for.
type limits struct{ unsureFor, shrinkAfter, blindFor time.Duration }

func defaultLimits() limits { return limits{unsureFor, shrinkAfter, publishers.BlindFor} }

func open(cfg Config, o bridge.Opening, log *slog.Logger, limits limits) (*Publisher, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	p := &Publisher{
		cfg:       cfg,
		log:       log,
		limits:    limits,
		saveState: o.SaveState,
		refresh:   make(chan struct{}, 1),
		brokers:   cfg.Brokers,
		report:    o.Report,
		spool:     o.Spool,
		rewound:   o.Rewound,
	}
	var positions []byte
	p.checkpoints, positions = publishers.LoadCheckpoints(o.State, limits.blindFor, log)
	if err := p.notes.parse(positions); err != nil {
		// What is known from before only saves repeats.
		log.Error("cannot read what is noted of the partitions; events may be stored twice", "error", err)
	}
	p.certificates = tlsfiles.New(cfg.TLSCAFile, cfg.TLSCertFile, cfg.TLSKeyFile, func(err error) {
		p.report("certificate", err)
	})
	if p.certificates != nil {
		p.certificates.Changed() // as they are now is no change
	}
	p.transport = newTransport(cfg, p.certificates)
	p.client = &kafkago.Client{Transport: p.transport, Timeout: produceTimeout} // half of it is for the broker
	p.ctx, p.stop = context.WithCancel(context.Background())
	p.topics = make(map[bridge.Destination]*topic)
	for _, dest := range []bridge.Destination{bridge.Orders, bridge.Rejects, bridge.Deadletters} {
		p.topics[dest] = newTopic(p, dest)
	}
	p.running.Go(p.watch)
	return p, nil
}

// Publish queues the delivery in the lane of its key. It never waits. With ctx ended it does nothing; what ended ctx is
// expected to Close the publisher too.
func (p *Publisher) Publish(ctx context.Context, d *bridge.Delivery, done func(error)) {
	if ctx.Err() != nil {
		return
	}
	e := newEntry(d, done)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, dest := range d.Destinations() {
		p.topics[dest].push(e)
	}
}

// settle ends a copy of each of the events: stored, or refused for good.
func (p *Publisher) settle(copies []*entry, refused error) {
	done := make([]*entry, 0, len(copies))
	p.mu.Lock()
	for _, e := range copies {
		e.copies--
		if refused != nil {
			e.refused = refused
		}
		if e.copies == 0 {
			done = append(done, e)
		}
	}
	p.mu.Unlock()
	for _, e := range done {
		e.done(e.refused)
	}
}

// State implements bridge.Publisher: how far each partition was written, and where some of the events are.
func (p *Publisher) State(committed uint64) []byte {
	return append(p.notes.asOf(committed), p.checkpoints.State(committed)...)
}

// Rewind implements bridge.Publisher.
func (p *Publisher) Rewind(committed uint64) { p.notes.rewind(p.checkpoints.Rewind(committed)) }

// Close ends the connections and everything the publisher does. What is undone stays undone. It must not be called from
// within a done.
func (p *Publisher) Close() error {
	p.stop()
	p.transport.close()
	p.running.Wait()
	return nil
}
