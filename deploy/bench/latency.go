//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// measureLatency measures, at a fixed rate, how late the answers come, and how long after its arrival an event is stored.
func (b *bench) measureLatency(ctx context.Context) ([]*finding, error) {
	answer := &finding{what: fmt.Sprintf("answer at %d/s, p99", b.rate), baseline: "bare net/http", unit: "ms", goal: "2.5 times, or 2 ms more"}
	stored := &finding{what: fmt.Sprintf("arrival to stored in JetStream at %d/s, p50", b.rate), baseline: "one synchronous publish", unit: "ms", goal: "5 times, or 3 ms more"}
	if !b.wants("latency") {
		return nil, nil
	}
	// Each connection has an order under way.
	w := newWorkload(int(float64(b.rate)*(b.warmup+b.duration).Seconds()) + b.connections*len(orderLife(netip.AddrPort{})))
	for round := range b.rounds {
		turns := []func() error{
			func() error { return b.bareLatency(ctx, w, answer) },
			func() error { return b.ownLatency(ctx, w, answer, stored) },
		}
		for i := range turns {
			if err := turns[(round+i)%len(turns)](); err != nil {
				return nil, fmt.Errorf("latency: %w", err)
			}
		}
		fmt.Fprintf(b.out, "round %d  %s\n         %s\n", round+1, answer.last(), stored.last())
	}
	return []*finding{answer, stored}, nil
}

func (b *bench) bareLatency(ctx context.Context, w *workload, answer *finding) (err error) {
	srv, err := startBare(ctx, b.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, srv.stop()) }()
	r, err := b.paced(ctx, srv, w)
	if err != nil {
		return err
	}
	answer.base = append(answer.base, inMillis(r.latencies.quantile(0.99)))
	return nil
}

func (b *bench) paced(ctx context.Context, srv *server, w *workload) (*result, error) {
	runtime.GC() // what is left of the last server is not this one's cost
	r, err := b.runAt(ctx, srv.ingest, w, b.rate)
	if err == nil && w.usedUp() {
		err = errors.New("all prepared postbacks are used up")
	}
	return r, err
}

// ownLatency measures postbridge, which publishes to a JetStream of its own, and then what one publish takes there.
func (b *bench) ownLatency(ctx context.Context, w *workload, answer, stored *finding) (err error) {
	data, err := os.MkdirTemp(b.dir, "data-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(data)) }()
	to, err := openJetStream(ctx, b.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.close()) }()
	srv, err := startReady(ctx, b.binary, data, to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, srv.stop()) }()
	r, err := b.paced(ctx, srv, w)
	if err != nil {
		return err
	}
	if _, err := srv.checkWord(ctx, r.answered, b.drain); err != nil {
		return err
	}
	answer.got = append(answer.got, inMillis(r.latencies.quantile(0.99)))
	all, err := readStream(ctx, to)
	if err != nil {
		return err
	}
	took := new(histogram)
	for _, m := range all[len(all)-int(r.latencies.total):] { // those of the warm-up came first
		took.record(m.stored.Sub(m.received))
	}
	stored.got = append(stored.got, inMillis(took.quantile(0.5)))
	sync, err := publishOneByOne(ctx, to, all[:min(len(all), 2000)])
	if err != nil {
		return err
	}
	stored.base = append(stored.base, inMillis(sync.quantile(0.5)))
	return nil
}

// storedMessage is a message of the stream, when JetStream stored it, and when its postback arrived.
type storedMessage struct {
	*nats.Msg
	stored, received time.Time
}

// readStream reads the whole stream. Nobody reads while it is measured: a consumer takes processor time, too.
func readStream(ctx context.Context, from *bus) (all []storedMessage, err error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	conn, err := nats.Connect(from.url)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	_, all, err = readAll(ctx, conn, func(m jetstream.Msg) (s storedMessage, err error) {
		s.Msg = &nats.Msg{Subject: m.Subject(), Header: m.Headers(), Data: m.Data()}
		meta, err := m.Metadata()
		if err != nil {
			return s, err
		}
		s.stored = meta.Timestamp
		s.received, err = time.Parse(time.RFC3339Nano, m.Headers().Get("ce-time"))
		return s, err
	})
	return all, err
}

// publishOneByOne times each publish with the acknowledgement it waits for.
func publishOneByOne(ctx context.Context, to *bus, all []storedMessage) (*histogram, error) {
	conn, err := nats.Connect(to.url)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return nil, err
	}
	took := new(histogram)
	for i, m := range all {
		m.Header.Set(jetstream.MsgIDHeader, fmt.Sprint("again.", i)) // or it would be a duplicate
		from := time.Now()
		if _, err := js.PublishMsg(ctx, m.Msg); err != nil {
			return nil, err
		}
		took.record(time.Since(from))
	}
	return took, nil
}
