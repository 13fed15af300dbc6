//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"
)

// fillTimeout is how long it may take until all events of a drain are accepted.
const fillTimeout = 5 * time.Minute

// drain is a spool that is emptied, and what that is compared with.
type drain struct {
	plain, postbridge *row
	name              string                              // of the bus
	open              func(context.Context) (*bus, error) // an empty one
	// read takes into memory what postbridge has published. The loop it returns publishes that to an empty bus, as
	// fast as the client library can.
	read func(context.Context, *bus) (plainLoop, error)
}

// plainLoop publishes and reports what that took.
type plainLoop func(context.Context) (*figures, error)

// measureDrains measures every drain in turn. The first time is for warming up, and for the messages of the loop.
func (b *bench) measureDrains(ctx context.Context, all []*drain) error {
	for _, d := range all {
		_, loop, err := b.drainOnce(ctx, d, d.read)
		if err != nil {
			return fmt.Errorf("%s: %w", d.postbridge.name, err)
		}
		if _, err := loop(ctx); err != nil {
			return fmt.Errorf("%s: %w", d.plain.name, err)
		}
		for round := range b.rounds {
			if err := b.drainRound(ctx, d, loop, round); err != nil {
				return err
			}
		}
	}
	return nil
}

// drainRound measures both once. Who is first changes from round to round.
func (b *bench) drainRound(ctx context.Context, d *drain, loop plainLoop, round int) error {
	turns := []struct {
		row     *row
		measure plainLoop
	}{
		{d.plain, loop},
		{d.postbridge, func(ctx context.Context) (*figures, error) {
			f, _, err := b.drainOnce(ctx, d, nil)
			return f, err
		}},
	}
	for i := range turns {
		t := turns[(round+i)%len(turns)]
		f, err := t.measure(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", t.row.name, err)
		}
		t.row.figures = append(t.row.figures, *f)
		fmt.Fprintf(b.out, "round %d  %-30s %8.0f/s\n", round+1, t.row.name, f.rate)
	}
	return nil
}

// drainOnce fills a spool while its bus is down, and measures how it is emptied once there is one.
func (b *bench) drainOnce(ctx context.Context, d *drain, read func(context.Context, *bus) (plainLoop, error)) (f *figures, loop plainLoop, err error) {
	full, err := b.filled(ctx)
	if err != nil {
		return nil, nil, err
	}
	data := filepath.Join(b.dir, "drained")
	defer func() { err = errors.Join(err, os.RemoveAll(data)) }()
	if err := os.CopyFS(data, os.DirFS(full)); err != nil {
		return nil, nil, err
	}
	to, err := d.open(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, to.close()) }()
	runtime.GC() // what is left of the last measurement is not this one's cost
	srv, err := startPostbridge(ctx, b.binary, data, to)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, srv.stop()) }()
	if f, err = srv.timeDrain(ctx, uint64(b.events), b.drain); err != nil {
		return nil, nil, fmt.Errorf("%w; postbridge said:\n%s", err, srv.said())
	}
	if read != nil {
		loop, err = read(ctx, to)
	}
	return f, loop, err
}

// fill has so many postbacks accepted that wait for a bus which is down.
func (b *bench) fill(ctx context.Context, data string) (err error) {
	srv, err := startReady(ctx, b.binary, data, unreachable("nats"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, srv.stop()) }()
	p := plan{connections: b.connections, threads: b.threads, duration: fillTimeout}
	r, err := p.run(ctx, srv.ingest, newWorkload(b.events))
	if err != nil {
		return err
	}
	b.events = int(r.answered) // whole orders
	_, err = srv.checkWord(ctx, r.answered, 0)
	return err
}

// timeDrain times the drain of a postbridge that has just been started: from the last look that saw nothing stored to
// the first that saw nothing waiting. That is too long by two looks at most, and leaves out what happens before the first
// events are stored: the start, the connection, streams or topics.
func (s *server) timeDrain(ctx context.Context, events uint64, limit time.Duration) (*figures, error) {
	from := time.Now()
	begin, err := s.cpu()
	if err != nil {
		return nil, err
	}
	err = s.awaitDrained(ctx, limit, func(stored uint64) {
		if stored == 0 {
			from = time.Now()
			begin, _ = s.cpu() // it was there a moment ago
		}
	})
	took := time.Since(from)
	if err != nil {
		return nil, err
	}
	end, err := s.cpu()
	if err != nil {
		return nil, err
	}
	if took < leastDrain {
		return nil, fmt.Errorf("%d events were stored within %v, too fast to measure: raise -events", events, took)
	}
	return eventFigures(int(events), took, end-begin), s.checkStored(ctx, events)
}

// timed times what this process does with so many events.
func timed(events int, do func() error) (*figures, error) {
	// What is left of reading them is not its cost, nor is a collector that has all messages to look at.
	runtime.GC()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	from, begin := time.Now(), ownCPU()
	err := do()
	return eventFigures(events, time.Since(from), ownCPU()-begin), err
}

func eventFigures(events int, took, cpu time.Duration) *figures {
	return &figures{rate: float64(events) / took.Seconds(), serverCPU: cpu / time.Duration(events)}
}

func ownCPU() time.Duration {
	var self syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &self) // it cannot fail for oneself
	return time.Duration(self.Utime.Nano() + self.Stime.Nano())
}

// drainRows are the drains that are wanted.
func (b *bench) drainRows(c *cluster) (drains []*drain) {
	jetStream := &drain{
		plain: &row{name: "plain nats.go loop"}, postbridge: &row{id: "drain-jetstream", name: "postbridge, drain to JetStream"}, name: "nats",
		open: func(ctx context.Context) (*bus, error) { return openJetStream(ctx, b.dir) },
		read: b.readJetStream,
	}
	kafka := &drain{
		plain: &row{name: "plain kafka-go loop"}, postbridge: &row{id: "drain-kafka", name: "postbridge, drain to Kafka"}, name: "kafka",
		open: c.open,
		read: c.readKafka,
	}
	for _, d := range []*drain{jetStream, kafka} {
		if b.wants(d.postbridge.id) {
			d.postbridge.baseline = d.plain
			drains = append(drains, d)
		}
	}
	return drains
}
