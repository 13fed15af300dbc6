//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// peersDir has what the peers run.
const peersDir = "deploy/bench/peers"

// peer is what somebody might use instead of postbridge. README.md says what each promises before its 200.
type peer struct {
	id, name string
	program  string // that is on the PATH, or the peer is left out
	args     func(at netip.AddrPort, data string) []string
	bus      bool // it publishes to JetStream; if not, it writes lines to a file
}

func peers() []peer {
	connect := func(extra ...string) []string {
		return append(append([]string{"run"}, extra...), filepath.Join(peersDir, "connect.yaml"))
	}
	return []peer{
		{id: "flask", name: "Flask, its own server", program: "flask", args: func(at netip.AddrPort, _ string) []string {
			return []string{"--app", filepath.Join(peersDir, "edge.py"), "run", "--port", fmt.Sprint(at.Port())}
		}},
		{id: "gunicorn", name: "Flask, gunicorn", program: "gunicorn", args: func(at netip.AddrPort, _ string) []string {
			// As many workers as its documentation says for two cores.
			return []string{"--workers", "5", "--bind", at.String(), "--chdir", peersDir, "edge:app"}
		}},
		{id: "connect", name: "Redpanda Connect", program: "redpanda-connect", bus: true, args: func(netip.AddrPort, string) []string {
			return connect()
		}},
		{id: "connect-sqlite", name: "Redpanda Connect, SQLite buffer", program: "redpanda-connect", bus: true, args: func(_ netip.AddrPort, data string) []string {
			return connect("--set", "buffer.sqlite.path="+filepath.Join(data, "buffer.db"))
		}},
	}
}

// peerRows are the peers wanted, beside the same baseline as postbridge.
func (b *bench) peerRows(bare *row) (rows []*row) {
	for _, p := range peers() {
		if !b.wants(p.id) {
			continue
		}
		if _, err := exec.LookPath(p.program); err != nil {
			fmt.Fprintf(b.out, "*** THE ROW %s IS LEFT OUT: %v; README.md says where it is from ***\n\n", p.id, err)
			continue
		}
		r := &row{id: p.id, name: p.name, baseline: bare}
		r.start = func(ctx context.Context) (*server, error) { return b.startPeer(ctx, p) }
		rows = append(rows, r)
	}
	return rows
}

// startPeer starts a peer, with an empty stream if it publishes, and waits until it listens.
func (b *bench) startPeer(ctx context.Context, p peer) (*server, error) {
	ports, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	data, err := os.MkdirTemp(b.dir, "peer-")
	if err != nil {
		return nil, err
	}
	s := &server{ingest: ports[0], log: data + ".log"}
	s.after = append(s.after, func() error { return os.RemoveAll(data) })
	if err := b.startPeerIn(ctx, p, s, data); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

func (b *bench) startPeerIn(ctx context.Context, p peer, s *server, data string) error {
	file := filepath.Join(data, "orders.jsonl")
	env := append(os.Environ(), "KITE_API_SECRET="+appSecret, "ORDERS_FILE="+file, "LISTEN="+s.ingest.String())
	s.check = func(_ context.Context, answered uint64) (*backlog, error) { return nil, checkLines(file, answered) }
	if p.bus {
		to, err := openJetStream(ctx, b.dir)
		if err != nil {
			return err
		}
		s.after = append(s.after, to.close)
		if err := to.createStream(ctx); err != nil {
			return err
		}
		env = append(env, "NATS_URL="+to.url)
		s.check = func(ctx context.Context, answered uint64) (*backlog, error) { return b.checkHeld(ctx, to, answered) }
	}
	if err := s.command(ctx, env, p.program, p.args(s.ingest, data)...); err != nil {
		return err
	}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	err := poll(ctx, startTimeout, func() (bool, error) {
		c, err := net.Dial("tcp", s.ingest.String())
		if err == nil {
			_ = c.Close()
		}
		return err == nil, err
	})
	if err != nil {
		return fmt.Errorf("%s does not listen: %w; it said:\n%s", p.program, err, s.said())
	}
	return nil
}

// createStream makes the stream as postbridge does.
func (b *bus) createStream(ctx context.Context) error {
	conn, err := nats.Connect(b.url)
	if err != nil {
		return err
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	_, err = js.CreateStream(ctx, jetstream.StreamConfig{Name: streamName, Subjects: []string{"orders.>"}})
	return err
}

// checkLines counts what a peer wrote.
func checkLines(file string, answered uint64) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if lines := uint64(bytes.Count(text, []byte("\n"))); lines != answered {
		return fmt.Errorf("%d postbacks were answered 200, and %d are in the file", answered, lines)
	}
	return nil
}

// checkHeld waits until all is in the stream, and says what was not there when the load ended.
func (b *bench) checkHeld(ctx context.Context, by *bus, answered uint64) (*backlog, error) {
	from := time.Now()
	held, err := by.held(ctx)
	if err != nil {
		return nil, err
	}
	left := &backlog{accepted: answered, waiting: answered - min(held, answered)}
	err = poll(ctx, b.drain, func() (bool, error) {
		held, err = by.held(ctx)
		return err == nil && held >= answered, err
	})
	if held != answered {
		return nil, errors.Join(fmt.Errorf("%d postbacks were answered 200, and the stream holds %d", answered, held), err)
	}
	left.took = time.Since(from)
	return left, nil
}
