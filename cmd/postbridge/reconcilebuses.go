package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/postbridge/postbridge/brokers/book"
	"github.com/postbridge/postbridge/publishers/kafka"
	"github.com/postbridge/postbridge/publishers/nats"
)

// openBuses opens the buses of POSTBRIDGE_PUBLISH when they are used, and again after one has failed.
type openBuses struct {
	config      *config
	credentials *credentials
	log         *slog.Logger

	mu      sync.Mutex
	current *busConnections // nil if none are open; guarded by mu, which is held while a bus is dialed
	open    atomic.Bool     // whether the buses were reached last
}

// busConnections are the buses that were opened together.
type busConnections struct {
	buses  []book.Bus
	ends   []func()
	users  int  // guarded by openBuses.mu
	failed bool // guarded by openBuses.mu
}

func (b *busConnections) close() {
	for _, end := range b.ends {
		end()
	}
}

// use calls f with the open buses. After an error of a bus they are closed once nobody uses them.
func (o *openBuses) use(ctx context.Context, f func([]book.Bus) error) error {
	b, err := o.acquire(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", book.ErrBus, err)
	}
	err = f(b.buses)
	o.release(b, errors.Is(err, book.ErrBus))
	return err
}

func (o *openBuses) acquire(ctx context.Context) (*busConnections, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if o.current == nil {
		b, err := o.connect(ctx)
		if err != nil {
			b.close()
			return nil, err
		}
		o.current = b
		o.open.Store(true)
	}
	o.current.users++
	return o.current, nil
}

func (o *openBuses) release(b *busConnections, failed bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	b.users--
	b.failed = b.failed || failed
	if b.failed && o.current == b {
		o.current = nil
		o.open.Store(false)
	}
	if b.failed && b.users == 0 {
		b.close()
	}
}

// connect connects to each bus.
func (o *openBuses) connect(ctx context.Context) (*busConnections, error) {
	b := new(busConnections)
	spool := newRunID()
	for _, name := range o.config.Publish {
		switch name {
		case "nats":
			n := o.config.natsConfig(o.credentials)
			n.URL = o.config.natsAddress()
			events, err := nats.OpenEvents(ctx, n, spool)
			if err != nil {
				return b, err
			}
			b.buses, b.ends = append(b.buses, events), append(b.ends, events.Close)
		case "kafka":
			k := o.config.kafkaConfig(o.credentials)
			k.CreateTopics = false // serve creates them, with its own settings
			events, err := kafka.OpenEvents(k, spool, o.log)
			if err != nil {
				return b, err
			}
			b.buses, b.ends = append(b.buses, events), append(b.ends, events.Close)
		}
	}
	return b, nil
}

// newRunID returns a spool id for the events of one run.
func newRunID() string {
	var id [4]byte
	_, _ = rand.Read(id[:]) // never fails
	return hex.EncodeToString(id[:])
}

// close closes the buses. Nobody uses them any more.
func (o *openBuses) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.current != nil {
		o.current.close()
		o.current = nil
	}
}
