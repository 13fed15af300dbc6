//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"
)

// row is a line of the table: what is measured, and what was.
type row struct {
	id, name string
	baseline *row      // what it is a ratio of; nil if it is one
	figures  []figures // of each round

	// Of rates only.
	start    func(context.Context) (*server, error)
	backlogs []backlog // of each round, if it publishes
}

// figures are what one measurement found. Those of a drain have no latency and no sender.
type figures struct {
	rate                 float64 // answers or events a second
	p50, p99             time.Duration
	serverCPU, senderCPU time.Duration // for each answer or event
}

// rateRows are the servers to load: the bare one, and those wanted.
func (b *bench) rateRows(c *cluster) (rows []*row) {
	bare := &row{name: "bare net/http", start: func(ctx context.Context) (*server, error) { return startBare(ctx, b.dir) }}
	for _, r := range []struct {
		id, name string
		open     func(context.Context) (*bus, error)
	}{
		{"unreachable", "postbridge, bus unreachable", func(context.Context) (*bus, error) { return unreachable("nats"), nil }},
		{"embedded", "postbridge, embedded JetStream", func(context.Context) (*bus, error) { return openEmbedded() }},
		{"jetstream", "postbridge, JetStream", func(ctx context.Context) (*bus, error) { return openJetStream(ctx, b.dir) }},
		{"kafka", "postbridge, Kafka", c.open},
	} {
		if b.wants(r.id) {
			rows = append(rows, &row{id: r.id, name: r.name, baseline: bare,
				start: func(ctx context.Context) (*server, error) { return b.startOn(ctx, r.open) }})
		}
	}
	rows = append(rows, b.peerRows(bare)...)
	if len(rows) > 0 {
		rows = append([]*row{bare}, rows...)
	}
	return rows
}

func (b *bench) measureRates(ctx context.Context, rows []*row) error {
	if len(rows) == 0 {
		return nil
	}
	w := newWorkload(int(float64(b.maxRate) * (b.warmup + b.duration).Seconds()))
	for round := range b.rounds {
		// Each round begins with another server, so that none always follows the same one.
		for i := range rows {
			r := rows[(round+i)%len(rows)]
			if err := b.measureRate(ctx, r, round, w); err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
		}
	}
	return nil
}

// startOn starts postbridge, on a bus that is opened for it, with an empty data directory.
func (b *bench) startOn(ctx context.Context, open func(context.Context) (*bus, error)) (*server, error) {
	data, err := os.MkdirTemp(b.dir, "data-")
	if err != nil {
		return nil, err
	}
	remove := func() error { return os.RemoveAll(data) }
	to, err := open(ctx)
	if err != nil {
		return nil, errors.Join(err, remove())
	}
	srv, err := startReady(ctx, b.binary, data, to)
	if err != nil {
		return nil, errors.Join(err, to.close(), remove())
	}
	srv.after = append(srv.after, to.close, remove)
	srv.check = func(ctx context.Context, answered uint64) (*backlog, error) {
		return srv.checkWord(ctx, answered, b.drain)
	}
	return srv, nil
}

// measureRate starts a server, loads it, checks what it did and stops it.
func (b *bench) measureRate(ctx context.Context, r *row, round int, w *workload) (err error) {
	srv, err := r.start(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, srv.stop()) }()
	f, answered, err := b.load(ctx, srv, w)
	if err != nil {
		return err
	}
	line := fmt.Sprintf("round %d  %-30s %8.0f/s   p50 %s ms   p99 %s ms", round+1, r.name, f.rate, millis(f.p50), millis(f.p99))
	if srv.check != nil {
		left, err := srv.check(ctx, answered)
		if err != nil {
			return err
		}
		if left != nil {
			r.backlogs = append(r.backlogs, *left)
			line += "   " + left.String()
		}
	}
	r.figures = append(r.figures, *f)
	fmt.Fprintln(b.out, line)
	return nil
}

// load loads the server and takes the processor times at both ends of the measurement.
func (b *bench) load(ctx context.Context, srv *server, w *workload) (f *figures, answered uint64, err error) {
	runtime.GC() // what is left of the last server is not this one's cost
	var begin, end usage
	over := make(chan struct{})
	go func() {
		defer close(over)
		time.Sleep(b.warmup)
		begin = usageNow(srv)
		time.Sleep(b.duration)
		end = usageNow(srv)
	}()
	r, err := b.run(ctx, srv.ingest, w)
	if err != nil {
		return nil, 0, err
	}
	<-over
	n := time.Duration(r.latencies.total)
	switch {
	case w.usedUp():
		return nil, 0, errors.New("all prepared postbacks are used up: raise -max-rate")
	case begin.err != nil || end.err != nil || n == 0:
		return nil, 0, errors.Join(errors.New("nothing was measured"), begin.err, end.err)
	}
	return &figures{
		rate:      float64(n) / b.duration.Seconds(),
		p50:       r.latencies.quantile(0.5),
		p99:       r.latencies.quantile(0.99),
		serverCPU: (end.server - begin.server) / n,
		senderCPU: (end.sender - begin.sender) / n,
	}, r.answered, nil
}

// usage is processor time used so far.
type usage struct {
	server, sender time.Duration
	err            error
}

func usageNow(srv *server) (u usage) {
	u.server, u.err = srv.cpu()
	u.sender = ownCPU()
	return u
}
