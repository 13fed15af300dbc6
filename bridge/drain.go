package bridge

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/postbridge/postbridge/bridge/spool"
)

const (
	drainLook = 50 * time.Millisecond // between two looks at what waits
	drainSay  = 10 * time.Second      // between two lines that say how much it is
)

// Drain publishes all that waits in the spool, however long that takes, and takes no postbacks: for the volume of a
// replica that is no more. Of the options it needs no brokers and nothing that listens. Its error says what kept it from
// that, the end of ctx too.
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
	b.sayWaiting()
	return errors.Join(err, s.Close())
}

// waitUntilEmpty waits until nothing waits for any bus.
func (b *Bridge) waitUntilEmpty(ctx context.Context, s *spool.Spool) error {
	look := time.NewTicker(drainLook)
	defer look.Stop()
	for said := time.Now(); ; {
		waiting := b.waiting()
		if waiting == 0 {
			return nil
		}
		if time.Since(said) >= drainSay {
			said = time.Now()
			b.sayProgress()
		}
		select {
		case <-look.C:
		case <-s.Failed():
			return s.Err()
		case <-ctx.Done():
			return fmt.Errorf("stopped before the end: %d events wait in %s; run it again", waiting, b.o.DataDir)
		}
	}
}

// waiting is how many events wait for the bus that is furthest behind.
func (b *Bridge) waiting() (n uint64) {
	for _, bus := range b.status().Buses {
		n = max(n, bus.Waiting)
	}
	return n
}

func (b *Bridge) sayProgress() {
	for name, bus := range b.status().Buses {
		if bus.Waiting > 0 {
			b.o.Log.Info("publishing what waits", "bus", name, "waiting", bus.Waiting, "committed", bus.Committed, "causes", bus.Causes)
		}
	}
}
