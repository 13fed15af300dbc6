package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// postback is one to be sent: a body, its target and its time.
type postback struct {
	target    *target
	body      []byte
	order     string    // its order id
	n         int       // its number within the order, from 0; of a recording, the line
	due       time.Time // zero: as soon as possible
	unordered bool      // another postback of the same order may be in flight

	// Of a recorded one: its line, from 1, and the id of its event, if that is known.
	line int
	id   string
}

// source returns the next postback when it is due; false at the end. An order's postbacks come from one source.
type source func(ctx context.Context) (pb postback, ok bool)

// sender sends the postbacks of its sources. Each source has a worker, which waits for an answer before it sends on.
type sender struct {
	sources  []source
	feed     func(ctx context.Context) error // fills the sources, if they do not fill themselves
	pace     *pace
	tolerate bool
	acked    *os.File
	watch    *watch // nil if the buses are not checked
	total    *summary
}

// run sends until the sources end. The error is the first postback that ended it, or else that of feed.
func (s *sender) run(parent context.Context) error {
	ctx, fail := context.WithCancelCause(parent)
	defer fail(nil)
	start := time.Now()
	var workers sync.WaitGroup
	for _, next := range s.sources {
		workers.Go(func() {
			for pb, ok := next(ctx); ok; pb, ok = next(ctx) {
				if err := s.send(ctx, pb); err != nil {
					fail(err)
				}
			}
		})
	}
	var err error
	if s.feed != nil {
		err = s.feed(ctx)
	}
	workers.Wait()
	s.total.finish(time.Since(start))
	switch {
	case parent.Err() != nil: // interrupted
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	default:
		return err
	}
}

const (
	// redialAfter is the time between two attempts to connect, giveUpAfter how long they go on with --tolerate.
	redialAfter = 20 * time.Millisecond
	giveUpAfter = time.Minute
)

// send sends one postback, at most once: it is tried again only while there is no connection.
func (s *sender) send(ctx context.Context, pb postback) error {
	for start := time.Now(); ; {
		sent := time.Now()
		if pb.due.IsZero() {
			pb.due = sent
		}
		status, id, err := pb.target.post(ctx, pb.body)
		if refused := new(dialError); !errors.As(err, &refused) {
			return s.done(pb, sent, status, id, err)
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
}

// done records what came of a postback. The error ends the run.
func (s *sender) done(pb postback, sent time.Time, status int, id string, err error) error {
	s.total.count(pb, sent, status, id, err)
	if err != nil && (!s.tolerate || status != 0 && status < 500) {
		line := ""
		if pb.line > 0 {
			line = fmt.Sprintf(" (line %d)", pb.line)
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
type pace struct {
	start, deadline time.Time    // no deadline if that is zero
	interval        float64      // in nanoseconds; 0 for as fast as possible
	burst           int64        // how many are due at the same time
	count           int64        // 0 for no limit
	issued          atomic.Int64 // how many postbacks have a time
}

func newPace(o *sendOptions) *pace {
	p := &pace{start: time.Now(), count: o.count, burst: 1}
	if o.duration > 0 {
		p.deadline = p.start.Add(o.duration)
	}
	if o.rate > 0 {
		p.interval = float64(time.Second) / o.rate
	}
	if o.worst.burst() {
		p.burst = max(1, int64(o.rate))
	}
	return p
}

// next waits until the next postback is due; false if there is none. Latency counts from due, so that a stall is not
// hidden by the postbacks that could not be sent during it.
func (p *pace) next(ctx context.Context) (due time.Time, ok bool) {
	n := p.issued.Add(1) - 1
	due = time.Now()
	if p.interval > 0 {
		due = p.start.Add(time.Duration(float64(n/p.burst*p.burst) * p.interval))
	}
	return due, (p.count == 0 || n < p.count) && p.wait(ctx, due)
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
