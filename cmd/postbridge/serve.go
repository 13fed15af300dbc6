package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/brokers"
	"github.com/postbridge/postbridge/brokers/dhan"
	"github.com/postbridge/postbridge/brokers/kite"
	"github.com/postbridge/postbridge/publishers"
	"github.com/postbridge/postbridge/publishers/kafka"
	"github.com/postbridge/postbridge/publishers/nats"
)

const serveHelp = `Take postbacks and publish them, until SIGTERM, SIGINT or SIGHUP: then answer those in flight,
publish what is waiting for up to ten seconds, and say how many stay in the spool for the next
start. A second SIGTERM or SIGINT ends at once; that costs nothing that was answered 200.

Usage: postbridge serve

The configuration is the environment, names that start with POSTBRIDGE_; the table is in
cmd/postbridge/README.md, and 'postbridge config' checks it. POSTBRIDGE_PUBLISH names the bus: nats
(the default), kafka or nats,kafka. Kafka is at POSTBRIDGE_KAFKA_BROKERS, NATS JetStream at
POSTBRIDGE_NATS_URL; without that a JetStream server is embedded. What happens is logged on stderr;
one line says where to POST.

Exit code: 0 after an ordered stop, 2 for a bad configuration, 1 for any other end.

Example, with the official example secret of Kite:
  POSTBRIDGE_KITE_SECRETS=1234=0hdv7iw5examplesecret POSTBRIDGE_LISTEN=127.0.0.1:8080 \
    postbridge serve
`

func (p *process) serve(ctx context.Context, args []string) error {
	fs := newFlags("serve")
	if err := parseFlags(fs, args); err != nil {
		return err
	}
	if err := noArguments(fs); err != nil {
		return err
	}
	c, credentials, err := readConfig(p.env)
	if err != nil {
		return err
	}
	if p.env["GOGC"] == "" {
		// A postback is garbage as soon as it is published. Collecting it later costs some 50 MiB and saves a tenth of
		// the processor's time.
		debug.SetGCPercent(400)
	}
	p.limitMemory(os.DirFS("/"))
	registry := newRegistry()
	log := p.openLog(c, registry)
	log.Info("postbridge starts", "version", buildVersion(), "data", c.DataDir)

	tracer, endTracer, err := p.openTracer(registry, log)
	if err != nil {
		return err
	}
	defer endTracer()
	if err := c.run(ctx, credentials, registry, tracer, log); err != nil {
		log.Error("postbridge ends", "error", err)
		return &loggedError{err}
	}
	return nil
}

// run puts the path together and runs it.
//
//	             ┌──────────────────────── bridge ────────────────────────┐
//	 broker      │  ┌─────────┐     ┌───────┐     ┌──────┐               │      bus
//	┌──────┐ POST│  │ receive │     │ spool │     │ pump │     publisher │   ┌───────────┐
//	│ Kite ├─────┼─►│ brokers/├────►│ fsync ├────►│      ├────►publishers/┼──►│ JetStream │
//	│ Dhan │◄────┼──┤         │◄────┤       │◄────┤      │◄────           │◄──┤ or Kafka  │
//	└──────┘  200│  └────▲────┘     └───────┘ done└──────┘ ack           │   └─────▲─────┘
//	             └───────┼────────────────────────────────────────────────┘         ┊
//	              credentials: environment or files,                    JetStream is embedded if there
//	              which are read again when they change                 is no POSTBRIDGE_NATS_URL
//
// With both buses there are two of everything from the pump on.
func (c *config) run(ctx context.Context, credentials *credentials, registry *prometheus.Registry, tracer bridge.Tracer, log *slog.Logger) error {
	credentials.files.start(ctx, log, registry)

	brokers, routes, err := c.brokers(credentials)
	if err != nil {
		return err
	}
	o := c.spoolOptions()
	o.Brokers, o.Routes, o.MaxBody = brokers, routes, int64(c.MaxBody)
	o.Listen, o.AdminListen, o.AdminPage, o.MaxConnections = c.Listen, c.AdminListen, c.AdminPage, c.connections(openFiles())
	o.IdleTimeout = c.IdleTimeout
	if c.TLSCertFile != "" {
		o.TLS = credentials.serverTLS()
		registry.MustRegister(credentials.certificateExpiry())
	}
	if c.AdminToken != "" || c.AdminTokenFile != "" {
		o.AdminToken = func() string { return load(&credentials.adminToken) }
	}
	o.Buses, o.Reload, o.Registry, o.Tracer, o.Log = c.buses(credentials, log), credentials.files.reload, registry, tracer, log
	go (&doctor{c, credentials}).watch(ctx, registry)
	return bridge.New(o).Run(ctx)
}

