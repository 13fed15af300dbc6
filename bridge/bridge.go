package bridge

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	stdlog "log"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postbridge/postbridge/bridge/spool"
)

// Options configures a Bridge. All fields are required unless their comments say otherwise.
type Options struct {
	// Brokers each own the route /<name>.
	Brokers []Broker
	// Buses each have a pump and a cursor of their own.
	Buses []Bus

	// Version is that of the build, Host the name of this machine or pod, both for /status and the page.
	Version, Host string

	// Listen and AdminListen are host:port. Only Listen may be reachable from outside.
	Listen, AdminListen string
	// AdminPage enables the page at AdminListen, which shows the last events.
	AdminPage bool
	// Routes are the paths to register at the brokers, without tokens, for the log line at start.
	Routes []string
	// MaxBody is the largest postback, in bytes.
	MaxBody int64
	// MaxConnections limits the open connections of Listen.
	MaxConnections int
	// IdleTimeout is how long Listen keeps a connection open between two requests.
	IdleTimeout time.Duration
	// TLS is nil for plain HTTP behind a proxy that terminates TLS. Only HTTP/1.1 is served: MaxConnections would not
	// limit requests that share a connection.
	TLS *tls.Config
	// AdminToken returns the bearer token that AdminListen requires, except for the probes; nil without a token.
	AdminToken func() string

	// DataDir holds the spool, in spool/, and the quarantine files. It is created if missing.
	DataDir string
	// SpoolMaxBytes limits the spool's files, SpoolMinFree is the free space to keep on their disk, in bytes.
	SpoolMaxBytes, SpoolMinFree int64
	// SpoolKeep is how long published events stay, space permitting, for a rewind after a bus lost them.
	SpoolKeep time.Duration

	// Reload has the secret files read again, and reports whether any changed. It is called before a postback or an
	// admin request is refused, by many at a time if many are; nil without secret files.
	Reload func() bool

	// Tracer gets a span for each postback and event; nil without tracing.
	Tracer Tracer
	// Registry gets the metrics; /metrics serves it.
	Registry *prometheus.Registry
	// Log must not block: lines are logged with locks held.
	Log *slog.Logger
}

// Limits of a connection and of the stop.
const (
	headerTimeout    = 5 * time.Second  // to send the header, with TLS the handshake included
	readTimeout      = 10 * time.Second // to send header and body
	writeTimeout     = 30 * time.Second // from the header on, the disk included
	adminIdleTimeout = 2 * time.Minute  // between requests at AdminListen
	maxHeader        = 16 << 10
	// headerSlop is what net/http adds to its MaxHeaderBytes.
	headerSlop = 4 << 10

	// stopTimeout is how long the stop waits for requests in flight, drainTimeout how long then for the buses.
	stopTimeout  = 15 * time.Second
	drainTimeout = 10 * time.Second
	// lameDuck is how long new requests are still accepted when the stop begins, each closing its connection. Closing a
	// connection with a request on its way would lose that request.
	lameDuck = time.Second

	// stalled is how long the stop waits for a blocked bus that makes no progress.
	stalled = time.Second

	// lockInterval is the interval between attempts to lock the spool.
	lockInterval = 250 * time.Millisecond
)

// Bridge runs the whole path of an event, from the listener to the buses.
type Bridge struct {
	o        Options
	started  time.Time
	metrics  *ingestMetrics
	receiver *receiver
	history  history
	openDir  func(dir string) (spool.FS, error) // spool.OSDir; another disk in tests
	lameDuck time.Duration                      // lameDuck; shorter in tests

	ingest atomic.Pointer[connections] // nil until there is a listener
	opened atomic.Pointer[opened]      // nil until the spool is open and the pumps run

	readiness readiness
}

// New returns a bridge that does nothing before Run or Drain.
func New(o Options) *Bridge {
	m := newIngestMetrics(o.Registry)
	b := &Bridge{
		o: o, started: time.Now(), metrics: m, receiver: newReceiver(o, m), openDir: spool.OSDir, lameDuck: lameDuck,
	}
	b.readiness.since = b.started
	o.Registry.MustRegister(collector{b})
	return b
}

