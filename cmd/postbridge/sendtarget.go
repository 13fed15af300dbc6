package main

import (
	"bytes"
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
	"strings"
	"syscall"
	"time"
)

const (
	// answerTimeout is for connecting, and then again for the answer.
	answerTimeout = 30 * time.Second
	// idleLimit is shorter than what servers allow: a postback on a connection that is being closed would count as lost.
	idleLimit = 5 * time.Second
	// maxAnswer is how many bytes of an answer are read, maxShown how many of them are shown.
	maxAnswer, maxShown = 64 << 10, 200
)

// target is a route of postbridge and the connections to it.
type target struct {
	url, token string // the path token is part of the URL, too; empty if there is none
	transport  *http.Transport
}

// dialError reports a connection that could not be opened, so that nothing was sent.
type dialError struct{ error }

func (e *dialError) Error() string {
	return fmt.Sprintf("no connection: %v; is postbridge running?", e.error)
}

// target returns the route of a broker. Connections are opened only until ctx ends.
func (o *sendOptions) target(ctx context.Context, broker, token string) (*target, error) {
	u, err := url.Parse(o.url)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, misuse("--url %q is not a URL; write it like http://127.0.0.1:8080", o.url)
	}
	connect := new(net.Dialer).DialContext
	if u.Scheme == "https" {
		config, err := o.tlsConfig(u.Hostname())
		if err != nil {
			return nil, err
		}
		connect = (&tls.Dialer{Config: config}).DialContext
	} else if o.ca != "" {
		return nil, misuse("--ca is for a URL that begins with https")
	}
	dial := func(_ context.Context, network, address string) (net.Conn, error) {
		ctx, stop := context.WithTimeout(ctx, answerTimeout)
		defer stop()
		conn, err := connect(ctx, network, address)
		if err != nil {
			return nil, &dialError{err}
		}
		return conn, nil
	}
	return &target{u.JoinPath(broker, token).String(), token, &http.Transport{
		DialContext: dial, DialTLSContext: dial,
		MaxIdleConnsPerHost: o.connections, IdleConnTimeout: idleLimit, ResponseHeaderTimeout: answerTimeout,
	}}, nil
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
// unless it is a dialError, the postback may have arrived.
func (t *target) post(ctx context.Context, body []byte) (status int, id string, err error) {
	ctx, stop := context.WithTimeout(ctx, 2*answerTimeout) // also of an answer that begins and does not end
	defer stop()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, t.url, bytes.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", "postbridge-send")
	// No http.Client: it follows redirects, and its errors contain the URL. A Transport sends a POST again only if no
	// byte of it has left.
	response, err := t.transport.RoundTrip(r)
	if refused := new(dialError); errors.As(err, &refused) {
		return 0, "", err
	}
	var answer []byte
	if err == nil {
		defer response.Body.Close()
		answer, err = io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	}
	if err != nil {
		return 0, "", fmt.Errorf("not answered: %w", err)
	}
	id, ok := eventID(answer)
	switch {
	case response.StatusCode != http.StatusOK:
		return response.StatusCode, "", fmt.Errorf("answered %d: %s", response.StatusCode, t.shown(answer))
	case !ok:
		return http.StatusOK, "", errors.New("answered 200 without an event id: is this postbridge?")
	}
	return http.StatusOK, id, nil
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
