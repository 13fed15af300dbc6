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
	"github.com/postbridge/postbridge/publishers"
)

// answering is a JetStream with one stream, whose state info tells.
type answering struct {
	jetstream.JetStream
	info func() (*jetstream.StreamInfo, error)
}

// Stream implements jetstream.JetStream.
func (a *answering) Stream(context.Context, string) (jetstream.Stream, error) {
	info, err := a.info()
	return &answer{info: info}, err
}

// CreateStream implements jetstream.JetStream.
func (a *answering) CreateStream(_ context.Context, config jetstream.StreamConfig) (jetstream.Stream, error) {
	created := &jetstream.StreamInfo{Config: config, Created: time.Now()}
	a.info = func() (*jetstream.StreamInfo, error) { return created, nil }
	return &answer{info: created}, nil
}

type answer struct {
	jetstream.Stream
	info *jetstream.StreamInfo
}

// CachedInfo implements jetstream.Stream.
func (a *answer) CachedInfo() *jetstream.StreamInfo { return a.info }

// checking is a publisher whose stream has a checkpoint at 100. lost is set when it asks for a rewind.
func checking(t *testing.T, info func() (*jetstream.StreamInfo, error)) (p *Publisher, d *destination, lost *bool) {
	lost = new(bool)
	p = &Publisher{
		cfg: Config{CreateStreams: true}, spool: "0badcafe", log: slog.New(slog.DiscardHandler),
		report:  func(string, error) {},
		rewound: func(uint64, error) { *lost = true },
	}
	state := []byte("checkpoint ORDERS 1000000000 100 100 100\n")
	p.checkpoints, _ = publishers.LoadCheckpoints(state, publishers.BlindFor, p.log)
	p.session = session{js: &answering{info: info}, ctx: t.Context()}
	d = newDestination(bridge.Orders, "", "*.*.*")
	d.lookups, d.ready = t.Context(), true
	d.checked = p.checkpoints.NewStream(d.stream, func(k publishers.Checkpoint) (publishers.Presence, error) {
		return p.lookupCheckpoint(d.lookups, p.session.js, d, k)
	})
	p.destinations = map[bridge.Destination]*destination{bridge.Orders: d}
	return p, d, lost
}

// ends is the stream as it was created then, up to a sequence.
func ends(created time.Time, last uint64) func() (*jetstream.StreamInfo, error) {
	info := &jetstream.StreamInfo{Created: created, State: jetstream.StreamState{LastSeq: last}}
	info.Config = jetstream.StreamConfig{Subjects: []string{"orders.>"}, Storage: jetstream.FileStorage}
	return func() (*jetstream.StreamInfo, error) { return info, nil }
}

// TestConfirmLoss: events wait while a loss is suspected, or while the stream cannot be checked. One that is confirmed
// leaves them to the next publisher.
func TestConfirmLoss(t *testing.T) {
	made := time.Unix(1, 0)
	for name, c := range map[string]struct {
		info func() (*jetstream.StreamInfo, error)
		lost bool
	}{
		"lost":       {ends(made, 50), true},
		"made again": {ends(made.Add(1), 1000), true},
		"silent":     {func() (*jetstream.StreamInfo, error) { return nil, errors.New("no answer") }, false},
		"not led": {func() (*jetstream.StreamInfo, error) {
			info, _ := ends(made, 50)()
			info.Cluster = &jetstream.ClusterInfo{}
			return info, nil
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, d, lost := checking(t, c.info)
				if p.checkStream(d) || d.ready || *lost {
					t.Errorf("events go: %v, lost: %v", d.ready, *lost)
				}
				time.Sleep(5 * time.Second)
				if checked := p.checkStream(d); checked != c.lost || d.ready || *lost != c.lost {
					t.Errorf("later, checked: %v, events go: %v, lost: %v", checked, d.ready, *lost)
				}
			})
		})
	}
}

// TestMayNotLook: events do not wait for a check that is not permitted.
func TestMayNotLook(t *testing.T) {
	p, d, lost := checking(t, ends(time.Unix(1, 0), 50))
	lookups, deny := context.WithCancel(t.Context())
	d.lookups = lookups
	deny()
	if !p.checkStream(d) || !d.ready || *lost {
		t.Errorf("events go: %v, lost: %v", d.ready, *lost)
	}
}

// TestStreamGone: a stream that is removed while nothing is published to it is made anew, and found to have lost
// events.
func TestStreamGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, d, lost := checking(t, func() (*jetstream.StreamInfo, error) { return nil, jetstream.ErrStreamNotFound })
		for !p.checkStream(d) {
			time.Sleep(time.Second)
		}
		if !*lost {
			t.Error("the loss is not found")
		}
	})
}

// TestConfigChanged: a stream that is changed while events go to it is refused by the next check.
func TestConfigChanged(t *testing.T) {
	info := ends(time.Unix(1, 0), 50)
	p, d, _ := checking(t, info)
	p.checkpoints.Forget()
	if !p.checkStream(d) || !d.ready {
		t.Error("refused though it fits")
	}
	changed, _ := info()
	changed.Config.SubjectTransform = &jetstream.SubjectTransformConfig{Destination: "stored.>"}
	if p.checkStream(d) || d.ready {
		t.Error("not refused though it does not fit")
	}
}
