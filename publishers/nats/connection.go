package nats

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers"
)

const (
	// dialTimeout limits a dial and the handshake with the server.
	dialTimeout = 5 * time.Second
	// minReconnectWait is short, as most interruptions are; the wait doubles up to maxReconnectWait.
	minReconnectWait = 50 * time.Millisecond
	maxReconnectWait = 2 * time.Second
	// pollInterval is how often the certificates and a failing connection are checked.
	pollInterval = 2 * time.Second
	// writeBuffer is how many bytes of messages are written at once if there are as many. With the default of 32 KiB the
	// system calls take a fifth of the time to publish.
	writeBuffer = 128 << 10
)

// stayConnected keeps a connection open until Close. The library reconnects by itself, except after errors that it
// does not know, like "Maximum Payload Violation" after a server's limit was lowered: they close the connection for
// good.
func (p *Publisher) stayConnected() {
	options := p.options()
	for attempt := 1; p.ctx.Err() == nil; attempt++ {
		closed := make(chan struct{})
		onClosed := natsgo.ClosedHandler(func(*natsgo.Conn) { close(closed) })
		conn, err := natsgo.Connect(p.cfg.URL, append(options, onClosed)...)
		if err == nil {
			p.supervise(conn, closed)
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

// supervise reports handshake errors of a connection, and renews it when needed, until it is closed, or is down and
// needs another NKey.
func (p *Publisher) supervise(conn *natsgo.Conn, closed <-chan struct{}) {
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
			// No callback gets a failed handshake (TLS, credentials).
			if err := conn.LastError(); err != nil && !errors.Is(err, natsgo.ErrPermissionViolation) {
				p.stillDown(err)
			}
			if p.cfg.nkeyChanged(conn) {
				return
			}
		}
		if p.certificates != nil && p.certificates.Changed() {
			p.renew(conn, "the TLS files changed")
		} else if p.inboxDenied() && renewals.Due(time.Now()) {
			p.renew(conn, "responses cannot arrive; the permission may have been granted")
		}
	}
}

// renew replaces the connection. Copies in flight are sent again on the new one.
func (p *Publisher) renew(conn *natsgo.Conn, why string) {
	p.log.Info("renewing the connection", "why", why)
	if err := conn.ForceReconnect(); err != nil {
		p.log.Debug("cannot renew the connection", "error", err)
	}
}

func (p *Publisher) options() []natsgo.Option {
	options := []natsgo.Option{
		natsgo.Name("postbridge"),
		// Never give up, not even at start or on a wrong password: the server's configuration may be corrected.
		natsgo.RetryOnFailedConnect(true),
		natsgo.MaxReconnects(-1),
		natsgo.IgnoreAuthErrorAbort(),
		natsgo.CustomReconnectDelay(reconnectWait),
		natsgo.WriteBufferSize(writeBuffer),
		// No buffer while disconnected: it would send messages out of order with their retries.
		natsgo.ReconnectBufSize(-1),
		natsgo.ReconnectOnFlusherError(),
		// Detect a half-open connection by a ping or a write.
		natsgo.PingInterval(10 * time.Second),
		natsgo.FlusherTimeout(10 * time.Second),
		natsgo.Timeout(dialTimeout),
		natsgo.SetCustomDialer(&dialer{ctx: p.ctx, timeout: dialTimeout}),
		natsgo.ConnectHandler(p.connected),
		natsgo.ReconnectHandler(p.up),
		natsgo.DisconnectErrHandler(p.down),
		natsgo.ReconnectErrHandler(func(_ *natsgo.Conn, err error) { p.stillDown(err) }),
		natsgo.ErrorHandler(func(_ *natsgo.Conn, _ *natsgo.Subscription, err error) { p.asyncError(err) }),
	}
	if p.server != nil {
		options = append(options, natsgo.InProcessServer(p.server.server))
	}
	return append(options, p.cfg.connectOptions(p.certificates)...)
}

// reconnectWait doubles with each attempt; half of it is jitter, so that replicas do not reconnect at once.
func reconnectWait(attempt int) time.Duration {
	d := min(minReconnectWait<<min(attempt-1, 10), maxReconnectWait)
	return d/2 + rand.N(d/2)
}

// up begins a session on a connect or reconnect. It locks mu.
func (p *Publisher) up(conn *natsgo.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil || p.session.conn != conn {
		return
	}
	p.session.end()
	p.session.ctx, p.session.end = context.WithCancel(p.ctx)
	p.report("connection", nil)
	js := p.session.js
	for _, d := range p.destinations {
		d.ready, d.refused = false, true // it may be another server's stream, or changed
		d.verified, d.sample = false, nil
		d.lookupDenied, d.foreign = false, false
		lookups, end := context.WithCancel(p.session.ctx)
		d.lookups, d.endLookups = lookups, end
		d.checked = p.checkpoints.NewStream(d.stream, func(k publishers.Checkpoint) (publishers.Presence, error) {
			return p.lookupCheckpoint(lookups, js, d, k)
		})
		d.requestCheck()
	}
}

// down ends a session after a disconnect, and fails all attempts in flight, lookups included. It locks mu.
func (p *Publisher) down(conn *natsgo.Conn, err error) {
	p.mu.Lock()
	if p.session.conn == conn {
		p.session.end()
		p.failInFlight(natsgo.ErrDisconnected, func(*eventCopy) bool { return true })
	}
	p.mu.Unlock()
	if err == nil || errors.Is(err, natsgo.ErrPermissionViolation) { // which may quote an order
		err = errors.New("the connection was lost")
	}
	p.stillDown(err)
}

// stillDown reports why there is no connection. It locks mu.
func (p *Publisher) stillDown(err error) {
	if errors.Is(err, natsgo.ErrNoServers) {
		return // the error of each server follows
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.session.ctx.Err() != nil && p.ctx.Err() == nil {
		err = fmt.Errorf("bus at %s: %w", p.hosts, p.cfg.connectError(err))
		if p.server == nil { // an embedded one needs no settings
			err = publishers.WithRemedy(err, connectionRemedy(err))
		}
		p.report("connection", err)
	}
}

// connectError returns err with the remedy if TLSFirst is wrong, and without the local port, which changes with each
// attempt.
func (c *Config) connectError(err error) error {
	op, ok := errors.AsType[*net.OpError](err)
	_, noTLS := errors.AsType[tls.RecordHeaderError](err)
	switch {
	case noTLS && c.TLSFirst:
		return fmt.Errorf("%w: the server may be one without handshake_first; unset POSTBRIDGE_NATS_TLS_FIRST", err)
	case !ok:
		return err
	case op.Op == "read" && op.Timeout() && !c.TLSFirst:
		return fmt.Errorf("%s: %w: if the server has handshake_first, set POSTBRIDGE_NATS_TLS_FIRST=true",
			op.Op, op.Err)
	default:
		return fmt.Errorf("%s: %w", op.Op, op.Err)
	}
}

// asyncError handles an error that belongs to no call.
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

// dialer dials connections, one after the other, and closes each at the next dial or at the end of ctx. The library
// dials, and waits for the server's INFO, with its lock held; without this, Close would wait for both. Nor does the
// library close a connection whose login failed.
type dialer struct {
	ctx       context.Context
	timeout   time.Duration
	closeLast func() // nil before the first
}

// Dial implements natsgo.CustomDialer. The library calls it from one goroutine at a time.
func (d *dialer) Dial(network, address string) (net.Conn, error) {
	if d.closeLast != nil {
		d.closeLast()
	}
	conn, err := (&net.Dialer{Timeout: d.timeout}).DialContext(d.ctx, network, address)
	if err == nil {
		ctx, closeConn := context.WithCancel(d.ctx)
		context.AfterFunc(ctx, func() { _ = conn.Close() }) // it may be closed already
		d.closeLast = closeConn
	}
	return conn, err
}
