package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"syscall"
	"time"
)

const (
	// answerTimeout is for connecting, and then again for the answer.
	answerTimeout = 30 * time.Second
	// idleLimit is shorter than what servers allow: a postback on a closed connection would count as lost.
	idleLimit = 5 * time.Second
	// maxAnswer is how many bytes of an answer are read, maxShown how many of them are shown.
	maxAnswer, maxShown = 64 << 10, 200
)

// target is a route of postbridge and the idle connections to it.
type target struct {
	address, host, path string
	token               string // part of the path; empty if there is none
	connect             func(ctx context.Context, network, address string) (net.Conn, error)
	idle                chan *connection
}

// connection speaks HTTP/1.1. With http.Transport send needs twice the CPU, often on the machine that it loads.
type connection struct {
	net.Conn
	answers *bufio.Reader
	used    time.Time
}

// dialError reports a connection that could not be opened, so that nothing was sent.
type dialError struct{ error }

func (e *dialError) Error() string {
	return fmt.Sprintf("no connection: %v; is postbridge running?", e.error)
}

// target returns the route of a broker.
func (o *sendOptions) target(broker, token string) (*target, error) {
	u, err := url.Parse(o.url)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, misuse("--url %q is not a URL; write it like http://127.0.0.1:8080", o.url)
	}
	t := &target{
		address: net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), u.Scheme)), // a scheme is the name of its port
		host:    u.Host, path: path.Join("/", u.EscapedPath(), broker, token), token: token,
		connect: new(net.Dialer).DialContext, idle: make(chan *connection, o.connections),
	}
	if u.Scheme == "https" {
		config, err := o.tlsConfig(u.Hostname())
		if err != nil {
			return nil, err
		}
		t.connect = (&tls.Dialer{Config: config}).DialContext
	} else if o.ca != "" {
		return nil, misuse("--ca is for a URL that begins with https")
	}
	return t, nil
}

// connection returns an idle connection or a new one.
func (t *target) connection(ctx context.Context) (*connection, error) {
	select {
	case c := <-t.idle:
		if time.Since(c.used) < idleLimit {
			return c, nil
		}
		_ = c.Close() // nothing is lost with it
	default:
	}
	ctx, stop := context.WithTimeout(ctx, answerTimeout)
	defer stop()
	conn, err := t.connect(ctx, "tcp", t.address)
	if err != nil {
		return nil, &dialError{err}
	}
	return &connection{Conn: conn, answers: bufio.NewReader(conn)}, nil
}

// tlsConfig trusts --ca, or the certificate of serve on this machine, or else the system's CAs. The certificate of
// serve is for the name that brokers use, not for this machine's.
func (o *sendOptions) tlsConfig(host string) (*tls.Config, error) {
	c := &tls.Config{ServerName: host}
	for _, file := range []string{o.certificate, o.ca} { // the last one is trusted
		if file == "" {
			continue
		}
		text, _, err := readSecretFile(file)
		if err != nil {
			return nil, err
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(text) {
			return nil, misuse("%s: no PEM certificate in it", file)
		}
		if file == o.certificate {
			if c.ServerName = certificateName(text); c.ServerName == "" {
				return nil, misuse("%s: the certificate is for no name; set --url and --ca", file)
			}
		}
	}
	return c, nil
}

// certificateName returns a host name or an address for which the first certificate is valid, or nothing.
func certificateName(text []byte) string {
	block, _ := pem.Decode(text)
	leaf, err := x509.ParseCertificate(block.Bytes)
	switch {
	case err == nil && len(leaf.DNSNames) > 0:
		return strings.Replace(leaf.DNSNames[0], "*", "any", 1)
	case err == nil && len(leaf.IPAddresses) > 0:
		return leaf.IPAddresses[0].String()
	}
	return ""
}

// post sends a postback once and returns the id of its event. An error with status 0 means that there was no answer:
// unless it is a dialError, the postback may have arrived. An answer is waited for until ctx's deadline, also if ctx
// is canceled.
func (t *target) post(ctx context.Context, body []byte) (status int, id string, err error) {
	c, err := t.connection(ctx)
	if err != nil {
		return 0, "", err
	}
	status, answer, keep, err := c.exchange(ctx, fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\n"+
		"User-Agent: postbridge-send\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		t.path, t.host, len(body), body))
	if keep {
		t.idle <- c
	} else {
		_ = c.Close() // nothing is lost with it
	}
	id, ok := eventID(answer)
	switch {
	case err != nil:
		return 0, "", fmt.Errorf("not answered: %w", err)
	case status != http.StatusOK:
		return status, "", fmt.Errorf("answered %d: %s", status, t.shown(answer))
	case !ok:
		return status, "", errors.New("answered 200 without an event id: is this postbridge?")
	}
	return status, id, nil
}

func (c *connection) exchange(ctx context.Context, request []byte) (status int, answer []byte, keep bool, err error) {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(answerTimeout)
	}
	if err := c.SetDeadline(deadline); err != nil {
		return 0, nil, false, err
	}
	if _, err := c.Write(request); err != nil {
		return 0, nil, false, err
	}
	response, err := http.ReadResponse(c.answers, nil)
	if err != nil {
		return 0, nil, false, err
	}
	defer response.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	c.used = time.Now()
	return response.StatusCode, answer, err == nil && !response.Close && len(answer) < maxAnswer, err
}

// shown returns the beginning of an answer as one line without the token: another server may repeat the path.
func (t *target) shown(answer []byte) string {
	text := strings.TrimSpace(string(answer))
	if t.token != "" {
		text = strings.ReplaceAll(text, t.token, "(token)")
	}
	return printable(text[:min(len(text), maxShown)])
}

// eventID returns the id in the answer to an accepted postback.
func eventID(answer []byte) (id string, ok bool) {
	var a struct{ Status, ID string }
	if json.Unmarshal(answer, &a) != nil || a.Status != "ok" || len(a.ID) != 32 {
		return "", false
	}
	return a.ID, strings.Trim(a.ID, "0123456789abcdef") == ""
}

// lossOf names the reason why there is no answer, to count by.
func lossOf(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "connection reset"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "connection closed"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	default:
		return "other"
	}
}
