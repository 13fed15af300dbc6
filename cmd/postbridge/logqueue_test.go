package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// gate is a stderr that blocks while it is shut, and fails while it has an error.
type gate struct {
	shut atomic.Pointer[chan struct{}] // nil while it is open
	err  atomic.Pointer[error]

	mu      sync.Mutex
	written bytes.Buffer
}

func (g *gate) close() (open func()) {
	shut := make(chan struct{})
	g.shut.Store(&shut)
	return func() {
		g.shut.Store(nil)
		close(shut)
	}
}

func (g *gate) Write(p []byte) (int, error) {
	if shut := g.shut.Load(); shut != nil {
		<-*shut
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.err.Load(); err != nil {
		n, _ := g.written.Write(p[:min(1, len(p))])
		return n, *err
	}
	return g.written.Write(p)
}

func (g *gate) lines() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return strings.Split(strings.TrimSuffix(g.written.String(), "\n"), "\n")
}

// TestLogQueueKeepsAll checks that the lines of several writers are all written, in the order of each writer.
func TestLogQueueKeepsAll(t *testing.T) {
	g := new(gate)
	q := newLogQueue(g)
	const writers, each = 4, 500
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for i := range each {
				fmt.Fprintf(q, "%d %d\n", w, i)
			}
		})
	}
	all.Wait()
	q.close()
	var next [writers]int
	for _, line := range g.lines() {
		var w, i int
		if _, err := fmt.Sscan(line, &w, &i); err != nil || i != next[w] {
			t.Fatalf("%q, want %d of writer %d: %v", line, next[w], w, err)
		}
		next[w]++
	}
	if next != [writers]int{each, each, each, each} || q.dropped.Load() != 0 {
		t.Errorf("written are %v, dropped %d", next, q.dropped.Load())
	}
}

// TestLogQueueBlocked checks that a blocked stderr blocks no caller, that lines which do not fit are counted, and that
// a line after all others has their number.
func TestLogQueueBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := new(gate)
		open := g.close()
		q := newLogQueue(g)
		registry := prometheus.NewRegistry()
		log := (&process{stderr: q}).openLog(&config{LogLevel: "error", LogFormat: "json"}, registry)
		long := strings.Repeat("x", 1000)
		const n = 3 * maxQueuedLog / 1000
		log.Error("first", "i", 0)
		synctest.Wait() // it is being written
		for i := range n {
			log.Error("one", "i", i+1, "long", long)
		}
		dropped := int(q.dropped.Load())
		if dropped < n/2 || dropped > 3*n/4 {
			t.Errorf("%d of %d are dropped", dropped, n)
		}
		if got := gathered(t, registry, "postbridge_log_dropped_total"); got != float64(dropped) {
			t.Errorf("the metric is %v", got)
		}
		open()
		synctest.Wait()
		log.Error("after")
		q.close()

		lines := g.lines()
		for i, line := range lines {
			var is struct {
				Msg      string
				I, Lines int
			}
			if err := json.Unmarshal([]byte(line), &is); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			switch at := len(lines) - i; {
			case at == 1 && is.Msg != "after", at == 2 && is.Lines != dropped, at > 2 && is.I != i:
				t.Errorf("line %d of %d: %.200s", i, len(lines), line)
			}
		}
		if len(lines) != 1+n-dropped+2 {
			t.Errorf("%d lines", len(lines))
		}
	})
}

// TestLogQueueEnd checks that close waits for stderr, for a limited time.
func TestLogQueueEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := new(gate)
		open := g.close()
		q := newLogQueue(g)
		fmt.Fprintln(q, "the last")
		time.AfterFunc(logFlushLimit/2, open)
		q.close()
		if got := g.lines(); got[0] != "the last" {
			t.Errorf("%q", got)
		}

		open = g.close()
		q = newLogQueue(g)
		fmt.Fprintln(q, "nobody reads it")
		before := time.Now()
		q.close()
		if took := time.Since(before); took != logFlushLimit {
			t.Errorf("the end took %v", took)
		}
		fmt.Fprintln(q, "too late")
		if q.dropped.Load() != 1 {
			t.Error("what comes after the end is not counted")
		}
		open()
		<-q.done
	})
}

// TestLogQueueFails checks that unwritable lines are counted and reported later, and that EAGAIN is retried.
func TestLogQueueFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := new(gate)
		q := newLogQueue(g)
		fail := func(err error) { g.err.Store(&err) }
		fail(syscall.EPIPE)
		fmt.Fprint(q, "a\nb\n")
		synctest.Wait()
		if q.dropped.Load() != 2 {
			t.Errorf("%d dropped", q.dropped.Load())
		}
		g.written.Reset()
		fail(syscall.EAGAIN)
		fmt.Fprint(q, "cd\n")
		time.Sleep(10 * logRetryInterval)
		g.err.Store(nil)
		q.close()
		if got := strings.Join(g.lines(), "|"); got != "cd|postbridge: 2 lines were dropped here" {
			t.Errorf("%q", got)
		}
	})
}

// TestRunBlocked checks that a command ends although nobody reads its error.
func TestRunBlocked(t *testing.T) {
	g := new(gate)
	defer g.close()()
	if code := run(t.Context(), []string{"sevre"}, nil, strings.NewReader(""), io.Discard, g); code != exitMisuse {
		t.Errorf("exit %d", code)
	}
}

// TestLibraryLog checks that libraries log to the log of postbridge.
func TestLibraryLog(t *testing.T) {
	g := new(gate)
	q := newLogQueue(g)
	(&process{stderr: q}).openLog(&config{LogLevel: "info", LogFormat: "json"}, prometheus.NewRegistry())
	slog.Info("by slog")
	stdlog.Print("by log")
	q.close()
	for i, want := range []string{"by slog", "by log"} {
		var is struct{ Msg string }
		if err := json.Unmarshal([]byte(g.lines()[i]), &is); err != nil || is.Msg != want {
			t.Errorf("%q, %v", g.lines()[i], err)
		}
	}
}

func gathered(t *testing.T, registry *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("%s is not exported", name)
	return 0
}
