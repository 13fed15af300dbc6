package main

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/caarlos0/env/v10"

	"github.com/postbridge/postbridge/publishers/nats"
)

// envPrefix is before every name of the configuration in the environment.
const envPrefix = "POSTBRIDGE_"

// config is the whole configuration, and its reference: the table in the README.md beside this file is made from these
// fields, their defaults and their comments. Each is the environment variable of its tag, after POSTBRIDGE_. A name set
// to nothing counts as not set.
type config struct {
	// Where brokers post to, host:port. Serves nothing but their routes.
	Listen string `env:"LISTEN" envDefault:":8080"`
	// Where `/livez`, `/readyz`, `/metrics` and `/status` are, host:port. Not for the outside.
	AdminListen string `env:"ADMIN_LISTEN" envDefault:":9090"`
	// Whether there is a page for browsers at `ADMIN_LISTEN`. It shows the last events: users, orders and prices.
	AdminPage bool `env:"ADMIN_PAGE" envDefault:"true"`
	// The largest postback, 1KiB to 4MiB; a larger one is answered 413.
	MaxBody byteSize `env:"MAX_BODY" envDefault:"64KiB"`
	// How many connections brokers may have open at once, 16 to 32768; beyond it a new one takes the place of one that waits for a request. Fewer, with a warning, if the process may not have that many files open and 256 beside them.
	MaxConnections int `env:"MAX_CONNECTIONS" envDefault:"1024"`
	// How long a connection stays open between two postbacks, 1s to 24h. Keep it longer than a load balancer keeps its idle connections, or some postbacks meet a connection that is just being closed.
	IdleTimeout time.Duration `env:"IDLE_TIMEOUT" envDefault:"620s"`
	// The certificate that brokers are shown, with its chain, PEM; read again when it changes. Without it TLS has to end before postbridge.
	TLSCertFile string `env:"TLS_CERT_FILE"`
	// Its key, PEM.
	TLSKeyFile string `env:"TLS_KEY_FILE"`
	// What `/status`, `/metrics` and the page ask for as a bearer token; without it they ask for nothing.
	AdminToken secret `env:"ADMIN_TOKEN"`
	// A file with the token; read again when it changes.
	AdminTokenFile string `env:"ADMIN_TOKEN_FILE"`
	// The directory of all data: the spool in `spool/`, the embedded bus in `nats/`.
	DataDir string `env:"DATA_DIR" envDefault:"data"`

	// Kite apps and their secrets: `app_id=api_secret,…`. An app id may appear twice while a secret is rotated. A body without `app_id` is tried against all of them, one with an `app_id` that is not listed is refused. Without it Kite is off.
	KiteSecrets secretList `env:"KITE_SECRETS"`
	// A file with the same, entries separated by commas or lines; read again when it changes.
	KiteSecretsFile string `env:"KITE_SECRETS_FILE"`
	// What is hashed between order id and secret. `user_id` accepts, beside the official formula, the one of a third-party guide, whose checksum stays the same through all states of an order; events that it proved say so.
	KiteChecksum string `env:"KITE_CHECKSUM" envDefault:"order_timestamp"`
	// Path tokens, separated by commas; several live at once. With one, Kite posts to `/kite/{token}`, and needs both proofs.
	KiteTokens secretList `env:"KITE_TOKENS"`
	// A file with the same, separated by commas or lines; read again when it changes.
	KiteTokensFile string `env:"KITE_TOKENS_FILE"`
	// Path tokens, separated by commas; several live at once. Dhan signs nothing and posts to `/dhan/{token}`. Without it Dhan is off.
	DhanTokens secretList `env:"DHAN_TOKENS"`
	// A file with the same, separated by commas or lines; read again when it changes.
	DhanTokensFile string `env:"DHAN_TOKENS_FILE"`
	// If set, only these Dhan client ids are taken, separated by commas.
	DhanClientIDs list `env:"DHAN_CLIENT_IDS"`

	// The buses to publish to: `nats`, `kafka` or `nats,kafka`; each gets every event at its own pace.
	Publish list `env:"PUBLISH" envDefault:"nats"`

	// The NATS servers, `nats://host:4222,…`. Without it an embedded JetStream server is the bus.
	NATSURL string `env:"NATS_URL"`
	// Where the embedded server listens, host:port.
	NATSListen string `env:"NATS_LISTEN" envDefault:"127.0.0.1:4222"`
	// A NATS credentials file (JWT and seed).
	NATSCredsFile string `env:"NATS_CREDS_FILE"`
	// A NATS user.
	NATSUser string `env:"NATS_USER"`
	// Its password.
	NATSPassword secret `env:"NATS_PASSWORD"`
	// A file with the password; read again when it changes.
	NATSPasswordFile string `env:"NATS_PASSWORD_FILE"`
	// A NATS token.
	NATSToken secret `env:"NATS_TOKEN"`
	// A file with the token; read again when it changes.
	NATSTokenFile string `env:"NATS_TOKEN_FILE"`
	// The certificates that the NATS server's is checked against, PEM; without it the system's.
	NATSTLSCAFile string `env:"NATS_TLS_CA_FILE"`
	// The client certificate shown to the NATS server, PEM.
	NATSTLSCertFile string `env:"NATS_TLS_CERT_FILE"`
	// Its key, PEM.
	NATSTLSKeyFile string `env:"NATS_TLS_KEY_FILE"`
	// Whether missing streams are created; an existing one is never changed.
	NATSCreateStreams bool `env:"NATS_CREATE_STREAMS" envDefault:"true"`
	// Replicas of a created stream, 1 to 5.
	NATSReplicas int `env:"NATS_REPLICAS" envDefault:"1"`
	// How long a created stream keeps an event.
	NATSMaxAge time.Duration `env:"NATS_MAX_AGE" envDefault:"168h"`
	// The largest size of each created stream; without it none, embedded `4GiB`.
	NATSMaxBytes byteSize `env:"NATS_MAX_BYTES"`

	// The Kafka brokers to ask first, `host:9092,…`; needed to publish to Kafka.
	KafkaBrokers list `env:"KAFKA_BROKERS"`
	// How to log in to Kafka: `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`; without it there is no login.
	KafkaSASLMechanism string `env:"KAFKA_SASL_MECHANISM"`
	// A Kafka user.
	KafkaUser string `env:"KAFKA_USER"`
	// Its password.
	KafkaPassword secret `env:"KAFKA_PASSWORD"`
	// A file with the password; read again when it changes.
	KafkaPasswordFile string `env:"KAFKA_PASSWORD_FILE"`
	// Whether to use TLS; each of the files below switches it on, too.
	KafkaTLS bool `env:"KAFKA_TLS" envDefault:"false"`
	// The certificates that the Kafka brokers' are checked against, PEM; without it the system's.
	KafkaTLSCAFile string `env:"KAFKA_TLS_CA_FILE"`
	// The client certificate shown to the Kafka brokers, PEM.
	KafkaTLSCertFile string `env:"KAFKA_TLS_CERT_FILE"`
	// Its key, PEM.
	KafkaTLSKeyFile string `env:"KAFKA_TLS_KEY_FILE"`
	// Whether missing topics are created; an existing one is never changed.
	KafkaCreateTopics bool `env:"KAFKA_CREATE_TOPICS" envDefault:"true"`
	// Partitions of a created topic.
	KafkaPartitions int `env:"KAFKA_PARTITIONS" envDefault:"6"`
	// Replicas of a created topic.
	KafkaReplication int `env:"KAFKA_REPLICATION" envDefault:"1"`

	// For sharing a bus: `desk1` makes subjects `desk1.orders.…`, streams `DESK1_ORDERS` and topics `desk1.orders`; letters, digits, `_` and `-`.
	Prefix string `env:"PREFIX"`

	// The limit of the spool's files on disk, 1MiB and 16 times `MAX_BODY` at least; when it is reached by events that wait for a bus, postbacks are answered 503.
	SpoolMaxBytes byteSize `env:"SPOOL_MAX_BYTES" envDefault:"8GiB"`
	// What stays free on the spool's disk; below it postbacks are answered 503.
	SpoolMinFreeBytes byteSize `env:"SPOOL_MIN_FREE_BYTES" envDefault:"512MiB"`
	// How long published events stay in the spool, if there is room, should a bus lose them.
	SpoolKeep time.Duration `env:"SPOOL_KEEP" envDefault:"1h"`

	// `debug`, `info`, `warn` or `error`.
	LogLevel string `env:"LOG_LEVEL" envDefault:"info"`
	// `json` or `text`; without it `text` on a terminal, else `json`.
	LogFormat string `env:"LOG_FORMAT"`
}

