package kafka

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/apiversions"

	"github.com/postbridge/postbridge/publishers/tlsfiles"
)

const (
	// handshakeTimeout limits dial, TLS, version negotiation and login together.
	handshakeTimeout = 5 * time.Second
	// maxRequestTime limits every request, also without a deadline of its own.
	maxRequestTime = 30 * time.Second
	// maxIdle is how long a connection is kept for the next request: brokers and load balancers close idle ones.
	maxIdle = time.Minute
	// maxAnswer is above the size in bytes of any answer of a broker. Text in ASCII and a TLS alert read as larger
	// sizes.
	maxAnswer = 100 << 20
)

// NewClient returns a client of the publisher's cluster, for a valid configuration. A request that names no broker goes
// to the first configured one. The password and the TLS files are read again at each connect. end closes the
// connections.
func NewClient(cfg Config) (client *kafkago.Client, end func()) {
	t := newTransport(cfg, func(error) {})
	return &kafkago.Client{Addr: kafkago.TCP(cfg.Brokers[0]), Transport: t}, t.close
}

// transport is the kafka.RoundTripper under kafka.Client: it sends each request to the broker that the request names,
// and keeps connections for the next request. kafka-go's own transport chooses the broker itself from metadata it
// caches, logs in without a deadline, and after a broker's restart fails once for each dead connection.
type transport struct {
	cfg          Config
	certificates *tlsfiles.Files // nil without TLS files
	ctx          context.Context // ends when the transport is closed
	end          context.CancelFunc

	mu sync.Mutex
	// Guarded by mu.
	idle  []*connection // the one used last is last
	epoch int           // counts renewals
}

var _ kafkago.RoundTripper = (*transport)(nil)

// newTransport returns a transport; report is called with the error or nil of each reading of the TLS files.
func newTransport(cfg Config, report func(error)) *transport {
	t := &transport{cfg: cfg, certificates: tlsfiles.New(cfg.TLSCAFile, cfg.TLSCertFile, cfg.TLSKeyFile, report)}
	t.ctx, t.end = context.WithCancel(context.Background())
	return t
}

// RoundTrip sends a request once to the broker at addr and returns the answer. A broker may have carried out a request
// that returns an error.
func (t *transport) RoundTrip(ctx context.Context, addr net.Addr, req kafkago.Request) (kafkago.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, maxRequestTime)
	defer cancel()
	defer context.AfterFunc(t.ctx, cancel)()
	answer, err := t.roundTrip(ctx, addr.String(), req)
	if err != nil && t.ctx.Err() != nil {
		err = &brokerError{addr.String(), req.ApiKey().String(), net.ErrClosed}
	}
	return answer, err
}

func (t *transport) roundTrip(ctx context.Context, address string, req protocol.Message) (protocol.Message, error) {
	c, err := t.take(ctx, address)
	if err != nil {
		return nil, err
	}
	op := req.ApiKey().String()
	if _, ok := c.versions[req.ApiKey()]; !ok {
		t.put(c)
		return nil, c.failed(ctx, op, kafkago.UnsupportedVersion)
	}
	stop := context.AfterFunc(ctx, c.close)
	answer, err := c.exchange(req)
	open := stop()
	if err != nil {
		c.close()
		t.drop(address)
		return nil, c.failed(ctx, op, err)
	}
	if open {
		t.put(c)
	}
	return answer, nil
}

// close closes all connections, also those with a request in flight. Requests fail from then on.
func (t *transport) close() {
	t.end()
	t.renew()
}

// certificatesChanged reads the TLS files, and reports whether they changed.
func (t *transport) certificatesChanged() bool {
	return t.certificates != nil && t.certificates.Changed()
}

// renew makes every later request use a new connection: a secret or a certificate changed.
func (t *transport) renew() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.epoch++
	t.closeIdle(func(*connection) bool { return true })
}

// take returns the connection to the address that was used last, or a new one.
func (t *transport) take(ctx context.Context, address string) (*connection, error) {
	t.mu.Lock()
	now := time.Now()
	// Also connections to brokers that get no request any more.
	t.closeIdle(func(c *connection) bool { return now.After(c.until) })
	epoch := t.epoch // read before the password and the certificates
	for i, c := range slices.Backward(t.idle) {
		if c.address == address {
			t.idle = slices.Delete(t.idle, i, i+1)
			t.mu.Unlock()
			return c, nil
		}
	}
	t.mu.Unlock()
	return t.connect(ctx, address, epoch)
}

// drop closes the idle connections to an address: when one of them fails, the others are most likely dead.
func (t *transport) drop(address string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closeIdle(func(c *connection) bool { return c.address == address })
}

// closeIdle closes some idle connections. Needs mu.
func (t *transport) closeIdle(some func(*connection) bool) {
	t.idle = slices.DeleteFunc(t.idle, func(c *connection) bool {
		over := some(c)
		if over {
			c.close()
		}
		return over
	})
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
	t.idle = append(t.idle, c)
}

