package bridge

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/postbridge/postbridge/bridge/spool"
)

const (
	drainPoll = 50 * time.Millisecond // interval of checks whether the spool is empty
	drainLog  = 10 * time.Second      // interval of log lines
)

// Drain publishes all unpublished events of the spool, however long that takes, and accepts no postbacks: it is for the
// volume of a removed replica. Of the options it needs neither brokers nor listeners. It returns an error if events are
// left, also when ctx ends.
func (b *Bridge) Drain(ctx context.Context) error {
	s, err := b.openSpool(ctx)
	if err != nil {
		return err
	}
	pumpCtx, stopPumps := context.WithCancel(context.WithoutCancel(ctx))
	defer stopPumps()
	pumps, err := b.startPumps(pumpCtx, s)
	if err != nil {
		return errors.Join(err, s.Close())
	}
	b.opened.Store(&opened{s, pumps.all})
	err = b.waitUntilEmpty(ctx, s)
	stopPumps()
	err = errors.Join(err, pumps.stop())
	b.logWaiting()
	return errors.Join(err, s.Close())
}

// waitUntilEmpty waits until every bus has all events.
func (b *Bridge) waitUntilEmpty(ctx context.Context, s *spool.Spool) error {
	poll := time.NewTicker(drainPoll)
	defer poll.Stop()
	for logged := time.Now(); ; {
		waiting := b.waiting()
		if waiting == 0 {
			return nil
		}
		if time.Since(logged) >= drainLog {
			logged = time.Now()
			b.logProgress()
		}
		select {
		case <-poll.C:
		case <-s.Failed():
			return s.Err()
		case <-ctx.Done():
			return fmt.Errorf("stopped before the end: %d events wait in %s; run it again", waiting, b.o.DataDir)
		}
	}
}

// waiting returns the number of unpublished events of the bus that is furthest behind.
func (b *Bridge) waiting() (n uint64) {
	for _, bus := range b.status().Buses {
		n = max(n, bus.Waiting)
	}
	return n
}

func (b *Bridge) logProgress() {
	for name, bus := range b.status().Buses {
		if bus.Waiting > 0 {
			b.o.Log.Info("publishing unpublished events", "bus", name, "waiting", bus.Waiting,
				"committed", bus.Committed, "causes", bus.Causes)
		}
	}
}
