package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// maxQueuedLog limits the queued log lines, in bytes.
	maxQueuedLog = 1 << 20
	// logFlushLimit is how long close waits for the queued lines to be written.
	logFlushLimit = time.Second
	// logRetryInterval is the pause before a write is retried after EAGAIN.
	logRetryInterval = 10 * time.Millisecond
)

// logQueue is a bounded queue in front of stderr. Write never blocks and never fails, so that a blocked or closed
// stderr stops nothing. Each call of Write is one complete line. Lines keep their order. A line that does not fit or
// cannot be written is dropped and counted, and a later line reports the number.
type logQueue struct {
	to      io.Writer
	dropped atomic.Uint64 // lines, since start
	done    chan struct{} // closed once the queue is closed and empty

	mu     sync.Mutex
	wake   chan struct{} // capacity 1; closed by close
	closed bool
	lines  []byte
	lost   uint64                          // dropped lines not yet reported
	report func(to io.Writer, lost uint64) // writes the line that reports them
}

func newLogQueue(to io.Writer) *logQueue {
	q := &logQueue{to: to, done: make(chan struct{}), wake: make(chan struct{}, 1)}
	q.report = func(to io.Writer, lost uint64) { fmt.Fprintf(to, "postbridge: %d lines were dropped here\n", lost) }
	go q.run()
	return q
}

// Write queues one line.
func (q *logQueue) Write(line []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || len(q.lines)+len(line) > maxQueuedLog {
		q.lost++
		q.dropped.Add(1)
		return len(line), nil
	}
	q.lines = append(q.lines, line...)
	select {
	case q.wake <- struct{}{}:
	default:
	}
	return len(line), nil
}

// reportWith sets the function that writes the line which reports dropped lines.
func (q *logQueue) reportWith(report func(to io.Writer, lost uint64)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.report = report
}

// close waits until the queue is written, at most logFlushLimit. Later lines are dropped.
func (q *logQueue) close() {
	q.mu.Lock()
	q.closed = true
	close(q.wake)
	q.mu.Unlock()
	select {
	case <-q.done:
	case <-time.After(logFlushLimit):
	}
}

// run writes lines until the queue is closed and empty.
func (q *logQueue) run() {
	defer close(q.done)
	var spare []byte
	for open := true; open; {
		_, open = <-q.wake
		q.mu.Lock()
		lines, lost, report := q.lines, q.lost, q.report
		q.lines, q.lost = spare[:0], 0
		q.mu.Unlock()

		unwritten, err := q.write(lines)
		spare = lines
		if lost += unwritten; lost == 0 {
			continue
		}
		if err == nil {
			report(q.to, lost) // dropped while these lines were queued, so they belong after them
			continue
		}
		q.mu.Lock()
		q.lost += lost
		q.mu.Unlock()
	}
}

// write writes lines and counts those that it cannot write as dropped.
func (q *logQueue) write(lines []byte) (unwritten uint64, err error) {
	for {
		n, err := q.to.Write(lines)
		if err == nil {
			return 0, nil
		}
		lines = lines[n:]
		if errors.Is(err, syscall.EAGAIN) { // made non-blocking by another process, or the send timeout of a socket
			<-time.After(logRetryInterval)
			continue
		}
		unwritten = uint64(bytes.Count(lines, []byte("\n")))
		q.dropped.Add(unwritten)
		return unwritten, err
	}
}
