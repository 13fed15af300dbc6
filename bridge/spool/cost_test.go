package spool_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postbridge/postbridge/bridge/spool"
	"github.com/postbridge/postbridge/bridge/spool/crashfs"
)

// TestWaitingAppendsShareOneSync: all records appended during a sync share one write and one sync.
func TestWaitingAppendsShareOneSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := crashfs.New(t)
		s := open(t, fs, options())
		hold := make(chan struct{})
		fs.Before(func(op crashfs.Op) {
			if op == crashfs.Sync {
				<-hold
			}
		})
		var all sync.WaitGroup
		add := func() {
			all.Go(func() { appendAll(t, s, "x") })
			synctest.Wait()
		}
		add()
		before := fs.Counts()
		for range 64 {
			add()
		}
		close(hold)
		all.Wait()
		after := fs.Counts()
		before[crashfs.Write]++
		before[crashfs.Sync] += 2 // the blocked sync is not counted yet
		if fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("64 records came to\n%v after\n%v", after, before)
		}
		closeSpool(t, s)
	})
}

func TestOneAppendIsOneWriteAndOneSync(t *testing.T) {
	fs := crashfs.New(t)
	s := open(t, fs, options())
	before := fs.Counts()
	appendAll(t, s, "a", "b", "c")
	after := fs.Counts()
	before[crashfs.Write] += 3
	before[crashfs.Sync] += 3
	if fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("three records came to\n%v after\n%v", after, before)
	}
	closeSpool(t, s)
}

// TestAStuckRecordHoldsLittle reads far ahead of a record that is never committed, and keeps one payload in 32, as with
// a blocked order or partition: the cursor keeps a limited amount of committed payloads.
func TestAStuckRecordHoldsLittle(t *testing.T) {
	const records, size, limit = 16384, 8 << 10, 40 << 20
	fs, err := spool.OSDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	o := options()
	o.MaxBytes = 1 << 30
	s := open(t, fs, o)
	defer s.Close()
	payload := make([]byte, size)
	var last spool.Ticket
	for n := range uint64(records) {
		binary.LittleEndian.PutUint64(payload, n+1)
		if last, err = s.Append(payload); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Wait(last); err != nil {
		t.Fatal(err)
	}
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	var stuck []spool.Record
	for n := range records {
		r, err := s.Cursor("bus").Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if n%32 == 0 {
			stuck = append(stuck, r)
		}
	}
	if held := heap() - before - int64(len(stuck))*size; held > limit {
		t.Errorf("with %d of %d records in use, %d bytes more are held, want %d at most",
			len(stuck), records, held, limit)
	}
	for _, r := range stuck {
		if n := binary.LittleEndian.Uint64(r.Payload); n != r.Sequence || len(r.Payload) != size {
			t.Fatalf("%d has become %d", r.Sequence, n)
		}
	}
}

// TestIdle: an idle spool does not use the disk, except to measure free space.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := crashfs.New(t)
		s := open(t, fs, options())
		appendAll(t, s, "a")
		publishAll(t, s.Cursor("bus"))
		time.Sleep(time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _, _ = s.Cursor("bus").Next(ctx) }()
		synctest.Wait()
		before := fs.Counts()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		after := fs.Counts()
		before[crashfs.Free] += 600
		if fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("ten minutes came to\n%v after\n%v", after, before)
		}
		cancel()
		synctest.Wait()
		closeSpool(t, s)
	})
}

// TestAMillionWaiting opens a spool with a million records on a real disk: it reads the last segment and the headers of
// the others, and keeps none of the records in memory.
func TestAMillionWaiting(t *testing.T) {
	if testing.Short() {
		t.Skip("run by make test-long: it writes a million records")
	}
	const (
		records    = 1_000_000
		segment    = 8 << 20
		inASegment = (segment - 32) / recordSize
	)
	dir := t.TempDir()
	segments := writeMillion(t, dir, records, inASegment)
	osDir, err := spool.OSDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	fs := &meteredFS{FS: osDir}
	o := options()
	o.MaxBytes = 8 * segment

	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	s := open(t, fs, o)
	runtime.ReadMemStats(&after)
	if read := fs.read.Load(); read > segment+int64(segments)*100 {
		t.Errorf("Open read %d bytes of %d segments", read, segments)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > segment+1<<20 {
		t.Errorf("Open allocated %d bytes", n)
	}
	if st := s.Stats(); st.Last != records || st.WaitingBytes != int64(records*recordSize+segments*32) {
		t.Errorf("%+v", st)
	}

	// The bus reads a few records ahead.
	fs.read.Store(0)
	for i := range uint64(1000) {
		if r, err := s.Cursor("bus").Next(t.Context()); err != nil || r.Sequence != i+1 || string(r.Payload) != "x" {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	if read := fs.read.Load(); read > 256<<10 {
		t.Errorf("the first thousand records made it read %d bytes", read)
	}
	closeSpool(t, s)
}

// writeMillion writes the files of a spool, and returns the number of its segments.
func writeMillion(t *testing.T, dir string, records, inASegment int) (segments int) {
	write := func(name string, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("spool", idFile(1, testID))
	for first := 1; first <= records; first += inASegment {
		payloads := make([]string, min(inASegment, records-first+1))
		for i := range payloads {
			payloads[i] = "x"
		}
		write(segmentName(uint64(first)), segmentFile(uint64(first), payloads...))
		segments++
	}
	return segments
}

// meteredFS counts the bytes read.
type meteredFS struct {
	spool.FS
	read atomic.Int64
}

func (m *meteredFS) Open(name string) (spool.File, error) {
	f, err := m.FS.Open(name)
	return meteredFile{f, m}, err
}

type meteredFile struct {
	spool.File
	m *meteredFS
}

func (f meteredFile) ReadAt(b []byte, offset int64) (int, error) {
	n, err := f.File.ReadAt(b, offset)
	f.m.read.Add(int64(n))
	return n, err
}
