package nats

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
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

// embedded runs a JetStream server in this process, for a single machine. Other NATS clients can connect to it.
type embedded struct {
	server   *server.Server
	storeDir string
	log      *slog.Logger
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
	e := &embedded{s, cfg.StoreDir, log}
	if err := e.start(&serverLog{log: log, fatal: make(chan string, 1), logged: make(map[string]bool)}); err != nil {
		e.shutdown()
		return nil, fmt.Errorf("%w (it listens on %s and stores in %s)", err, cfg.Listen, cfg.StoreDir)
	}
	log.Info("the embedded NATS server is the bus", "url", s.ClientURL())
	return e, nil
}

func (e *embedded) start(l *serverLog) error {
	e.server.SetLoggerV2(l, false, false, false)
	e.server.Start()
	select {
	case text := <-l.fatal:
		return errors.New(text)
	default:
	}
	if !e.server.ReadyForConnections(30*time.Second) || !e.server.JetStreamEnabled() {
		return errors.New("embedded NATS server: it does not become ready")
	}
	return nil
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
		e.log.Error("cannot sync the files of the embedded NATS server", "error", err)
	}
}

// splitListen returns the parts of the address. It fails if that is in use, with a shorter error than the server's and
// before the server opens its store.
func splitListen(listen string) (host string, port int, err error) {
	host, service, err := net.SplitHostPort(listen)
	if err == nil {
		port, err = net.LookupPort("tcp", service)
	}
	if err != nil {
		return "", 0, fmt.Errorf("%q is not host:port", listen)
	}
	l, err := net.Listen("tcp", listen)
	if err == nil {
		// 0 would be 4222.
		return host, cmp.Or(port, server.RANDOM_PORT), l.Close()
	}
	var call *os.SyscallError
	if errors.As(err, &call) {
		err = call.Err
	}
	return "", 0, fmt.Errorf("the embedded NATS server cannot listen on %s: %w; set POSTBRIDGE_NATS_LISTEN",
		listen, err)
}

// serverLog writes the server's log to slog. A fatal message does not exit the process, as in the server's own
// logger, but fails start.
type serverLog struct {
	log   *slog.Logger
	fatal chan string // the first fatal message

	mu     sync.Mutex
	since  time.Time       // when logged was cleared; guarded by mu
	logged map[string]bool // the warnings logged since; guarded by mu
}

// warn logs a warning at most once a minute: the same one comes with each retry.
func (l *serverLog) warn(text string) {
	l.mu.Lock()
	if time.Since(l.since) >= time.Minute {
		clear(l.logged)
		l.since = time.Now()
	}
	repeated := l.logged[text]
	l.logged[text] = true
	l.mu.Unlock()
	if !repeated {
		l.log.Warn(text)
	}
}

// Noticef and the methods below implement server.Logger.
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
