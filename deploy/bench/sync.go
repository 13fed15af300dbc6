//go:build linux

package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/postbridge/postbridge/bridge/spool"
)

// batches is how many batches one measurement of the row sync makes durable, one after the other.
const batches = 5000

// syncGroup measures the time until a batch is on disk, by size: those of a few postbacks, of 64 connections, and of a
// burst. The last row has segment changes, removals and saved cursors on the way, and the row before it as baseline.
func (b *bench) syncGroup() *group {
	g := &group{title: "one batch to the disk"}
	var spooled *row
	for _, size := range []int{64 << 10, 2 << 10, 16 << 10} {
		plain := &row{name: fmt.Sprintf("append + fsync, %d KiB", size>>10),
			measure: func(ctx context.Context) (*figures, error) { return b.appendAndSync(ctx, size) }}
		spooled = &row{name: fmt.Sprintf("spool, %d KiB", size>>10), baseline: plain, goal: "p50 0.6 times",
			measure: func(ctx context.Context) (*figures, error) {
				return b.spool(ctx, size, spool.Options{MaxBytes: 8 << 30, Keep: time.Hour}, false)
			}}
		g.rows = append(g.rows, plain, spooled)
	}
	g.rows = append(g.rows, &row{name: "the same, segments change, cursor saved", baseline: spooled, goal: "p99.9 not more",
		measure: func(ctx context.Context) (*figures, error) {
			return b.spool(ctx, 16<<10, spool.Options{MaxBytes: 32 << 20}, true)
		}})
	return g
}

// timeBatches measures batches.
func timeBatches(ctx context.Context, write func() error) (*figures, error) {
	var t times
	for range batches {
		from := time.Now()
		if err := cmp.Or(write(), ctx.Err()); err != nil {
			return nil, err
		}
		t = append(t, time.Since(from))
	}
	return &figures{p50: t.quantile(0.5), p99: t.quantile(0.99), p999: t.quantile(0.999)}, nil
}

// appendAndSync is the baseline.
func (b *bench) appendAndSync(ctx context.Context, size int) (_ *figures, err error) {
	f, err := os.Create(filepath.Join(b.dir, "appended"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	batch := bytes.Repeat([]byte("x"), size)
	return timeBatches(ctx, func() error {
		_, err := f.Write(batch)
		return cmp.Or(err, f.Sync())
	})
}

// spool measures a spool, whose batches have one record. A bus that commits every record makes it save its cursor, and
// remove segments.
func (b *bench) spool(ctx context.Context, size int, o spool.Options, commits bool) (_ *figures, err error) {
	dir, err := os.MkdirTemp(b.dir, "spool-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	fs, err := spool.OSDir(dir)
	if err != nil {
		return nil, err
	}
	o.Cursors, o.Log = []string{"bus"}, slog.New(slog.DiscardHandler)
	s, err := spool.Open(fs, o)
	if err != nil {
		return nil, err
	}
	reading, stop := context.WithCancel(ctx)
	read := make(chan struct{})
	go func() {
		defer close(read)
		for c := s.Cursor("bus"); commits; {
			r, err := c.Next(reading)
			if err != nil {
				return
			}
			c.Commit(r)
		}
	}()
	defer func() {
		stop()
		<-read
		err = errors.Join(err, s.Close())
	}()
	batch := bytes.Repeat([]byte("x"), size)
	return timeBatches(ctx, func() error {
		ticket, err := s.Append(batch)
		if err == nil {
			_, err = s.Wait(ticket)
		}
		return err
	})
}
