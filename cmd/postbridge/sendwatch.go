package main

import (
	"context"
	"io"
	"sync"
	"time"
)

// watchedBus is a bus that send reads to see what came of its postbacks.
type watchedBus struct {
	follower
	*tailOptions
	name  string
	begin chan struct{} // closed when all that is stored from now on comes
}

func (b *watchedBus) hasBegun() bool {
	select {
	case <-b.begin:
		return true
	default:
		return false
	}
}

// watchedBuses are all that postbridge publishes to, as the environment has it.
type watchedBuses []*watchedBus

// watchBuses begins to follow all buses, until end. An error is a misuse: a bus that is down is waited for.
func (p *process) watchBuses(ctx context.Context, o *tailOptions) (all watchedBuses, end func(), err error) {
	c, credentials, err := readBusConfig(p.env)
	if err != nil {
		return nil, nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	var following sync.WaitGroup
	for _, name := range c.Publish {
		b := &watchedBus{newFollower(beginning{now: true}, io.Discard), o, name, make(chan struct{})}
		b.begun = sync.OnceFunc(func() { close(b.begin) })
		all = append(all, b)
		following.Go(func() {
			end, err := o.follow(ctx, b.follower, name, c, credentials)
			if err != nil {
				b.notes.say("%v", err)
				return
			}
			<-ctx.Done()
			end()
		})
	}
	return all, func() {
		stop()
		following.Wait()
	}, nil
}

// awaitBegin waits until all of them are followed, or for that time.
func (all watchedBuses) awaitBegin(ctx context.Context, timeout time.Duration) {
	ctx, stop := context.WithTimeout(ctx, timeout)
	defer stop()
	for _, b := range all {
		select {
		case <-b.begin:
		case <-ctx.Done():
		}
	}
}

// eventID is the id of the event, as a header says.
func (m *message) eventID() string { return orElse(m.headers["ce-id"], m.headers["ce_id"]) }