// Run accepts postbacks and publishes events until ctx ends. Then it stops in order: no new connections, every request
// in flight answered, the buses drained for a while, the cursors saved. It returns the failure that ended it, nil after
// an ordered stop.
func (b *Bridge) Run(ctx context.Context) error {
	// The listeners come first: while the spool waits for its lock, postbacks are answered and probes get the reason.
	ingest, err := b.listen("POSTBRIDGE_LISTEN", b.o.Listen, b.o.MaxConnections, b.o.TLS)
	if err != nil {
		return err
	}
	ingest.connections.rejected = func(reason string) { b.metrics.bad.WithLabelValues(reason).Inc() }
	b.ingest.Store(ingest.connections)
	ingest.serve(b.receiver, b.o.IdleTimeout, b.o.Log)
	defer ingest.Close()
	admin, err := b.listen("POSTBRIDGE_ADMIN_LISTEN", b.o.AdminListen, maxAdminConnections, nil)
	if err != nil {
		return err
	}
	admin.serve(b.admin(), adminIdleTimeout, b.o.Log)
	defer admin.Close()
	b.o.Log.Info("listening", "ingest", ingest.addr.String(), "admin", admin.addr.String())
	s, err := b.open(ctx)
	switch {
	case errors.Is(err, context.Canceled):
		return nil
	case err != nil:
		return err
	}
	b.receiver.open(s.spool)
	defer b.keepHistory()() // from here on: before, the backlog is not known
	b.o.Log.Info("ready: POST postbacks to " + b.postTo(ingest.addr))

	var failure error
	select {
	case <-ctx.Done():
	case <-s.spool.Failed():
		failure = s.spool.Err()
	case failure = <-ingest.failed:
	case failure = <-admin.failed:
	}
	b.o.Log.Info("stopping: answering requests in flight, then publishing unpublished events")
	b.receiver.leaving.Store(true)
	pause(context.Background(), b.lameDuck)
	ingest.stop(b.o.Log)
	if failure == nil {
		ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
		defer cancel()
		b.waitForBuses(ctx, stalled)
	}
	return errors.Join(failure, b.close(s))
}

// opened holds what exists once the spool is open.
type opened struct {
	spool     *spool.Spool
	pumps     []*pump
	running   sync.WaitGroup
	stopPumps context.CancelFunc
}

// open opens the spool and starts the pumps.
func (b *Bridge) open(ctx context.Context) (*opened, error) {
	s, err := b.openSpool(ctx)
	if err != nil {
		return nil, err
	}
	return b.startPumps(s)
}

// startPumps starts the pump of each bus. If one cannot be opened, it closes the spool.
func (b *Bridge) startPumps(s *spool.Spool) (*opened, error) {
	ctx, stop := context.WithCancel(context.Background())
	o := &opened{spool: s, stopPumps: stop}
	for _, bus := range b.o.Buses {
		p, err := newPump(ctx, b.o, bus, s)
		if err != nil {
			return nil, errors.Join(err, o.close())
		}
		o.pumps = append(o.pumps, p)
	}
	for _, p := range o.pumps {
		o.running.Go(func() { p.run(ctx) })
	}
	b.opened.Store(o)
	return o, nil
}

// close stops the pumps, and closes the publishers, then the spool.
func (o *opened) close() error {
	o.stopPumps()
	o.running.Wait()
	var errs []error
	for _, p := range o.pumps {
		errs = append(errs, p.close())
	}
	return errors.Join(append(errs, o.spool.Close())...)
}

// close closes what is open, and logs how many events stay in the spool for the next start.
func (b *Bridge) close(o *opened) error {
	err := o.close()
	for name, bus := range b.status().Buses {
		b.o.Log.Info(fmt.Sprintf("stopped: %d events stay in the spool for %s", bus.Waiting, name),
			"bus", name, "waiting", bus.Waiting, "committed", bus.Committed)
	}
	return err
}