func newRegistry() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return registry
}

// openLog opens the log on stderr of a command that runs until it is told to end, and makes it the log of all libraries.
func (p *process) openLog(c *config, registry prometheus.Registerer) *slog.Logger {
	signal.Ignore(syscall.SIGPIPE) // in case a library writes to descriptor 2 by itself
	log := c.logger(p.stderr)
	slog.SetDefault(log)
	registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "postbridge_log_dropped_total", Help: "Log lines that were dropped because stderr was blocked or closed.",
	}, func() float64 { return float64(p.stderr.dropped.Load()) }))
	c.warn(log)
	return log
}

// logger logs to stderr, as text on a terminal, else as JSON.
func (c *config) logger(stderr *logQueue) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.LogLevel)) // was checked
	to := func(w io.Writer) *slog.Logger {
		o := &slog.HandlerOptions{Level: level}
		if c.logFormat(isTerminal(stderr)) == "text" {
			return slog.New(slog.NewTextHandler(w, o))
		}
		return slog.New(slog.NewJSONHandler(w, o))
	}
	stderr.reportWith(func(w io.Writer, lost uint64) {
		to(w).Error("log lines were dropped: stderr was blocked or closed", "lines", lost)
	})
	return to(stderr)
}

// warn logs what the settings allow but should be known.
func (c *config) warn(log *slog.Logger) {
	for _, r := range c.checkSettings() {
		log.Warn(r.String())
	}
}

// checkSettings returns a warning for each setting that is allowed but should be known. The doctor reports them, too.
func (c *config) checkSettings() (all []publishers.CheckResult) {
	warn := func(area, setting, text, do string) {
		what := envPrefix + setting
		all = append(all, publishers.CheckResult{Area: area, What: what, Severity: publishers.Warn, Text: text, Do: do})
	}
	if c.KiteChecksum == string(kite.UserID) && c.kiteOn() {
		warn("routes", "KITE_CHECKSUM", "is user_id, so that a checksum that stays the same through all states of an "+
			"order is accepted beside the official one", "unset it once the sender signs as Kite documents")
	}
	if files := openFiles(); c.connections(files) < c.MaxConnections {
		warn("routes", "MAX_CONNECTIONS", fmt.Sprintf("is %d, and this process may have %d files open, "+
			"so %d connections are taken at once", c.MaxConnections, files, c.connections(files)),
			"raise the limit of open files (ulimit -n, LimitNOFILE=), or set it lower")
	}
	if host, _, err := net.SplitHostPort(c.NATSListen); c.embedded() && err == nil {
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			warn("nats", "NATS_LISTEN", "is open to other machines, and the embedded server asks nobody for a login",
				"keep strangers out, or use a NATS server of your own")
		}
	}
	if k := c.kafkaConfig(nil); k.PlainPassword() {
		warn("kafka", "KAFKA_SASL_MECHANISM", "is PLAIN without TLS, which sends the password as it is",
			"set POSTBRIDGE_KAFKA_TLS, or the mechanism to SCRAM-SHA-512")
	}
	return all
}

// spareFiles are open files that are not for connections of brokers: whoever opens those must not be able to keep a file
// from the spool, which would be the end of the process.
const spareFiles = 256

// connections is how many brokers may have open, in a process that may have so many files open.
func (c *config) connections(files int) int {
	return min(c.MaxConnections, max(16, files-spareFiles))
}

