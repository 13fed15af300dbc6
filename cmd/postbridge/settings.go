package main

import (
	"cmp"
	"errors"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/caarlos0/env/v10"
)

// envPrefix begins the name of every setting in the environment.
const envPrefix = "POSTBRIDGE_"

// config holds the settings. The table in README.md is generated from the tags, the defaults and the comments of its
// fields. A tag is the name of the environment variable after POSTBRIDGE_; an empty variable is not set.
type config struct {
	// The address that brokers post to, host:port. Serves only their routes.
	Listen string `env:"LISTEN" envDefault:":8080"`
	// The address of `/livez`, `/readyz`, `/metrics` and `/status`, host:port. Keep it off the internet. The image, the
	// chart and Compose set `:9090`.
	AdminListen string `env:"ADMIN_LISTEN" envDefault:"127.0.0.1:9090"`
	// Whether `ADMIN_LISTEN` serves a page for browsers. It shows the last events: users, orders and prices.
	AdminPage bool `env:"ADMIN_PAGE" envDefault:"true"`
	// The largest postback, 1KiB to 4MiB; a larger one is answered 413.
	MaxBody byteSize `env:"MAX_BODY" envDefault:"64KiB"`
	// The maximum of open connections of brokers, 16 to 32768; at the limit a new connection closes one that waits for
	// a request, and a postback that is just arriving on that one may get no answer. Lower, with a warning, if the
	// limit of open files is less than this and 256.
	MaxConnections int `env:"MAX_CONNECTIONS" envDefault:"1024"`
	// How long a connection stays open between two postbacks, 1s to 24h. Keep it longer than the idle timeout of a
	// load balancer, or some postbacks arrive on a connection that is being closed.
	IdleTimeout time.Duration `env:"IDLE_TIMEOUT" envDefault:"620s"`
	// The certificate for `LISTEN` with its chain, PEM; reloaded when it changes. Without it a proxy has to
	// terminate TLS.
	TLSCertFile string `env:"TLS_CERT_FILE"`
	// Its key, PEM.
	TLSKeyFile string `env:"TLS_KEY_FILE"`
	// The bearer token that `/status`, `/metrics` and the page require; without it they require none.
	AdminToken secret `env:"ADMIN_TOKEN"`
	// A file with the token; reloaded when it changes.
	AdminTokenFile string `env:"ADMIN_TOKEN_FILE"`
	// The directory of all data: the spool in `spool/`, the embedded bus in `nats/`.
	DataDir string `env:"DATA_DIR" envDefault:"data"`

	// Kite apps and their secrets: `app_id=api_secret,…`. An app id may appear twice while a secret is rotated. A
	// body without `app_id` is verified with each of them, one with an unlisted `app_id` is refused. Without it Kite
	// is off.
	KiteSecrets secretList `env:"KITE_SECRETS"`
	// A file with the same, entries separated by commas or lines; reloaded when it changes.
	KiteSecretsFile string `env:"KITE_SECRETS_FILE"`
	// The field that the checksum hashes between order id and secret. `user_id` accepts, beside the official formula,
	// that of a third-party guide, whose checksum is the same for all states of an order; events verified with it have
	// `verified_by` `checksum:user_id`.
	KiteChecksum string `env:"KITE_CHECKSUM" envDefault:"order_timestamp"`
	// Path tokens, separated by commas; all are valid. With one, Kite posts to `/kite/{token}`, and both checksum
	// and token are verified.
	KiteTokens secretList `env:"KITE_TOKENS"`
	// A file with the same, separated by commas or lines; reloaded when it changes.
	KiteTokensFile string `env:"KITE_TOKENS_FILE"`
	// Path tokens, separated by commas; all are valid. Dhan posts to `/dhan/{token}` and signs nothing. Without it
	// Dhan is off.
	DhanTokens secretList `env:"DHAN_TOKENS"`
	// A file with the same, separated by commas or lines; reloaded when it changes.
	DhanTokensFile string `env:"DHAN_TOKENS_FILE"`
	// If set, only these Dhan client ids are accepted, separated by commas.
	DhanClientIDs list `env:"DHAN_CLIENT_IDS"`
	// Path tokens, separated by commas; all are valid. Upstox posts to `/upstox/{token}` and signs nothing. Without it
	// Upstox is off.
	UpstoxTokens secretList `env:"UPSTOX_TOKENS"`
	// A file with the same, separated by commas or lines; reloaded when it changes.
	UpstoxTokensFile string `env:"UPSTOX_TOKENS_FILE"`
	// If set, only orders of these Upstox users (UCC, `placed_by`) are accepted, separated by commas.
	UpstoxUserIDs list `env:"UPSTOX_USER_IDS"`
	// Path tokens, separated by commas; all are valid. Fyers posts to `/fyers/{token}` and signs nothing. Without it
	// Fyers is off.
	FyersTokens secretList `env:"FYERS_TOKENS"`
	// A file with the same, separated by commas or lines; reloaded when it changes.
	FyersTokensFile string `env:"FYERS_TOKENS_FILE"`
	// If set, only orders of these Fyers client ids are accepted, separated by commas. List all clients of the app:
	// Fyers sends nothing for half an hour after a postback is refused.
	FyersClientIDs list `env:"FYERS_CLIENT_IDS"`

	// Accounts at Kite whose order books `postbridge reconcile` reads, and their access tokens:
	// `user_id=api_key:access_token,…`. Only `reconcile` and `doctor` read it.
	KiteAccessTokens secretList `env:"KITE_ACCESS_TOKENS"`
	// A file with the same, separated by commas or lines; reloaded when it changes.
	KiteAccessTokensFile string `env:"KITE_ACCESS_TOKENS_FILE"`
	// The address of Kite's API, for a proxy or a test; without it Kite's own.
	KiteAPIURL string `env:"KITE_API_URL"`
	// Accounts at Dhan whose order books `postbridge reconcile` reads, and their access tokens:
	// `client_id=access_token,…`. Only `reconcile` and `doctor` read it.
	DhanAccessTokens secretList `env:"DHAN_ACCESS_TOKENS"`
	// A file with the same, separated by commas or lines; reloaded when it changes.
	DhanAccessTokensFile string `env:"DHAN_ACCESS_TOKENS_FILE"`
	// The address of Dhan's API, for a proxy or a test; without it Dhan's own.
	DhanAPIURL string `env:"DHAN_API_URL"`
	// Accounts at Upstox whose order books `postbridge reconcile` reads, and their access tokens:
	// `user_id=access_token,…`. Only `reconcile` and `doctor` read it.
	UpstoxAccessTokens secretList `env:"UPSTOX_ACCESS_TOKENS"`
	// A file with the same, separated by commas or lines; reloaded when it changes.
	UpstoxAccessTokensFile string `env:"UPSTOX_ACCESS_TOKENS_FILE"`
	// The address of Upstox's API, for a proxy or a test; without it Upstox's own.
	UpstoxAPIURL string `env:"UPSTOX_API_URL"`
	// Accounts at Fyers whose order books `postbridge reconcile` reads, and their access tokens:
	// `client_id=app_id:access_token,…`. Only `reconcile` and `doctor` read it.
	FyersAccessTokens secretList `env:"FYERS_ACCESS_TOKENS"`
	// A file with the same, separated by commas or lines; reloaded when it changes.
	FyersAccessTokensFile string `env:"FYERS_ACCESS_TOKENS_FILE"`
	// The address of Fyers's API, for a proxy or a test; without it Fyers's own.
	FyersAPIURL string `env:"FYERS_API_URL"`

	// The buses to publish to: `nats`, `kafka` or `nats,kafka`; each gets every event at its own pace.
	Publish list `env:"PUBLISH" envDefault:"nats"`

	// The NATS servers, `nats://host:4222,…`. Without it postbridge embeds a JetStream server.
	NATSURL string `env:"NATS_URL"`
	// The address of the embedded server, host:port.
	NATSListen string `env:"NATS_LISTEN" envDefault:"127.0.0.1:4222"`
	// A NATS credentials file (JWT and seed).
	NATSCredsFile string `env:"NATS_CREDS_FILE"`
	// A file with the seed of an NKey.
	NATSNKeyFile string `env:"NATS_NKEY_FILE"`
	// A NATS user.
	NATSUser string `env:"NATS_USER"`
	// Its password.
	NATSPassword secret `env:"NATS_PASSWORD"`
	// A file with the password; reloaded when it changes.
	NATSPasswordFile string `env:"NATS_PASSWORD_FILE"`
	// A NATS token.
	NATSToken secret `env:"NATS_TOKEN"`
	// A file with the token; reloaded when it changes.
	NATSTokenFile string `env:"NATS_TOKEN_FILE"`
	// The CA certificates that verify the NATS server, PEM; without it the system's.
	NATSTLSCAFile string `env:"NATS_TLS_CA_FILE"`
	// The client certificate for NATS, PEM.
	NATSTLSCertFile string `env:"NATS_TLS_CERT_FILE"`
	// Its key, PEM.
	NATSTLSKeyFile string `env:"NATS_TLS_KEY_FILE"`
	// Whether the TLS handshake comes first, for servers with `handshake_first: true`.
	NATSTLSFirst bool `env:"NATS_TLS_FIRST" envDefault:"false"`
	// What the subjects of answers begin with; without it `_INBOX`.
	NATSInboxPrefix string `env:"NATS_INBOX_PREFIX"`
	// The JetStream domain that has the streams, behind a leaf node; without it that of the server.
	NATSDomain string `env:"NATS_DOMAIN"`
	// Whether to create missing streams; an existing one is never changed.
	NATSCreateStreams bool `env:"NATS_CREATE_STREAMS" envDefault:"true"`
	// Replicas of a created stream, 1 to 5.
	NATSReplicas int `env:"NATS_REPLICAS" envDefault:"1"`
	// How long a created stream keeps an event.
	NATSMaxAge time.Duration `env:"NATS_MAX_AGE" envDefault:"168h"`
	// The maximum size of each created stream; without it no limit, embedded `4GiB`.
	NATSMaxBytes byteSize `env:"NATS_MAX_BYTES"`

	// The Kafka bootstrap servers, `host:9092,…`; required to publish to Kafka.
	KafkaBrokers list `env:"KAFKA_BROKERS"`
	// The SASL mechanism for Kafka: `PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512` or `OAUTHBEARER`; without it no login.
	KafkaSASLMechanism string `env:"KAFKA_SASL_MECHANISM"`
	// The client id that the Kafka brokers see, for their quotas and logs.
	KafkaClientID string `env:"KAFKA_CLIENT_ID" envDefault:"postbridge"`
	// The compression of what is published: `lz4`, `gzip` or `none`.
	KafkaCompression string `env:"KAFKA_COMPRESSION" envDefault:"lz4"`
	// A Kafka user.
	KafkaUser string `env:"KAFKA_USER"`
	// Its password.
	KafkaPassword secret `env:"KAFKA_PASSWORD"`
	// A file with the password; reloaded when it changes.
	KafkaPasswordFile string `env:"KAFKA_PASSWORD_FILE"`
	// A file with the token of `OAUTHBEARER`, which another program keeps valid; reloaded when it changes.
	KafkaOAuthTokenFile string `env:"KAFKA_OAUTH_TOKEN_FILE"`
	// Extensions of `OAUTHBEARER` that the service asks for, such as `logicalCluster=lkc-1,identityPoolId=pool-1`.
	KafkaOAuthExtensions list `env:"KAFKA_OAUTH_EXTENSIONS"`
	// Whether to use TLS; each of the files below implies it.
	KafkaTLS bool `env:"KAFKA_TLS" envDefault:"false"`
	// The CA certificates that verify the Kafka brokers, PEM; without it the system's.
	KafkaTLSCAFile string `env:"KAFKA_TLS_CA_FILE"`
	// The client certificate for Kafka, PEM.
	KafkaTLSCertFile string `env:"KAFKA_TLS_CERT_FILE"`
	// Its key, PEM.
	KafkaTLSKeyFile string `env:"KAFKA_TLS_KEY_FILE"`
	// Whether to create missing topics; an existing one is never changed.
	KafkaCreateTopics bool `env:"KAFKA_CREATE_TOPICS" envDefault:"true"`
	// Partitions of a created topic.
	KafkaPartitions int `env:"KAFKA_PARTITIONS" envDefault:"6"`
	// Replicas of a created topic; -1 for the cluster's default.
	KafkaReplication int `env:"KAFKA_REPLICATION" envDefault:"1"`

	// A prefix for a shared bus: `desk1` gives subjects `desk1.orders.…`, streams `DESK1_ORDERS` and topics
	// `desk1.orders`; letters, digits, `_` and `-`, with dots between them, which are `_` in the name of a stream.
	Prefix string `env:"PREFIX"`

	// The maximum size of the spool on disk, at least 1MiB and 16 times `MAX_BODY`; when unpublished events fill it,
	// postbacks are answered 503.
	SpoolMaxBytes byteSize `env:"SPOOL_MAX_BYTES" envDefault:"8GiB"`
	// The space to keep free on the spool's disk; below it postbacks are answered 503.
	SpoolMinFreeBytes byteSize `env:"SPOOL_MIN_FREE_BYTES" envDefault:"512MiB"`
	// How long published events stay in the spool, space permitting, to be published again should a bus lose them.
	SpoolKeep time.Duration `env:"SPOOL_KEEP" envDefault:"24h"`

	// `debug`, `info`, `warn` or `error`.
	LogLevel string `env:"LOG_LEVEL" envDefault:"info"`
	// `json` or `text`; without it `text` on a terminal, else `json`.
	LogFormat string `env:"LOG_FORMAT"`
}

