package nats

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers"
)

const (
	// dialTimeout is how long a server may take to accept us.
	dialTimeout = 5 * time.Second
	// Reconnects start at once, because most cuts are short, and slow down to every two seconds.
	minReconnectWait = 50 * time.Millisecond
	maxReconnectWait = 2 * time.Second
	// pollInterval is how often the certificates and a connection that does not come up are looked at.
	pollInterval = 2 * time.Second
)

// stayConnected keeps a connection until Close. The library reconnects by itself, but not after every error: what it
// does not know ("Maximum Payload Violation", after a server's limit was lowered) closes the connection for good.
func (p *Publisher) stayConnected() {
	for attempt := 1; p.ctx.Err() == nil; attempt++ {
		closed := make(chan struct{})
		conn, err := natsgo.Connect(p.cfg.URL, append(p.options(), natsgo.ClosedHandler(func(*natsgo.Conn) { close(closed) }))...)
		if err == nil {
			p.attend(conn, closed)
			conn.Close()
			p.down(conn, conn.LastError())
		} else {
			p.stillDown(err)
		}
		select {
		case <-time.After(reconnectWait(attempt)):
		case <-p.ctx.Done():
		}
	}
}

// attend watches over a connection until it is closed.
func (p *Publisher) attend(conn *natsgo.Conn, closed <-chan struct{}) {
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	renewals := bridge.NewPacer(firstRetry)
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-closed:
			return
		case <-poll.C:
		}
		if !conn.IsConnected() {
			// A handshake that fails (TLS, credentials) is told to no callback.
			if err := conn.LastError(); err != nil && !errors.Is(err, natsgo.ErrPermissionViolation) {
				p.stillDown(err)
			}
		}
		if p.certificates != nil && p.certificates.Changed() {
			p.renew(conn, "the TLS files changed")
		} else if p.inboxDenied() && renewals.Due(time.Now()) {
			p.renew(conn, "answers cannot arrive; perhaps that is mended")
		}
	}
}

// renew replaces the connection by a new one. What is in flight is offered again on that.
func (p *Publisher) renew(conn *natsgo.Conn, why string) {
	p.log.Info("renewing the connection", "why", why)
	if err := conn.ForceReconnect(); err != nil {
		p.log.Debug("cannot renew the connection", "error", err)
	}
}

func (p *Publisher) options() []natsgo.Option {
	options := []natsgo.Option{
		natsgo.Name("postbridge"),
		// Never give up, not even at start or on a wrong password: that may be mended on the other side.
		natsgo.RetryOnFailedConnect(true),
		natsgo.MaxReconnects(-1),
		natsgo.IgnoreAuthErrorAbort(),
		natsgo.CustomReconnectDelay(reconnectWait),
		// No buffer while disconnected: what it holds would be sent before, and so after, what is offered again.
		natsgo.ReconnectBufSize(-1),
		natsgo.ReconnectOnFlusherError(),
		// A connection that is half open is noticed by a ping, or by a write.
		natsgo.PingInterval(10 * time.Second),
		natsgo.FlusherTimeout(10 * time.Second),
		natsgo.Timeout(dialTimeout),
		natsgo.SetCustomDialer(&dialer{ctx: p.ctx, timeout: dialTimeout}),
		natsgo.ConnectHandler(p.up),
		natsgo.ReconnectHandler(p.up),
		natsgo.DisconnectErrHandler(p.down),
		natsgo.ReconnectErrHandler(func(_ *natsgo.Conn, err error) { p.stillDown(err) }),
		natsgo.ErrorHandler(func(_ *natsgo.Conn, _ *natsgo.Subscription, err error) { p.asyncError(err) }),
	}
	if p.server != nil {
		options = append(options, natsgo.InProcessServer(p.server))
	}
	return append(options, p.cfg.connectOptions(p.certificates)...)
}

// reconnectWait doubles from attempt to attempt; half of it is jitter, so that replicas do not come all at once.
func reconnectWait(attempt int) time.Duration {
	d := min(minReconnectWait<<min(attempt-1, 10), maxReconnectWait)
	return d/2 + rand.N(d/2)
}

