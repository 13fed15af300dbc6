package nats

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers"
)

// quorumAge is how long ago a leader may have heard from the others. They elect another after four seconds at the
// earliest.
const quorumAge = 3 * time.Second

var errNotLed = errors.New("the node that answers is cut off or knows of no leader, so the stream may have more")

// lookupCheckpoint asks a stream for the event of a checkpoint.
func (p *Publisher) lookupCheckpoint(
	lookups context.Context, js jetstream.JetStream, d *destination, k publishers.Checkpoint,
) (publishers.Presence, error) {
	ctx, cancel := context.WithTimeout(lookups, ackTimeout)
	defer cancel()
	s, err := js.Stream(ctx, d.stream)
	if err != nil {
		return publishers.Unknown, err
	}
	switch info := s.CachedInfo(); {
	case !led(info.Cluster):
		return publishers.Unknown, errNotLed
	case identity(info) != k.Identity || k.Position > info.State.LastSeq:
		return publishers.Missing, nil
	}
	m, err := s.GetMsg(ctx, k.Position)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return publishers.Unknown, nil // a limit or somebody removed it, or the replica that answers lags
	case err != nil:
		return publishers.Unknown, err
	case !sameEvent(m, &bridge.Delivery{Spool: p.spool, Sequence: k.Sequence}):
		return publishers.Missing, nil
	case d.misplaced(m):
		return publishers.Missing, nil // to its consumers; it is published again, and refused until that is mended
	default:
		return publishers.Present, nil
	}
}

// identity tells a stream from one of the same name that was created later.
func identity(s *jetstream.StreamInfo) string { return strconv.FormatInt(s.Created.UnixNano(), 10) }

// led reports whether the answer is that of a leader whom most of its nodes follow. Without one, any node answers, and
// one that is cut off goes on as a leader for some seconds.
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

// checkLoss checks whether the stream still has what it stored, and asks for a rewind if it has not: nothing more is
// sent to the stream then, and another publisher goes on. An error says why events wait.
func (p *Publisher) checkLoss(lookups context.Context, s *publishers.Stream) (lost bool, err error) {
	loss, err := p.checkpoints.Check(s)
	switch {
	case lookups.Err() != nil:
		return false, nil // the session is over, or nobody may look
	case err != nil || loss == nil:
		return false, err
	}
	p.rewound(p.checkpoints.RewindTo(loss), loss.Cause)
	return true, nil
}
