package kafka

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/apiversions"

	"github.com/postbridge/postbridge/publishers/tlsfiles"
)

const (
	// handshakeTimeout is how long a broker may take to let us in: dial, TLS, versions and login together.
	handshakeTimeout = 5 * time.Second
	// fallbackTimeout is how long a request may take whose context has no deadline.
	fallbackTimeout = 30 * time.Second
	// maxIdle is how long a connection is kept for the next request: brokers and load balancers cut idle ones.
	maxIdle = time.Minute
	// maxAnswer is the size in bytes that no broker's answer reaches. What is not Kafka seems larger: text in ASCII by
	// far, and a TLS alert, too.
	maxAnswer = 100 << 20
	// guessAfter is how many new connections in a row a broker closes before we guess that it is for a setting: one that
	// is just starting or stopping does that, too.
	guessAfter = 3
)

// NewClient returns a client of the same cluster as the publisher's, for a valid configuration. What names no broker goes
// to the first configured. The password and the TLS files are read again at each connect. end ends its connections.
func NewClient(cfg Config) (client *kafkago.Client, end func()) {
	t := newTransport(cfg, tlsfiles.New(cfg.TLSCAFile, cfg.TLSCertFile, cfg.TLSKeyFile, func(error) {}))
	return &kafkago.Client{Addr: kafkago.TCP(cfg.Brokers[0]), Transport: t}, t.close
}

// transport is the kafka.RoundTripper under kafka.Client: it sends each request to the broker it names, over
// connections that are kept for the next. The library's own picks the broker itself, by metadata that it keeps; it waits
// for a login without a deadline, and after a restart of a broker it runs into each dead connection in turn.
type transport struct {
	cfg          Config
	certificates *tlsfiles.Files // nil without TLS files
	ctx          context.Context // ends when the transport is closed
	end          context.CancelFunc
	// answered says that some broker answered a request: so it is not the configuration that keeps us out.
	answered atomic.Bool

	mu sync.Mutex
	// Guarded by mu.
	idle     map[string][]*connection // by address; the one used last is last
	epoch    int                      // counts renewals
	closings map[string]int           // by address: how many new connections in a row were closed
}

var _ kafkago.RoundTripper = (*transport)(nil)

func newTransport(cfg Config, certificates *tlsfiles.Files) *transport {
	t := &transport{cfg: cfg, certificates: certificates, idle: make(map[string][]*connection), closings: make(map[string]int)}
	t.ctx, t.end = context.WithCancel(context.Background())
	return t
}

// RoundTrip sends a request to the broker at addr and returns its answer. It does not try again. With an error, the broker
// may have done what was asked all the same.
func (t *transport) RoundTrip(ctx context.Context, addr net.Addr, req kafkago.Request) (kafkago.Response, error) {
	if _, ok := ctx.Deadline(); !ok {
		limited, end := context.WithTimeout(ctx, fallbackTimeout)
		defer end()
		ctx = limited
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(t.ctx, cancel)()

	address := addr.String()
	closed := &brokerError{address: address, text: "the connections were closed", cause: net.ErrClosed}
	if t.ctx.Err() != nil {
		return nil, closed
	}
	answer, err := t.roundTrip(ctx, address, req)
	if err != nil && t.ctx.Err() != nil {
		return nil, closed
	}
	return answer, err
}

func (t *transport) roundTrip(ctx context.Context, address string, req protocol.Message) (protocol.Message, error) {
	c, err := t.take(ctx, address)
	if err != nil {
		return nil, err
	}
	if err := c.takes(req.ApiKey()); err != nil {
		t.put(c)
		return nil, err
	}
	stop := context.AfterFunc(ctx, c.close)
	answer, err := c.exchange(req)
	stopped := stop()
	switch {
	case err != nil && !errors.Is(err, protocol.ErrNoRecord): // that is found before anything is sent
		c.close()
		t.drop(c.address)
		return nil, t.requestError(ctx, c, req.ApiKey(), err)
	case !stopped:
		return answer, err // it is being closed
	}
	c.used = true
	if err == nil {
		t.answered.Store(true)
	}
	t.put(c)
	return answer, err
}

// renew makes sure that connections made until now are used for no further request: a secret or a certificate changed.
func (t *transport) renew() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.epoch++
	t.closeIdle()
}

