package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/postbridge/postbridge/brokers"
)

const (
	// answerTimeout limits a postback, from connecting to the end of its answer.
	answerTimeout = 30 * time.Second
	// idleLimit is shorter than the idle timeout of servers: a postback on a closed connection would count as lost.
	idleLimit = 5 * time.Second
	// maxAnswer and maxShown limit the bytes of an answer that are read and printed.
	maxAnswer, maxShown = 64 << 10, 200
)

// target is the server that postbacks are sent to.
type target struct {
	transport *http.Transport
	routes    map[string]*route // by broker
}

// route is the URL of a broker's postbacks.
type route struct {
	url   string
	token string // part of url; may be empty
}

// answer is the outcome of a postback.
type answer struct {
	connected bool   // else nothing was sent
	status    int    // 0 for no answer; the postback may have arrived
	id        string // of the event
	err       error  // nil if the postback was accepted
}

// newTarget returns the server of --url. The end of ctx keeps it from connecting.
func (o *sendOptions) newTarget(ctx context.Context) (*target, error) {
	u, err := url.Parse(o.url)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, misuse("--url %q is not a URL; write it like http://127.0.0.1:8080", o.url)
	}
	if o.ca != "" && u.Scheme == "http" {
		return nil, misuse("--ca needs a --url that begins with https")
	}
	config, err := o.tlsConfig()
	if err != nil {
		return nil, err
	}
	t := &target{routes: make(map[string]*route), transport: &http.Transport{
		DialContext: func(_ context.Context, network, address string) (net.Conn, error) {
			return (&net.Dialer{Timeout: answerTimeout}).DialContext(ctx, network, address)
		},
		TLSClientConfig: config, MaxIdleConnsPerHost: o.connections, IdleConnTimeout: idleLimit,
		DisableCompression: true,
	}}
	for broker, profile := range profiles() {
		token := append(o.tokens[broker], "")[0]
		if token != "" || profile.signed {
			t.routes[broker] = &route{u.JoinPath(broker, url.PathEscape(token)).String(), token}
		}
	}
	return t, nil
}

// tlsConfig trusts --ca, else the certificate of serve on this machine, else the system's CAs.
func (o *sendOptions) tlsConfig() (*tls.Config, error) {
	file := cmp.Or(o.ca, o.certificate)
	if file == "" {
		return new(tls.Config), nil
	}
	text, err := readSecretFile(file)
	if err != nil {
		return nil, err
	}
	c := &tls.Config{RootCAs: x509.NewCertPool()}
	if !c.RootCAs.AppendCertsFromPEM(text) {
		return nil, misuse("%s: no PEM certificate in it", file)
	}
	if o.ca == "" {
		// The certificate of serve is for the name that brokers use, so it is verified without a name.
		c.InsecureSkipVerify = true
		c.VerifyConnection = func(s tls.ConnectionState) error {
			_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: c.RootCAs})
			return err
		}
	}
	return c, nil
}

// route returns the route of a broker.
func (t *target) route(broker string) (*route, error) {
	r := t.routes[broker]
	switch {
	case r != nil:
		return r, nil
	case slices.Contains(brokers.Names(), broker):
		return nil, fmt.Errorf("the route of %s needs a path token; set --token or POSTBRIDGE_%s_TOKENS",
			broker, strings.ToUpper(broker))
	}
	return nil, fmt.Errorf("unknown broker %q", broker)
}

// post sends a postback at most once: the transport retries a POST only if it wrote nothing of it. Once connected, only
// the timeout ends it, not an interrupt: the postback may have been accepted.
func (t *target) post(to *route, body []byte, timeout time.Duration) (a answer) {
	ctx, stop := context.WithTimeout(context.Background(), timeout)
	defer stop()
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { a.connected = true },
	})
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, to.url, bytes.NewReader(body))
	if err != nil {
		return answer{err: err}
	}
	request.Header.Set("User-Agent", "postbridge-send")
	request.Header.Set("Content-Type", "application/json")
	response, err := t.transport.RoundTrip(request)
	var text []byte
	if err == nil {
		defer response.Body.Close()
		text, err = io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	}
	switch {
	case !a.connected:
		a.err = fmt.Errorf("no connection: %w; is postbridge running?", err)
		return a
	case err != nil:
		a.err = fmt.Errorf("not answered: %w", err)
		return a
	}
	if a.status = response.StatusCode; a.status != http.StatusOK {
		a.err = fmt.Errorf("answered %d: %s", a.status, to.excerpt(text))
	} else if a.id = eventID(text); a.id == "" {
		a.err = errors.New("answered 200 without an event id: is this postbridge?")
	}
	return a
}

// excerpt returns the beginning of an answer on one line, without the token: another server may echo the path.
func (r *route) excerpt(answer []byte) string {
	text := strings.TrimSpace(string(answer))
	if r.token != "" {
		text = strings.ReplaceAll(text, r.token, "(token)")
	}
	return printable(text[:min(len(text), maxShown)])
}

// eventID returns the event id in the answer to an accepted postback, or "".
func eventID(answer []byte) string {
	var a struct{ Status, ID string }
	if json.Unmarshal(answer, &a) != nil || a.Status != "ok" || len(a.ID) != 32 ||
		strings.Trim(a.ID, "0123456789abcdef") != "" {
		return ""
	}
	return a.ID
}
