// Package kafka publishes events to Kafka.
//
// The key <broker>.<user_id>.<order_id> chooses the partition as Java clients do. Each partition has a writer with one
// batch in flight, so the events of an order are stored in order, and partitions do not wait for each other.
//
//	Publish ──► topic ──► partition writer ──► leader of the partition
//	            by key    one batch in flight
//
// Each event is stored once. A partition writer is an idempotent producer: a batch carries the producer's id and the
// sequence number of its first record, and the broker stores a batch only behind the one before it. This outlives a
// process: the id, the next sequence number and an offset are saved with the cursor (state.go), and a recovery scan
// (recoveryscan.go) finds what the partition holds beyond that offset before anything is sent again.
//
// # States of a partition writer
//
// Each state does one piece of work; its outcome is an event, which chooses the next state (see next). The names are
// those of the constants in partition.go. A test compares this table with the code.
//
//	starting     waits for events, or until the checkpoints are due; the position is not known
//	             done → locating
//	locating     finds the position to go on at
//	             done → starting (nothing is pending), saved → scanning, unsaved → registering (an earlier run may have
//	             sent events all the same), fresh → renewing (none did)
//	registering  gets a new producer id and saves it
//	             done → scanning
//	scanning     recovery scan: reads the partition from the position on, indexes our events
//	             done → idle, truncated → registering (the partition ends before the position),
//	             denied → renewing (no permission to read)
//	idle         waits for events, or until the checkpoints are due
//	             done → batching
//	batching     completes events that the index has as stored, or encodes the next batch
//	             batched → sending, unfenced → probing (an earlier batch may still land), done → idle (no batch),
//	             moved → starting (this is another cluster)
//	sending      sends the batch for the first time
//	             acked → settling, refused → rejecting, mismatched → verifying, unanswered → resending
//	resending    sends it again; it may be stored already, so no other partition may get its events
//	             acked → settling, refused → verifying, mismatched → verifying, unanswered → resending
//	probing      sends it although an earlier batch may still land, which makes every answer doubtful
//	             acked → verifying, refused → verifying, mismatched → verifying, unanswered → probing
//	verifying    recovery scan: is the batch stored, whatever the broker answered?
//	             done → idle (the scan tells, or not yet), refused → rejecting (it is not),
//	             forgotten → renewing (the broker does not know the producer any more),
//	             truncated → registering, denied → renewing
//	settling     records the new position, completes the events of the batch
//	             done → idle
//	rejecting    halves the batch, or completes its one event as rejected; waits if every event is refused as invalid
//	             done → idle
//	renewing     gets a new producer id and saves it
//	             done → idle
//	ended        returns pending events to the topic, for the next writers
//
// Any other state has two more: failed → the same state, after a wait with exponential backoff; stopped → ended, as the
// publisher closes or the topic has another number of partitions. Each state that asks the leader checks the
// checkpoints first, if they are due (checkpoints.go). mismatched: the broker refuses the sequence numbers, or takes
// the batch for an older one. unanswered: no answer tells whether the batch is stored.
//
// # Permissions
//
// The Kafka user needs, on the topics orders, rejects and deadletters: Write; Describe; Read, for recovery scans and
// checkpoints; Create, or the same on the cluster, if they do not exist yet; and DescribeConfigs, for Check to read the
// topics' settings. Before Kafka 2.8 it also needs IdempotentWrite on the cluster.
package kafka

import (
	"context"
	"log/slog"
	"sync"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers"
)

// Limits of batches and requests.
const (
	// batchRecords and batchBytes limit a batch, in bytes before compression. The default limit of a broker is 1 MiB.
	batchRecords = 500
	batchBytes   = 512 << 10
	// produceTimeout is how long a broker may take to store a batch on all replicas; requestTimeout, to answer any
	// other request.
	produceTimeout = 10 * time.Second
	requestTimeout = 5 * time.Second
	// firstRetry is the first pause after a failure. While a broker cannot be reached, pauses do not exceed
	// dialRetry, so that publishing goes on soon after it is back.
	firstRetry = 50 * time.Millisecond
	dialRetry  = 2 * time.Second
)

