package nats

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/publishers"
	"github.com/postbridge/postbridge/publishers/tlsfiles"
)

// Config configures the servers, the login and the streams.
type Config struct {
	// URL lists the servers: nats:// or tls://, separated by commas.
	URL string
	// Embedded, if not nil, starts a server in this process instead; URL is not used.
	Embedded *EmbeddedConfig

	// At most one of CredsFile, NKeyFile with a seed, User with Password, and Token. Files are read, and Password and
	// Token called, at each connect, so that a rotated secret takes effect. The functions are called with locks held:
	// they may read a file, but not block.
	CredsFile string
	NKeyFile  string
	User      string
	Password  func() string
	Token     func() string

	// TLS files in PEM, read at each dial; a change renews the connection. CertFile and KeyFile require each other.
	TLSCAFile, TLSCertFile, TLSKeyFile string
	// TLSFirst begins with the TLS handshake, before the server's first message: for servers with handshake_first.
	TLSFirst bool

	// InboxPrefix, if not empty, replaces _INBOX in the subjects of answers.
	InboxPrefix string
	// Domain, if not empty, is the JetStream domain that has the streams: leaf nodes connect domains.
	Domain string
	// Prefix, if not empty, makes subjects <prefix>.orders.… and streams <PREFIX>_ORDERS, with _ for each dot in it.
	Prefix string

	// CreateStreams creates missing streams, with the limits below. Zero MaxAge or MaxBytes means no limit.
	CreateStreams bool
	Replicas      int
	MaxAge        time.Duration
	MaxBytes      int64
	// DiscardOld makes a full stream drop its oldest events. Otherwise it refuses new ones, which wait in the spool.
	DiscardOld bool
}

// Validate returns the first error of the configuration: one line with the setting and the remedy, without secrets.
func (c *Config) Validate() error {
	if err := publishers.CheckPrefix(c.Prefix); err != nil {
		return err
	}
	if strings.ContainsAny(c.Domain, " \t\r\n\f.*>") {
		return fmt.Errorf("POSTBRIDGE_NATS_DOMAIN: %q is not a JetStream domain; "+
			"write what the jetstream block of its servers has as domain, without dots", c.Domain)
	}
	logins := []setting{
		{"POSTBRIDGE_NATS_CREDS_FILE", c.CredsFile != ""},
		{"POSTBRIDGE_NATS_NKEY_FILE", c.NKeyFile != ""},
		{"POSTBRIDGE_NATS_USER", c.User != ""},
		{"POSTBRIDGE_NATS_TOKEN", c.Token != nil},
	}
	if c.Embedded != nil {
		remote := namesSet(append(logins,
			setting{"POSTBRIDGE_NATS_PASSWORD", c.Password != nil},
			setting{"POSTBRIDGE_NATS_TLS_CA_FILE", c.TLSCAFile != ""},
			setting{"POSTBRIDGE_NATS_TLS_CERT_FILE", c.TLSCertFile != ""},
			setting{"POSTBRIDGE_NATS_TLS_KEY_FILE", c.TLSKeyFile != ""},
			setting{"POSTBRIDGE_NATS_TLS_FIRST", c.TLSFirst},
			setting{"POSTBRIDGE_NATS_INBOX_PREFIX", c.InboxPrefix != ""},
			setting{"POSTBRIDGE_NATS_DOMAIN", c.Domain != ""},
		))
		if remote != nil {
			return fmt.Errorf("%s is set, but the embedded server has no login, permissions, TLS or domain; "+
				"unset it, or set POSTBRIDGE_NATS_URL", remote[0])
		}
		return nil
	}
	servers, err := ParseURL(c.URL)
	if err != nil {
		return err
	}
	ways := namesSet(append(logins, setting{"a user in POSTBRIDGE_NATS_URL", slices.ContainsFunc(servers, hasUser)}))
	switch {
	case len(ways) > 1:
		return fmt.Errorf("%s and %s are both set; NATS takes one way to log in, unset the other", ways[0], ways[1])
	case c.Password != nil && c.User == "":
		return errors.New("POSTBRIDGE_NATS_PASSWORD: is set without a user; set POSTBRIDGE_NATS_USER, too")
	case c.Password == nil && c.User != "":
		return errors.New("POSTBRIDGE_NATS_USER: is set without a password; set POSTBRIDGE_NATS_PASSWORD, too")
	case c.TLSCertFile != "" && c.TLSKeyFile == "":
		return errors.New("POSTBRIDGE_NATS_TLS_CERT_FILE: is set without its key; " +
			"set POSTBRIDGE_NATS_TLS_KEY_FILE, too")
	case c.TLSCertFile == "" && c.TLSKeyFile != "":
		return errors.New("POSTBRIDGE_NATS_TLS_KEY_FILE: is set without its certificate; " +
			"set POSTBRIDGE_NATS_TLS_CERT_FILE, too")
	case c.TLSFirst && slices.ContainsFunc(servers, isWebSocket):
		return errors.New("POSTBRIDGE_NATS_TLS_FIRST: is set, but a WebSocket has TLS by wss://; unset it")
	case c.InboxPrefix != "" && !server.IsValidLiteralSubject(c.InboxPrefix):
		return fmt.Errorf("POSTBRIDGE_NATS_INBOX_PREFIX: %q cannot begin a subject; "+
			"write it like _INBOX_edge, without wildcards and dot at its end", c.InboxPrefix)
	}
	return nil
}

