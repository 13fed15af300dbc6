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
	route     *route // nil for the sender's route
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

// sender sends the postbacks of a source. Each worker has a connection and one postback in flight.
type sender struct {
	*sendOptions
	source source
	to     *endpoint
	route  *route
	pace   *pace
	acked  io.Writer
	watch  *busWatch // nil without --worst
	total  *summary

	mu sync.Mutex
	// Guarded by mu.
	taken    int64
	ended    error                    // the source's last error; io.EOF at its end
	inFlight map[string]chan struct{} // by order id: done of the last postback
}

// run sends until the source ends or a postback fails, finishes the postbacks in flight and returns the first error.
func (s *sender) run(parent context.Context) error {
	ctx, fail := context.WithCancelCause(parent)
	defer fail(nil)
	s.inFlight = make(map[string]chan struct{})
	var workers sync.WaitGroup
	for worker := range s.connections {
		workers.Go(func() { s.work(ctx, worker, fail) })
	}
	workers.Wait()
	s.total.finish(time.Since(s.pace.start))
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
	c := &client{endpoint: s.to}
	defer c.close()
	for pb, ok := s.take(worker); ok; pb, ok = s.take(worker) {
		if pb.before != nil {
			<-pb.before
		}
		due := s.pace.wait(ctx, pb.due)
		if due {
			if err := s.send(ctx, c, pb); err != nil {
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
		pb.due = s.pace.due(s.taken)
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
func (s *sender) send(ctx context.Context, c *client, pb postback) error {
	for start := time.Now(); ; {
		err := c.open(ctx)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil
		}
		s.total.refuse()
		if !s.tolerate || time.Since(start) > giveUpAfter {
			return err
		}
		if !pause(ctx, redialAfter) || s.pace.over(time.Now()) {
			return nil
		}
	}
	sent := time.Now()
	if pb.due.IsZero() {
		pb.due = sent
	}
	status, id, err := c.post(ctx, pb.route, pb.body)
	s.total.count(pb, sent, status, id, err)
	if err != nil && (!s.tolerate || status != 0 && status < 500) {
		line := ""
		if s.replay != "" {
			line = fmt.Sprintf(" (line %d)", pb.n)
		}
		return fmt.Errorf("a postback of order %s%s was %w", pb.order, line, err)
	}
	if s.watch != nil {
		s.watch.sent(pb, id)
	}
	if id == "" {
		return nil
	}
	// Each line is one write, so that a kill of this process loses none.
	_, err = fmt.Fprintf(s.acked, "%s\t%s\t%d\n", id, pb.order, pb.n)
	return err
}

// pace schedules postbacks: at a fixed rate, independent of the answers, or as soon as possible. Latency counts from
// the due time, so that it includes the postbacks which a stall kept from being sent (no coordinated omission).
type pace struct {
	start, deadline time.Time // zero deadline: none
	interval        float64   // nanoseconds; 0 for as soon as possible
	burst           int64     // postbacks due at the same time
}

func newPace(o *sendOptions) *pace {
	p := &pace{start: time.Now(), burst: 1}
	if o.duration > 0 {
		p.deadline = p.start.Add(o.duration)
	}
	if o.rate > 0 {
		p.interval = float64(time.Second) / o.rate
	}
	if o.burst {
		p.burst = max(1, int64(o.rate))
	}
	return p
}

// due returns when postback n is due; zero for as soon as possible.
func (p *pace) due(n int64) time.Time {
	if p.interval == 0 {
		return time.Time{}
	}
	return p.start.Add(time.Duration(float64(n/p.burst*p.burst) * p.interval))
}

// wait waits until due; false if ctx or --for ends first.
func (p *pace) wait(ctx context.Context, due time.Time) bool {
	return ctx.Err() == nil && !p.over(due) && !p.over(time.Now()) && pause(ctx, time.Until(due))
}

// over reports whether t is after the end of --for.
func (p *pace) over(t time.Time) bool { return !p.deadline.IsZero() && t.After(p.deadline) }
