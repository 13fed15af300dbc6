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

// An acknowledgement names the stream and the sequence of a message, not its subject. A subject mapping of the
// account, or a subject transform of the stream, stores it under another subject: consumers of orders.> do not get
// it, and lookups do not find it. A mapping cannot be queried, so messages are read back:
//
//   - the first event of each destination on each connection (the sample), which the others wait for;
//   - an event that may have been sent before, since the earlier copy may be misplaced;
//   - every half a minute, the newest checkpoint (checkpoints.go).
//
// If the subject differs, the sample is the only event sent to the destination, again and again, until it is stored
// under its subject. The stream deduplicates it within its duplicate window, so few are misplaced.

const (
	// readBackTries limits the reads of a message that a replica may not have yet, readBackPause apart.
	readBackTries = 20
	readBackPause = 50 * time.Millisecond
)

// Cause and remedy for a stream with misplaced events; the cause follows the stream's name.
const (
	misplacedWhy = "stores events under other subjects than they are published to"
	misplacedDo  = "remove the subject mapping of the account, or of an import, that renames them"
)

// admit reports whether the copy may be sent. Until an event of the destination was read back, only the sample may. The
// others wait in their queues; the end of the sample's attempt enqueues them.
func (d *destination) admit(c *eventCopy) bool {
	if !d.verified && d.sample == nil {
		d.sample = c
	}
	return d.verified || d.sample == c
}

// startReadBack reads an event that was acknowledged. Needs mu.
func (p *Publisher) startReadBack(c *eventCopy, ack *jetstream.PubAck) {
	var m *jetstream.RawStreamMsg
	stream, subject := c.dest.stream, c.subject()
	p.startRequest(c, func(ctx context.Context, s jetstream.Stream) (err error) {
		m, err = readBack(ctx, s, ack.Sequence, stream, subject)
		return err
	}, func(c *eventCopy, err error) { p.finishReadBack(c, ack, m, err) })
}

// readBack reads the message at a sequence of a stream. The subject in a mirror's answer is not conclusive unless it is
// the expected one; else that counts as not found.
func readBack(
	ctx context.Context, s jetstream.Stream, sequence uint64, stream, subject string,
) (m *jetstream.RawStreamMsg, err error) {
	for range readBackTries {
		m, err = s.GetMsg(ctx, sequence)
		if err == nil && m.Subject != subject && ofMirror(m, stream) {
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

// finishReadBack compares the message that the stream holds with the copy that it acknowledged. Needs mu.
func (p *Publisher) finishReadBack(c *eventCopy, ack *jetstream.PubAck, m *jetstream.RawStreamMsg, err error) {
	switch {
	case errors.Is(err, natsgo.ErrDisconnected):
		p.enqueue(c.entry.queue)
	case err != nil:
		// It was removed since, or cannot be read: the acknowledgement stands.
		p.stored(c, ack)
	case !sameEvent(m, c.entry.delivery):
		c.dest.requestCheck() // it may have lost events
		p.retry(c, &c.dest.failing,
			fmt.Errorf("stream %s holds another message where it acknowledged an event", c.dest.stream))
	case m.Subject != c.subject():
		c.misplaced = true
		if !ack.Duplicate { // else an earlier copy is misplaced, perhaps before a correction
			c.dest.verified, c.dest.sample = false, c
		}
		p.retry(c, &c.dest.failing, fmt.Errorf("stream %s %s: %s", c.dest.stream, misplacedWhy, misplacedDo))
	default:
		p.stored(c, ack)
	}
}

// ofMirror reports whether a mirror answered a direct get of the stream. Mirrors may transform subjects, so its
// subject is not conclusive.
func ofMirror(m *jetstream.RawStreamMsg, stream string) bool {
	by := m.Header.Get(jetstream.StreamHeader)
	return by != "" && by != stream
}

// misplaced reports whether an event is stored under another subject than its headers imply.
func (d *destination) misplaced(m *jetstream.RawStreamMsg) bool {
	if ofMirror(m, d.stream) {
		return false
	}
	broker, ours := strings.CutPrefix(m.Header.Get("ce-source"), "/postbridge/")
	if !ours {
		return false
	}
	key, ok := strings.CutPrefix(m.Subject, d.root)
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
		if b != '/' { // either id may contain one
			continue
		}
		if d := (bridge.Delivery{Broker: broker, UserID: order[:i], OrderID: order[i+1:]}); d.Key() == key {
			return false
		}
	}
	// Long ids are escaped in the header as in the subject.
	return broker+"."+strings.Replace(order, "/", ".", 1) != key
}
