package nats

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// EmbeddedConfig says where the embedded server listens and keeps its streams.
type EmbeddedConfig struct {
	// Listen is host:port for other clients; port 0 is a free one.
	Listen string
	// StoreDir holds the streams.
	StoreDir string
	// MaxPayload is the largest event, in bytes; 0 is the server's default, 1 MiB.
	MaxPayload int32
}

// embedded is a JetStream server in this process: the bus of one machine. Any NATS client can connect to it.
type embedded struct {
	server   *server.Server
	storeDir string
	log      *serverLog
}

// syncInterval is how often the embedded server syncs its files.
const syncInterval = time.Second

// Delay is for bridge.Bus: how long after its acknowledgement the embedded server may lose an event with the power. A
// server elsewhere is another machine's business.
func (c *Config) Delay() time.Duration {
	if c.Embedded == nil {
		return 0
	}
	return 3 * syncInterval // one to come round, one to sync, and one to spare
}

// embeddedName stays the same from run to run: the server finds its streams by it.
const embeddedName = "postbridge"

func startEmbedded(cfg EmbeddedConfig, log *slog.Logger) (*embedded, error) {
	host, port, err := splitListen(cfg.Listen)
	if err != nil {
		return nil, err
	}
	if err := checkFree(cfg.Listen); err != nil {
		return nil, err
	}
	s, err := server.NewServer(&server.Options{
		ServerName: embeddedName,
		Host:       host,
		Port:       port,
		NoSigs:     true, // signals are the process's own business
		JetStream:  true,
		MaxPayload: cfg.MaxPayload,
		StoreDir:   cfg.StoreDir,
		// An fsync for each event would be a second one for the same event on the same disk. Instead the cursor
		// stays behind: see Config.Delay.
		SyncInterval: syncInterval,
		// Limits belong to the streams. One of the server's, by default a part of the free disk, would refuse to
		// create streams on a small disk, and to load them when their limit was lowered.
		JetStreamMaxStore: 1 << 60,
	})
	if err != nil {
		return nil, fmt.Errorf("embedded NATS server: %w", err)
	}
	e := &embedded{s, cfg.StoreDir, &serverLog{log: log, fatal: make(chan string, 1), said: make(map[string]time.Time)}}
	s.SetLoggerV2(e.log, false, false, false)
	if err := e.start(); err != nil {
		e.shutdown()
		return nil, fmt.Errorf("%w (it listens on %s and stores in %s)", err, cfg.Listen, cfg.StoreDir)
	}
	log.Info("the embedded NATS server is the bus", "url", s.ClientURL())
	return e, nil
}

// checkFree finds an address that is taken before the server opens its store, and tells it in fewer words.
func checkFree(listen string) error {
	l, err := net.Listen("tcp", listen)
	if err == nil {
		return l.Close()
	}
	var call *os.SyscallError
	if errors.As(err, &call) {
		err = call.Err
	}
	return fmt.Errorf("the embedded NATS server cannot listen on %s: %w; set POSTBRIDGE_NATS_LISTEN", listen, err)
}

// InProcessConn makes a connection without a socket; it is called by the NATS client library.
func (e *embedded) InProcessConn() (net.Conn, error) { return e.server.InProcessConn() }

func (e *embedded) start() error {
	started := make(chan bool, 1)
	go func() {
		e.server.Start()
		started <- e.server.ReadyForConnections(30 * time.Second)
	}()
	select {
	case ok := <-started:
		if ok && e.server.JetStreamEnabled() {
			return nil
		}
		return errors.New("embedded NATS server: it does not become ready")
	case text := <-e.log.fatal:
		return errors.New(text)
	}
}

// shutdown stops the server, waits until its streams are closed, and has their files survive: the cursor does not stay
// behind any more.
func (e *embedded) shutdown() {
	e.server.Shutdown()
	e.server.WaitForShutdown()
	err := filepath.WalkDir(e.storeDir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
	if err != nil {
		e.log.log.Error("cannot sync the files of the embedded NATS server", "error", err)
	}
}

func splitListen(listen string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(listen)
	if err == nil {
		port, err = strconv.Atoi(text)
	}
	if err != nil || port < 0 || port > 65535 {
		return "", 0, fmt.Errorf("%q is not host:port", listen)
	}
	if port == 0 {
		port = server.RANDOM_PORT // 0 would be 4222
	}
	return host, port, nil
}

// serverLog hands the server's log to slog. What the server calls fatal does not end the process, as it would in its
// own logger.
type serverLog struct {
	log   *slog.Logger
	fatal chan string // the first fatal message

	mu   sync.Mutex
	said map[string]time.Time // when a warning was logged; guarded by mu
}

// maxSaid bounds the memory for what was logged.
const maxSaid = 100

// warn logs a warning once a minute: what keeps a message from being stored comes again with each retry.
func (l *serverLog) warn(text string) {
	if l.due(text) {
		l.log.Warn(text)
	}
}

// due reports whether a warning is to be logged, and notes that it is.
func (l *serverLog) due(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if now.Sub(l.said[text]) < time.Minute {
		return false
	}
	if len(l.said) > maxSaid {
		clear(l.said)
	}
	l.said[text] = now
	return true
}

func (l *serverLog) Noticef(format string, v ...any) { l.log.Debug(text(format, v)) }
func (l *serverLog) Debugf(format string, v ...any)  { l.log.Debug(text(format, v)) }
func (l *serverLog) Tracef(format string, v ...any)  { l.log.Debug(text(format, v)) }
func (l *serverLog) Warnf(format string, v ...any)   { l.warn(text(format, v)) }
func (l *serverLog) Errorf(format string, v ...any)  { l.warn(text(format, v)) }
func (l *serverLog) Fatalf(format string, v ...any) {
	select {
	case l.fatal <- text(format, v):
	default:
		l.log.Error(text(format, v))
	}
}

func text(format string, v []any) string {
	return "embedded NATS server: " + strings.TrimSpace(fmt.Sprintf(format, v...))
}
