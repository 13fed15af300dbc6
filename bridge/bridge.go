package bridge

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Options are what a Bridge is made of. All fields are required unless they say otherwise.
type Options struct {
	// Brokers each own the route /<name>.
	Brokers []Broker
	// Buses each have a pump and a cursor of their own.
	Buses []Bus

	// Listen and AdminListen are host:port. Only Listen may be reachable from outside.
	Listen, AdminListen string
	// MaxBody is the largest postback, in bytes.
	MaxBody int64

	// SpoolDir holds the spool; it is made if missing.
	SpoolDir string
	// SpoolMaxBytes is the limit of the files on disk, SpoolMinFree what stays free on the disk beside them, both in bytes.
	SpoolMaxBytes, SpoolMinFree int64
	// SpoolKeep is how long published events stay for replay, if there is room.
	SpoolKeep time.Duration

	// Reload reads the files of secrets again, if that was not done a moment ago, and reports whether any changed.
	// It is asked before a postback is refused. Nil if there are none.
	Reload func() bool

	// Registry gets the metrics; /metrics serves it.
	Registry *prometheus.Registry
	Log      *slog.Logger
}

// Bridge is the whole path, from the listener to the buses.
type Bridge struct{ o Options }

// New makes a bridge. Nothing happens before Run.
func New(o Options) *Bridge { return &Bridge{o} }

// Run listens, takes postbacks and publishes events until ctx ends; then it stops in order: no new connections, every
// request in flight answered, the buses drained for a while, the cursors saved. Its error is the failure that ended
// it, nil after an ordered stop.
func (b *Bridge) Run(ctx context.Context) error { return nil }
