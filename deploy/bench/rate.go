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
	open     func(context.Context) (*bus, error) // nil of the bare server
	backlogs []backlog                           // of each round, if it publishes
}

// figures are what one measurement found. Those of a drain have no latency and no sender.
type figures struct {
	rate                 float64 // answers or events a second
	p50, p99             time.Duration
	serverCPU, senderCPU time.Duration // for each answer or event
}

// rateRows are the servers to load: the bare one, and those wanted.
func (b *bench) rateRows(c *cluster) (rows []*row) {
	bare := &row{name: "bare net/http"}
	for _, r := range []*row{
		{id: "unreachable", name: "postbridge, bus unreachable", open: func(context.Context) (*bus, error) { return unreachable("nats"), nil }},
		{id: "embedded", name: "postbridge, embedded JetStream", open: func(context.Context) (*bus, error) { return openEmbedded() }},
		{id: "jetstream", name: "postbridge, JetStream", open: func(ctx context.Context) (*bus, error) { return openJetStream(ctx, b.dir) }},
		{id: "kafka", name: "postbridge, Kafka", open: c.open},
	} {
		if b.wants(r.id) {
			r.baseline = bare
			rows = append(rows, r)
		}
	}
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

// measureRate starts a server, loads it, checks what it did and stops it.
func (b *bench) measureRate(ctx context.Context, r *row, round int, w *workload) (err error) {
	var srv *server
	if r.open == nil {
		srv, err = startBare(ctx, b.dir)
	} else {
		var data string
		if data, err = os.MkdirTemp(b.dir, "data-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(data)) }()
		var to *bus
		if to, err = r.open(ctx); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, to.close()) }()
		srv, err = startReady(ctx, b.binary, data, to)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, srv.stop()) }()
	f, answered, err := b.load(ctx, srv, w)
	if err != nil {
		return err
	}
	line := fmt.Sprintf("round %d  %-30s %8.0f/s   p50 %s ms   p99 %s ms", round+1, r.name, f.rate, millis(f.p50), millis(f.p99))
	if srv.bus != nil {
		left, err := srv.check(ctx, answered, b.drain)
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
