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

// EmbeddedConfig configures the embedded server.
type EmbeddedConfig struct {
	// Listen is host:port for other clients; port 0 chooses a free one.
	Listen string
	// StoreDir is the directory of the streams.
	StoreDir string
	// MaxPayload is the largest event, in bytes; 0 is the server's default, 1 MiB.
	MaxPayload int32
}

// embedded is a JetStream server in this process, for a single machine. Other NATS clients can connect to it.
type embedded struct {
	server   *server.Server
	storeDir string
	log      *serverLog
}

// syncInterval is how often the embedded server syncs its files.
const syncInterval = time.Second

// Delay returns how long after its acknowledgement a power failure may lose an event in the embedded server, for
// bridge.Bus; 0 for a remote server, which does not fail with this machine.
func (c *Config) Delay() time.Duration {
	if c.Embedded == nil {
		return 0
	}
	return 3 * syncInterval // one until the sync begins, one for the sync, and one spare
}

// embeddedName is the server's name. It must not change: the server finds its streams by it.
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
		NoSigs:     true, // the process handles signals itself
		JetStream:  true,
		MaxPayload: cfg.MaxPayload,
		StoreDir:   cfg.StoreDir,
		// The spool has fsynced each event already. Instead of a second fsync the cursor lags: see Config.Delay.
		SyncInterval: syncInterval,
		// No limit of the server: the streams have limits. The default, a part of the free disk, prevents creating
		// streams on a small disk, and loading them after it shrank.
		JetStreamMaxStore: 1 << 60,
	})
	if err != nil {
		return nil, fmt.Errorf("embedded NATS server: %w", err)
	}
	l := &serverLog{log: log, fatal: make(chan string, 1), logged: make(map[string]time.Time)}
	e := &embedded{s, cfg.StoreDir, l}
	s.SetLoggerV2(e.log, false, false, false)
	if err := e.start(); err != nil {
		e.shutdown()
		return nil, fmt.Errorf("%w (it listens on %s and stores in %s)", err, cfg.Listen, cfg.StoreDir)
	}
	log.Info("the embedded NATS server is the bus", "url", s.ClientURL())
	return e, nil
}

// checkFree fails if the address is in use, before the server opens its store, with a shorter error than the server's.
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

// InProcessConn implements natsgo.InProcessConnProvider: a connection without a socket.
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

// shutdown stops the server, waits until its streams are closed, and fsyncs their files, since the final cursor does
// not lag.
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

// serverLog writes the server's log to slog. A fatal message does not exit the process, as in the server's own
// logger, but fails start.
type serverLog struct {
	log   *slog.Logger
	fatal chan string // the first fatal message

	mu     sync.Mutex
	logged map[string]time.Time // the last time of each warning; guarded by mu
}

// maxLogged bounds the memory for logged warnings.
const maxLogged = 100

// warn logs a warning at most once a minute: the same one comes with each retry.
func (l *serverLog) warn(text string) {
	if l.due(text) {
		l.log.Warn(text)
	}
}

// due reports whether a warning is to be logged now, and records the time.
func (l *serverLog) due(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if now.Sub(l.logged[text]) < time.Minute {
		return false
	}
	if len(l.logged) > maxLogged {
		clear(l.logged)
	}
	l.logged[text] = now
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
