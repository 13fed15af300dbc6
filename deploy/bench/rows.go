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
	b.addRow(rates, bare, "unreachable", "no bus", "0.58 of the rate, CPU 2.0 times",
		b.postbridge(0, func(context.Context) (*bus, error) { return unreachable(), nil }))
	b.addRow(rates, bare, "jetstream", "JetStream", "CPU 2.9 times", b.postbridge(0, b.openJetStream))
	b.addRow(rates, bare, "kafka", "Kafka", "", b.postbridge(0, b.kafka.open))
	latency := &group{title: "open loop"}
	paced := &row{name: "bare net/http", measure: b.bare(b.openRate)}
	b.addRow(latency, paced, "latency", "JetStream", "", b.postbridge(b.openRate, b.openJetStream))
	if b.wants("sync") {
		groups = append(groups, b.syncGroup())
	}
	groups = append(groups, rates, latency)
	if b.wants("drain-jetstream") {
		groups = append(groups, b.drainGroup("nats.go", b.openJetStream, b.readJetStream))
	}
	if b.wants("drain-kafka") {
		groups = append(groups, b.drainGroup("kafka-go", b.kafka.open, b.readKafka))
	}
	return groups
}

// addRow adds a row for each binary, and the baseline before the first, if the row is wanted.
func (b *bench) addRow(g *group, baseline *row, id, name, goal string,
	measure func(context.Context, binary) (*figures, error)) {
	if !b.wants(id) {
		return
	}
	if len(g.rows) == 0 {
		g.rows = append(g.rows, baseline)
	}
	for _, bin := range b.binaries {
		g.rows = append(g.rows, &row{name: bin.label + ", " + name, baseline: baseline, goal: goal,
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

// postbridge measures a postbridge with an empty data directory, on a bus that is opened for it.
func (b *bench) postbridge(
	rate int, open func(context.Context) (*bus, error),
) func(context.Context, binary) (*figures, error) {
	return func(ctx context.Context, bin binary) (_ *figures, err error) {
		data, err := os.MkdirTemp(b.dir, "data-")
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(data)) }()
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

// load loads a server, and reads its processor time at both ends of the measurement.
func (b *bench) load(ctx context.Context, srv *server, rate int) (*figures, *result, error) {
	var begin, end time.Duration
	var err1, err2 error
	over := make(chan struct{})
	go func() {
		defer close(over)
		time.Sleep(b.warmup)
		begin, err1 = srv.cpu()
		time.Sleep(b.duration)
		end, err2 = srv.cpu()
	}()
	r, err := b.run(ctx, srv.ingest, new(workload), rate)
	if err != nil {
		return nil, nil, err
	}
	<-over
	n := time.Duration(len(r.latencies))
	if err := errors.Join(err1, err2); err != nil || n == 0 {
		return nil, nil, fmt.Errorf("nothing was measured: %w", err)
	}
	return &figures{
		rate: float64(n) / b.duration.Seconds(),
		p50:  r.latencies.quantile(0.5), p99: r.latencies.quantile(0.99), p999: r.latencies.quantile(0.999),
		cpu: (end - begin) / n,
	}, r, nil
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
