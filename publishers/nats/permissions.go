package nats

import (
	"errors"
	"fmt"
	"strings"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers"
)

// noAnswer returns err, or refers to the condition of a denied subscription for answers. Needs mu.
func (p *Publisher) noAnswer(err error) error {
	if p.inbox != nil {
		return errors.New("answers cannot arrive: see permission inbox")
	}
	return err
}

// inboxDenied reports whether the server denied the subscription for answers. Only a new connection subscribes again.
// It locks mu.
func (p *Publisher) inboxDenied() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.inbox != nil
}

// inboxHeard records that an answer arrived. Needs mu.
func (p *Publisher) inboxHeard() {
	if p.inbox != nil {
		p.inbox = nil
		p.report("permission inbox", nil)
	}
}

// denied handles a permission violation: the request or message with its subject would only time out. The server
// reports it on its own, so that the subject is all that identifies what failed. It locks mu.
func (p *Publisher) denied(err error) {
	if d := p.failDenied(err); d != nil { // err may quote the subject of an order
		p.log.Warn("no permission to look up what the stream holds: events may be stored twice after an outage",
			"stream", d.stream, "remedy", d.readRemedy())
	}
}

// readRemedy returns the remedy if lookups in the stream are denied.
func (d *destination) readRemedy() string {
	return fmt.Sprintf("allow publishing to %sDIRECT.GET.%s and %[1]sDIRECT.GET.%[2]s.>, "+
		"or to %[1]sSTREAM.MSG.GET.%[2]s if the stream does not allow direct access", d.api, d.stream)
}

// failDenied fails the operation that a permission violation denies. It returns the destination if that is a lookup in
// its stream. It locks mu.
func (p *Publisher) failDenied(err error) (lookup *destination) {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := err.Error()
	subject, ok := quotedAfter(text, `Publish to "`)
	if !ok {
		if _, ok = quotedAfter(text, `Subscription to "`); ok {
			p.inbox = publishers.WithRemedy(fmt.Errorf("answers cannot arrive: %w", err), p.cfg.inboxRemedy())
			p.report("permission inbox", p.inbox)
		}
		return nil
	}
	// A server of the domain replaces the prefix before it checks the permission.
	request, _ := strings.CutPrefix(subject, p.cfg.api())
	request, _ = strings.CutPrefix(request, jetstream.DefaultAPIPrefix)
	for _, d := range p.destinations {
		if tokens, ok := strings.CutPrefix(subject, d.root); ok {
			p.deniedCopies(d, tokens)
		} else if strings.HasPrefix(request, "DIRECT.GET."+d.stream) ||
			request == "STREAM.MSG.GET."+d.stream {
			d.lookupDenied = true
			d.endLookups()
			lookup = d
		} else if d.cancelCheck != nil && strings.HasSuffix(subject, "."+d.stream) {
			d.cancelCheck(publishers.WithRemedy(err, "allow publishing to "+subject))
		}
	}
	return lookup
}

// deniedCopies fails the copies in flight to a subject by its last tokens. The error does not quote the subject, which
// contains a user and an order.
func (p *Publisher) deniedCopies(d *destination, tokens string) {
	err := fmt.Errorf("no permission to publish to some subjects of %s: allow publishing to %s", d.subjects, d.subjects)
	fail := func(c *eventCopy) { p.retry(c, &d.denied, err) }
	if d.name == bridge.Deadletters {
		for _, c := range p.inFlight {
			if c.dest == d && c.entry.delivery.Broker == tokens {
				p.endAttempt(c, fail)
			}
		}
		return
	}
	q := p.queues[tokens]
	if q == nil {
		return
	}
	for i := range q.head.copies {
		if c := &q.head.copies[i]; c.dest == d && p.inFlight[c.attempt] == c {
			p.endAttempt(c, fail)
		}
	}
}

// quotedAfter returns the text in quotes after another one, which ends with the opening quote.
func quotedAfter(text, before string) (quoted string, ok bool) {
	_, text, found := strings.Cut(text, before)
	quoted, _, ok = strings.Cut(text, `"`)
	return quoted, found && ok
}

// authError reports whether the server refuses the login.
func authError(err error) bool {
	return errors.Is(err, natsgo.ErrAuthorization) || errors.Is(err, natsgo.ErrAuthExpired) ||
		errors.Is(err, natsgo.ErrAuthRevoked) || errors.Is(err, natsgo.ErrAccountAuthExpired)
}
