package nats_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/publishers/nats"
)

// startServer starts one server with JetStream; change, if not nil, changes its options.
func startServer(t testing.TB, change func(*server.Options)) *node {
	t.Helper()
	n := &node{options: &server.Options{
		Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true,
		JetStream: true, StoreDir: t.TempDir(), JetStreamMaxStore: 1 << 40,
	}}
	if change != nil {
		change(n.options)
	}
	n.start(t)
	t.Cleanup(func() { n.stop() })
	return n
}

func (n *node) url() string { return fmt.Sprint("nats://127.0.0.1:", n.options.Port) }

// admin is a connection without a socket, as the user given.
func (n *node) admin(t *testing.T, options ...natsgo.Option) jetstream.JetStream {
	t.Helper()
	nc, err := natsgo.Connect("", append(options, natsgo.InProcessServer(n.server))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func noPassword() string { return "" }

// edge is a publisher under test.
type edge struct {
	*nats.Publisher
	t   *testing.T
	log *logBuffer // at info and above

	mu      sync.Mutex
	causes  map[string]error // guarded by mu
	rewound atomic.Int64     // how often the bus was said to have lost events
}

func openEdge(t *testing.T, cfg nats.Config) *edge {
	t.Helper()
	return openEdgeReporting(t, cfg, (*edge).report)
}

// openEdgeReporting is openEdge with another Report.
func openEdgeReporting(t *testing.T, cfg nats.Config, report func(e *edge, cause string, err error)) *edge {
	t.Helper()
	return openEdgeWith(t, cfg, nil, report)
}

// openEdgeWith is openEdge with the state of a run before, and another Report.
func openEdgeWith(
	t *testing.T, cfg nats.Config, state []byte, report func(e *edge, cause string, err error),
) *edge {
	t.Helper()
	e := &edge{t: t, causes: make(map[string]error), log: new(logBuffer)}
	p, err := nats.Open(cfg, bridge.Opening{
		Report: func(cause string, err error) { report(e, cause, err) }, Spool: "0badcafe",
		State: state, SaveState: func() error { return nil },
		Rewound: func(uint64, error) { e.rewound.Add(1) },
	}, slog.New(slog.NewTextHandler(e.log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	e.Publisher = p
	t.Cleanup(func() { p.Close() })
	return e
}

func (e *edge) report(cause string, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err == nil {
		delete(e.causes, cause)
	} else {
		e.causes[cause] = err
	}
}

func (e *edge) cause(name string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.causes[name]; err != nil {
		return err.Error()
	}
	return ""
}

// waitCause waits until the cause holds and its error contains text.
func (e *edge) waitCause(cause, text string) {
	e.t.Helper()
	eventually(e.t, fmt.Sprintf("cause %q with %q", cause, text), func() bool {
		return strings.Contains(e.cause(cause), text) && e.cause(cause) != ""
	}, func() any { return e.all() })
}

func (e *edge) waitNoCauses() {
	e.t.Helper()
	eventually(e.t, "end of all causes", func() bool { return len(e.all()) == 0 }, func() any { return e.all() })
}

func (e *edge) all() (all []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for cause, err := range e.causes {
		all = append(all, cause+": "+err.Error())
	}
	return all
}

// offer publishes, and returns where the result will be.
func (e *edge) offer(d *bridge.Delivery) <-chan error {
	result := make(chan error, 1)
	e.Publish(context.Background(), d, func(err error) { result <- err })
	return result
}

func (e *edge) publish(all ...*bridge.Delivery) {
	e.t.Helper()
	for _, d := range all {
		if err := e.wait(e.offer(d)); err != nil {
			e.t.Fatalf("event %d: %v", d.Sequence, err)
		}
	}
}

func (e *edge) wait(result <-chan error) error {
	e.t.Helper()
	select {
	case err := <-result:
		return err
	case <-time.After(30 * time.Second):
		e.t.Fatalf("an event is not done; causes: %q", e.all())
		return nil
	}
}

func eventually(t *testing.T, what string, is func() bool, state func() any) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %s: %q", what, state())
		}
	}
}

// order is the event with this number, of one order.
func order(sequence uint64) *bridge.Delivery {
	return &bridge.Delivery{
		Spool: "0badcafe", Sequence: sequence, ID: fmt.Sprintf("%032x", sequence), Broker: "kite", UserID: "AB1234",
		OrderID: "220303000308932", Status: event.StatusOpen, ReceivedAt: time.Now(), Data: []byte(`{}`),
	}
}

// stored returns the message ids in a stream.
func stored(t *testing.T, js jetstream.JetStream, stream string) (ids []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := eachMessage(ctx, js, stream, func(m jetstream.Msg) error {
		ids = append(ids, m.Headers().Get("Nats-Msg-Id"))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

func wantStored(t *testing.T, js jetstream.JetStream, stream string, want ...uint64) {
	t.Helper()
	var ids []string
	for _, sequence := range want {
		ids = append(ids, order(sequence).MsgID())
	}
	if got := stored(t, js, stream); strings.Join(got, " ") != strings.Join(ids, " ") {
		t.Errorf("%s holds %q, want %q", stream, got, ids)
	}
}

func streamConfig(t *testing.T, js jetstream.JetStream, stream string) jetstream.StreamConfig {
	t.Helper()
	s, err := js.Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().Config
}

func createStream(t *testing.T, js jetstream.JetStream, c jetstream.StreamConfig) jetstream.StreamConfig {
	t.Helper()
	s, err := js.CreateStream(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().Config
}

func undone(t *testing.T, result <-chan error) {
	t.Helper()
	select {
	case err := <-result:
		t.Errorf("done(%v) too early", err)
	default:
	}
}

func wantRejected(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, bridge.ErrRejected) {
		t.Errorf("%v, want ErrRejected", err)
	}
}
