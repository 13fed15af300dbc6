package bridge

import (
	"cmp"
	"container/list"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
)

// maxAdminConnections is enough for probes, Prometheus and operators.
const maxAdminConnections = 64

// connections is a listener that limits how many connections are open. At the limit a new connection displaces one that
// waits for a request, so that clients which hold connections open cannot keep a broker out: first the oldest without a
// verified postback, else the one idle longest. A connection whose verified postback is being stored is never closed.
// If there are only such, new ones wait in the kernel's queue.
type connections struct {
	*net.TCPListener
	limit     int
	tls       *tls.Config // nil for plain HTTP
	log       *slog.Logger
	logged    logLimit
	displaced atomic.Uint64
	rejected  func(reason string) // counts a bad request; may be nil

	mu         sync.Mutex // guards what follows, and the state of all connections
	space      sync.Cond  // signaled when a connection is closed or waits again, and when the listener is closed
	open       int
	closed     bool
	unverified list.List // connections without a verified postback, oldest first
	idle       list.List // connections with one that wait for a request, idle longest first
}

// connection is an open connection. It is in a queue of its listener while it may be displaced.
type connection struct {
	net.Conn // wire, or TLS over it
	wire     *wire
	of       *connections

	// Guarded by of.mu.
	element  *list.Element // in a queue; nil in none
	closed   bool
	verified bool // has brought a verified postback

	// Owned by the goroutine that serves the connection.
	handled bool // a handler has the request
	bad     bool // is counted as a bad request

	answering atomic.Bool // set from the end of a body until the connection is idle; see Read
}

func newConnections(tcp *net.TCPListener, limit int, t *tls.Config, log *slog.Logger) *connections {
	l := &connections{TCPListener: tcp, limit: limit, tls: t, log: log}
	l.space.L = &l.mu
	return l
}

// Accept waits for a connection, and for space for it.
func (l *connections) Accept() (net.Conn, error) {
	tcp, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	c := &connection{wire: &wire{TCPConn: tcp}, of: l}
	c.Conn = c.wire
	if l.tls != nil {
		c.Conn = tls.Server(c.wire, l.tls)
	}
	if !l.admit(c) {
		_ = tcp.Close() // nothing was read from it
		return nil, net.ErrClosed
	}
	return c, nil
}

// admit waits until the limit allows the connection. False means that the listener is closed.
func (l *connections) admit(c *connection) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.open >= l.limit && !l.closed {
		if first := cmp.Or(l.unverified.Front(), l.idle.Front()); first != nil {
			l.displace(first.Value.(*connection))
		} else {
			l.space.Wait()
		}
	}
	if l.closed {
		return false
	}
	l.open++
	c.element = l.unverified.PushBack(c)
	return true
}

// displace closes a connection at the limit. Needs mu.
func (l *connections) displace(c *connection) {
	l.displaced.Add(1)
	c.forget()
	_ = c.wire.Close() // without TLS close_notify, which may block
	if l.logged.allow("displaced") {
		l.log.Warn("the limit of connections is reached: new ones displace those that wait; "+
			"postbridge_connections_closed_total counts them at POSTBRIDGE_LISTEN", "limit", l.limit,
			"from", c.RemoteAddr().String())
	}
}

// number returns how many connections are open.
func (l *connections) number() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open
}

// Close closes the listener. The connections stay open.
func (l *connections) Close() error {
	l.mu.Lock()
	l.closed = true
	l.space.Signal()
	l.mu.Unlock()
	return l.TCPListener.Close()
}

// Close closes the connection, which makes space for another.
func (c *connection) Close() error {
	err := c.Conn.Close()
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	c.forget()
	return err
}

// forget counts the connection as closed. Needs of.mu, as leave does.
func (c *connection) forget() {
	if !c.closed {
		c.closed = true
		c.of.open--
		c.leave()
		c.of.space.Signal()
	}
}

// leave removes the connection from its queue, if it is in one.
func (c *connection) leave() {
	if c.element != nil {
		c.of.unverified.Remove(c.element)
		c.of.idle.Remove(c.element)
		c.element = nil
	}
}

// wait marks the connection as waiting for a request, or for the rest of one. A connection without a verified postback
// keeps its position, so that rejected requests do not extend its life.
func (c *connection) wait() {
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	switch {
	case !c.verified || c.closed:
	case c.element != nil:
		c.of.idle.MoveToBack(c.element)
	default:
		c.element = c.of.idle.PushBack(c)
		c.of.space.Signal()
	}
}

// answer marks the connection as having a request whose body is read to its end. A nil connection is not counted.
func (c *connection) answer() {
	if c != nil {
		c.answering.Store(true)
	}
}

// work marks the connection as having a verified postback that is being stored. A nil connection is not counted.
func (c *connection) work() {
	if c != nil {
		c.of.mu.Lock()
		defer c.of.mu.Unlock()
		c.verified = true
		c.leave()
	}
}

// connectionKey is the key of the connection in the context of a request.
type connectionKey struct{}

// connectionOf returns the connection of a request; nil if it is not counted.
func connectionOf(req *http.Request) *connection {
	c, _ := req.Context().Value(connectionKey{}).(*connection)
	return c
}