// readConfig reads and checks all settings. Its error is a misuse: one line that names the setting and the remedy.
func readConfig(environ map[string]string) (*config, *credentials, error) {
	return readServeConfig(environ, (*config).requireBroker)
}

// readDoctorConfig is readConfig, also of a postbridge that only reconciles.
func readDoctorConfig(environ map[string]string) (*config, *credentials, error) {
	return readServeConfig(environ, func(c *config) error {
		if c.checkBooks() == nil {
			return nil
		}
		return c.requireBroker()
	})
}

func readServeConfig(environ map[string]string, require func(*config) error) (*config, *credentials, error) {
	c, err := parseConfig(environ)
	if err == nil {
		err = cmp.Or(c.checkPublish(environ), c.checkHTTP(), require(c), c.checkBrokers(), c.checkBuses(), c.checkFiles(),
			c.checkSpool(), c.checkLog())
	}
	if err != nil {
		return nil, nil, err
	}
	credentials, err := readCredentials(slices.Concat(c.httpSecrets(), c.brokerSecrets(), c.busSecrets()))
	return c, credentials, err
}

// readBusConfig reads all settings and checks those of the buses.
func readBusConfig(environ map[string]string) (*config, *credentials, error) {
	c, err := parseConfig(environ)
	if err == nil {
		err = cmp.Or(c.checkPublish(environ), c.checkBuses(), c.checkFiles())
	}
	if err != nil {
		return nil, nil, err
	}
	credentials, err := readCredentials(c.busSecrets())
	return c, credentials, err
}

