package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/brokers/kite"
	"github.com/postbridge/postbridge/publishers"
)

const serveHelp = `Accept postbacks and publish them, until SIGTERM, SIGINT or SIGHUP: then answer those in flight,
publish for up to ten more seconds, and log how many events stay in the spool for the next start.
A second SIGTERM or SIGINT ends at once, and loses nothing that was answered 200.

Usage: postbridge serve

The configuration is the environment, names that start with POSTBRIDGE_; the table is in
cmd/postbridge/README.md, and 'postbridge config' checks it. POSTBRIDGE_PUBLISH names the bus: nats
(the default), kafka or nats,kafka. Kafka is at POSTBRIDGE_KAFKA_BROKERS, NATS JetStream at
POSTBRIDGE_NATS_URL; without that a JetStream server is embedded. The log is on stderr; one line has
the URLs to POST to.

Exit code: 0 after an ordered stop, 2 for a bad configuration, 1 for any other end.

Example, with the official example secret of Kite:
  POSTBRIDGE_KITE_SECRETS=1234=0hdv7iw5examplesecret POSTBRIDGE_LISTEN=127.0.0.1:8080 \
    postbridge serve
`

func (p *process) serve(ctx context.Context, args []string) error {
	if err := parseOnlyFlags(newFlags("serve"), args); err != nil {
		return err
	}
	c, credentials, err := readConfig(p.env)
	if err != nil {
		return err
	}
	if p.env["GOGC"] == "" {
		// A postback is garbage once it is published. Collecting it later costs about 50 MiB and saves 10 % of the CPU.
		debug.SetGCPercent(400)
	}
	p.limitMemory(os.DirFS("/"))
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), readBuild().collector())
	log := p.openLog(c, registry)
	c.warn(log, credentials)
	log.Info("postbridge starts", "version", readBuild().String(), "data", c.DataDir)

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

// run assembles the path of an event and runs it.
//
//	             ┌──────────────────────── bridge ────────────────────────┐
//	 broker      │  ┌─────────┐     ┌───────┐     ┌──────┐               │      bus
//	┌──────┐ POST│  │ receive │     │ spool │     │ pump │     publisher │   ┌───────────┐
//	│ Kite,├─────┼─►│ brokers/├────►│ fsync ├────►│      ├────►publishers/┼──►│ JetStream │
//	│ …    │◄────┼──┤         │◄────┤       │◄────┤      │◄────           │◄──┤ or Kafka  │
//	└──────┘  200│  └────▲────┘     └───────┘ done└──────┘ ack           │   └─────▲─────┘
//	             └───────┼────────────────────────────────────────────────┘         ┊
//	              credentials: environment or files,                    JetStream is embedded
//	              which are reloaded when they change                   without POSTBRIDGE_NATS_URL
//
// With both buses there are two pumps, two publishers and two buses.
func (c *config) run(
	ctx context.Context, credentials *credentials, registry *prometheus.Registry, tracer bridge.Tracer,
	log *slog.Logger,
) error {
	credentials.files.start(ctx, log, registry)

	brokers, routes, err := c.brokers(credentials)
	if err != nil {
		return err
	}
	c.logRegistrations(log, routes)
	o := c.spoolOptions()
	o.Brokers, o.Routes, o.MaxBody = brokers, routes, int64(c.MaxBody)
	o.Listen, o.AdminListen, o.AdminPage = c.Listen, c.AdminListen, c.AdminPage
	o.MaxConnections, o.IdleTimeout = c.connections(openFiles()), c.IdleTimeout
	if c.TLSCertFile != "" {
		o.TLS = credentials.serverTLS()
		registry.MustRegister(credentials.certificateExpiry())
	}
	if c.AdminToken != "" || c.AdminTokenFile != "" {
		o.AdminToken = func() string { return load(&credentials.adminToken) }
	}
	o.Buses, o.Reload = c.buses(credentials, log), credentials.files.reload
	o.Registry, o.Tracer, o.Log = registry, tracer, log
	o.Version, o.Host = readBuild().version, hostname()
	go (&doctor{c, credentials}).watch(ctx, registry)
	return bridge.New(o).Run(ctx)
}

// hostname returns the name of this machine, on Kubernetes of the pod; "" if it is not known.
func hostname() string {
	name, _ := os.Hostname()
	return name
}

