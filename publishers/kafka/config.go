package kafka

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net"
	"strconv"
	"strings"

	"github.com/postbridge/postbridge/publishers"
)

// Config configures the cluster, the login and the topics.
type Config struct {
	// Brokers are the bootstrap servers, host:port each.
	Brokers []string

	// SASLMechanism is PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER, or empty for no login. Password, or OAuthToken
	// for OAUTHBEARER, is called at each connect, so that a rotated one takes effect.
	SASLMechanism string
	User          string
	Password      func() string
	OAuthToken    func() string
	// OAuthExtensions are sent with the token, name=value each.
	OAuthExtensions []string

	// TLS enables TLS; each of the files implies it. The files are PEM, read at each dial; a change renews the
	// connections. Without TLSCAFile the system's certificates are trusted. TLSCertFile and TLSKeyFile require each
	// other.
	TLS                                bool
	TLSCAFile, TLSCertFile, TLSKeyFile string

	// ClientID names this client in quotas and logs of the brokers; postbridge if empty.
	ClientID string

	// Compression of record batches is lz4, gzip or none; lz4 if empty.
	Compression string

	// Prefix, if not empty, makes topics <prefix>.orders, <prefix>.rejects and <prefix>.deadletters.
	Prefix string

	// CreateTopics creates missing topics, with Partitions and Replication, of which -1 is the cluster's default.
	CreateTopics bool
	Partitions   int
	Replication  int
}

const (
	mechanismPlain    = "PLAIN"
	mechanismScram256 = "SCRAM-SHA-256"
	mechanismScram512 = "SCRAM-SHA-512"
	mechanismOAuth    = "OAUTHBEARER"

	passwordMechanisms = mechanismPlain + ", " + mechanismScram256 + ", " + mechanismScram512

	compressionLZ4  = "lz4"
	compressionGzip = "gzip"
	compressionNone = "none"

	// maxPartitions is more than a topic of events can need: each partition has a writer here, and files on each
	// replica.
	maxPartitions = 100_000
	// maxReplication is the largest number in Kafka's protocol.
	maxReplication = math.MaxInt16
	// clusterReplication stands for the cluster's default.replication.factor.
	clusterReplication = -1
	// maxClientID is the longest client id, in bytes.
	maxClientID = 249
)

// Validate returns the first error of the configuration: one line with the setting and the remedy, without secrets.
func (c *Config) Validate() error {
	if err := publishers.CheckPrefix(c.Prefix); err != nil {
		return err
	}
	if len(c.Brokers) == 0 {
		return errors.New("POSTBRIDGE_KAFKA_BROKERS: is not set; write host:port, several with commas")
	}
	for _, broker := range c.Brokers {
		if !isHostPort(broker) {
			return fmt.Errorf("POSTBRIDGE_KAFKA_BROKERS: %s is not a broker; write host:port, several with commas",
				quoteBroker(broker))
		}
	}
	if len(c.ClientID) > maxClientID || strings.ContainsFunc(c.ClientID, unprintable) {
		return fmt.Errorf("POSTBRIDGE_KAFKA_CLIENT_ID: use at most %d printable ASCII characters", maxClientID)
	}
	switch c.Compression {
	case "", compressionLZ4, compressionGzip, compressionNone:
	default:
		return fmt.Errorf("POSTBRIDGE_KAFKA_COMPRESSION: %q is not known; set it to one of %s, %s, %s",
			c.Compression, compressionLZ4, compressionGzip, compressionNone)
	}
	return cmp.Or(c.validateLogin(), c.validateTopics())
}

func (c *Config) validateTopics() error {
	switch {
	case !c.CreateTopics:
		return nil
	case c.Partitions < 1:
		return fmt.Errorf("POSTBRIDGE_KAFKA_PARTITIONS: %d is too few; set it to 1 or more", c.Partitions)
	case c.Partitions > maxPartitions:
		return fmt.Errorf("POSTBRIDGE_KAFKA_PARTITIONS: %d is too many; set it to %d at most",
			c.Partitions, maxPartitions)
	case c.Replication < 1 && c.Replication != clusterReplication:
		return fmt.Errorf("POSTBRIDGE_KAFKA_REPLICATION: %d is too few; set it to 1 or more, "+
			"or to -1 for the cluster's default", c.Replication)
	case c.Replication > maxReplication:
		return fmt.Errorf("POSTBRIDGE_KAFKA_REPLICATION: %d is too many; set it to the number of Kafka brokers at most",
			c.Replication)
	}
	return nil
}

