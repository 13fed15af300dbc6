package nats

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers"
)

// duplicateWindow is how long a stream that we create remembers message ids, at about 170 bytes each: the server's
// default. Older events are looked up.
const duplicateWindow = 2 * time.Minute

// destination holds the stream of a bridge.Destination and its state.
type destination struct {
	// Immutable.
	name     bridge.Destination
	prefix   string // of subjects, with its dot
	stream   string
	root     string // of subjects, with its dot: orders.
	subjects string // of a stream that we create: orders.>
	needed   string // subjects that the stream must cover: orders.*.*.*
	ack      []byte // the start of an acknowledgement, up to its sequence
	api      string // of the JetStream API's subjects, with its dot

	checkRequests chan struct{} // capacity 1

	warned string // the last warnings; owned by the goroutine of watchStream

	// Guarded by Publisher.mu.
	ready        bool             // the last check found that the stream fits; nothing is sent before
	refused      bool             // the last check failed, or there was none on this connection
	handle       jetstream.Stream // valid once ready
	window       time.Duration    // the stream's duplicate window
	lookups      context.Context  // context of lookups; ends with the session, and when they are denied
	checked      *publishers.Stream
	endLookups   context.CancelFunc
	lookupDenied bool                    // no permission for lookups, on this connection
	identity     string                  // of the stream
	domain       string                  // of the stream; "" without one
	foreign      bool                    // a stream of another domain acknowledged events, on this connection
	cancelCheck  context.CancelCauseFunc // cancels the running check; nil if there is none
	verified     bool                    // an event was read back under its subject, or cannot be read
	sample       *eventCopy              // the only copy sent before; nil if there is none yet
	failing      condition               // the stream stores nothing
	denied       condition               // no permission to publish to some subjects
}

// condition is a reported reason why copies are blocked.
type condition = publishers.Condition[*eventCopy]

func newDestination(name bridge.Destination, prefix, tokens string) *destination {
	d := &destination{
		name:          name,
		stream:        StreamName(prefix, name),
		checkRequests: make(chan struct{}, 1),
		failing:       condition{Name: "publish " + string(name)},
		denied:        condition{Name: "permission " + string(name)},
	}
	d.ack = []byte(`{"stream":"` + d.stream + `","seq":`)
	if prefix != "" {
		d.prefix = prefix + "."
	}
	d.root = d.prefix + string(name) + "."
	d.subjects = d.root + ">"
	d.needed = d.root + tokens
	return d
}

// StreamName returns the name of a destination's stream, which cannot have dots.
func StreamName(prefix string, dest bridge.Destination) string {
	if prefix != "" {
		prefix += "_"
	}
	return strings.ToUpper(strings.ReplaceAll(prefix, ".", "_") + string(dest))
}

// newDestinations returns the destinations orders, rejects and deadletters.
func newDestinations(c *Config) []*destination {
	all := []*destination{
		newDestination(bridge.Orders, c.Prefix, "*.*.*"),
		newDestination(bridge.Rejects, c.Prefix, "*.*.*"),
		newDestination(bridge.Deadletters, c.Prefix, "*"),
	}
	for _, d := range all {
		d.api = c.api()
	}
	return all
}

// requestCheck makes watchStream check the stream soon.
func (d *destination) requestCheck() {
	select {
	case d.checkRequests <- struct{}{}:
	default:
	}
}

// checkInterval is how often a stream is checked without a request.
const checkInterval = 30 * time.Second

// watchStream checks the stream on request, every checkInterval, and with a backoff after a failed check, until Close.
func (p *Publisher) watchStream(d *destination) {
	var again <-chan time.Time
	interval := time.NewTicker(checkInterval)
	defer interval.Stop()
	pace := bridge.RetryForever(firstRetry)
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-d.checkRequests:
			pace.Reset()
		case <-again:
		case <-interval.C:
		}
		again = nil
		if !p.checkStream(d) {
			again = time.After(pace.NextBackOff())
		}
	}
}

