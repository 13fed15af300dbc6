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
	// maxBytes is the limit of the spool: it has segments of 64 MiB, as with the default.
	maxBytes = 512 << 20
)

// syncGroup measures write and sync of a batch in a spool whose segments change and whose bus keeps up, by size: that of a
// few postbacks, of 64 connections, and of a burst. The last row is what a caller waits, with the two wake-ups, the bus
// that reads, saved cursors and segment changes, beside a bare write and sync.
func (b *bench) syncGroup() *group {
	g := &group{title: "one batch to the disk"}
	for _, size := range []int{2 << 10, 16 << 10, 64 << 10} {
		plain := &row{name: fmt.Sprintf("append + fsync, %d KiB", size>>10),
			measure: func(ctx context.Context) (*figures, error) { return b.file(ctx, size, 0, (*os.File).Sync) }}
		g.rows = append(g.rows, plain, &row{name: fmt.Sprintf("spool, %d KiB", size>>10), baseline: plain, goal: "p50 0.6 times",
			measure: func(ctx context.Context) (*figures, error) { return b.spool(ctx, size, true) }})
	}
	const size = 16 << 10
	datasync := func(f *os.File) error { return syscall.Fdatasync(int(f.Fd())) }
	overwrite := &row{name: "overwrite + fdatasync, 16 KiB",
		measure: func(ctx context.Context) (*figures, error) { return b.file(ctx, size, batches*size, datasync) }}
	g.rows = append(g.rows, overwrite, &row{name: "Append to Wait, 16 KiB", baseline: overwrite, goal: "p99.9 not more",
		measure: func(ctx context.Context) (*figures, error) { return b.spool(ctx, size, false) }})
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
	return t.figures(), nil
}

func (t times) figures() *figures {
	return &figures{p50: t.quantile(0.5), p99: t.quantile(0.99), p999: t.quantile(0.999)}
}

// timedFS measures write and sync of each batch of a size.
type timedFS struct {
	spool.FS
	size  int
	times times
}

func (fs *timedFS) Open(name string) (spool.File, error) {
	f, err := fs.FS.Open(name)
	if err != nil {
		return nil, err
	}
	return &timedFile{File: f, fs: fs}, nil
}

type timedFile struct {
	spool.File
	fs    *timedFS
	since time.Time // of the write; zero if it was none of a batch
}

func (f *timedFile) WriteAt(b []byte, at int64) (int, error) {
	if f.since = (time.Time{}); len(b) == f.fs.size+48 { // with the record's header and the end mark
		f.since = time.Now()
	}
	return f.File.WriteAt(b, at)
}

func (f *timedFile) Sync() error {
	err := f.File.Sync()
	if !f.since.IsZero() {
		f.fs.times = append(f.fs.times, time.Since(f.since))
	}
	return err
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
// size at which the files of its segments are used again. It returns the times of write and sync, or of the caller.
func (b *bench) spool(ctx context.Context, size int, writes bool) (_ *figures, err error) {
	dir, err := os.MkdirTemp(b.dir, "spool-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	disk, err := spool.OSDir(dir)
	if err != nil {
		return nil, err
	}
	fs := &timedFS{FS: disk, size: size}
	o := spool.Options{MaxBytes: maxBytes, Cursors: []string{"bus"}, Log: slog.New(slog.DiscardHandler)}
	s, err := spool.Open(fs, o)
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
	for range maxBytes / len(large) {
		if err := write(large); err != nil {
			return nil, err
		}
	}
	batch := bytes.Repeat([]byte("x"), size)
	waited, err := timeBatches(ctx, func() error { return write(batch) })
	if writes {
		return fs.times.figures(), err
	}
	return waited, err
}
