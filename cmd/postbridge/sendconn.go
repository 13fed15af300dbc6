package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// answerTimeout is how long connecting may take, and then an answer, unless something else is asked for.
	answerTimeout = 30 * time.Second
	// idleLimit is how long a connection may be unused before it is made anew: the other side closes idle ones, and
	// a postback that meets that would look like a lost one.
	idleLimit = 5 * time.Second
)

// target is where postbacks go.
type target struct {
	address string
	token   string      // in the path; empty if there is none
	tls     *tls.Config // nil for http
	head    []byte      // of every request, up to the length of its body
	timeout time.Duration
}

func newTarget(base, route string) (*target, error) {
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, misuse("send: --url %q is not a URL; write it like http://127.0.0.1:8080", base)
	}
	t := &target{address: u.Host, timeout: answerTimeout}
	_, t.token, _ = strings.Cut(strings.TrimPrefix(route, "/"), "/")
	port := "80"
	if u.Scheme == "https" {
		t.tls, port = &tls.Config{ServerName: u.Hostname()}, "443"
	}
	if u.Port() == "" {
		t.address = net.JoinHostPort(u.Hostname(), port)
	}
	t.head = []byte("POST " + strings.TrimRight(u.EscapedPath(), "/") + route + " HTTP/1.1\r\nHost: " + u.Host +
		"\r\nUser-Agent: postbridge-send\r\nContent-Type: application/json\r\nContent-Length: ")
	return t, nil
}

// trust reads what the other side's certificate is checked against, if that is not the system's: the file ca, or the
// certificate itself that serve on this machine shows. That one is for the name which brokers know, not for this machine's.
func (t *target) trust(ca, certificate string) error {
	switch {
	case t.tls == nil && ca != "":
		return misuse("send: --ca is for a URL that begins with https")
	case ca == "" && certificate == "":
		return nil
	}
	text, _, err := readSecretFile(orElse(ca, certificate))
	if err != nil {
		return ofFile(err)
	}
	t.tls.RootCAs = x509.NewCertPool()
	if !t.tls.RootCAs.AppendCertsFromPEM(text) {
		return misuse("send: %s: no PEM certificate in it", orElse(ca, certificate))
	}
	if certificate != "" {
		t.tls.ServerName, err = nameIn(certificate)
	}
	return err
}

// nameIn is a name that a certificate is for.
func nameIn(file string) (string, error) {
	text, _, err := readSecretFile(file)
	if err != nil {
		return "", ofFile(err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return "", misuse("send: %s: no PEM certificate in it", file)
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	switch {
	case err != nil:
		return "", misuse("send: %s: %v", file, err)
	case len(leaf.DNSNames) > 0:
		return strings.Replace(leaf.DNSNames[0], "*", "any", 1), nil
	case len(leaf.IPAddresses) > 0:
		return leaf.IPAddresses[0].String(), nil
	}
	return "", misuse("send: %s: the certificate is for no name; set --url and --ca", file)
}

func (t *target) dial(ctx context.Context) (net.Conn, error) {
	ctx, stop := context.WithTimeout(ctx, t.timeout)
	defer stop()
	if t.tls != nil {
		return (&tls.Dialer{Config: t.tls}).DialContext(ctx, "tcp", t.address)
	}
	return new(net.Dialer).DialContext(ctx, "tcp", t.address)
}

// connection posts over one connection at a time. It is a load generator that shares its processors with what it loads,
// hence no http.Client; and it never sends anything twice, which an http.Client now and then does.
type connection struct {
	*target
	conn    net.Conn // nil if there is none
	reader  *bufio.Reader
	used    time.Time
	request []byte
}

// open makes sure that there is a connection.
func (c *connection) open(ctx context.Context) error {
	if c.conn != nil && time.Since(c.used) < idleLimit {
		return nil
	}
	c.close()
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	c.conn, c.reader, c.used = conn, bufio.NewReader(conn), time.Now()
	return nil
}

func (c *connection) close() {
	if c.conn != nil {
		_ = c.conn.Close() // nothing is lost with it
		c.conn = nil
	}
}

// post sends one postback and reads the answer. After an error nobody knows whether it arrived.
func (c *connection) post(body []byte) (status int, answer []byte, err error) {
	c.request = strconv.AppendInt(append(c.request[:0], c.head...), int64(len(body)), 10)
	c.request = append(append(c.request, "\r\n\r\n"...), body...)
	status, answer, err = c.exchange()
	if err != nil {
		c.close()
	}
	c.used = time.Now()
	return status, answer, err
}

func (c *connection) exchange() (status int, answer []byte, err error) {
	if err := c.conn.SetDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, nil, err
	}
	if _, err := c.conn.Write(c.request); err != nil {
		return 0, nil, err
	}
	response, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(response.Body, 64<<10))
	if response.StatusCode != http.StatusOK {
		answer = c.shown(answer)
	}
	if err == nil && response.Close {
		c.close()
	}
	return response.StatusCode, answer, err
}

// shownAnswer is how much of an answer is shown.
const shownAnswer = 200

// shown is what to show of an answer, which may be somebody else's: one line that is not long, and without the token, since
// some servers repeat the path.
func (t *target) shown(answer []byte) []byte {
	text := strings.TrimSpace(string(answer))
	if t.token != "" {
		text = strings.ReplaceAll(text, t.token, "(token)")
	}
	return []byte(printable(text[:min(len(text), shownAnswer)]))
}

// eventID is the id in the answer to an accepted postback.
func eventID(answer []byte) (id string, ok bool) {
	var a struct{ Status, ID string }
	if json.Unmarshal(answer, &a) != nil || a.Status != "ok" || len(a.ID) != 32 {
		return "", false
	}
	return a.ID, strings.Trim(a.ID, "0123456789abcdef") == ""
}

// lossOf is why there is no answer, in a few words to count by.
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
