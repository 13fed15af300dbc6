//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// measureWaiting measures a start with many events waiting, and the memory that takes, beside a start with none.
func (b *bench) measureWaiting(ctx context.Context) ([]*finding, error) {
	if !b.wants("waiting") {
		return nil, nil
	}
	what := fmt.Sprintf(" with %d events waiting", b.events)
	memory := &finding{what: "memory" + what, baseline: "none waiting", unit: "MiB", goal: "32 MiB more"}
	ready := &finding{what: "ready after a start" + what, baseline: "none waiting", unit: "ms", goal: "1000 ms more"}
	empty, err := os.MkdirTemp(b.dir, "data-")
	if err != nil {
		return nil, err
	}
	full, err := b.filled(ctx)
	if err != nil {
		return nil, err
	}
	for round := range b.rounds {
		turns := []func() error{
			func() error { return b.timeStart(ctx, empty, &memory.base, &ready.base) },
			func() error { return b.timeStart(ctx, full, &memory.got, &ready.got) },
		}
		for i := range turns {
			if err := turns[(round+i)%len(turns)](); err != nil {
				return nil, fmt.Errorf("waiting: %w", err)
			}
		}
		fmt.Fprintf(b.out, "round %d  %s\n         %s\n", round+1, memory.last(), ready.last())
	}
	return []*finding{memory, ready}, nil
}

// settled is how long after its start the memory of a postbridge is looked at: it has read ahead as far as it does.
const settled = 3 * time.Second

// timeStart starts postbridge without a bus, and adds its memory in MiB and how long it took to be ready in ms.
func (b *bench) timeStart(ctx context.Context, data string, memory, ready *[]float64) (err error) {
	from := time.Now()
	srv, err := startPostbridge(ctx, b.binary, data, unreachable("nats"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, srv.stop()) }()
	err = poll(ctx, time.Minute, func() (bool, error) {
		st, err := srv.status(ctx)
		return err == nil && st.Ready, err
	})
	if err != nil {
		return err
	}
	took := time.Since(from)
	select {
	case <-time.After(settled):
	case <-ctx.Done():
		return ctx.Err()
	}
	resident, err := srv.resident()
	*memory = append(*memory, resident)
	*ready = append(*ready, inMillis(took))
	return err
}

// resident is the memory of the process, in MiB.
func (s *server) resident() (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	line, _, _ := strings.Cut(rest, "kB")
	kib, err := strconv.Atoi(strings.TrimSpace(line))
	return float64(kib) / 1024, err
}

// filled is a data directory in which the events wait. It is filled once; who changes it takes a copy.
func (b *bench) filled(ctx context.Context) (string, error) {
	if b.full != "" {
		return b.full, nil
	}
	data := filepath.Join(b.dir, "full")
	if err := os.Mkdir(data, 0o755); err != nil {
		return "", err
	}
	if err := b.fill(ctx, data); err != nil {
		return "", fmt.Errorf("cannot fill the spool: %w", err)
	}
	b.full = data
	return data, nil
}
