package bridge

import (
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// maxAdminConnections is for probes, Prometheus and people.
const maxAdminConnections = 64

// connections is a listener that limits how many connections are open, and stays open for who comes next: at the limit,
// one that waits for a request makes room for the new one. A limit that lets the new one wait instead would belong to
// whoever holds the connections, and brokers do not promise to come back.
//
// Who makes room is, first, the oldest that never brought a proven postback, then the one that has waited longest. One whose
// proven postback is on its way to the disk never does: if there are only such, new ones wait in the kernel's queue.
type connections struct {
	*net.TCPListener
	limit int
	log   *slog.Logger
	begun time.Time

	closed atomic.Uint64 // to make room
	saidAt time.Time     // owned by Accept

	mu   sync.Mutex
	open map[*connection]struct{} // guarded by mu

	freed chan struct{} // gets something when one is closed, or waits again
	end   chan struct{} // is closed with the listener
	once  sync.Once
}

// connection is one that is open.
type connection struct {
	*net.TCPConn
	of *connections

	// since is when it began to wait for a request, in nanoseconds since the listener's beginning; or working, or gone.
	since atomic.Int64
	// known is whether it has brought a proven postback.
	known atomic.Bool
}

// What a connection does that does not wait.
const (
	working = -1 // keeps a proven postback
	gone    = -2 // made room
)

func listen(addr string, limit int, log *slog.Logger) (*connections, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	return &connections{
		TCPListener: l.(*net.TCPListener), // it is for tcp
		limit:       limit,
		log:         log,
		begun:       time.Now(),
		open:        make(map[*connection]struct{}),
		freed:       make(chan struct{}, 1),
		end:         make(chan struct{}),
	}, nil
}

// Accept waits for a connection, and for room for it.
func (l *connections) Accept() (net.Conn, error) {
	conn, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	c := &connection{TCPConn: conn, of: l}
	for !l.take(c) {
		if l.makeRoom() {
			continue
		}
		select {
		case <-l.freed:
		case <-l.end:
			_ = conn.Close() // nothing was read from it
			return nil, net.ErrClosed
		}
	}
	return c, nil
}

// take counts a connection in, if there is room.
func (l *connections) take(c *connection) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.open) >= l.limit {
		return false
	}
	c.since.Store(l.now())
	l.open[c] = struct{}{}
	return true
}

// makeRoom closes a connection that waits; false if none does.
func (l *connections) makeRoom() bool {
	c, since := l.spare()
	switch {
	case c == nil:
		return false
	case !c.since.CompareAndSwap(since, gone):
		return true // it moved meanwhile; the next look finds another
	}
	l.closed.Add(1)
	if now := time.Now(); now.Sub(l.saidAt) >= sayInterval {
		l.saidAt = now
		l.log.Warn("the limit of connections is reached: new ones take the place of those that wait; postbridge_connections_closed_total counts them at POSTBRIDGE_LISTEN",
			"limit", l.limit, "from", c.RemoteAddr().String())
	}
	_ = c.Close() // there is nobody to tell
	return true
}

// spare is the connection to make room, and since when it waits; nil if none waits.
func (l *connections) spare() (spare *connection, since int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	known := false
	for c := range l.open {
		s, k := c.since.Load(), c.known.Load()
		if s >= 0 && (spare == nil || known && !k || known == k && s < since) {
			spare, since, known = c, s, k
		}
	}
	return spare, since
}

// number is how many are open.
func (l *connections) number() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.open)
}

// Close closes the listener. The connections stay open.
func (l *connections) Close() error {
	l.once.Do(func() { close(l.end) })
	return l.TCPListener.Close()
}

func (l *connections) now() int64 { return int64(time.Since(l.begun)) }

func (l *connections) free() {
	select {
	case l.freed <- struct{}{}:
	default: // it is known already
	}
}

// Close closes the connection, which makes room.
func (c *connection) Close() error {
	c.of.mu.Lock()
	delete(c.of.open, c)
	c.of.mu.Unlock()
	c.of.free()
	return c.TCPConn.Close()
}

// wait notes that the connection waits for a request, or the rest of one, from now on. One that never brought a proven
// postback does so since it was opened: what is refused makes it no younger.
func (c *connection) wait() {
	if !c.known.Load() {
		return
	}
	if s := c.since.Load(); s != gone && c.since.CompareAndSwap(s, c.of.now()) && s == working {
		c.of.free()
	}
}

// work notes that a proven postback came by it, which is kept now. Nil is a connection that nobody counts.
func (c *connection) work() {
	if c == nil {
		return
	}
	if s := c.since.Load(); s != gone {
		c.since.CompareAndSwap(s, working)
	}
	if !c.known.Load() {
		c.known.Store(true)
	}
}

// connectionKey is where the context of a request has its connection.
type connectionKey struct{}

// connectionOf is the connection that a request came by; nil if nobody counts it.
func connectionOf(req *http.Request) *connection {
	c, _ := req.Context().Value(connectionKey{}).(*connection)
	return c
}

// counted is the connection in one that a server has, with TLS around it or not.
func counted(conn net.Conn) *connection {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	return conn.(*connection)
}
