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
	"time"
)

const (
	// answerTimeout limits connecting, and separately each answer.
	answerTimeout = 30 * time.Second
	// idleLimit is shorter than the idle timeout of servers: a postback on a closed connection would count as lost.
	idleLimit = 5 * time.Second
	// maxAnswer and maxShown limit the bytes of an answer that are read and printed.
	maxAnswer, maxShown = 64 << 10, 200
)

// endpoint is the server that postbacks are sent to.
type endpoint struct {
	address, host string
	dial          func(ctx context.Context, network, address string) (net.Conn, error)
}

// route is the URL path of a broker.
type route struct {
	path  string
	token string // part of path; may be empty
}

// client speaks HTTP/1.1 over one connection. http.Transport needs twice the CPU, often on the machine under load.
type client struct {
	*endpoint
	conn    net.Conn // nil if closed
	answers *bufio.Reader
	used    time.Time
	request []byte // reused
}

// target returns the endpoint of --url and the route of each broker; Dhan has no route without a path token.
func (o *sendOptions) target() (*endpoint, map[string]*route, error) {
	u, err := url.Parse(o.url)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, nil, misuse("--url %q is not a URL; write it like http://127.0.0.1:8080", o.url)
	}
	to := &endpoint{
		address: net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), u.Scheme)), // a scheme is the name of its port
		host:    u.Host, dial: new(net.Dialer).DialContext,
	}
	if u.Scheme == "https" {
		config, err := o.tlsConfig(u.Hostname())
		if err != nil {
			return nil, nil, err
		}
		to.dial = (&tls.Dialer{Config: config}).DialContext
	} else if o.ca != "" {
		return nil, nil, misuse("--ca needs a --url that begins with https")
	}
	routes := make(map[string]*route)
	for broker, tokens := range o.tokens {
		if broker != "dhan" || len(tokens) > 0 {
			token := append(tokens, "")[0]
			routes[broker] = &route{path.Join("/", u.EscapedPath(), broker, token), token}
		}
	}
	return to, routes, nil
}

// tlsConfig trusts --ca, else the certificate of serve on this machine, else the system's CAs. The certificate of serve
// is valid for the name that brokers use, so that name is verified instead of this machine's.
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

// certificateName returns a host name or an IP address for which the first certificate is valid, or "".
func certificateName(text []byte) string {
	block, _ := pem.Decode(text)
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return ""
	}
	names := leaf.DNSNames
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	return strings.Replace(append(names, "")[0], "*", "any", 1)
}

// open connects unless a usable connection is open. After an error nothing was sent.
func (c *client) open(ctx context.Context) (err error) {
	if c.conn != nil && time.Since(c.used) < idleLimit {
		return nil
	}
	c.close()
	ctx, stop := context.WithTimeout(ctx, answerTimeout)
	defer stop()
	conn, err := c.dial(ctx, "tcp", c.address)
	if err != nil {
		return fmt.Errorf("no connection: %w; is postbridge running?", err)
	}
	c.conn, c.answers = conn, bufio.NewReader(conn)
	return nil
}

func (c *client) close() {
	if c.conn != nil {
		_ = c.conn.Close() // no data is lost
		c.conn = nil
	}
}

// post sends a postback once over the open connection and returns the status and the event id of the answer. Status 0
// means no answer; the postback may have arrived. It waits for the answer until ctx's deadline, even if ctx is
// canceled.
func (c *client) post(ctx context.Context, to *route, body []byte) (status int, id string, err error) {
	status, answer, err := c.exchange(ctx, to, body)
	if err != nil {
		c.close()
		return 0, "", fmt.Errorf("not answered: %w", err)
	}
	if status != http.StatusOK {
		return status, "", fmt.Errorf("answered %d: %s", status, to.excerpt(answer))
	}
	id, ok := eventID(answer)
	if !ok {
		id, err = "", errors.New("answered 200 without an event id: is this postbridge?")
	}
	return status, id, err
}

func (c *client) exchange(ctx context.Context, to *route, body []byte) (status int, answer []byte, err error) {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(answerTimeout)
	}
	if err := c.conn.SetDeadline(deadline); err != nil {
		return 0, nil, err
	}
	c.request = fmt.Appendf(c.request[:0], "POST %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: postbridge-send\r\n"+
		"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n", to.path, c.host, len(body))
	c.request = append(c.request, body...)
	if _, err := c.conn.Write(c.request); err != nil {
		return 0, nil, err
	}
	response, err := http.ReadResponse(c.answers, nil)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if c.used = time.Now(); response.Close || len(answer) == maxAnswer {
		c.close()
	}
	return response.StatusCode, answer, err
}

// excerpt returns the beginning of an answer on one line, without the token: another server may echo the path.
func (r *route) excerpt(answer []byte) string {
	text := strings.TrimSpace(string(answer))
	if r.token != "" {
		text = strings.ReplaceAll(text, r.token, "(token)")
	}
	return printable(text[:min(len(text), maxShown)])
}

// eventID returns the event id in the answer to an accepted postback.
func eventID(answer []byte) (id string, ok bool) {
	var a struct{ Status, ID string }
	if json.Unmarshal(answer, &a) != nil || a.Status != "ok" || len(a.ID) != 32 {
		return "", false
	}
	return a.ID, strings.Trim(a.ID, "0123456789abcdef") == ""
}
