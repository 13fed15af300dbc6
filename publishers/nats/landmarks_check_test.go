package nats

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
)

type answers []func() (*jetstream.StreamInfo, error)

// answering is a stream that answers what it is asked about itself, one after the other, the last of them for ever.
type answering struct {
	jetstream.Stream
	answers answers
	asked   int
}

// Info implements jetstream.Stream.
func (a *answering) Info(context.Context, ...jetstream.StreamInfoOpt) (*jetstream.StreamInfo, error) {
	answer := a.answers[min(a.asked, len(a.answers)-1)]
	a.asked++
	return answer()
}

// TestConfirmLoss: a loss is believed when it is seen again and again, and no answer is none of these times. Events wait only
// while one is suspected.
func TestConfirmLoss(t *testing.T) {
	made := time.Unix(1, 0)
	ends := func(last uint64) func() (*jetstream.StreamInfo, error) {
		return func() (*jetstream.StreamInfo, error) {
			return &jetstream.StreamInfo{Created: made, State: jetstream.StreamState{LastSeq: last}}, nil
		}
	}
	anew := func() (*jetstream.StreamInfo, error) { return &jetstream.StreamInfo{Created: made.Add(1)}, nil }
	silent := func() (*jetstream.StreamInfo, error) { return nil, errors.New("no answer") }
	for _, c := range []struct {
		name      string
		answers   answers
		lost, err bool
		waiting   bool // do events wait
		looks     int
	}{
		{name: "lost", answers: answers{ends(50)}, lost: true, looks: 6, waiting: true},
		{name: "made anew", answers: answers{anew}, lost: true, looks: 6, waiting: true},
		{name: "silent", answers: answers{silent}, err: true, looks: 6},
		{name: "silent, then lost", answers: answers{silent, silent, silent, silent, silent, ends(50)}, lost: true, looks: 11, waiting: true},
		{name: "lost, then silent", answers: answers{ends(50), silent}, err: true, looks: 7, waiting: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &Publisher{spool: "0badcafe"}
				p.landmarks, _ = bridge.NewLandmarks([]byte("landmark ORDERS 1000000000 100 100 100 1\n"), landmarksEach)
				d := &destination{stream: "ORDERS", ready: true}
				s := &answering{answers: c.answers}
				loss, err := p.confirmLoss(t.Context(), d, s)
				if (loss != nil) != c.lost || (err != nil) != c.err || s.asked != c.looks || d.ready != !c.waiting {
					t.Errorf("after %d looks, with events that go: %v: %+v, %v", s.asked, d.ready, loss, err)
				}
			})
		})
	}
}

// TestStreamGone: a stream that is removed while nothing is published to it is made anew, and found to have lost events.
func TestStreamGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &Publisher{spool: "0badcafe", log: slog.New(slog.DiscardHandler)}
		p.landmarks, _ = bridge.NewLandmarks([]byte("landmark ORDERS 1000000000 100 100 100 1\n"), landmarksEach)
		d := newDestination(bridge.Orders, "", "*.*.*")
		p.checkLandmarks(t.Context(), d, &answering{answers: answers{
			func() (*jetstream.StreamInfo, error) { return nil, jetstream.ErrStreamNotFound },
		}})
		if len(d.wanted) == 0 {
			t.Error("the stream is not wanted")
		}
	})
}
