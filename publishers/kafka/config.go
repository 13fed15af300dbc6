package kafka

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net"
	"strconv"
	"strings"

	"github.com/postbridge/postbridge/bridge"
)

// Config says which Kafka, as whom, and what to do about its topics.
type Config struct {
	// Brokers are those to ask for the cluster first, host:port each.
	Brokers []string

	// SASLMechanism is PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, or empty for no login. Password is asked at each connect,
	// so that a password that was rotated counts from the next one on.
	SASLMechanism string
	User          string
	Password      func() string

	// TLS says to use TLS, which any of the files does too. The files are in PEM and read again at each dial; when they
	// change, connections are renewed. Without TLSCAFile the system's certificates are trusted. TLSCertFile and
	// TLSKeyFile come together.
	TLS                                bool
	TLSCAFile, TLSCertFile, TLSKeyFile string

	// Prefix makes topics <prefix>.orders, <prefix>.rejects and <prefix>.deadletters.
	Prefix string

	// CreateTopics says to create missing topics, with so many partitions and replicas.
	CreateTopics bool
	Partitions   int
	Replication  int
}

const (
	mechanismPlain    = "PLAIN"
	mechanismScram256 = "SCRAM-SHA-256"
	mechanismScram512 = "SCRAM-SHA-512"

	// maxPartitions is more than a topic of events can need: each partition has a writer of ours, and files on each
	// replica.
	maxPartitions = 100_000
	// maxReplication is the largest number that Kafka's protocol has room for.
	maxReplication = math.MaxInt16
)

// Validate returns what is wrong with the configuration: one line that names the setting and says what to do. It shows
// no secret.
func (c *Config) Validate() error {
	if c.Prefix != "" && bridge.EscapeToken(c.Prefix) != c.Prefix {
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
		return fmt.Errorf("POSTBRIDGE_KAFKA_PARTITIONS: %d is too few; a topic has 1 at least", c.Partitions)
	case c.Partitions > maxPartitions:
		return fmt.Errorf("POSTBRIDGE_KAFKA_PARTITIONS: %d is too many; set it to %d at most",
			c.Partitions, maxPartitions)
	case c.Replication < 1:
		return fmt.Errorf("POSTBRIDGE_KAFKA_REPLICATION: %d is too few; a topic has 1 at least", c.Replication)
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

// PlainPassword reports whether anyone on the way can read the password: it is sent as it is, and without TLS.
func (c *Config) PlainPassword() bool { return c.SASLMechanism == mechanismPlain && !c.tls() }

// tls reports whether connections use TLS.
func (c *Config) tls() bool { return c.TLS || c.TLSCAFile != "" || c.TLSCertFile != "" }

func isHostPort(broker string) bool {
	host, port, err := net.SplitHostPort(broker)
	if err != nil || host == "" || strings.ContainsAny(host, "/@, \t\r\n") {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}

// quoteBroker does not show what may hold a password: somebody may have written one as in a URL.
func quoteBroker(broker string) string {
	if strings.Contains(broker, "@") {
		return "an entry with @"
	}
	return strconv.Quote(broker)
}
