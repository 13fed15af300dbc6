package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"sync"
	"time"
)

// retryInterval is the time between two attempts to reach a bus, and between two lookups of a stream or topic.
const retryInterval = 250 * time.Millisecond

// startPosition is where following begins. The zero value is the first event stored.
type startPosition struct {
	now bool
	at  time.Time
}

// message is an event as a bus stores it.
type message struct {
	position any    // on the bus: an object for --headers
	key      string // <broker>.<user_id>.<order_id>; of a dead letter the broker comes first
	status   string // order status, from a header
	headers  map[string]string
	data     []byte
}

// follower holds what following a bus needs on every bus.
type follower struct {
	from    startPosition
	status  *statusLog
	onStart func()                                // called once every event stored from now on is delivered
	deliver func(ctx context.Context, m *message) // called for each message, also concurrently
}

// follow delivers the messages of a bus until end is called.
func (o *tailOptions) follow(
	ctx context.Context, f follower, bus string, c *config, credentials *credentials,
) (end func(), err error) {
	if bus == "kafka" {
		return newKafkaFollower(f, o, c.Prefix).follow(ctx, c.kafkaConfig(credentials)), nil
	}
	return newNATSFollower(f, o, c.Prefix).follow(ctx, c.natsAddress(), c.natsConfig(credentials))
}

// statusLog prints the status of a follower when it changes.
type statusLog struct {
	mu     sync.Mutex
	w      io.Writer
	last   string
	closed bool
}

func (l *statusLog) set(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if text := fmt.Sprintf(format, args...); text != l.last && !l.closed {
		l.last = text
		fmt.Fprintln(l.w, "postbridge: tail:", text)
	}
}

// get returns the last status.
func (l *statusLog) get() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return cmp.Or(l.last, "no answer")
}

// close suppresses later statuses: the NATS client calls its handlers even after its connection was closed.
func (l *statusLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
}