// connect returns a new connection that is ready for requests.
func (t *transport) connect(ctx context.Context, address string, epoch int) (*connection, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	c := &connection{address: address, epoch: epoch}
	var err error
	if c.conn, err = new(net.Dialer).DialContext(ctx, "tcp", address); err != nil {
		return nil, c.failed(ctx, opDial, err)
	}
	stop := context.AfterFunc(ctx, c.close)
	err = t.handshake(ctx, c)
	if !stop() && err == nil {
		err = c.failed(ctx, "connect", ctx.Err())
	}
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// handshake runs TLS, the version negotiation and the login.
func (t *transport) handshake(ctx context.Context, c *connection) error {
	stream := c.conn
	if t.cfg.tls() {
		config, err := t.tlsConfig(ctx, c)
		if err != nil {
			return err
		}
		secure := tls.Client(c.conn, config)
		if err := secure.HandshakeContext(ctx); err != nil {
			return c.failed(ctx, "TLS handshake", err)
		}
		stream = secure
	}
	client := cmp.Or(t.cfg.ClientID, "postbridge")
	c.protocol = protocol.NewConn(&answers{Conn: stream, reader: bufio.NewReader(stream)}, client)
	if err := c.negotiate(); err != nil {
		return c.failed(ctx, "ApiVersions", err) // in TLS 1.3, a broker rejects a client certificate here
	}
	if t.cfg.SASLMechanism == "" {
		return nil
	}
	return t.login(ctx, c)
}

// tlsConfig reads the TLS files as they are now.
func (t *transport) tlsConfig(ctx context.Context, c *connection) (*tls.Config, error) {
	host, _, _ := net.SplitHostPort(c.address) // was dialed
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
	if t.certificates == nil {
		return config, nil
	}
	pool, pair, err := t.certificates.Current()
	if err != nil {
		return nil, c.failed(ctx, "TLS files", err)
	}
	config.RootCAs = pool
	if t.certificates.HasPair() {
		// Sent even if the broker does not name its CA, so that the broker reports what is wrong with it.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	return config, nil
}

// connection is a connection to a broker, for one request at a time.
type connection struct {
	address  string // of the broker
	epoch    int    // of the transport when it was made
	conn     net.Conn
	protocol *protocol.Conn
	versions map[protocol.ApiKey]int16 // of the requests that both sides support
	expires  time.Time                 // end of the login; zero if it has none

	until time.Time // when it is closed if it is idle
}

// failed returns the error of an operation. If ctx ended, that is the cause: it closes the connection.
func (c *connection) failed(ctx context.Context, op string, err error) error {
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return &brokerError{c.address, op, err}
}

// close closes the TCP connection at once. A TLS close notification could block on a broker that does not read.
func (c *connection) close() { _ = c.conn.Close() }

// negotiate chooses a version of each request. A broker that gets one in a version it does not support closes the
// connection without an answer.
func (c *connection) negotiate() error {
	offers, err := call[*apiversions.Response](c, new(apiversions.Request))
	if err != nil {
		return err
	}
	if offers.ErrorCode != 0 {
		return kafkago.Error(offers.ErrorCode)
	}
	c.versions = make(map[protocol.ApiKey]int16, len(offers.ApiKeys))
	for _, offer := range offers.ApiKeys {
		key := protocol.ApiKey(offer.ApiKey)
		if offer.MinVersion <= key.MaxVersion() && key.MinVersion() <= offer.MaxVersion {
			c.versions[key] = key.SelectVersion(offer.MinVersion, offer.MaxVersion)
		}
	}
	c.protocol.SetVersions(c.versions)
	return nil
}

// exchange sends a request and reads the answer.
func (c *connection) exchange(req protocol.Message) (answer protocol.Message, err error) {
	defer func() {
		// kafka-go allocates the lengths in an answer unchecked, and panics on an impossible one.
		if p := recover(); p != nil {
			answer, err = nil, fmt.Errorf("the answer cannot be decoded: %v", p)
		}
	}()
	return c.protocol.RoundTrip(req)
}

// call calls exchange and returns the answer as its type.
func call[T protocol.Message](c *connection, req protocol.Message) (answer T, err error) {
	m, err := c.exchange(req)
	if err == nil {
		answer = m.(T) // kafka-go decodes each answer by its request
	}
	return answer, err
}

// answers passes on the answers of a broker whose size is possible: kafka-go would panic on a negative size, and
// allocate gigabytes for an answer that is text.
type answers struct {
	net.Conn
	reader *bufio.Reader
	left   int // bytes of the current answer
}

// Read reads from the current answer, or begins the next.
func (a *answers) Read(b []byte) (int, error) {
	if a.left == 0 {
		head, err := a.reader.Peek(4)
		if err != nil {
			return 0, err
		}
		size := binary.BigEndian.Uint32(head)
		if size > maxAnswer {
			return 0, fmt.Errorf("the answer is not Kafka's: it starts with %q", head)
		}
		a.left = 4 + int(size)
	}
	n, err := a.reader.Read(b[:min(len(b), a.left)])
	a.left -= n
	return n, err
}