// checkStream looks up the stream, creates it if missing, and resumes the destination if the stream fits and has
// lost no event. False means that the check failed and is to be repeated. It locks mu.
func (p *Publisher) checkStream(d *destination) bool {
	p.mu.Lock()
	s := p.session
	if s.ctx.Err() != nil {
		p.mu.Unlock()
		return true // the next connect requests a check
	}
	ctx, cancel := context.WithCancelCause(s.ctx)
	defer cancel(nil)
	d.cancelCheck = cancel
	lookups, checked := d.lookups, d.checked
	p.mu.Unlock()

	stream, err := p.findStream(ctx, s.js, d)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	lost := false
	if err == nil && lookups.Err() == nil {
		lost, err = p.checkLoss(lookups, checked)
	}
	if lost {
		return true // the bridge opens another publisher after the rewind
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	d.cancelCheck = nil
	if s.ctx.Err() != nil {
		return true
	}
	if err != nil {
		d.ready, d.refused = false, true
		if errors.Is(err, context.DeadlineExceeded) {
			err = publishers.WithRemedy(err, d.lookupRemedy(p.cfg.answers()))
		}
		p.report("stream "+d.stream, p.noAnswer(err))
		return false
	}
	p.report("stream "+d.stream, nil)
	p.inboxHeard()
	info := stream.CachedInfo()
	d.handle, d.identity, d.domain, d.window = stream, identity(info), info.Domain, info.Config.Duplicates
	p.resume(d)
	return true
}

// resume makes the destination ready and enqueues its events. Backoffs are cut short only after a failed check: a
// stream may fit although its subjects lead elsewhere. Needs mu.
func (p *Publisher) resume(d *destination) {
	if d.ready {
		return
	}
	d.ready = true
	if d.refused {
		d.refused = false
		for _, q := range p.queues {
			q.stopTimer()
		}
	}
	p.wakeIdle()
}

// findStream returns the stream, created if it is missing, or why it cannot be used.
func (p *Publisher) findStream(ctx context.Context, js jetstream.JetStream, d *destination) (jetstream.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	created := false
	s, err := js.Stream(ctx, d.stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if !p.cfg.CreateStreams {
			return nil, fmt.Errorf("stream %s is missing: %s", d.stream, d.createRemedy())
		}
		p.pause(d) // a recreated stream must be checked for lost events first
		if _, err = js.CreateStream(ctx, p.streamConfig(d)); err != nil {
			return nil, fmt.Errorf("cannot create stream %s: %w", d.stream, advised(err))
		}
		s, err = js.Stream(ctx, d.stream) // the answer to the creation lacks the domain
		created = true
	}
	if err != nil {
		return nil, fmt.Errorf("cannot look up stream %s: %w", d.stream, p.cfg.lookupError(err))
	}
	if created {
		p.log.Info("created stream", "stream", d.stream, "subjects", d.subjects, "domain", s.CachedInfo().Domain)
	}
	config := &s.CachedInfo().Config
	if err := d.misfit(config); err != nil {
		return nil, err
	}
	if w := d.warnings(config, p.cfg.DiscardOld); w != d.warned {
		d.warned = w
		if w != "" {
			p.log.Warn("the stream fits but is not safe", "stream", d.stream, "why", w)
		}
	}
	return s, nil
}

// createRemedy returns the remedy for a missing stream that we do not create.
func (d *destination) createRemedy() string {
	return "create it with subjects " + d.subjects + ", or set POSTBRIDGE_NATS_CREATE_STREAMS=true"
}

var errNoJetStream = errors.New("JetStream does not answer")

// noJetStream reports whether err means that no JetStream answers.
func noJetStream(err error) bool {
	return errors.Is(err, natsgo.ErrNoResponders) || errors.Is(err, jetstream.ErrJetStreamNotEnabled)
}

// jetStreamRemedy returns the remedy if no JetStream answers.
func (c *Config) jetStreamRemedy() string {
	if c.Domain != "" {
		return fmt.Sprintf("check that POSTBRIDGE_NATS_DOMAIN=%s is right, and that its servers "+
			"and the link of the leaf node are up", c.Domain)
	}
	return "enable it on the server and for the account; on a leaf node, set POSTBRIDGE_NATS_DOMAIN to the hub's domain"
}

// lookupError returns why a stream cannot be looked up, with the remedy.
func (c *Config) lookupError(err error) error {
	if noJetStream(err) {
		return fmt.Errorf("%w: %s", errNoJetStream, c.jetStreamRemedy())
	}
	return advised(err)
}

// streamConfig returns the configuration of a stream that we create. The server's default for Duplicates is
// duplicateWindow, or MaxAge if that is shorter, as it requires.
func (p *Publisher) streamConfig(d *destination) jetstream.StreamConfig {
	c := jetstream.StreamConfig{
		Name:        d.stream,
		Description: "postbridge " + string(d.name),
		Subjects:    []string{d.subjects},
		Storage:     jetstream.FileStorage,
		Retention:   jetstream.LimitsPolicy,
		Discard:     jetstream.DiscardNew,
		AllowDirect: true,
		Replicas:    p.cfg.Replicas,
		MaxAge:      p.cfg.MaxAge,
		MaxBytes:    p.cfg.MaxBytes,
	}
	if p.cfg.DiscardOld {
		c.Discard = jetstream.DiscardOld
	}
	return c
}

// misfit returns why events cannot be published to an existing stream; nil if they can.
func (d *destination) misfit(c *jetstream.StreamConfig) error {
	for _, r := range d.check(c, true) {
		if r.Severity == publishers.Fail {
			return errors.New(r.String())
		}
	}
	return nil
}

// warnings returns how an existing stream may lose events.
func (d *destination) warnings(c *jetstream.StreamConfig, discardOld bool) string {
	var all []string
	for _, r := range d.check(c, discardOld) {
		if r.Severity == publishers.Warn {
			all = append(all, r.Text+": "+r.Do)
		}
	}
	return strings.Join(all, "; ")
}

// check checks the configuration of an existing stream, which we never change: a failure if events cannot go there, and
// a warning for each way to lose some.
func (d *destination) check(config *jetstream.StreamConfig, discardOld bool) []publishers.CheckResult {
	c := &publishers.Checks{Area: "nats", What: "stream " + d.stream}
	c.Fail(config.Mirror != nil, "is a mirror, which accepts no messages",
		"publish to another account or prefix, or remove it")
	if t := config.SubjectTransform; t != nil {
		c.Fail(renames(t, d.needed), fmt.Sprintf("renames what it stores (subject transform from %s to %s), "+
			"so that neither consumers nor lookups find it", cmp.Or(t.Source, ">"), t.Destination),
			"remove the transform")
	}
	c.Fail(config.AllowMsgCounter, "accepts only counters (allow_msg_counter)", "recreate it without")
	c.Fail(config.Sealed, "is sealed, which cannot be undone", "delete or rename it")
	c.Fail(config.Mirror == nil && !covers(config.Subjects, d.needed),
		fmt.Sprintf("has subjects %s, which do not cover %s", strings.Join(config.Subjects, ","), d.needed),
		"add "+d.subjects)
	c.Fail(config.NoAck, "does not acknowledge (no_ack), so that no event is known to be stored", "set no_ack to false")
	c.Fail(config.Storage != jetstream.FileStorage,
		"keeps messages in memory, so that a restart of the server loses them",
		"recreate it with file storage")
	c.Fail(config.Retention == jetstream.WorkQueuePolicy, "drops messages when they are acknowledged "+
		"(workqueue retention), so that each reaches one consumer only", "recreate it with limits retention")
	c.Fail(config.Retention == jetstream.InterestPolicy, "drops messages without a subscriber (interest retention)",
		"recreate it with limits retention")
	c.Warn(config.Duplicates < duplicateWindow/4, fmt.Sprintf("has a duplicate window of %s, which is short: "+
		"every retry that is older has to be looked up", config.Duplicates), "make it 2m")
	c.Warn(dropsOldest(config) && !discardOld, "drops its oldest events when it is full (discard old), read or not",
		"set discard to new: events wait in the spool then")
	c.Warn(config.MaxMsgsPerSubject > 0,
		fmt.Sprintf("keeps %d states of an order only (max_msgs_per_subject)", config.MaxMsgsPerSubject),
		"set it to -1")
	c.Warn(config.PersistMode == jetstream.AsyncPersistMode, "acknowledges before it writes (async persist mode)",
		"recreate it with the default persist mode")
	return c.Results
}

// dropsOldest reports whether a full stream drops its oldest messages.
func dropsOldest(c *jetstream.StreamConfig) bool {
	return c.Discard == jetstream.DiscardOld && (c.MaxBytes > 0 || c.MaxMsgs > 0)
}

// covers reports whether one of the subjects includes all subjects of the pattern.
func covers(subjects []string, pattern string) bool {
	return slices.ContainsFunc(subjects, func(s string) bool { return server.SubjectMatchesFilter(pattern, s) })
}

// renames reports whether a transform changes a subject that matches the pattern.
func renames(t *jetstream.SubjectTransformConfig, pattern string) bool {
	return t.Source != t.Destination && server.SubjectsCollide(cmp.Or(t.Source, ">"), pattern)
}