// close ends all connections, also those with a request under way. Requests fail from then on.
func (t *transport) close() {
	t.end()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closeIdle()
}

// closeIdle ends all connections that no request uses. Guarded by mu.
func (t *transport) closeIdle() {
	for _, list := range t.idle {
		for _, c := range list {
			c.close()
		}
	}
	clear(t.idle)
}

// take returns the connection to the address that was used last, or a new one.
func (t *transport) take(ctx context.Context, address string) (*connection, error) {
	t.mu.Lock()
	t.expire(time.Now())
	var c *connection
	if list := t.idle[address]; len(list) > 0 {
		last := len(list) - 1
		c, list[last], t.idle[address] = list[last], nil, list[:last]
	}
	epoch := t.epoch // before the password and the certificates are read
	t.mu.Unlock()
	if c != nil {
		return c, nil
	}
	return t.connect(ctx, address, epoch)
}

// expire closes what was idle for too long, of brokers that nobody asks any more, too. Guarded by mu.
func (t *transport) expire(now time.Time) {
	for address, list := range t.idle {
		list = slices.DeleteFunc(list, func(c *connection) bool {
			over := now.After(c.until)
			if over {
				c.close()
			}
			return over
		})
		if t.idle[address] = list; len(list) == 0 {
			delete(t.idle, address)
		}
	}
}

// put keeps a connection for the next request.
func (t *transport) put(c *connection) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx.Err() != nil || c.epoch != t.epoch {
		c.close()
		return
	}
	c.until = time.Now().Add(maxIdle)
	if !c.expires.IsZero() && c.expires.Before(c.until) {
		c.until = c.expires
	}
	t.idle[c.address] = append(t.idle[c.address], c)
}

// drop ends the idle connections to an address: when one of them fails, the others are dead most likely.
func (t *transport) drop(address string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.idle[address] {
		c.close()
	}
	delete(t.idle, address)
}

// connect makes a connection that is ready for requests.
func (t *transport) connect(ctx context.Context, address string, epoch int) (*connection, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		t.row(address, false)
		return nil, dialError(ctx, address, err)
	}
	c := &connection{address: address, epoch: epoch, conn: conn}
	stop := context.AfterFunc(ctx, c.close)
	err = t.handshake(ctx, c)
	if !stop() && err == nil {
		err = outage(ctx, address, ctx.Err(), phrases{})
	}
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// handshake does what comes before the first request.
func (t *transport) handshake(ctx context.Context, c *connection) error {
	stream := c.conn
	if t.cfg.tls() {
		secure, err := t.startTLS(ctx, c)
		if err != nil {
			return err
		}
		stream = secure
	}
	c.protocol = protocol.NewConn(&answers{Conn: stream, reader: bufio.NewReader(stream)}, "postbridge")
	if err := c.negotiate(); err != nil {
		return t.negotiateError(ctx, c, err)
	}
	if t.cfg.SASLMechanism == "" {
		return nil
	}
	return t.login(ctx, c)
}

