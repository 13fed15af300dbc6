package publishertest

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Proxy is a TCP proxy between a publisher and a server. It can cut connections, and drop or delay the responses of the
// server.
type Proxy struct {
	listener net.Listener
	target   string
	lose     atomic.Bool
	delay    atomic.Int64 // of each read of the responses, in nanoseconds

	mu sync.Mutex
	// Guarded by mu.
	conns  map[net.Conn]bool
	refuse bool
}

// NewProxy starts a proxy to the server at target.
func NewProxy(t *testing.T, target string) *Proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{listener: l, target: target, conns: make(map[net.Conn]bool)}
	t.Cleanup(func() {
		l.Close()
		p.Cut()
	})
	go p.accept()
	return p
}

// Addr returns the host:port of the proxy.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Cut cuts all connections.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
	clear(p.conns)
}

// Refuse cuts all connections, and refuses new ones while refuse is true.
func (p *Proxy) Refuse(refuse bool) {
	p.mu.Lock()
	p.refuse = refuse
	p.mu.Unlock()
	p.Cut()
}

// LoseAnswers drops the responses of the server while lose is true.
func (p *Proxy) LoseAnswers(lose bool) { p.lose.Store(lose) }

// DelayAnswers delays the responses of the server.
func (p *Proxy) DelayAnswers(delay time.Duration) { p.delay.Store(int64(delay)) }

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.target)
		if err != nil {
			client.Close()
			continue
		}
		if !p.add(client, server) {
			client.Close()
			server.Close()
			continue
		}
		go p.pipe(server, client, client)
		go p.pipe(client, server, answers{server, p})
	}
}

func (p *Proxy) add(client, server net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.refuse {
		p.conns[client], p.conns[server] = true, true
	}
	return !p.refuse
}

// pipe copies from one connection to the other until one ends, and then closes both.
func (p *Proxy) pipe(to, other net.Conn, from io.Reader) {
	_, _ = io.Copy(to, from)
	p.mu.Lock()
	defer p.mu.Unlock()
	to.Close()
	other.Close()
	delete(p.conns, to)
	delete(p.conns, other)
}

// answers reads the responses of the server, except while they are dropped.
type answers struct {
	server io.Reader
	proxy  *Proxy
}

// Read implements io.Reader.
func (a answers) Read(b []byte) (int, error) {
	for {
		n, err := a.server.Read(b)
		time.Sleep(time.Duration(a.proxy.delay.Load()))
		if err != nil || !a.proxy.lose.Load() {
			return n, err
		}
	}
}