// readReconcileConfig reads all settings and checks those of the buses and of the order books.
func readReconcileConfig(environ map[string]string) (*config, *credentials, error) {
	c, err := parseConfig(environ)
	if err == nil {
		err = cmp.Or(c.checkPublish(environ), c.checkBuses(), c.checkFiles(), c.checkBooks(), c.checkLog())
	}
	if err != nil {
		return nil, nil, err
	}
	credentials, err := readCredentials(slices.Concat(c.httpSecrets()[1:], c.accessSecrets(), c.busSecrets()))
	return c, credentials, err
}

// parseConfig parses all settings without checking their values.
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
		return nil, parseError(err, settings)
	}
	return c, nil
}

// parseError converts the first error of the env package to one line. The value may be shown: a secret is a string,
// which env accepts in any form.
func parseError(err error, settings map[string]string) error {
	var all env.AggregateError
	var first env.ParseError
	if !errors.As(err, &all) || !errors.As(all.Errors[0], &first) {
		return misuse("%v", err)
	}
	text := first.Err.Error()
	switch first.Type {
	case reflect.TypeFor[time.Duration]():
		text = "is not a duration; write it like 90s, 15m or 168h"
	case reflect.TypeFor[bool]():
		text = "is neither true nor false"
	case reflect.TypeFor[int]():
		text = "is not a whole number"
	}
	field, _ := reflect.TypeFor[config]().FieldByName(first.Name)
	name := settingName(field)
	return misuse("%s: %q %s", name, settings[name], text)
}