// readConfig reads the configuration of serve. Its error is a misuse: one line that names the setting and says what to
// do.
func readConfig(environ map[string]string) (*config, *credentials, error) {
	c, err := parseConfig(environ)
	if err == nil {
		err = firstError(func() error { return c.checkPublish(environ) },
			c.checkHTTP, c.checkBrokers, c.checkBuses, c.checkFiles, c.checkSpool, c.checkLog)
	}
	if err != nil {
		return nil, nil, err
	}
	credentials, err := readCredentials(slices.Concat(c.httpSecrets(), c.brokerSecrets(), c.busSecrets()))
	return c, credentials, err
}

// readBusConfig reads what concerns the buses, for those who only listen to one.
func readBusConfig(environ map[string]string) (*config, *credentials, error) {
	c, err := parseConfig(environ)
	if err == nil {
		err = firstError(func() error { return c.checkPublish(environ) }, c.checkBuses, c.checkFiles)
	}
	if err != nil {
		return nil, nil, err
	}
	credentials, err := readCredentials(c.busSecrets())
	return c, credentials, err
}

func firstError(checks ...func() error) error {
	for _, check := range checks {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// parseConfig reads all settings. What they say of a bus is checked only for a command that connects to one.
func parseConfig(environ map[string]string) (*config, error) {
	settings := make(map[string]string)
	for name, value := range environ {
		if strings.HasPrefix(name, envPrefix) && value != "" {
			settings[name] = value
		}
	}
	if err := checkNames(settings); err != nil {
		return nil, err
	}
	c := new(config)
	if err := env.ParseWithOptions(c, env.Options{Environment: settings, Prefix: envPrefix}); err != nil {
		return nil, parseMisuse(err, settings)
	}
	return c, nil
}

// parseMisuse turns the first error of the env package into one line. Only settings that are not secret have a form
// that env can find wrong, so the value may be shown.
func parseMisuse(err error, settings map[string]string) error {
	var all env.AggregateError
	var wrong env.ParseError
	if !errors.As(err, &all) || !errors.As(all.Errors[0], &wrong) {
		return misuse("%v", err)
	}
	field, _ := reflect.TypeFor[config]().FieldByName(wrong.Name)
	name := settingName(field)
	return misuse("%s: %q %s", name, settings[name], form(wrong))
}

// form says how a value has to be written.
func form(wrong env.ParseError) string {
	switch wrong.Type {
	case reflect.TypeFor[time.Duration]():
		return "is not a duration; write it like 90s, 15m or 168h"
	case reflect.TypeFor[bool]():
		return "is neither true nor false"
	case reflect.TypeFor[int]():
		return "is not a whole number"
	default:
		return wrong.Err.Error()
	}
}

const configHelp = `Check the configuration, as serve would, and print what is in effect, secrets redacted.

Usage: postbridge config

The configuration is the environment, names that start with POSTBRIDGE_; the table is in
cmd/postbridge/README.md. A bad one is one line on stderr and exit code 2. Secrets may be given as
files: the name with _FILE after it. Such files are read too, and must be good. The settings of
NATS and of Kafka are printed for the buses in POSTBRIDGE_PUBLISH.

Example:
  POSTBRIDGE_DHAN_TOKENS=dev-dhan-token postbridge config
`

func (p *process) config(_ context.Context, args []string) error {
	fs := newFlags("config")
	if err := parseFlags(fs, args); err != nil {
		return err
	}
	if err := noArguments(fs); err != nil {
		return err
	}
	c, _, err := readConfig(p.env)
	if err != nil {
		return err
	}
	if err := p.checkTracing(); err != nil {
		return err
	}
	c.LogFormat = c.logFormat(isTerminal(p.stderr))
	return p.print(c.lines())
}

// logFormat is the format in effect.
func (c *config) logFormat(terminal bool) string {
	if c.LogFormat == "" && terminal {
		return "text"
	}
	return orElse(c.LogFormat, "json")
}

// lines is the configuration as NAME=value lines, in the order of the struct, without the buses that nothing is
// published to.
func (c *config) lines() string {
	var b strings.Builder
	v := reflect.ValueOf(c).Elem()
	for _, f := range reflect.VisibleFields(v.Type()) {
		if bus := busOf(settingName(f)); bus != "" && !c.publishes(bus) {
			continue
		}
		text := fmt.Sprint(v.FieldByIndex(f.Index))
		if f.Name == "NATSURL" {
			text = c.redactedNATSURL()
		}
		fmt.Fprintf(&b, "%s=%s\n", settingName(f), text)
	}
	return b.String()
}

// redactedNATSURL is NATS_URL without the users and passwords in it.
func (c *config) redactedNATSURL() string {
	if c.NATSURL == "" {
		return ""
	}
	servers, _ := nats.ParseURL(c.NATSURL) // was checked
	texts := make([]string, len(servers))
	for i, u := range servers {
		texts[i] = u.String()
		if u.User != nil {
			texts[i] = u.Scheme + "://(set)@" + u.Host
		}
	}
	return strings.Join(texts, ",")
}
