package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/postbridge/postbridge/bridge/event"
)

// retryInterval is the time between two attempts to reach a bus, and between two lookups of a stream or topic.
const retryInterval = 250 * time.Millisecond

// waitingForBus begins the status of a follower during an outage.
const waitingForBus = "waiting for the bus: "

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

// busFilter selects the events of a destination; an empty field selects all.
type busFilter struct {
	destination, broker, user, order string
	statuses                         list
}

// matches reports whether a message passes the filter. On NATS the server filters by subject already.
func (f *busFilter) matches(m *message) bool {
	if f.statuses != nil && !slices.Contains(f.statuses, m.status) {
		return false
	}
	tokens := strings.Split(m.key, ".")
	for i, id := range []string{f.broker, f.user, f.order} {
		if id != "" && (i >= len(tokens) || tokens[i] != event.EscapeToken(id)) {
			return false
		}
	}
	return true
}

// follower holds what following a bus needs on every bus.
type follower struct {
	busFilter
	from    startPosition
	status  *statusLog
	deliver func(m *message) // called for each message that passes the filter, also concurrently
}

// follow delivers the messages of a bus until ctx ends.
func (f *follower) follow(ctx context.Context, bus string, c *config, credentials *credentials) error {
	if bus == "kafka" {
		newKafkaFollower(f, c.Prefix).follow(ctx, c.kafkaConfig(credentials))
		return nil
	}
	n := newNATSFollower(f, c.Prefix)
	n.bus = c.redactedNATSURL()
	if c.embedded() {
		n.bus = c.natsAddress() + "; is serve running?"
	}
	return n.follow(ctx, c.natsAddress(), c.natsConfig(credentials))
}

// received delivers a message that passes the filter.
func (f *follower) received(m *message) {
	if f.matches(m) {
		f.deliver(m)
	}
}

// statusLog prints the status of a follower when it changes.
type statusLog struct {
	mu      sync.Mutex
	w       io.Writer
	last    string
	started bool // every event stored from then on is delivered
}

// start sets the status that every event stored from now on is delivered.
func (l *statusLog) start(format string, args ...any) {
	l.set(format, args...)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.started = true
}

func (l *statusLog) set(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if text := fmt.Sprintf(format, args...); text != l.last {
		l.last = text
		fmt.Fprintln(l.w, "postbridge: tail:", text)
	}
}

// get returns the last status.
func (l *statusLog) get() (status string, started bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return cmp.Or(l.last, "no answer"), l.started
}
