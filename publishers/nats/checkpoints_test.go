package nats_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers/publishertest"
)

// TestBehindIsNoLoss: the publisher comes to a node of a cluster that the others cannot reach. It answers for the
// stream all the same: a follower since it knows of no leader, a leader since it does not know that there is another.
// That it does not have what was stored since says nothing.
func TestBehindIsNoLoss(t *testing.T) {
	t.Parallel()
	for name, leads := range map[string]bool{"a follower": false, "the leader": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if leads && testing.Short() {
				t.Skip("left out by -short: a follower that is behind shows the same")
			}
			b, log := startBus(t, 3), new(logBuffer)
			b.log = slog.New(slog.NewTextHandler(log, nil))
			r := publishertest.Open(t, b)
			all := publishertest.Events(1, 200, 20)
			r.Publish(all...)
			r.WaitDone(all...)

			leader := b.leader(t, bridge.Orders, "")
			behind := slices.IndexFunc(b.nodes, func(n *node) bool { return (n.options.ServerName == leader) == leads })
			b.proxies[behind].Refuse(true)
			b.isolate(b.nodes[behind], true)
			more := publishertest.Events(201, 200, 20)
			r.Publish(more...)
			r.WaitDone(more...)
			for i, p := range b.proxies {
				p.Refuse(i != behind)
			}
			r.Eventually("look at what the stream holds", func() bool {
				return strings.Contains(
					strings.Join(r.Causes(), "\n"),
					"cannot check whether it still has what it stored",
				)
			})

			b.isolate(b.nodes[behind], false)
			for _, p := range b.proxies {
				p.Refuse(false)
			}
			last := publishertest.Events(401, 50, 20)
			r.Publish(last...)
			r.WaitDone(last...)
			// For some seconds more the node may answer for the stream, with what it has.
			n := len(slices.Concat(all, more, last))
			r.Eventually("all stored, and once", func() bool {
				return len(b.Stored(t, bridge.Orders)) == n && len(b.Stored(t, bridge.Rejects)) == n/11
			})

			r.ExpectLoss()
			b.retry(t, "removal of the stream", func(ctx context.Context, js jetstream.JetStream) error {
				if err := js.DeleteStream(ctx, "ORDERS"); !errors.Is(err, jetstream.ErrStreamNotFound) {
					return err
				}
				return nil
			})
			b.Cut() // the publisher makes it anew
			r.Eventually("word of a loss that is one", func() bool { return len(r.Lost()) > 0 })
		})
	}
}

// logBuffer is a log that can be looked at.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}
