package nats

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
)

// An acknowledgement names the stream and the sequence of a message, not its subject. A subject mapping of the account,
// or a subject transform of the stream, stores it under another name: consumers of orders.> do not get it, and look-ups
// do not find it. Nothing tells of a mapping beforehand, so what was stored is read back:
//
//   - the first event of each destination on each connection, which the others wait for;
//   - an event that may have been sent before, since the earlier copy may be misplaced;
//   - every half a minute, the newest checkpoint (checkpoints.go).
//
// If the subject is another, the destination gets nothing but that one event, again and again, until it is stored under
// its subject. The stream takes it for a repeat as long as its duplicate window lasts, so not many are misplaced.

const (
	// readBackTries is how often a message is asked for that a replica does not have yet, readBackPause apart.
	readBackTries = 20
	readBackPause = 50 * time.Millisecond
)

// What is wrong with a stream whose events are misplaced, worded to follow its name, and what to do.
const (
	misplacedWhy = "stores events under other subjects than they are published to"
	misplacedDo  = "remove the subject mapping of the account, or of an import, that renames them"
)

// admit reports whether the copy may be sent. Until an event of the destination was read back, one at a time is.
func (d *destination) admit(c *eventCopy) bool {
	if d.proven || d.sample == c {
		return true
	}
	if d.sample != nil {
		d.gated = append(d.gated, c.entry.lane)
		return false
	}
	d.sample = c
	return true
}

// prove lets all events of the destination go.
func (p *Publisher) prove(d *destination) {
	d.proven, d.sample = true, nil
	for _, l := range d.gated {
		p.enqueue(l)
	}
	d.gated = nil
}

// nextSample goes on to another event if there is no sample: it was not stored, or what was to be the next was found
// to be stored already.
func (p *Publisher) nextSample(d *destination) {
	for d.sample == nil && len(d.gated) > 0 {
		l := d.gated[0]
		d.gated = d.gated[1:]
		if l.head != nil {
			p.enqueue(l)
			return
		}
	}
}

// forgetSample has the next event of the destination read back. The lanes that wait are queued when the stream is found
// to fit.
func (d *destination) forgetSample() {
	d.proven, d.sample, d.gated = false, nil, nil
}

// goReadBack reads an event that was acknowledged. It is called with mu held, after begin.
func (p *Publisher) goReadBack(c *eventCopy, ack *jetstream.PubAck) {
	var m *jetstream.RawStreamMsg
	sample, stream, subject := !c.dest.proven, c.dest.stream, c.subject()
	p.goAsk(c, func(ctx context.Context, s jetstream.Stream) (err error) {
		m, err = readBack(ctx, s, ack.Sequence, func(m *jetstream.RawStreamMsg) bool {
			return m.Subject == subject || !ofMirror(m, stream)
		})
		if sample && err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) && ctx.Err() == nil {
			p.log.Warn("cannot read back what the stream stored, so a subject mapping would not be noticed",
				"stream", stream, "error", err)
		}
		return err
	}, func(c *eventCopy, err error) { p.wasReadBack(c, ack, m, err) })
}

// readBack reads the message at a sequence. An answer that does not tell counts as none.
func readBack(
	ctx context.Context, s jetstream.Stream, sequence uint64, tells func(*jetstream.RawStreamMsg) bool,
) (m *jetstream.RawStreamMsg, err error) {
	for range readBackTries {
		m, err = s.GetMsg(ctx, sequence)
		if err == nil && !tells(m) {
			err = jetstream.ErrMsgNotFound
		}
		if !errors.Is(err, jetstream.ErrMsgNotFound) {
			return m, err
		}
		select {
		case <-time.After(readBackPause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return nil, err
}

// wasReadBack takes what the stream holds where it acknowledged a copy.
func (p *Publisher) wasReadBack(c *eventCopy, ack *jetstream.PubAck, m *jetstream.RawStreamMsg, err error) {
	switch {
	case errors.Is(err, natsgo.ErrDisconnected):
		p.enqueue(c.entry.lane)
	case err != nil:
		// It was stored, and is removed already, or nobody tells: that is no reason to wait.
		p.stored(c, ack)
	case !sameEvent(m, c.entry.delivery):
		c.dest.wantCheck() // it may have lost what it stored
		p.retry(c, &c.dest.failing,
			fmt.Errorf("stream %s holds another message where it acknowledged an event", c.dest.stream))
	case m.Subject != c.subject():
		c.misplaced = true
		if !ack.Duplicate { // or else it is misplaced since some time ago
			c.dest.proven, c.dest.sample = false, c
		}
		p.retry(c, &c.dest.failing, fmt.Errorf("stream %s %s: %s", c.dest.stream, misplacedWhy, misplacedDo))
	default:
		p.stored(c, ack)
	}
}

// ofMirror reports whether a mirror of the stream answered in its place, as mirrors do if the stream allows direct
// gets. Some rename what they copy, so the subject does not tell that of the stream.
func ofMirror(m *jetstream.RawStreamMsg, stream string) bool {
	by := m.Header.Get(jetstream.StreamHeader)
	return by != "" && by != stream
}

// misplaced reports whether an event is stored under another subject than its headers call for.
func (d *destination) misplaced(m *jetstream.RawStreamMsg) bool {
	if ofMirror(m, d.stream) {
		return false
	}
	broker, ours := strings.CutPrefix(m.Header.Get("ce-source"), "/postbridge/")
	if !ours {
		return false
	}
	key, ok := strings.CutPrefix(m.Subject, d.prefix+string(d.name)+".")
	if !ok {
		return true
	}
	if d.name == bridge.Deadletters {
		return key != broker
	}
	order, err := url.PathUnescape(m.Header.Get("ce-subject"))
	if err != nil {
		return false
	}
	for i, b := range []byte(order) {
		if b != '/' { // either id may have one in it
			continue
		}
		if d := (bridge.Delivery{Broker: broker, UserID: order[:i], OrderID: order[i+1:]}); d.Key() == key {
			return false
		}
	}
	// Long ids stand in the header as in the subject.
	return broker+"."+strings.Replace(order, "/", ".", 1) != key
}
