//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"syscall"
	"time"
)

// runAt posts at a fixed rate, however long the answers take, until the duration is over or the workload is used up: an
// answer that is late does not hold up the next postback, and its latency is counted from when it was due.
func (p *plan) runAt(ctx context.Context, to netip.AddrPort, w *workload, rate int) (*result, error) {
	w.restart()
	l, err := newLoop(to, w, p.connections)
	if err != nil {
		return nil, err
	}
	defer l.close()
	runtime.LockOSThread() // whose timer is made exact
	defer runtime.UnlockOSThread()
	const timerSlack = 29 // PR_SET_TIMERSLACK, in ns
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, timerSlack, 1, 0); errno != 0 {
		return nil, fmt.Errorf("the timer cannot be made exact: %w", errno)
	}
	err = l.runPaced(ctx, time.Second/time.Duration(rate), p.warmup, p.warmup+p.duration)
	return &l.result, err
}

// runPaced posts each interval until end, on whichever connection rests, and waits for the answers still missing. What
// was due from warm on is measured. Times are since the start.
func (l *loop) runPaced(ctx context.Context, interval, warm, end time.Duration) error {
	resting := append([]*conn(nil), l.conns...)
	events := make([]syscall.EpollEvent, len(l.conns))
	start := time.Now()
	for due, last := time.Duration(0), start; due < end || l.busy > 0; {
		for now := time.Since(start); len(resting) > 0 && due <= now && due < end; due += interval {
			c := resting[0] // the one that has rested longest: a server closes a connection on which nothing ever comes
			resting = append(resting[:0], resting[1:]...)
			if err := l.send(c, due); err != nil {
				return err
			}
		}
		wait := 100 * time.Millisecond
		if len(resting) > 0 && due < end {
			wait = due - time.Since(start)
		}
		n, err := l.waitFor(events, wait)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return err
		case n > 0:
			last = time.Now()
		case time.Since(last) > stallTimeout:
			return fmt.Errorf("no answer for %s", stallTimeout)
		}
		for _, event := range events[:n] {
			c := l.conns[event.Fd]
			whole, err := c.receive()
			if err != nil {
				return err
			}
			if !whole {
				continue
			}
			l.busy--
			l.answered++
			if c.sent >= warm {
				l.latencies.record(time.Since(start) - c.sent)
			}
			resting = append(resting, c)
		}
	}
	return nil
}

// waitFor waits for answers, to the microsecond: the millisecond of epoll is longer than most of them take.
func (l *loop) waitFor(events []syscall.EpollEvent, wait time.Duration) (int, error) {
	if wait > 0 {
		var set syscall.FdSet
		set.Bits[l.epoll/64] |= 1 << (l.epoll % 64)
		timeout := syscall.NsecToTimeval(wait.Nanoseconds())
		if _, err := syscall.Select(l.epoll+1, &set, nil, nil, &timeout); err != nil && !errors.Is(err, syscall.EINTR) {
			return 0, fmt.Errorf("select: %w", err)
		}
	}
	n, err := syscall.EpollWait(l.epoll, events, 0)
	if errors.Is(err, syscall.EINTR) { // the runtime signals its threads
		return 0, nil
	}
	return n, err
}
