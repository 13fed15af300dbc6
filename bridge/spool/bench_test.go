package spool_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/postbridge/postbridge/bridge/spool"
)

const benchSize = 1500 // typical size of an event, in bytes

func benchSpool(b *testing.B) *spool.Spool {
	fs, err := spool.OSDir(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	s := open(b, fs, spool.Options{
		MaxBytes: 8 << 30, Keep: time.Hour, Cursors: []string{"bus"}, Log: slog.New(slog.DiscardHandler),
	})
	b.Cleanup(func() { _ = s.Close() })
	return s
}

// BenchmarkAppend measures the cost of a record by the number of concurrent appends. Compare it with
// BenchmarkWriteAndSync.
func BenchmarkAppend(b *testing.B) {
	for _, writers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			s := benchSpool(b)
			payload := make([]byte, benchSize)
			b.SetBytes(benchSize)
			b.ReportAllocs()
			b.ResetTimer()
			share(b, writers, func() {
				ticket, err := s.Append(payload)
				if err == nil {
					_, err = s.Wait(ticket)
				}
				if err != nil {
					b.Error(err)
				}
			})
		})
	}
}

// share divides b.N operations among goroutines.
func share(b *testing.B, goroutines int, operation func()) {
	var all sync.WaitGroup
	for g := range goroutines {
		all.Go(func() {
			for i := g; i < b.N; i += goroutines {
				operation()
			}
		})
	}
	all.Wait()
}

// BenchmarkWriteAndSync measures the minimum for one durable record: one write at the end of a file and one fsync.
func BenchmarkWriteAndSync(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "file"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	record := make([]byte, benchSize+24)
	b.SetBytes(benchSize)
	for b.Loop() {
		if _, err := f.Write(record); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkNext measures the cost of reading an unpublished record.
func BenchmarkNext(b *testing.B) {
	s := benchSpool(b)
	payload := make([]byte, benchSize)
	var last spool.Ticket
	for range b.N {
		ticket, err := s.Append(payload)
		if err != nil {
			b.Fatal(err)
		}
		last = ticket
	}
	if _, err := s.Wait(last); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(benchSize)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if _, err := s.Cursor("bus").Next(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