// openSpool opens the spool. It waits while another process holds the lock: a pod that terminates may still have the
// volume.
func (b *Bridge) openSpool(ctx context.Context) (*spool.Spool, error) {
	fs, err := b.openDir(filepath.Join(b.o.DataDir, "spool"))
	if err != nil {
		return nil, err
	}
	o := spool.Options{MaxBytes: b.o.SpoolMaxBytes, MinFree: b.o.SpoolMinFree, Keep: b.o.SpoolKeep, Log: b.o.Log}
	for _, bus := range b.o.Buses {
		o.Cursors = append(o.Cursors, bus.Name)
		o.CursorDelay = max(o.CursorDelay, bus.Delay)
	}
	logged := false
	for {
		s, err := spool.Open(fs, o)
		if !errors.Is(err, spool.ErrLocked) {
			return s, err
		}
		if !logged {
			b.o.Log.Warn("another process has the spool open: waiting for it to end", "dir", b.o.DataDir)
			logged = true
		}
		pause(ctx, lockInterval)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

// server is one listening HTTP server.
type server struct {
	*http.Server
	connections *connections
	addr        net.Addr
	failed      chan error // gets the error that ended it, unless it was closed
}

// listen binds the address at once, so that an address in use is an error of the start. The setting names where the
// address comes from.
func (b *Bridge) listen(setting, addr string, limit int, t *tls.Config) (*server, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("cannot listen; set %s to another address: %w", setting, err)
	}
	connections := newConnections(l.(*net.TCPListener), limit, t, b.o.Log.With("at", setting)) // as for any tcp network
	return &server{connections: connections, addr: l.Addr(), failed: make(chan error, 1)}, nil
}

// serve serves until the server is closed.
func (s *server) serve(h http.Handler, idle time.Duration, log *slog.Logger) {
	s.Server = &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			connectionOf(req).handled = true
			h.ServeHTTP(w, req)
		}),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idle,
		MaxHeaderBytes:    maxHeader - headerSlop,
		// OPTIONS * is no route either.
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     stdlog.New(serverLog{log}, "", 0),
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, connectionKey{}, conn)
		},
		ConnState: func(conn net.Conn, state http.ConnState) {
			if state == http.StateActive || state == http.StateIdle {
				c := conn.(*connection)
				c.handled = false
				c.answering.Store(false)
				c.wait()
			}
		},
	}
	go func() {
		if err := s.Serve(s.connections); !errors.Is(err, http.ErrServerClosed) {
			s.failed <- fmt.Errorf("cannot serve %s: %w", s.addr, err)
		}
	}()
}

// serverLog gets the log lines of net/http. Clients cause most of them, and must not be able to fill the log.
type serverLog struct{ log *slog.Logger }

// Write logs a line: a panic of a handler and a failed accept as errors, anything else at debug.
func (l serverLog) Write(text []byte) (int, error) {
	level := slog.LevelDebug
	if bytes.HasPrefix(text, []byte("http: panic serving")) || bytes.HasPrefix(text, []byte("http: Accept error")) {
		level = slog.LevelError
	}
	l.log.Log(context.Background(), level, strings.TrimSpace(string(text)))
	return len(text), nil
}

// stop closes the listener and waits for the requests in flight, for stopTimeout at most.
func (s *server) stop(log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		log.Warn("some requests were not answered before the stop", "error", err)
		_ = s.Close()
	}
}

// postTo returns the URLs to POST to, as seen from this machine.
func (b *Bridge) postTo(addr net.Addr) string {
	host, port, _ := net.SplitHostPort(addr.String()) // an address has both
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	scheme := "http://"
	if b.o.TLS != nil {
		scheme = "https://"
	}
	var urls []string
	for _, route := range b.o.Routes {
		urls = append(urls, scheme+net.JoinHostPort(host, port)+route)
	}
	return strings.Join(urls, " and ")
}
