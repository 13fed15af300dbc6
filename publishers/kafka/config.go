package kafka

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net"
	"strconv"
	"strings"

	"github.com/postbridge/postbridge/bridge/event"
)

// Config configures the cluster, the login and the topics.
type Config struct {
	// Brokers are the bootstrap servers, host:port each.
	Brokers []string

	// SASLMechanism is PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, or empty for no login. Password is called at each connect,
	// so that a rotated password takes effect.
	SASLMechanism string
	User          string
	Password      func() string

	// TLS enables TLS; each of the files implies it. The files are PEM, read at each dial; a change renews the
	// connections. Without TLSCAFile the system's certificates are trusted. TLSCertFile and TLSKeyFile require each
	// other.
	TLS                                bool
	TLSCAFile, TLSCertFile, TLSKeyFile string

	// Prefix, if not empty, makes topics <prefix>.orders, <prefix>.rejects and <prefix>.deadletters.
	Prefix string

	// CreateTopics creates missing topics, with Partitions and Replication.
	CreateTopics bool
	Partitions   int
	Replication  int
}

const (
	mechanismPlain    = "PLAIN"
	mechanismScram256 = "SCRAM-SHA-256"
	mechanismScram512 = "SCRAM-SHA-512"

	// maxPartitions is more than a topic of events can need: each partition has a writer here, and files on each
	// replica.
	maxPartitions = 100_000
	// maxReplication is the largest number in Kafka's protocol.
	maxReplication = math.MaxInt16
)

// Validate returns the first error of the configuration: one line with the setting and the remedy, without secrets.
func (c *Config) Validate() error {
	if c.Prefix != "" && event.EscapeToken(c.Prefix) != c.Prefix {
		return fmt.Errorf(
			"POSTBRIDGE_PREFIX: %q cannot be part of a topic; use letters, digits, _ and -, at most 64 of them",
			c.Prefix)
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
	case c.Replication < 1:
		return fmt.Errorf("POSTBRIDGE_KAFKA_REPLICATION: %d is too few; set it to 1 or more", c.Replication)
	case c.Replication > maxReplication:
		return fmt.Errorf("POSTBRIDGE_KAFKA_REPLICATION: %d is too many; set it to the number of Kafka brokers at most",
			c.Replication)
	}
	return nil
}

func (c *Config) validateLogin() error {
	const mechanisms = mechanismPlain + ", " + mechanismScram256 + ", " + mechanismScram512
	switch c.SASLMechanism {
	case "", mechanismPlain, mechanismScram256, mechanismScram512:
	default:
		return fmt.Errorf("POSTBRIDGE_KAFKA_SASL_MECHANISM: %q is not known; use one of %s",
			c.SASLMechanism, mechanisms)
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
			"set POSTBRIDGE_KAFKA_SASL_MECHANISM to one of " + mechanisms)
	case c.TLSCertFile != "" && c.TLSKeyFile == "":
		return errors.New(
			"POSTBRIDGE_KAFKA_TLS_CERT_FILE: is set without its key; set POSTBRIDGE_KAFKA_TLS_KEY_FILE, too")
	case c.TLSCertFile == "" && c.TLSKeyFile != "":
		return errors.New(
			"POSTBRIDGE_KAFKA_TLS_KEY_FILE: is set without its certificate; set POSTBRIDGE_KAFKA_TLS_CERT_FILE, too")
	}
	return nil
}

// PlainPassword reports whether the password is sent unencrypted: with SASL PLAIN and without TLS.
func (c *Config) PlainPassword() bool { return c.SASLMechanism == mechanismPlain && !c.tls() }

// tls reports whether connections use TLS.
func (c *Config) tls() bool { return c.TLS || c.TLSCAFile != "" || c.TLSCertFile != "" }

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