// brokerNames are those of all brokers there are.
func brokerNames() []string { return []string{"kite", "dhan"} }

// brokers are those that postbacks are taken from, and their routes; a token in a route is only named.
func (c *config) brokers(credentials *credentials) (all []bridge.Broker, routes []string, err error) {
	on := map[string]bool{"kite": c.kiteOn(), "dhan": c.dhanOn()}
	route := map[string]string{"kite": c.kiteRoute(), "dhan": "/dhan/{token}"}
	for _, name := range brokerNames() {
		if !on[name] {
			continue
		}
		b, err := brokers.New(name, brokers.Config{
			Kite: kite.Config{Checksum: kite.Formula(c.KiteChecksum), Credentials: credentials.kite},
			Dhan: func() dhan.Credentials {
				return dhan.Credentials{Tokens: load(&credentials.dhanTokens), ClientIDs: c.DhanClientIDs}
			},
		})
		if err != nil {
			return nil, nil, err
		}
		all, routes = append(all, b), append(routes, route[name])
	}
	return all, routes, nil
}

func (c *config) kiteRoute() string {
	if c.KiteTokens != "" || c.KiteTokensFile != "" {
		return "/kite/{token}"
	}
	return "/kite"
}

// buses returns the buses that events are published to.
func (c *config) buses(credentials *credentials, log *slog.Logger) (buses []bridge.Bus) {
	for _, name := range c.Publish {
		switch name {
		case "nats":
			buses = append(buses, nats.NewBus(c.natsConfig(credentials), log))
		case "kafka":
			buses = append(buses, kafka.NewBus(c.kafkaConfig(credentials), log))
		}
	}
	return buses
}

// natsConfig is what the settings say about NATS. Secrets are looked at anew for each connection.
func (c *config) natsConfig(credentials *credentials) nats.Config {
	n := nats.Config{
		URL:           c.NATSURL,
		CredsFile:     c.NATSCredsFile,
		User:          c.NATSUser,
		TLSCAFile:     c.NATSTLSCAFile,
		TLSCertFile:   c.NATSTLSCertFile,
		TLSKeyFile:    c.NATSTLSKeyFile,
		Prefix:        c.Prefix,
		CreateStreams: c.NATSCreateStreams,
		Replicas:      c.NATSReplicas,
		MaxAge:        c.NATSMaxAge,
		MaxBytes:      int64(c.NATSMaxBytes),
	}
	if c.NATSPassword != "" || c.NATSPasswordFile != "" {
		n.Password = func() string { return credentials.fresh(&credentials.natsPassword) }
	}
	if c.NATSToken != "" || c.NATSTokenFile != "" {
		n.Token = func() string { return credentials.fresh(&credentials.natsToken) }
	}
	if c.embedded() {
		n.Embedded = &nats.EmbeddedConfig{
			Listen:     c.NATSListen,
			StoreDir:   filepath.Join(c.DataDir, "nats"),
			MaxPayload: max(1<<20, int32(bridge.MaxEventSize(int64(c.MaxBody)))),
		}
		n.DiscardOld = true
	}
	return n
}

// kafkaConfig is what the settings say about Kafka. The password is looked at anew for each connection.
func (c *config) kafkaConfig(credentials *credentials) kafka.Config {
	k := kafka.Config{
		Brokers:       c.KafkaBrokers,
		SASLMechanism: c.KafkaSASLMechanism,
		User:          c.KafkaUser,
		TLS:           c.KafkaTLS,
		TLSCAFile:     c.KafkaTLSCAFile,
		TLSCertFile:   c.KafkaTLSCertFile,
		TLSKeyFile:    c.KafkaTLSKeyFile,
		Prefix:        c.Prefix,
		CreateTopics:  c.KafkaCreateTopics,
		Partitions:    c.KafkaPartitions,
		Replication:   c.KafkaReplication,
	}
	if c.KafkaPassword != "" || c.KafkaPasswordFile != "" {
		k.Password = func() string { return credentials.fresh(&credentials.kafkaPassword) }
	}
	return k
}
