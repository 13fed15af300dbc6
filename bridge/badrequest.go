package bridge

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// The reasons of postbridge_bad_requests_total: requests that net/http or TLS rejects before a handler sees them.
const (
	badHeaderSize = "header_too_large"
	badMalformed  = "malformed"
	badPlainHTTP  = "plain_http"
	badProxy      = "proxy_protocol"
	badHandshake  = "tls_handshake"
)

// remedies returns what the operator can do about bad requests, by reason.
func remedies() map[string]string {
	return map[string]string{
		badHeaderSize: "let the proxy in front add less: a header is 16 KiB at most",
		badMalformed:  "send HTTP/1.1; scanners can be ignored",
		badPlainHTTP:  "post to https://, or unset POSTBRIDGE_TLS_CERT_FILE behind a proxy that terminates TLS",
		badProxy:      "switch the PROXY protocol off at the load balancer",
		badHandshake:  "clients need TLS 1.2 and have to trust the certificate; scanners can be ignored",
	}
}

// wire is a connection below TLS. It remembers the first bytes received, as many as PROXY protocol v2 has in its
// signature.
type wire struct {
	*net.TCPConn
	first []byte
}

const proxyV1, proxyV2 = "PROXY ", "\r\n\r\n\x00\r\nQUIT\n"

// Read implements net.Conn and remembers the first bytes.
func (w *wire) Read(b []byte) (int, error) {
	n, err := w.TCPConn.Read(b)
	w.first = append(w.first, b[:min(n, len(proxyV2)-len(w.first))]...)
	return n, err
}

// proxied reports whether the connection began with a PROXY protocol header.
func (w *wire) proxied() bool {
	return bytes.HasPrefix(w.first, []byte(proxyV1)) || string(w.first) == proxyV2
}

// Read implements net.Conn. It counts a failed TLS handshake, unless the client sent nothing, as probes do, or this
// side closed the connection.
//
// While answering is set it returns nothing at once. Only the background read of net/http calls it then, to cancel the
// context of the request if the client disconnects; a postback is stored nevertheless. To start and to interrupt that
// read costs more than to read the request.
func (c *connection) Read(b []byte) (int, error) {
	if c.answering.Load() {
		return 0, nil
	}
	n, err := c.Conn.Read(b)
	if err == nil || len(c.wire.first) == 0 || errors.Is(err, net.ErrClosed) {
		return n, err
	}
	t, ok := c.Conn.(*tls.Conn)
	var plain tls.RecordHeaderError
	switch {
	case !ok || t.ConnectionState().HandshakeComplete:
	case c.wire.proxied():
		c.reject(badProxy, err)
	case errors.As(err, &plain) && c.wire.first[0] >= 'A' && c.wire.first[0] <= 'Z': // an HTTP method
		c.reject(badPlainHTTP, err)
		_, _ = io.WriteString(c.wire, "HTTP/1.0 400 Bad Request\r\n\r\nthis port speaks TLS; use https\n")
	default:
		c.reject(badHandshake, err)
	}
	return n, err
}

// Write implements net.Conn. An answer without a handler is net/http's own, to a request that it cannot parse.
func (c *connection) Write(b []byte) (int, error) {
	if !c.handled {
		status, _, _ := bytes.Cut(b, []byte("\r\n"))
		switch {
		case c.wire.proxied():
			c.reject(badProxy, nil)
		case bytes.Contains(status, []byte(" 431 ")):
			c.reject(badHeaderSize, nil)
		default:
			c.reject(badMalformed, nil)
		}
	}
	return c.Conn.Write(b)
}

// CloseWrite shuts down the sending side. net/http calls it so that its answer arrives before the connection is reset.
func (c *connection) CloseWrite() error {
	return c.Conn.(interface{ CloseWrite() error }).CloseWrite()
}

// reject counts and logs a bad request, once for each connection. net/http reads no further request after one.
func (c *connection) reject(reason string, err error) {
	if c.bad || c.of.rejected == nil {
		return
	}
	c.bad = true
	c.of.rejected(reason)
	if !c.of.logged.allow(reason) {
		return
	}
	attrs := []any{"reason", reason, "from", c.RemoteAddr().String(), "remedy", remedies()[reason]}
	if err != nil {
		attrs = append(attrs, "error", err)
	}
	c.of.log.Warn(
		"rejected requests that are not valid HTTP or TLS; postbridge_bad_requests_total counts them",
		attrs...)
}

// logLimit allows one log line per subject and logInterval, so that clients cannot fill the log. The subjects are
// from a closed set.
type logLimit struct {
	mu   sync.Mutex
	last map[string]time.Time
}

const logInterval = time.Minute

func (l *logLimit) allow(subject string) bool {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if last, ok := l.last[subject]; ok && now.Sub(last) < logInterval {
		return false
	}
	if l.last == nil {
		l.last = make(map[string]time.Time)
	}
	l.last[subject] = now
	return true
}