// Publisher publishes to one Kafka cluster.
type Publisher struct {
	cfg         Config
	log         *slog.Logger
	limits      limits
	saveState   func() error
	transport   *transport
	client      *kafkago.Client
	topics      map[bridge.Destination]*topic
	ctx         context.Context
	stop        context.CancelFunc
	running     sync.WaitGroup // every goroutine of the publisher
	refresh     chan struct{}  // requests fresh metadata; capacity 1
	saved       savedState
	spool       string // id of the spool of all events
	checkpoints *publishers.Checkpoints
	rewound     func(committed uint64, why error)
	report      bridge.Report

	// mu is not locked while a line is logged or a function of the Opening is called, since both may block. Report
	// does not.
	mu sync.Mutex
	// Guarded by mu.
	up      bool     // the cluster answered last time
	brokers []string // to ask for metadata: those of the last answer, then those configured
	session int      // number of reconnects to the cluster
}

var _ bridge.Publisher = (*Publisher)(nil)

// entry is one event in flight.
type entry struct {
	delivery *bridge.Delivery
	key      string // of the delivery
	done     func(error)

	// Guarded by Publisher.mu.
	copies  int   // not completed yet
	refused error // why the bus can never accept one of them
}

func newEntry(d *bridge.Delivery, done func(error)) *entry {
	return &entry{delivery: d, key: d.Key(), done: done, copies: len(d.Destinations())}
}

// NewBus returns the Kafka bus, not opened yet.
func NewBus(cfg Config, log *slog.Logger) bridge.Bus {
	return bridge.Bus{Name: "kafka", Open: func(o bridge.Opening) (bridge.Publisher, error) {
		p, err := Open(cfg, o, log)
		if err != nil {
			return nil, err
		}
		return p, nil
	}}
}

// Open opens a publisher without waiting for Kafka, which may be down. It fails only if cfg is invalid.
func Open(cfg Config, o bridge.Opening, log *slog.Logger) (*Publisher, error) {
	return open(cfg, o, log, defaultLimits())
}

// limits holds the durations that tests shorten.
type limits struct{ unsureFor, shrinkAfter, blindFor, checkInterval time.Duration }

func defaultLimits() limits {
	return limits{unsureFor, shrinkAfter, publishers.BlindFor, checkInterval}
}

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
	if err := p.saved.parse(positions); err != nil {
		log.Error("cannot read the publisher state; events may be stored twice", "error", err)
	}
	p.transport = newTransport(cfg, func(err error) {
		p.report("certificate", publishers.WithRemedy(err, filesRemedy))
	})
	p.transport.certificatesChanged()                                           // the first reading is no change
	p.client = &kafkago.Client{Transport: p.transport, Timeout: produceTimeout} // half of it is for the broker
	p.ctx, p.stop = context.WithCancel(context.Background())
	p.topics = make(map[bridge.Destination]*topic)
	for _, dest := range []bridge.Destination{bridge.Orders, bridge.Rejects, bridge.Deadletters} {
		p.topics[dest] = newTopic(p, dest)
	}
	p.running.Go(p.watch)
	return p, nil
}

// Publish queues the delivery for the partition of its key in each of its topics, and does not wait. After ctx has
// ended it does nothing; the caller closes the publisher then.
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

// complete records that a copy of each event is stored, or refused for good, and calls done for events without
// another.
func (p *Publisher) complete(copies []*entry, refused error) {
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

// State implements bridge.Publisher: the positions of the partitions and the checkpoints as of committed.
func (p *Publisher) State(committed uint64) []byte {
	return append(p.saved.encode(committed), p.checkpoints.State(committed)...)
}

// Rewind implements bridge.Publisher.
func (p *Publisher) Rewind() { p.saved.rewind(p.checkpoints.Rewind()) }

// Close stops the publisher and abandons deliveries that are in flight. It must not be called from a done function.
func (p *Publisher) Close() error {
	p.stop()
	p.transport.close()
	p.running.Wait()
	return nil
}
