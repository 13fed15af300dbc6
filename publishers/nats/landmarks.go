package nats

import (
	"context"
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
)

const (
	// landmarksEach is how many landmarks are kept of a stream: enough for one a second ago and one an hour ago.
	landmarksEach = 12
	// landmarkLook is how often they are looked at while the connection lasts.
	landmarkLook = 30 * time.Second
	// confirmations is how often a loss has to be seen, confirmPause apart.
	confirmations = 6
	confirmPause  = 500 * time.Millisecond
	// quorumAge is how long ago a leader may have heard from the others. They elect another after four seconds at the
	// earliest.
	quorumAge = 3 * time.Second
)

// serversWord begins the line of a note that says which servers the landmarks are of.
const serversWord = "servers "

// parseNote takes what the run before noted. Of other servers it says nothing.
func (p *Publisher) parseNote(note []byte) {
	var rest []byte
	p.landmarks, rest = bridge.NewLandmarks(note, landmarksEach)
	p.servers = p.cfg.servers()
	before, known := strings.CutPrefix(strings.TrimSpace(string(rest)), strings.TrimSpace(serversWord))
	if known && !anyOf(strings.Split(strings.TrimSpace(before), ","), strings.Split(p.servers, ",")) {
		p.log.Warn("these are other NATS servers than before, and what was stored may not be on them; what waits is published here. To publish again what the spool keeps, stop postbridge, remove spool/cursor-nats and start it",
			"servers", p.hosts)
		p.landmarks.Forget()
	}
}

func anyOf(some, all []string) bool {
	return slices.ContainsFunc(some, func(s string) bool { return slices.Contains(all, s) })
}

// servers are those of the URL, for the note.
func (c *Config) servers() string {
	if c.Embedded != nil {
		return "embedded"
	}
	return c.hosts()
}

// Note is which servers there are, and the landmarks of their streams.
func (p *Publisher) Note(committed uint64) []byte {
	return append([]byte(serversWord+p.servers+"\n"), p.landmarks.Note(committed)...)
}

// keepLandmarks has the last landmarks before a pause kept.
func (p *Publisher) keepLandmarks() {
	if p.landmarks.Due() {
		p.takeNote()
	}
}

// identity tells a stream from one of the same name that was made later.
func identity(s *jetstream.StreamInfo) string { return strconv.FormatInt(s.Created.UnixNano(), 10) }

// checkLandmarks looks whether the stream still holds what it has stored. If it does not, the publisher is to be opened
// anew, and false is returned. If that cannot be told, it is said, and nothing waits for it. It takes mu.
func (p *Publisher) checkLandmarks(session context.Context, d *destination, s jetstream.Stream) (held bool) {
	ctx, cancel := context.WithCancel(session)
	defer cancel()
	p.mu.Lock()
	d.cancelLook = cancel // called if we may not look
	p.mu.Unlock()
	loss, err := p.confirmLoss(ctx, d, s)
	p.mu.Lock()
	d.cancelLook = nil
	p.mu.Unlock()
	switch {
	case session.Err() != nil:
		return true
	case errors.Is(err, jetstream.ErrStreamNotFound):
		d.wantCheck() // which makes it anew
		return true
	case err != nil:
		p.log.Warn("cannot look whether the stream still holds what it stored", "stream", d.stream, "error", err)
		return true
	case loss == nil:
		return true
	}
	p.rewound(min(p.landmarks.Lose(d.stream, loss), p.checkOthers(session, d)), loss.Why)
	return false
}

