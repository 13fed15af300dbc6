package nats

import (
	"errors"
	"fmt"
	"strings"

	natsgo "github.com/nats-io/nats.go"

	"github.com/postbridge/postbridge/bridge"
)

// noAnswer is err, or what is known of why no answer can come.
func (p *Publisher) noAnswer(err error) error {
	if p.inbox != nil {
		return p.inbox
	}
	return err
}

// inboxDenied reports whether we were refused to subscribe to answers. Only a new connection asks for it again. It
// takes mu.
func (p *Publisher) inboxDenied() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.inbox != nil
}

// inboxHeard notes that an answer arrived.
func (p *Publisher) inboxHeard() {
	if p.inbox != nil {
		p.inbox = nil
		p.report("permission inbox", nil)
	}
}

// denied takes a permission violation, which the server tells apart from the message it refused: the subject is all
// that says what failed. Without this, it would fail by timeout. It takes mu.
func (p *Publisher) denied(err error) {
	if d := p.denyWhat(err); d != nil { // err may quote the subject of an order
		p.log.Warn("no permission to look up what the stream holds: events may be stored twice after an outage",
			"stream", d.stream, "remedy", fmt.Sprintf("allow publishing to $JS.API.DIRECT.GET.%s and "+
				"$JS.API.DIRECT.GET.%[1]s.>, or to $JS.API.STREAM.MSG.GET.%[1]s if the stream does not allow "+
				"direct access", d.stream))
	}
}

// denyWhat fails what a permission violation says is denied. It returns the destination in whose stream we may not
// look. It takes mu.
func (p *Publisher) denyWhat(err error) (unseen *destination) {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := err.Error()
	subject, ok := quotedAfter(text, `Publish to "`)
	if !ok {
		if _, ok = quotedAfter(text, `Subscription to "`); ok {
			p.inbox = fmt.Errorf("answers cannot arrive: %w", err)
			p.report("permission inbox", p.inbox)
		}
		return nil
	}
	for _, d := range p.destinations {
		if rest, ok := strings.CutPrefix(subject, d.prefix+string(d.name)+"."); ok {
			p.deniedCopies(d, rest)
		} else if strings.HasPrefix(subject, "$JS.API.DIRECT.GET."+d.stream) ||
			subject == "$JS.API.STREAM.MSG.GET."+d.stream {
			d.lookupDenied = true
			d.endLookups()
			unseen = d
		} else if d.cancelCheck != nil && strings.HasSuffix(subject, "."+d.stream) {
			d.cancelCheck(err)
		}
	}
	return unseen
}

// deniedCopies fails what is in flight to the subject whose last tokens are rest. Its error does not quote the subject,
// which has a user and an order in it.
func (p *Publisher) deniedCopies(d *destination, rest string) {
	err := fmt.Errorf("no permission to publish to some subjects of %s: allow publishing to %s", d.subjects, d.subjects)
	fail := func(c *eventCopy) { p.retry(c, &d.denied, err) }
	if d.name == bridge.Deadletters {
		for _, c := range p.inFlight {
			if c.dest == d && c.entry.delivery.Broker == rest {
				p.endAttempt(c, fail)
			}
		}
		return
	}
	l := p.queues[rest]
	if l == nil {
		return
	}
	for i := range l.head.n {
		if c := &l.head.copies[i]; c.dest == d && p.inFlight[c.attempt] == c {
			p.endAttempt(c, fail)
		}
	}
}

func quotedAfter(text, before string) (string, bool) {
	_, text, ok := strings.Cut(text, before)
	if !ok {
		return "", false
	}
	text, _, ok = strings.Cut(text, `"`)
	return text, ok
}

// authError reports whether the bus does not let us in.
func authError(err error) bool {
	return errors.Is(err, natsgo.ErrAuthorization) || errors.Is(err, natsgo.ErrAuthExpired) ||
		errors.Is(err, natsgo.ErrAuthRevoked) || errors.Is(err, natsgo.ErrAccountAuthExpired)
}
