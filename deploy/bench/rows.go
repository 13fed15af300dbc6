//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// groups returns the rows to measure.
func (b *bench) groups() (groups []*group) {
	rates := &group{title: "closed loop"}
	bare := &row{name: "bare net/http", measure: b.bare(0)}
	b.addRow(rates, bare, "unreachable", "no bus",
		b.postbridge(0, func(context.Context) (*bus, error) { return unreachable(), nil }))
	b.addRow(rates, bare, "jetstream", "JetStream", b.postbridge(0, b.openJetStream))
	b.addRow(rates, bare, "kafka", "Kafka", b.postbridge(0, b.kafka.open))
	latency := &group{title: "open loop"}
	paced := &row{name: "bare net/http", measure: b.bare(b.openRate)}
	b.addRow(latency, paced, "latency", "JetStream", b.postbridge(b.openRate, b.openJetStream))
	waiting := &group{title: "start"}
	empty := &row{name: "no event in the spool", measure: b.startEmpty}
	b.addRow(waiting, empty, "waiting", "all events in the spool", b.startFull)
	groups = append(groups, rates, latency)
	if b.wants("drain-jetstream") {
		groups = append(groups, b.drainGroup("nats.go", b.openJetStream, b.readJetStream))
	}
	if b.wants("drain-kafka") {
		groups = append(groups, b.drainGroup("kafka-go", b.kafka.open, b.readKafka))
	}
	return append(groups, waiting)
}

// addRow adds a row for each binary, and the baseline before the first, if the row is wanted.
func (b *bench) addRow(g *group, baseline *row, id, name string,
	measure func(context.Context, binary) (*figures, error)) {
	if !b.wants(id) {
		return
	}
	if len(g.rows) == 0 {
		g.rows = append(g.rows, baseline)
	}
	for _, bin := range b.binaries {
		g.rows = append(g.rows, &row{name: bin.label + ", " + name, baseline: baseline,
			measure: func(ctx context.Context) (*figures, error) { return measure(ctx, bin) }})
	}
}

// bare measures the baseline.
func (b *bench) bare(rate int) func(context.Context) (*figures, error) {
	return func(ctx context.Context) (_ *figures, err error) {
		srv, err := startSelf(ctx, b.dir, bareArgument)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, srv.stop()) }()
		f, _, err := b.load(ctx, srv, rate)
		return f, err
	}
}

// postbridge measures one on a bus that is opened for it, with an empty data directory.
func (b *bench) postbridge(rate int, open func(context.Context) (*bus, error)) func(context.Context,
	binary) (*figures, error) {
	return func(ctx context.Context, bin binary) (_ *figures, err error) {
		data, remove, err := b.dataDir()
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, remove()) }()
		to, err := open(ctx)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, to.close()) }()
		srv, err := startReady(ctx, bin.path, data, to)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, srv.stop()) }()
		f, r, err := b.load(ctx, srv, rate)
		if err != nil {
			return nil, err
		}
		if f.backlog, err = srv.check(ctx, r.answered, b.timeout); err == nil && rate > 0 {
			f.stored, err = timeToStored(ctx, to, r)
		}
		return f, err
	}
}

func (b *bench) dataDir() (dir string, remove func() error, err error) {
	dir, err = os.MkdirTemp(b.dir, "data-")
	return dir, func() error { return os.RemoveAll(dir) }, err
}

// load loads a server, and reads the processor times at both ends of the measurement.
func (b *bench) load(ctx context.Context, srv *server, rate int) (*figures, *result, error) {
	var begin, end usage
	over := make(chan struct{})
	go func() {
		defer close(over)
		time.Sleep(b.warmup)
		begin = usageNow(srv)
		time.Sleep(b.duration)
		end = usageNow(srv)
	}()
	r, err := b.run(ctx, srv.ingest, new(workload), rate)
	if err != nil {
		return nil, nil, err
	}
	<-over
	n := time.Duration(len(r.latencies))
	if err := errors.Join(begin.err, end.err); err != nil || n == 0 {
		return nil, nil, fmt.Errorf("nothing was measured: %w", err)
	}
	return &figures{
		rate: float64(n) / b.duration.Seconds(),
		p50:  r.latencies.quantile(0.5), p99: r.latencies.quantile(0.99),
		cpu: (end.server - begin.server) / n, senderCPU: (end.sender - begin.sender) / n,
	}, r, nil
}

// usage is the processor time used so far.
type usage struct {
	server, sender time.Duration
	err            error
}

func usageNow(srv *server) (u usage) {
	u.server, u.err = srv.cpu()
	u.sender = ownCPU()
	return u
}

// timeToStored returns the median of the time from the arrival of a postback to its event in the stream, read
// afterwards: a consumer takes processor time, too.
func timeToStored(ctx context.Context, from *bus, r *result) (time.Duration, error) {
	var took times
	warm := r.answered - uint64(len(r.latencies))
	_, err := readStream(ctx, from, func(m jetstream.Msg) error {
		meta, err := m.Metadata()
		if err != nil {
			return err
		}
		received, err := time.Parse(time.RFC3339Nano, m.Headers().Get("ce-time"))
		if meta.Sequence.Stream > warm {
			took = append(took, meta.Timestamp.Sub(received))
		}
		return err
	})
	return took.quantile(0.5), err
}

// startEmpty measures a start on an empty spool.
func (b *bench) startEmpty(ctx context.Context) (_ *figures, err error) {
	data, remove, err := b.dataDir()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	return b.timeStart(ctx, b.binaries[0], data)
}

// startFull measures a start on a spool that holds all events.
func (b *bench) startFull(ctx context.Context, bin binary) (*figures, error) {
	data, err := b.filled(ctx, bin)
	if err != nil {
		return nil, err
	}
	return b.timeStart(ctx, bin, data)
}

// readAhead is the time after a start in which postbridge has read ahead as far as it does.
const readAhead = 3 * time.Second

// timeStart starts postbridge without a bus.
func (b *bench) timeStart(ctx context.Context, bin binary, data string) (f *figures, err error) {
	from := time.Now()
	srv, err := startReady(ctx, bin.path, data, unreachable())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, srv.stop()) }()
	f = &figures{ready: time.Since(from)}
	select {
	case <-time.After(readAhead):
		f.memory, err = srv.resident()
	case <-ctx.Done():
		err = ctx.Err()
	}
	return f, err
}
