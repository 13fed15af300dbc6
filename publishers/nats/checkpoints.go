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

// quorumAge is the age up to which a follower's last contact with the leader counts. Followers elect a new leader
// after four seconds at the earliest.
const quorumAge = 3 * time.Second

var errNotLed = errors.New("the answering node has no quorum or no leader, so the stream may have more messages")

// lookupCheckpoint looks up the event of a checkpoint in its stream.
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
		return publishers.Unknown, nil // removed by a limit or a purge, or the answering replica lags
	case err != nil:
		return publishers.Unknown, err
	case !sameEvent(m, &bridge.Delivery{Spool: p.spool, Sequence: k.Sequence}):
		return publishers.Missing, nil
	case d.misplaced(m):
		return publishers.Missing, nil // to its consumers; published again once the mapping is removed
	default:
		return publishers.Present, nil
	}
}

// identity returns the creation time, which differs for a recreated stream of the same name.
func identity(s *jetstream.StreamInfo) string { return strconv.FormatInt(s.Created.UnixNano(), 10) }

// led reports whether the answer comes from a leader with a quorum. Without a leader any node answers, and an
// isolated leader does not step down for some seconds.
func led(c *jetstream.ClusterInfo) bool {
	if c == nil {
		return true // not clustered
	}
	following := 1
	for _, r := range c.Replicas {
		if r.Current && r.Active < quorumAge {
			following++
		}
	}
	return c.Leader != "" && 2*following > len(c.Replicas)+1
}

// checkLoss checks the stream's checkpoints, and requests a rewind if one is missing: then nothing more is sent to the
// stream, and the bridge opens another publisher. An error means that events must wait for another check.
func (p *Publisher) checkLoss(lookups context.Context, s *publishers.Stream) (lost bool, err error) {
	loss, err := p.checkpoints.Check(s)
	switch {
	case lookups.Err() != nil:
		return false, nil // the session ended, or lookups are denied
	case err != nil || loss == nil:
		return false, err
	}
	p.rewound(p.checkpoints.RewindTo(loss), loss.Cause)
	return true, nil
}
