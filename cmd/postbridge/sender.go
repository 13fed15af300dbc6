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

// postback is one to be sent.
type postback struct {
	route     *route // nil for that of the sender
	body      []byte
	order     string    // its order id
	n         int       // its number within the order, or among the files, from 0; of a recording the line, from 1
	due       time.Time // zero: as soon as possible
	unordered bool      // it may be in flight beside another postback of its order
	recorded  string    // the id of its event in the recording, if that is known

	before, done chan struct{} // closed when the one before it in its order is done, and when this one is
}

// source returns the next postback of a worker, and io.EOF at the end. It is called for one worker at a time.
type source func(worker int) (postback, error)

// sender sends the postbacks of a source. Each worker has a connection and waits for an answer before it sends on.
type sender struct {
	*sendOptions
	source source
	to     *endpoint
	route  *route
	pace   *pace
	acked  io.Writer
	watch  *watch // nil if the buses are not checked
	total  *summary

	mu sync.Mutex
	// Guarded by mu.
	taken    int64
	ended    error                    // why the source gives no more; io.EOF at its end
	inFlight map[string]chan struct{} // by order id: done of the last postback that was taken
}

// run sends until the source ends. The error is that of the first postback that ended it, or else that of the source;
// what was taken before that is sent.
func (s *sender) run(parent context.Context) error {
	ctx, fail := context.WithCancelCause(parent)
	defer fail(nil)
	s.inFlight = make(map[string]chan struct{})
	var workers sync.WaitGroup
	for worker := range s.connections {
		workers.Go(func() {
			c := &client{endpoint: s.to}
			defer c.close()
			for pb, ok := s.take(worker); ok; pb, ok = s.take(worker) {
				if pb.before != nil {
					<-pb.before
				}
				ok = s.pace.wait(ctx, pb.due)
				if ok {
					if err := s.send(ctx, c, pb); err != nil {
						fail(err)
					}
				}
				s.release(pb)
				if !ok {
					return
				}
			}
		})
	}
	workers.Wait()
	s.total.finish(time.Since(s.pace.start))
	switch {
	case parent.Err() != nil || ctx.Err() == nil && errors.Is(s.ended, io.EOF): // interrupted, or at the end
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return s.ended
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
	pb.done = make(chan struct{})
	if !pb.unordered {
		pb.before, s.inFlight[pb.order] = s.inFlight[pb.order], pb.done
	}
	return pb, true
}

// release lets the next postback of the order go.
func (s *sender) release(pb postback) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(pb.done)
	if s.inFlight[pb.order] == pb.done {
		delete(s.inFlight, pb.order)
	}
}

const (
	// redialAfter is the time between two attempts to connect, giveUpAfter how long they go on with --tolerate.
	redialAfter = 20 * time.Millisecond
	giveUpAfter = time.Minute
)

// send sends one postback, at most once: only connecting is tried again.
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
	return s.record(pb, sent, status, id, err)
}

// record counts a postback. The error ends the run.
func (s *sender) record(pb postback, sent time.Time, status int, id string, err error) error {
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
	// Each line is one write, so that none is lost with this process.
	_, err = fmt.Fprintf(s.acked, "%s\t%s\t%d\n", id, pb.order, pb.n)
	return err
}

// pace determines when each postback is due: at a fixed rate, however late the answers are, or as soon as possible.
// Latency counts from then, so that a stall is not hidden by the postbacks that could not be sent during it.
type pace struct {
	start, deadline time.Time // no deadline if that is zero
	interval        float64   // in nanoseconds; 0 for as soon as possible
	burst           int64     // how many are due at the same time
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

// wait waits until due; false if ctx or --for ends before that.
func (p *pace) wait(ctx context.Context, due time.Time) bool {
	return ctx.Err() == nil && !p.over(due) && !p.over(time.Now()) && pause(ctx, time.Until(due))
}

// over reports whether a time is after the end of --for.
func (p *pace) over(t time.Time) bool { return !p.deadline.IsZero() && t.After(p.deadline) }

// pause waits; false if ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
