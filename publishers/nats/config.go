package nats

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/publishers/tlsfiles"
)

// Config configures the servers, the login and the streams.
type Config struct {
	// URL lists the servers: nats:// or tls://, separated by commas.
	URL string
	// Embedded, if not nil, starts a server in this process instead; URL is not used.
	Embedded *EmbeddedConfig

	// At most one of CredsFile, User with Password, and Token. Password and Token are called at each connect, so that a
	// rotated secret takes effect. They are called with locks held: they may read a file, but not block.
	CredsFile string
	User      string
	Password  func() string
	Token     func() string

	// TLS files in PEM, read at each dial; a change renews the connection. CertFile and KeyFile require each other.
	TLSCAFile, TLSCertFile, TLSKeyFile string

	// Prefix, if not empty, makes subjects <prefix>.orders.… and streams <PREFIX>_ORDERS.
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
	if c.Prefix != "" && event.EscapeToken(c.Prefix) != c.Prefix {
		return fmt.Errorf("POSTBRIDGE_PREFIX: %q cannot be part of a subject; "+
			"use letters, digits, _ and -, at most 64 of them", c.Prefix)
	}
	logins := []setting{
		{"POSTBRIDGE_NATS_CREDS_FILE", c.CredsFile != ""},
		{"POSTBRIDGE_NATS_USER", c.User != ""},
		{"POSTBRIDGE_NATS_TOKEN", c.Token != nil},
	}
	if c.Embedded != nil {
		remote := namesSet(append(logins,
			setting{"POSTBRIDGE_NATS_PASSWORD", c.Password != nil},
			setting{"POSTBRIDGE_NATS_TLS_CA_FILE", c.TLSCAFile != ""},
			setting{"POSTBRIDGE_NATS_TLS_CERT_FILE", c.TLSCertFile != ""},
			setting{"POSTBRIDGE_NATS_TLS_KEY_FILE", c.TLSKeyFile != ""},
		))
		if remote != nil {
			return fmt.Errorf("%s is set, but the embedded server has neither login nor TLS; "+
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

// ParseURL parses Config.URL. Its error does not quote the text, which may contain a password.
func ParseURL(text string) (servers []*url.URL, err error) {
	for server := range strings.SplitSeq(text, ",") {
		server = strings.TrimSpace(server)
		if !strings.Contains(server, "://") {
			server = "nats://" + server
		}
		u, err := url.Parse(server)
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

// ConnectOptions returns the login and TLS options of a valid configuration, for another client of the same bus.
// Secrets and files are read at each connect.
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
	case c.Token != nil:
		options = append(options, natsgo.TokenHandler(c.Token))
	case c.User != "":
		options = append(options, natsgo.UserInfoHandler(func() (string, string) { return c.User, c.Password() }))
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
