package nats

import (
	"cmp"
	"context"
	"fmt"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Leaf nodes connect JetStream domains, which share subjects: streams of one name may exist in several domains, and
// each stores an event and acknowledges it. The library returns the first acknowledgement. One of another domain says
// nothing about our stream, and its sequence is no position there.

// foreignError reports that a stream of another domain stores the events of a destination.
func foreignError(domain string, d *destination) error {
	return fmt.Errorf("messages to %s are acknowledged in JetStream domain %q: take these subjects off the stream "+
		"there, deny them on the link of the leaf node, or set POSTBRIDGE_NATS_DOMAIN or POSTBRIDGE_PREFIX",
		d.subjects, domain)
}

// publishOnceMore publishes a copy that another domain acknowledged, and waits for the acknowledgement of ours, which
// knows the message id if it has stored the copy. Needs mu.
func (p *Publisher) publishOnceMore(c *eventCopy, foreign string) {
	if !c.dest.foreign {
		c.dest.foreign = true
		p.log.Warn("a stream of another JetStream domain stores the events, too",
			"stream", c.dest.stream, "domain", c.dest.domain, "error", foreignError(foreign, c.dest))
	}
	s, m, domain := p.session, c.message(newHeaders()), c.dest.domain
	c.sent++
	attempt := p.beginAttempt(c, time.Time{})
	p.running.Go(func() {
		ctx, cancel := context.WithTimeout(s.ctx, ackTimeout)
		defer cancel()
		ack, err := publishInDomain(ctx, s.conn, m, domain)
		if s.ctx.Err() != nil {
			err = natsgo.ErrDisconnected
		}
		p.resolve(attempt, func(c *eventCopy) {
			switch {
			case err == nil:
				p.acknowledged(c, ack)
			case disconnected(err):
				p.enqueue(c.entry.queue)
			default:
				p.retry(c, &c.dest.failing, fmt.Errorf("stream %s does not acknowledge (%w), but %w",
					c.dest.stream, err, foreignError(foreign, c.dest)))
			}
		})
	})
}

// publishInDomain publishes a message and returns the first acknowledgement from the domain.
func publishInDomain(
	ctx context.Context, conn *natsgo.Conn, m *natsgo.Msg, domain string,
) (*jetstream.PubAck, error) {
	answers, err := conn.SubscribeSync(conn.NewInbox())
	if err != nil {
		return nil, err
	}
	defer func() { _ = answers.Unsubscribe() }() // fails only without a connection
	m.Reply = answers.Subject
	if err = ctx.Err(); err == nil { // else it would go to the next connection
		err = conn.PublishMsg(m)
	}
	var refused error // by a stream of any domain: errors do not have it
	for err == nil {
		var answer *natsgo.Msg
		if answer, err = answers.NextMsgWithContext(ctx); err != nil {
			break
		}
		ack, notStored := decodeAck(answer.Data)
		if notStored != nil {
			refused = notStored
		} else if ack.Domain == domain {
			return ack, nil
		}
	}
	return nil, cmp.Or(refused, err)
}