// startTLS uses the files as they are now.
func (t *transport) startTLS(ctx context.Context, c *connection) (net.Conn, error) {
	host, _, err := net.SplitHostPort(c.address)
	if err != nil {
		return nil, &brokerError{address: c.address, text: "is not host:port", cause: err}
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
	if t.certificates != nil {
		pool, pair, err := t.certificates.Current()
		if err != nil {
			return nil, t.filesError(err)
		}
		config.RootCAs = pool
		if t.certificates.HasPair() {
			// Shown also if it is not of an authority that the broker names, so that the broker says what it does not like.
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		}
	}
	conn := tls.Client(c.conn, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, t.tlsError(ctx, c, err)
	}
	return conn, nil
}

// connection is one to a broker, for one request at a time.
type connection struct {
	address  string // of the broker
	epoch    int    // of the transport, when it was made
	conn     net.Conn
	protocol *protocol.Conn
	offers   map[protocol.ApiKey]apiversions.ApiKeyResponse // what the broker takes
	expires  time.Time                                      // when the login ends; zero if it does not

	// Owned by who took it.
	used  bool      // a request was answered
	until time.Time // when it was idle for too long
}

// close ends it at once: not with TLS's word of goodbye, which may have to wait for a broker that does not read.
func (c *connection) close() { _ = c.conn.Close() }

// negotiate asks the broker for the versions that it takes of each request, and picks them.
func (c *connection) negotiate() error {
	answer, err := c.exchange(new(apiversions.Request))
	if err != nil {
		return err
	}
	offers, ok := answer.(*apiversions.Response)
	if !ok {
		return fmt.Errorf("unexpected %T", answer)
	}
	if offers.ErrorCode != 0 {
		return kafkago.Error(offers.ErrorCode)
	}
	c.offers = make(map[protocol.ApiKey]apiversions.ApiKeyResponse, len(offers.ApiKeys))
	picked := make(map[protocol.ApiKey]int16, len(offers.ApiKeys))
	for _, offer := range offers.ApiKeys {
		key := protocol.ApiKey(offer.ApiKey)
		c.offers[key] = offer
		picked[key] = key.SelectVersion(offer.MinVersion, offer.MaxVersion)
	}
	c.protocol.SetVersions(picked)
	return nil
}

// takes returns an error if there is no version of a request that the broker takes. Sent all the same, it would end the
// connection without a word.
func (c *connection) takes(key protocol.ApiKey) error {
	offer, ok := c.offers[key]
	if ok && offer.MinVersion <= key.MaxVersion() && key.MinVersion() <= offer.MaxVersion {
		return nil
	}
	text := fmt.Sprintf("takes no %s", key)
	if ok {
		text = fmt.Sprintf("takes %s in versions %d to %d only, this is sent in %d to %d", key,
			offer.MinVersion, offer.MaxVersion, key.MinVersion(), key.MaxVersion())
	}
	return &brokerError{address: c.address, text: text, cause: kafkago.UnsupportedVersion}
}

// exchange sends a request and reads the answer.
func (c *connection) exchange(req protocol.Message) (answer protocol.Message, err error) {
	defer func() {
		// The library allocates what an answer says, and panics at what cannot be.
		if p := recover(); p != nil {
			answer, err = nil, fmt.Errorf("the answer to %s cannot be decoded: %v", req.ApiKey(), p)
		}
	}()
	return c.protocol.RoundTrip(req)
}

// answers lets through the answers of a broker, if they say a size that can be: the library would panic at a negative
// one, and allocate gigabytes for what is no answer but text.
type answers struct {
	net.Conn
	reader *bufio.Reader
	left   int // of the current answer
}

// Read is called by the library.
func (a *answers) Read(b []byte) (int, error) {
	if a.left == 0 {
		head, err := a.reader.Peek(4)
		if err != nil {
			return 0, err
		}
		size := binary.BigEndian.Uint32(head)
		if size > maxAnswer {
			return 0, &sizeError{[4]byte(head)}
		}
		a.left = 4 + int(size)
	}
	n, err := a.reader.Read(b[:min(len(b), a.left)])
	a.left -= n
	return n, err
}

// sizeError is what comes instead of an answer's size.
type sizeError struct{ head [4]byte }

// Error is part of the error interface.
func (e *sizeError) Error() string {
	return fmt.Sprintf("does not speak Kafka: an answer starts with %q", e.head[:])
}

// tlsAlert reports whether it is the alert that a TLS server ends a connection with that does not start with TLS.
func (e *sizeError) tlsAlert() bool { return e.head[0] == 21 && e.head[1] == 3 }
