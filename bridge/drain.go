package bridge

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"
)

const (
	// pollInterval is the interval of checks whether the buses have all events.
	pollInterval = 10 * time.Millisecond
	// progressInterval is the interval of log lines meanwhile.
	progressInterval = 10 * time.Second
)

// Drain publishes all unpublished events of the spool, however long that takes, and accepts no postbacks: it is for the
// volume of a removed replica. Of the options it needs neither brokers nor listeners. It returns an error if events are
// left, also when ctx ends.
func (b *Bridge) Drain(ctx context.Context) error {
	o, err := b.open(ctx)
	if err != nil {
		return err
	}
	waiting := b.waitForBuses(ctx, math.MaxInt64)
	if err = o.spool.Err(); err == nil && waiting > 0 {
		err = fmt.Errorf("stopped before the end: %d events wait in %s; run it again", waiting, b.o.DataDir)
	}
	return errors.Join(err, b.close(o))
}

// waitForBuses waits until every bus has all events, ctx ends or the spool fails. It waits for blocked buses only as
// long as they make progress, or patience lasts. It returns the number of unpublished events of the bus that is
// furthest behind.
func (b *Bridge) waitForBuses(ctx context.Context, patience time.Duration) (waiting uint64) {
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	moved, logged, before := time.Now(), time.Now(), uint64(0)
	for {
		up, committed := false, uint64(0)
		waiting = 0
		for _, bus := range b.status().Buses {
			waiting = max(waiting, bus.Waiting)
			up = up || bus.Up && bus.Waiting > 0
			committed += bus.Committed
		}
		if committed > before {
			moved, before = time.Now(), committed
		}
		if waiting == 0 || !up && time.Since(moved) > patience {
			return waiting
		}
		if time.Since(logged) >= progressInterval {
			logged = time.Now()
			b.logProgress()
		}
		select {
		case <-poll.C:
		case <-b.opened.Load().spool.Failed():
			return waiting
		case <-ctx.Done():
			return waiting
		}
	}
}

// logProgress logs how far the buses are that lack events.
func (b *Bridge) logProgress() {
	for name, bus := range b.status().Buses {
		if bus.Waiting > 0 {
			b.o.Log.Info("publishing unpublished events", "bus", name, "waiting", bus.Waiting,
				"committed", bus.Committed, "causes", bus.Causes)
		}
	}
}