// setting is a setting's name, for messages, and whether it is set.
type setting struct {
	name string
	set  bool
}

func namesSet(all []setting) (names []string) {
	for _, s := range all {
		if s.set {
			names = append(names, s.name)
		}
	}
	return names
}

func hasUser(u *url.URL) bool { return u.User != nil }

func isWebSocket(u *url.URL) bool { return u.Scheme == "ws" || u.Scheme == "wss" }

// ParseURL parses Config.URL. Its error does not quote the text, which may contain a password.
func ParseURL(text string) (servers []*url.URL, err error) {
	for one := range strings.SplitSeq(text, ",") {
		one = strings.TrimSpace(one)
		if !strings.Contains(one, "://") {
			one = "nats://" + one
		}
		u, err := url.Parse(one)
		if err != nil || u.Hostname() == "" || !slices.Contains([]string{"nats", "tls", "ws", "wss"}, u.Scheme) {
			return nil, errors.New("POSTBRIDGE_NATS_URL: is not a list of NATS servers; " +
				"write it like nats://host:4222, several with commas")
		}
		servers = append(servers, u)
	}
	return servers, nil
}

// hosts returns the addresses of the servers, for messages and the publisher state, without user info.
func (c *Config) hosts() string {
	if c.Embedded != nil {
		return "embedded"
	}
	servers, _ := ParseURL(c.URL) // validated
	var hosts []string
	for _, u := range servers {
		hosts = append(hosts, u.Host)
	}
	return strings.Join(hosts, ",")
}

// places returns the address of each server, with the domain if there is one: the places that checkpoints belong to.
func (c *Config) places() []string {
	all := strings.Split(c.hosts(), ",")
	if c.Domain != "" {
		for i := range all {
			all[i] += "/" + c.Domain
		}
	}
	return all
}

// api returns the first tokens of the subjects of the JetStream API, with their dot.
func (c *Config) api() string {
	if c.Domain == "" {
		return jetstream.DefaultAPIPrefix
	}
	return "$JS." + c.Domain + ".API."
}

// NewJetStream returns the JetStream that has the streams of a valid configuration, over a connection to its bus.
func NewJetStream(
	conn *natsgo.Conn, c Config, options ...jetstream.JetStreamOpt,
) (jetstream.JetStream, error) {
	if c.Domain == "" {
		return jetstream.New(conn, options...)
	}
	return jetstream.NewWithDomain(conn, c.Domain, options...)
}

// answers returns the subjects of answers.
func (c *Config) answers() string { return cmp.Or(c.InboxPrefix, "_INBOX") + ".>" }

// ConnectOptions returns the login, TLS and inbox options of a valid configuration, for another client of the same bus.
// Secrets and files are read at each connect; of an NKey file, a new key needs a new connection.
func ConnectOptions(c Config) []natsgo.Option {
	return c.connectOptions(c.certificates(func(error) {}))
}

// certificates returns the configured TLS files; nil if there are none.
func (c *Config) certificates(report func(error)) *tlsfiles.Files {
	return tlsfiles.New(c.TLSCAFile, c.TLSCertFile, c.TLSKeyFile, report)
}

func (c *Config) connectOptions(files *tlsfiles.Files) (options []natsgo.Option) {
	switch {
	case c.CredsFile != "":
		options = append(options, natsgo.UserCredentials(c.CredsFile))
	case c.NKeyFile != "":
		options = append(options, c.nkeyOption)
	case c.Token != nil:
		options = append(options, natsgo.TokenHandler(c.Token))
	case c.User != "":
		options = append(options, natsgo.UserInfoHandler(func() (string, string) { return c.User, c.Password() }))
	}
	if c.InboxPrefix != "" {
		options = append(options, natsgo.CustomInboxPrefix(c.InboxPrefix))
	}
	if c.TLSFirst {
		options = append(options, natsgo.TLSHandshakeFirst())
	}
	if files == nil {
		return options
	}
	return append(options, func(o *natsgo.Options) error {
		o.Secure, o.TLSConfig = true, &tls.Config{MinVersion: tls.VersionTLS12}
		o.RootCAsCB = func() (*x509.CertPool, error) {
			pool, _, err := files.Current()
			return pool, err
		}
		if files.HasPair() {
			o.TLSCertCB = func() (tls.Certificate, error) {
				_, pair, err := files.Current()
				return pair, err
			}
		}
		return nil
	})
}

// nkeyOption sets the public key of the seed file, and signs with the seed that the file has at each connect.
func (c *Config) nkeyOption(o *natsgo.Options) error {
	option, err := natsgo.NkeyOptionFromSeed(c.NKeyFile)
	if err != nil {
		return fmt.Errorf("POSTBRIDGE_NATS_NKEY_FILE: %w", err)
	}
	return option(o)
}

// nkeyChanged reports whether the seed file has another key than a connection, whose public key is fixed.
func (c *Config) nkeyChanged(conn *natsgo.Conn) bool {
	var now natsgo.Options
	return c.NKeyFile != "" && c.nkeyOption(&now) == nil && now.Nkey != conn.Opts.Nkey
}