// warn logs the settings that are valid but not safe.
func (c *config) warn(log *slog.Logger, credentials *credentials) {
	for _, r := range c.checkSettings(credentials) {
		log.Warn("the setting is valid but not safe", "setting", r.What, "reason", r.Text, "remedy", r.Do)
	}
}

// checkSettings returns a warning for each setting that is valid but not safe, for serve and doctor.
func (c *config) checkSettings(credentials *credentials) (all []publishers.CheckResult) {
	warn := func(found bool, area, setting, text, do string) {
		checks := publishers.Checks{Area: area, What: envPrefix + setting, Results: all}
		checks.Warn(found, text, do)
		all = checks.Results
	}
	warn(c.KiteChecksum == string(kite.UserID) && c.kiteOn(), "routes", "KITE_CHECKSUM",
		"is user_id, so that a checksum that stays the same through all states of an order is accepted "+
			"beside the official one", "unset it once the sender signs as Kite documents")
	files := openFiles()
	warn(c.connections(files) < c.MaxConnections, "routes", "MAX_CONNECTIONS",
		fmt.Sprintf("is %d, and this process may have %d files open, so it accepts %d connections",
			c.MaxConnections, files, c.connections(files)),
		"raise the limit of open files (ulimit -n, LimitNOFILE=), or set it lower")
	warn(!onLoopback(c.AdminListen) && c.AdminToken == "" && c.AdminTokenFile == "", "routes", "ADMIN_LISTEN",
		"is open to other machines without a token, and shows users, orders and prices",
		"set POSTBRIDGE_ADMIN_TOKEN, or have the network admit only probes and Prometheus")
	warn(c.embedded() && !onLoopback(c.Listen), "nats", "NATS_URL",
		"is not set, so brokers' events go to a server embedded in this process, on the same disk as the spool",
		"set it to a NATS cluster, or POSTBRIDGE_PUBLISH=kafka")
	warn(c.embedded() && !onLoopback(c.NATSListen), "nats", "NATS_LISTEN",
		"is open to other machines, and the embedded server requires no login",
		"restrict access to it, or use a NATS server of your own")
	k := c.kafkaConfig(nil)
	warn(k.UnencryptedSecret(), "kafka", "KAFKA_SASL_MECHANISM",
		"is "+k.SASLMechanism+" without TLS, which sends the password or token as it is",
		"set POSTBRIDGE_KAFKA_TLS, or the mechanism to SCRAM-SHA-512")
	if !onLoopback(c.Listen) {
		all = append(all, c.checkExamples(credentials)...)
	}
	return all
}

// onLoopback reports whether only this machine reaches a listener.
func onLoopback(listen string) bool {
	host, _, _ := net.SplitHostPort(listen) // checked by readConfig
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// checkExamples returns a warning for each secret that is published in the examples of this repository.
func (c *config) checkExamples(credentials *credentials) (all []publishers.CheckResult) {
	warn := func(found bool, setting, text, do string) {
		checks := publishers.Checks{Area: "secrets", What: envPrefix + setting, Results: all}
		checks.Warn(found, text, do)
		all = checks.Results
	}
	isExample := func(s kite.Secret) bool { return s.Secret == "0hdv7iw5examplesecret" }
	warn(slices.ContainsFunc(load(&credentials.kiteSecrets), isExample), "KITE_SECRETS",
		"has the example secret of Kite's documentation, with which anyone can sign a postback",
		"replace it by the api_secret of your app")
	tokens := func(setting string, tokens []string) {
		published := func(t string) bool { return strings.HasPrefix(t, "dev-") && strings.HasSuffix(t, "-token") }
		warn(slices.ContainsFunc(tokens, published), setting, "has an example token of postbridge's documents, "+
			"with which anyone can post", "replace it by one of 'openssl rand -hex 24'")
	}
	tokens("KITE_TOKENS", load(&credentials.kiteTokens))
	for _, b := range c.tokenBrokers() {
		tokens(b.tokensSetting(), load(b.current(credentials)))
	}
	return all
}

// spareFiles is the number of open files reserved for everything but connections of brokers: a client must not use up
// the files of the spool, whose failure ends the process.
const spareFiles = 256

// connections returns the limit of connections of brokers for a limit of open files.
func (c *config) connections(files int) int {
	return min(c.MaxConnections, max(16, files-spareFiles))
}
