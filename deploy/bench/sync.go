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
	"syscall"
	"time"

	"github.com/postbridge/postbridge/bridge/spool"
)

const (
	// batches is how many batches one measurement of the row sync makes durable, one after the other.
	batches = 5000
	// maxBytes is the limit of the spool: it has segments of 16 MiB, so that some are needed in each measurement.
	maxBytes = 128 << 20
)

// syncGroup measures the time until a batch is on disk, by size: those of a few postbacks, of 64 connections, and of a
// burst. Segments change on the way, and the cursor of a bus that keeps up is saved. The last row compares that with
// batches for which nothing of the kind happens.
func (b *bench) syncGroup() *group {
	g := &group{title: "one batch to the disk"}
	for _, size := range []int{2 << 10, 16 << 10, 64 << 10} {
		plain := &row{name: fmt.Sprintf("append + fsync, %d KiB", size>>10),
			measure: func(ctx context.Context) (*figures, error) { return b.file(ctx, size, 0, (*os.File).Sync) }}
		g.rows = append(g.rows, plain, &row{name: fmt.Sprintf("spool, %d KiB", size>>10), baseline: plain, goal: "p50 0.6 times",
			measure: func(ctx context.Context) (*figures, error) { return b.spool(ctx, size) }})
	}
	const size = 16 << 10
	datasync := func(f *os.File) error { return syscall.Fdatasync(int(f.Fd())) }
	overwrite := &row{name: "overwrite + fdatasync, 16 KiB",
		measure: func(ctx context.Context) (*figures, error) { return b.file(ctx, size, batches*size, datasync) }}
	g.rows = append(g.rows, overwrite, &row{name: "spool, 16 KiB", baseline: overwrite, goal: "p99.9 not more",
		measure: func(ctx context.Context) (*figures, error) { return b.spool(ctx, size) }})
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

// file measures writes to a file that has a number of bytes before: the baselines.
func (b *bench) file(ctx context.Context, size, before int, sync func(*os.File) error) (_ *figures, err error) {
	f, err := os.Create(filepath.Join(b.dir, "written"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	batch := bytes.Repeat([]byte("x"), size)
	for at := 0; at < before; at += size {
		if _, err := f.WriteAt(batch, int64(at)); err != nil {
			return nil, err
		}
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	return timeBatches(ctx, func() error {
		_, err := f.Write(batch)
		return cmp.Or(err, sync(f))
	})
}

// spool measures a spool, whose batches have one record, and whose bus commits every record. Before, it has come to the
// size at which the files of its segments are used again.
func (b *bench) spool(ctx context.Context, size int) (_ *figures, err error) {
	dir, err := os.MkdirTemp(b.dir, "spool-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	fs, err := spool.OSDir(dir)
	if err != nil {
		return nil, err
	}
	s, err := spool.Open(fs, spool.Options{MaxBytes: maxBytes, Cursors: []string{"bus"}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	reading, stop := context.WithCancel(ctx)
	read := make(chan struct{})
	go func() {
		defer close(read)
		for c := s.Cursor("bus"); ; {
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
	write := func(batch []byte) error {
		ticket, err := s.Append(batch)
		if err == nil {
			_, err = s.Wait(ticket)
		}
		return err
	}
	large := make([]byte, 1<<20)
	for range maxBytes / 2 / len(large) {
		if err := write(large); err != nil {
			return nil, err
		}
	}
	batch := bytes.Repeat([]byte("x"), size)
	return timeBatches(ctx, func() error { return write(batch) })
}