func (c *Config) validateLogin() error {
	switch c.SASLMechanism {
	case "", mechanismPlain, mechanismScram256, mechanismScram512, mechanismOAuth:
	default:
		return fmt.Errorf("POSTBRIDGE_KAFKA_SASL_MECHANISM: %q is not known; use one of %s",
			c.SASLMechanism, passwordMechanisms+", "+mechanismOAuth)
	}
	if c.SASLMechanism == mechanismOAuth || c.OAuthToken != nil || len(c.OAuthExtensions) > 0 {
		return cmp.Or(c.validateOAuth(), c.validateTLS())
	}
	switch {
	case c.User == "" && c.Password != nil:
		return errors.New(
			"POSTBRIDGE_KAFKA_PASSWORD or its _FILE is set without POSTBRIDGE_KAFKA_USER; set both, or neither")
	case c.User != "" && c.Password == nil:
		return errors.New("POSTBRIDGE_KAFKA_USER: is set without a password; set POSTBRIDGE_KAFKA_PASSWORD, too")
	case c.User == "" && c.SASLMechanism != "":
		return errors.New("POSTBRIDGE_KAFKA_SASL_MECHANISM: is set without a user; " +
			"set POSTBRIDGE_KAFKA_USER and POSTBRIDGE_KAFKA_PASSWORD, too")
	case c.User != "" && c.SASLMechanism == "":
		return errors.New("POSTBRIDGE_KAFKA_USER: is set without a way to log in; " +
			"set POSTBRIDGE_KAFKA_SASL_MECHANISM to one of " + passwordMechanisms)
	}
	return c.validateTLS()
}

func (c *Config) validateOAuth() error {
	const remedy = "is for OAUTHBEARER; set POSTBRIDGE_KAFKA_SASL_MECHANISM to it, or unset this"
	isOAuth := c.SASLMechanism == mechanismOAuth
	switch {
	case !isOAuth && c.OAuthToken != nil:
		return errors.New("POSTBRIDGE_KAFKA_OAUTH_TOKEN_FILE: " + remedy)
	case !isOAuth:
		return errors.New("POSTBRIDGE_KAFKA_OAUTH_EXTENSIONS: " + remedy)
	case c.OAuthToken == nil:
		return errors.New("POSTBRIDGE_KAFKA_SASL_MECHANISM: is OAUTHBEARER without a token; " +
			"set POSTBRIDGE_KAFKA_OAUTH_TOKEN_FILE, too")
	case c.User != "" || c.Password != nil:
		return errors.New("POSTBRIDGE_KAFKA_USER: OAUTHBEARER has neither user nor password; unset both")
	}
	for _, extension := range c.OAuthExtensions {
		if !isExtension(extension) {
			return fmt.Errorf("POSTBRIDGE_KAFKA_OAUTH_EXTENSIONS: %q is not an extension; "+
				"write name=value, the name in letters, several with commas", extension)
		}
	}
	return nil
}

// isExtension reports whether Kafka accepts an entry as an extension of OAUTHBEARER. The name auth is for the token.
func isExtension(entry string) bool {
	name, value, _ := strings.Cut(entry, "=")
	noLetter := func(r rune) bool { return (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') }
	return name != "" && name != "auth" && !strings.ContainsFunc(name, noLetter) &&
		value != "" && !strings.ContainsFunc(value, unprintable)
}

func (c *Config) validateTLS() error {
	switch {
	case c.TLSCertFile != "" && c.TLSKeyFile == "":
		return errors.New(
			"POSTBRIDGE_KAFKA_TLS_CERT_FILE: is set without its key; set POSTBRIDGE_KAFKA_TLS_KEY_FILE, too")
	case c.TLSCertFile == "" && c.TLSKeyFile != "":
		return errors.New(
			"POSTBRIDGE_KAFKA_TLS_KEY_FILE: is set without its certificate; set POSTBRIDGE_KAFKA_TLS_CERT_FILE, too")
	}
	return nil
}

// UnencryptedSecret reports whether the password or the token is sent unencrypted: by PLAIN or OAUTHBEARER without TLS.
func (c *Config) UnencryptedSecret() bool {
	return (c.SASLMechanism == mechanismPlain || c.SASLMechanism == mechanismOAuth) && !c.tls()
}

// tls reports whether connections use TLS.
func (c *Config) tls() bool { return c.TLS || c.TLSCAFile != "" || c.TLSCertFile != "" }

// unprintable reports whether the character is a space or not printable ASCII.
func unprintable(r rune) bool { return r <= ' ' || r > '~' }

// isHostPort reports whether an entry is host:port.
func isHostPort(broker string) bool {
	host, port, err := net.SplitHostPort(broker)
	if err != nil || host == "" || strings.ContainsAny(host, "/@, \t\r\n") {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}

// quoteBroker quotes an entry for a message, unless it has an @ and so may contain a password, as a URL does.
func quoteBroker(broker string) string {
	if strings.Contains(broker, "@") {
		return "an entry with @"
	}
	return strconv.Quote(broker)
}
