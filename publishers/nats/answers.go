package nats

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// The answer to a publish comes to a subject that ends with the number of the attempt, and one subscription gets all of
// them. The library's PublishMsgAsync does the same with a timer, a random subject and a future for each message, and
// decodes each answer as JSON: an eighth of the processor time that an event took.

// connected begins the first session of a connection. It locks mu.
func (p *Publisher) connected(conn *natsgo.Conn) {
	answers := conn.NewInbox() + "."
	if _, err := conn.Subscribe(answers+"*", p.answered); err != nil {
		return // closed already
	}
	js, _ := NewJetStream(conn, p.cfg, jetstream.WithDefaultTimeout(ackTimeout)) // fails only with an invalid option
	p.mu.Lock()
	p.session.end()
	p.session.conn, p.session.js, p.session.answers = conn, js, answers
	p.mu.Unlock()
	p.up(conn)
}

// answered handles the answer to a publish. It runs on a goroutine of the library and locks mu.
func (p *Publisher) answered(m *natsgo.Msg) {
	number := m.Subject[strings.LastIndexByte(m.Subject, '.')+1:]
	attempt, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		return // not an answer to us
	}
	p.resolve(attempt, func(c *eventCopy) {
		if ack, err := c.dest.decodeAnswer(m); err != nil {
			p.handleError(c, err)
		} else {
			p.acknowledged(c, ack)
		}
	})
}

// decodeAnswer returns the acknowledgement in an answer of the stream, or the error.
func (d *destination) decodeAnswer(m *natsgo.Msg) (*jetstream.PubAck, error) {
	if len(m.Data) == 0 && m.Header.Get("Status") == "503" {
		return nil, jetstream.ErrNoStreamResponse
	}
	// The usual text of current servers, which JSON takes ten times as long for.
	number, starts := bytes.CutPrefix(m.Data, d.ack)
	number, ends := bytes.CutSuffix(number, []byte("}"))
	if sequence, err := strconv.ParseUint(string(number), 10, 64); starts && ends && err == nil {
		return &jetstream.PubAck{Stream: d.stream, Sequence: sequence}, nil
	}
	return decodeAck(m.Data)
}

// decodeAck decodes an acknowledgement, or the error in it.
func decodeAck(data []byte) (*jetstream.PubAck, error) {
	var answer struct {
		jetstream.PubAck
		Error *jetstream.APIError `json:"error"`
	}
	switch err := json.Unmarshal(data, &answer); {
	case err != nil, answer.Error == nil && answer.Stream == "":
		return nil, jetstream.ErrInvalidJSAck
	case answer.Error != nil:
		return nil, answer.Error
	}
	return &answer.PubAck, nil
}

// expire fails publishes without an answer within ackTimeout, until Close.
func (p *Publisher) expire() {
	for tick := time.Tick(ackTimeout / 5); p.ctx.Err() == nil; {
		select {
		case now := <-tick:
			p.mu.Lock()
			p.failInFlight(jetstream.ErrAsyncPublishTimeout, func(c *eventCopy) bool {
				return !c.deadline.IsZero() && now.After(c.deadline)
			})
			p.mu.Unlock()
		case <-p.ctx.Done():
		}
	}
}

// failInFlight ends some attempts with an error after which they are repeated: not with one that is permanent, which would
// complete an event. Needs mu.
func (p *Publisher) failInFlight(err error, some func(*eventCopy) bool) {
	for _, c := range p.inFlight {
		if some(c) {
			p.endAttempt(c, func(c *eventCopy) { p.handleError(c, err) })
		}
	}
}
