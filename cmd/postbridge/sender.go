package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// postback is a request to send.
type postback struct {
	route     *route // nil for the sender's
	body      []byte
	order     string    // order id
	n         int       // from 0 within the order or the files; of a recording the line, from 1
	due       time.Time // zero for as soon as possible
	unordered bool      // may be in flight together with another postback of its order
	recorded  string    // event id in the recording; empty if unknown

	before, done chan struct{} // closed after the previous postback of the order and after this one; nil if unordered
}

// source returns the next postback of a worker, and io.EOF at the end. Calls do not overlap.
type source func(worker int) (postback, error)

// sender sends the postbacks of a source. Each worker has one postback in flight.
//
// Postbacks are due at a fixed rate, independent of the answers, or as soon as possible. Latency counts from the due
// time, so that it includes the postbacks which a stall kept from being sent (no coordinated omission).
type sender struct {
	*sendOptions
	source source
	target *target
	route  *route
	start  time.Time // of run
	acked  io.Writer
	watch  *busWatch // nil without --worst
	total  *summary

	mu sync.Mutex
	// Guarded by mu.
	taken    int64
	ended    error                    // the source's last error; io.EOF at its end
	inFlight map[string]chan struct{} // by order id: done of the last postback
}

func newSender(o *sendOptions) *sender {
	return &sender{sendOptions: o, total: newSummary(), inFlight: make(map[string]chan struct{})}
}

// run sends until the source ends or a postback fails, finishes the postbacks in flight and returns the first error.
func (s *sender) run(parent context.Context) error {
	ctx, fail := context.WithCancelCause(parent)
	defer fail(nil)
	s.start = time.Now()
	var workers sync.WaitGroup
	for worker := range s.connections {
		workers.Go(func() { s.work(ctx, worker, fail) })
	}
	workers.Wait()
	s.total.finish(time.Since(s.start))
	switch {
	case parent.Err() != nil || ctx.Err() == nil && errors.Is(s.ended, io.EOF): // interrupted, or complete
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return s.ended
}

// work sends the postbacks of one worker.
func (s *sender) work(ctx context.Context, worker int, fail context.CancelCauseFunc) {
	for pb, ok := s.take(worker); ok; pb, ok = s.take(worker) {
		if pb.before != nil {
			<-pb.before
		}
		due := s.wait(ctx, pb.due)
		if due {
			if err := s.send(ctx, pb); err != nil {
				fail(err)
			}
		}
		s.release(pb)
		if !due {
			return
		}
	}
}

// take returns the next postback of a worker; false at the end.
func (s *sender) take(worker int) (pb postback, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended == nil && s.count > 0 && s.taken == s.count {
		s.ended = io.EOF
	}
	if s.ended == nil {
		pb, s.ended = s.source(worker)
	}
	if s.ended != nil {
		return pb, false
	}
	if pb.due.IsZero() {
		pb.due = s.due(s.taken)
	}
	pb.route = cmp.Or(pb.route, s.route)
	s.taken++
	if !pb.unordered {
		pb.done = make(chan struct{})
		pb.before, s.inFlight[pb.order] = s.inFlight[pb.order], pb.done
	}
	return pb, true
}

// release lets the next postback of the order be sent.
func (s *sender) release(pb postback) {
	if pb.unordered {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	close(pb.done)
	if s.inFlight[pb.order] == pb.done {
		delete(s.inFlight, pb.order)
	}
}

const (
	// redialAfter is the pause between two attempts to connect, giveUpAfter the limit of all attempts with --tolerate.
	redialAfter = 20 * time.Millisecond
	giveUpAfter = time.Minute
)

// send sends one postback at most once, only connecting is retried, and records the answer. An error ends the run.
func (s *sender) send(ctx context.Context, pb postback) error {
	var sent time.Time
	var a answer
	for start := time.Now(); ; {
		sent = time.Now()
		a = s.target.post(pb.route, pb.body, answerTimeout)
		if a.connected {
			break
		}
		if ctx.Err() != nil {
			return nil
		}
		s.total.refuse()
		if !s.tolerate || time.Since(start) > giveUpAfter {
			return a.err
		}
		if !pause(ctx, redialAfter) || s.over(time.Now()) {
			return nil
		}
	}
	if pb.due.IsZero() {
		pb.due = sent
	}
	s.total.count(pb, sent, a)
	if a.err != nil && (!s.tolerate || a.status != 0 && a.status < 500) {
		line := ""
		if s.replay != "" {
			line = fmt.Sprintf(" (line %d)", pb.n)
		}
		return fmt.Errorf("a postback of order %s%s was %w", pb.order, line, a.err)
	}
	if s.watch != nil {
		s.watch.sent(pb, a.id)
	}
	if a.id == "" {
		return nil
	}
	// Each line is one write, so that a kill of this process loses none.
	_, err := fmt.Fprintf(s.acked, "%s\t%s\t%d\n", a.id, pb.order, pb.n)
	return err
}

// due returns when postback n is due; zero for as soon as possible.
func (s *sender) due(n int64) time.Time {
	if s.rate == 0 {
		return time.Time{}
	}
	if s.burst {
		n -= n % max(1, int64(s.rate))
	}
	return s.start.Add(time.Duration(float64(n) * (float64(time.Second) / s.rate)))
}

// wait waits until due; false if ctx or --for ends first.
func (s *sender) wait(ctx context.Context, due time.Time) bool {
	return ctx.Err() == nil && !s.over(due) && !s.over(time.Now()) && pause(ctx, time.Until(due))
}

// over reports whether t is after the end of --for.
func (s *sender) over(t time.Time) bool { return s.duration > 0 && t.After(s.start.Add(s.duration)) }