// up takes a connection that is there, the first time or again. It takes mu.
func (p *Publisher) up(conn *natsgo.Conn) {
	p.mu.Lock()
	js := p.session.js
	if p.session.conn != conn {
		js = nil
	}
	p.mu.Unlock()
	if js == nil {
		var err error
		if js, err = p.newJetStream(conn); err != nil {
			p.log.Error("cannot use JetStream", "error", err) // an error in options only
			return
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil {
		return
	}
	p.session.end()
	p.session = session{conn: conn, js: js, up: true, epoch: p.session.epoch + 1}
	p.session.ctx, p.session.end = context.WithCancel(p.ctx)
	p.report("connection", nil)
	for _, d := range p.destinations {
		d.ready, d.refused = false, true // it may be another server's, or changed
		d.forgetSample()
		d.lookUpDenied = false
		looks, end := context.WithCancel(p.session.ctx)
		d.looks, d.endLooks = looks, end
		d.checked = p.checkpoints.NewStream(d.stream, func(k publishers.Checkpoint) (publishers.Presence, error) {
			return p.lookUpCheckpoint(looks, js, d, k)
		})
		d.wantCheck()
	}
}

func (p *Publisher) newJetStream(conn *natsgo.Conn) (jetstream.JetStream, error) {
	return jetstream.New(conn,
		jetstream.WithDefaultTimeout(ackTimeout),
		jetstream.WithPublishAsyncTimeout(ackTimeout), // or a lost acknowledgement is waited for for ever
		// The library would hold up the sender at its limit. Ours comes first.
		jetstream.WithPublishAsyncMaxPending(64*maxInFlight),
		jetstream.WithPublishAsyncAckHandler(p.acked),
		jetstream.WithPublishAsyncErrHandler(p.failed),
	)
}

// down takes the loss of a connection. It takes mu.
func (p *Publisher) down(conn *natsgo.Conn, err error) {
	p.mu.Lock()
	if p.session.conn == conn {
		p.session.up = false
		p.session.end()
	}
	p.mu.Unlock()
	if err == nil || errors.Is(err, natsgo.ErrPermissionViolation) { // which ends no connection, and may name an order
		err = errors.New("the connection was lost")
	}
	p.stillDown(err)
}

// stillDown reports why there is no connection. It takes mu.
func (p *Publisher) stillDown(err error) {
	if errors.Is(err, natsgo.ErrNoServers) {
		return // what kept them away follows
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.session.up && p.ctx.Err() == nil {
		p.report("connection", fmt.Errorf("bus at %s: %w", p.hosts, lasting(err)))
	}
}

// lasting is err without what changes from attempt to attempt: our own port.
func lasting(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return fmt.Errorf("%s: %w", op.Op, op.Err)
	}
	return err
}

// asyncError takes what the library cannot give back from a call.
func (p *Publisher) asyncError(err error) {
	switch {
	case errors.Is(err, natsgo.ErrPermissionViolation):
		p.denied(err)
	case authError(err):
		p.stillDown(err)
	default:
		p.log.Debug("from the NATS library", "error", err)
	}
}

// dialer makes the connections of one natsgo.Conn, which end with ctx. The library dials, and waits for the server's first
// word, with its lock held; Close would have to wait for that. Nor does the library close a connection over which it was not
// let in: the next one that it asks for replaces it.
type dialer struct {
	ctx     context.Context
	timeout time.Duration
	last    *abortableConn // nil before the first
}

// Dial is called by the library, one call at a time.
func (d *dialer) Dial(network, address string) (net.Conn, error) {
	if d.last != nil {
		_ = d.last.Close() // perhaps once more
	}
	conn, err := (&net.Dialer{Timeout: d.timeout}).DialContext(d.ctx, network, address)
	if err != nil {
		return nil, err
	}
	d.last = &abortableConn{conn, context.AfterFunc(d.ctx, func() { _ = conn.Close() })}
	return d.last, nil
}

type abortableConn struct {
	net.Conn
	stop func() bool
}

func (c *abortableConn) Close() error {
	c.stop()
	return c.Conn.Close()
}