// confirmLoss looks again for a while before it believes that something is lost: after an election a node may answer that
// has not yet applied what it knows to be stored. It looks again, too, if there is no answer, which confirms nothing.
func (p *Publisher) confirmLoss(ctx context.Context, d *destination, s jetstream.Stream) (loss *bridge.Loss, err error) {
	for seen, failed := 0, 0; seen < confirmations && failed < confirmations; {
		loss, err = p.landmarks.Check(d.stream, p.ask(ctx, d, s))
		switch {
		case err != nil:
			seen, failed = 0, failed+1
		case loss == nil:
			return nil, nil
		default:
			seen++
			p.mu.Lock()
			d.ready = false // until it is known
			p.mu.Unlock()
		}
		select {
		case <-time.After(confirmPause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return loss, err
}

// checkOthers looks at the landmarks of the other streams when one has lost events, so that all that is lost is published
// again at once. It returns how far the bus holds what it stored.
func (p *Publisher) checkOthers(ctx context.Context, lost *destination) (back uint64) {
	p.mu.Lock()
	js := p.session.js
	p.mu.Unlock()
	back = math.MaxUint64
	for _, d := range p.destinations {
		if d == lost {
			continue
		}
		s, err := js.Stream(ctx, d.stream)
		if err != nil {
			continue // the next publisher looks
		}
		if loss, err := p.landmarks.Check(d.stream, p.ask(ctx, d, s)); loss != nil && err == nil {
			back = p.landmarks.Lose(d.stream, loss)
		}
	}
	return back
}

// ask asks what the stream is now. A message that is not there may have been removed by the stream's limits or by
// somebody, or the replica that answers is behind; one behind the end of the stream was lost.
func (p *Publisher) ask(ctx context.Context, d *destination, s jetstream.Stream) func() (bridge.Place, error) {
	return func() (bridge.Place, error) {
		asked, cancel := context.WithTimeout(ctx, ackTimeout)
		defer cancel()
		info, err := s.Info(asked)
		if err != nil {
			return bridge.Place{}, err
		}
		if !led(info.Cluster) {
			return bridge.Place{}, errNotLed
		}
		return bridge.Place{Identity: identity(info), Look: func(m bridge.Landmark) (bridge.Sighting, error) {
			if m.Position > info.State.LastSeq {
				return bridge.Lost, nil
			}
			return p.sight(ctx, d, s, m)
		}}, nil
	}
}

var errNotLed = errors.New("the node that answers is cut off from the others or knows of no leader, so the stream may hold more")

// led reports whether the answer is that of a leader whom most of its nodes follow. Without one, any node answers, and one
// that is cut off goes on as a leader for some seconds.
func led(c *jetstream.ClusterInfo) bool {
	if c == nil {
		return true // one server
	}
	following := 1
	for _, r := range c.Replicas {
		if r.Current && r.Active < quorumAge {
			following++
		}
	}
	return c.Leader != "" && 2*following > len(c.Replicas)+1
}

func (p *Publisher) sight(
	ctx context.Context, d *destination, s jetstream.Stream, m bridge.Landmark,
) (bridge.Sighting, error) {
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	there, err := s.GetMsg(ctx, m.Position)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return bridge.Unknown, nil
	case err != nil:
		return bridge.Unknown, err
	case !sameEvent(there, &bridge.Delivery{Spool: p.spool, Sequence: m.Number}):
		return bridge.Lost, nil
	case d.misplaced(there):
		return bridge.Lost, nil // to its consumers; it is published again, and refused until that is mended
	default:
		return bridge.Held, nil
	}
}

// lookAgain looks at the stream that events go to: at its configuration, which may have been changed, and at its
// landmarks.
func (p *Publisher) lookAgain(d *destination) {
	p.mu.Lock()
	s, stream, ready, mayLook := p.session, d.handle, d.ready, !d.lookUpDenied
	p.mu.Unlock()
	if !s.up || !ready {
		return // what makes it ready looks, too
	}
	ctx, cancel := context.WithTimeout(s.ctx, ackTimeout)
	defer cancel()
	if info, err := stream.Info(ctx); err == nil && d.misfit(&info.Config) != nil {
		d.wantCheck() // which refuses it
		return
	}
	if !mayLook || !p.checkLandmarks(s.ctx, d, stream) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.ctx.Err() == nil {
		p.letGo(d)
	}
}
