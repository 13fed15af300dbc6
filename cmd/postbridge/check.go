package main

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

func (c *config) checkHTTP() error {
	if err := checkAddress("LISTEN", c.Listen); err != nil {
		return err
	}
	if err := checkAddress("ADMIN_LISTEN", c.AdminListen); err != nil {
		return err
	}
	if c.Listen == c.AdminListen && !strings.HasSuffix(c.Listen, ":0") {
		return bad("ADMIN_LISTEN", "is the same address as POSTBRIDGE_LISTEN; give it another port")
	}
	// JetStream stores no message above 32 MiB: see bridge.MaxEventSize.
	if c.MaxBody < 1<<10 || c.MaxBody > 4<<20 {
		return bad("MAX_BODY", "%v is out of range; set it between 1KiB and 4MiB", c.MaxBody)
	}
	if c.MaxConnections < 16 || c.MaxConnections > 1<<15 {
		return bad("MAX_CONNECTIONS", "%d is out of range; set it between 16 and 32768", c.MaxConnections)
	}
	if c.IdleTimeout < time.Second || c.IdleTimeout > 24*time.Hour {
		return bad("IDLE_TIMEOUT", "%v is out of range; set it between 1s and 24h", c.IdleTimeout)
	}
	switch {
	case c.TLSCertFile != "" && c.TLSKeyFile == "":
		return bad("TLS_CERT_FILE", "is set without its key; set POSTBRIDGE_TLS_KEY_FILE, too")
	case c.TLSCertFile == "" && c.TLSKeyFile != "":
		return bad("TLS_KEY_FILE", "is set without its certificate; set POSTBRIDGE_TLS_CERT_FILE, too")
	}
	return nil
}

func (c *config) checkBrokers() error {
	switch {
	case !c.kiteOn() && !c.dhanOn():
		return misuse("no broker to take postbacks from; set POSTBRIDGE_KITE_SECRETS to app_id=api_secret, or POSTBRIDGE_DHAN_TOKENS")
	case !c.kiteOn() && (c.KiteTokens != "" || c.KiteTokensFile != ""):
		return bad("KITE_TOKENS", "is set but Kite is off; set POSTBRIDGE_KITE_SECRETS to app_id=api_secret, too")
	case !c.dhanOn() && c.DhanClientIDs != nil:
		return bad("DHAN_CLIENT_IDS", "is set but Dhan is off; set POSTBRIDGE_DHAN_TOKENS, too")
	}
	for i, id := range c.DhanClientIDs { // no secrets, but as easily mistyped
		if err := checkSecret(id); err != nil {
			return bad("DHAN_CLIENT_IDS", "entry %d %v", i+1, err)
		}
	}
	return checkChoice("KITE_CHECKSUM", c.KiteChecksum, "order_timestamp", "user_id")
}

func (c *config) kiteOn() bool { return c.KiteSecrets != "" || c.KiteSecretsFile != "" }

func (c *config) dhanOn() bool { return c.DhanTokens != "" || c.DhanTokensFile != "" }

// busNames are those of all buses there are.
func busNames() []string { return []string{"nats", "kafka"} }

// busOf is the bus that a setting is about, or nothing.
func busOf(setting string) string {
	for _, bus := range busNames() {
		if strings.HasPrefix(setting, envPrefix+strings.ToUpper(bus)+"_") {
			return bus
		}
	}
	return ""
}

func (c *config) publishes(bus string) bool { return slices.Contains(c.Publish, bus) }

// checkPublish refuses an unknown bus, and a setting of a bus that nothing is published to: whoever set it believes that
// it counts.
func (c *config) checkPublish(environ map[string]string) error {
	const choices = "set it to nats, kafka or nats,kafka"
	for i, bus := range c.Publish {
		switch {
		case !slices.Contains(busNames(), bus):
			return bad("PUBLISH", "%q is not a bus; %s", bus, choices)
		case slices.Contains(c.Publish[:i], bus):
			return bad("PUBLISH", "names %s twice; %s", bus, choices)
		}
	}
	for _, name := range settingNames() {
		if bus := busOf(name); environ[name] != "" && bus != "" && !c.publishes(bus) {
			return misuse("%s: is set but nothing is published to %s; set POSTBRIDGE_PUBLISH to %s or nats,kafka, or unset it", name, bus, bus)
		}
	}
	return nil
}

func (c *config) checkBuses() error {
	if c.publishes("nats") {
		if err := c.checkNATS(); err != nil {
			return err
		}
	}
	if c.publishes("kafka") {
		return c.checkKafka()
	}
	return nil
}

func (c *config) checkNATS() error {
	if err := checkAddress("NATS_LISTEN", c.NATSListen); err != nil {
		return err
	}
	n := c.natsConfig(nil)
	if err := n.Validate(); err != nil {
		return misuse("%v", err)
	}
	switch {
	case c.embedded() && c.NATSReplicas != 1:
		return bad("NATS_REPLICAS", "must be 1 with the embedded server; set POSTBRIDGE_NATS_URL to use a cluster")
	case c.NATSReplicas < 1 || c.NATSReplicas > 5:
		return bad("NATS_REPLICAS", "%d is out of range; set it between 1 and 5", c.NATSReplicas)
	case c.NATSMaxAge <= 0:
		return bad("NATS_MAX_AGE", "%v is not a time to keep events; set it like 168h", c.NATSMaxAge)
	}
	if c.embedded() && c.NATSMaxBytes == 0 {
		c.NATSMaxBytes = 4 << 30
	}
	return nil
}

func (c *config) checkKafka() error {
	c.KafkaSASLMechanism = strings.ToUpper(c.KafkaSASLMechanism)
	c.KafkaTLS = c.KafkaTLS || c.KafkaTLSCAFile != "" || c.KafkaTLSCertFile != ""
	k := c.kafkaConfig(nil)
	if err := k.Validate(); err != nil {
		return misuse("%v", err)
	}
	return nil
}

// embedded reports whether postbridge brings its own bus.
func (c *config) embedded() bool { return c.publishes("nats") && c.NATSURL == "" }

// checkFiles finds a misspelt path at the start, before it looks like an outage of the bus.
func (c *config) checkFiles() error {
	for _, of := range slices.Concat(c.httpSecrets(), c.brokerSecrets(), c.busSecrets()) {
		if of.value != "" && of.path != "" {
			return bad(of.name, "is set together with POSTBRIDGE_%s_FILE; unset one of them", of.name)
		}
	}
	for _, f := range []struct{ name, path string }{
		{"NATS_CREDS_FILE", c.NATSCredsFile},
		{"NATS_TLS_CA_FILE", c.NATSTLSCAFile},
		{"NATS_TLS_CERT_FILE", c.NATSTLSCertFile},
		{"NATS_TLS_KEY_FILE", c.NATSTLSKeyFile},
		{"KAFKA_TLS_CA_FILE", c.KafkaTLSCAFile},
		{"KAFKA_TLS_CERT_FILE", c.KafkaTLSCertFile},
		{"KAFKA_TLS_KEY_FILE", c.KafkaTLSKeyFile},
	} {
		if f.path == "" {
			continue
		}
		if _, err := os.Stat(f.path); err != nil {
			return bad(f.name, "%v; name a file that can be read", err)
		}
	}
	return nil
}

func (c *config) checkSpool() error {
	// A spool has eight segments or more, each with room for several of the largest events.
	least := max(1<<20, 16*c.MaxBody)
	switch {
	case c.SpoolMaxBytes < least:
		return bad("SPOOL_MAX_BYTES", "%v is too small; set it to %v or more", c.SpoolMaxBytes, least)
	case c.SpoolKeep < 0:
		return bad("SPOOL_KEEP", "%v is less than nothing; set it like 1h, or to 0s", c.SpoolKeep)
	}
	return nil
}

func (c *config) checkLog() error {
	if err := checkChoice("LOG_LEVEL", strings.ToLower(c.LogLevel), "debug", "info", "warn", "error"); err != nil {
		return err
	}
	return checkChoice("LOG_FORMAT", orElse(c.LogFormat, "json"), "json", "text")
}

// bad is what is wrong with one setting, and what to do.
func bad(name, format string, args ...any) error {
	return misuse("%s%s: %s", envPrefix, name, fmt.Sprintf(format, args...))
}

func checkChoice(name, value string, choices ...string) error {
	if slices.Contains(choices, value) {
		return nil
	}
	return bad(name, "%q is not known; set it to one of %s", value, strings.Join(choices, ", "))
}

// checkBroker checks the --broker of a command.
func checkBroker(command, name string) error {
	if slices.Contains(brokerNames(), name) {
		return nil
	}
	return misuse("%s: --broker %q is not known; set it to %s", command, name, strings.Join(brokerNames(), " or "))
}

func checkAddress(name, value string) error {
	_, port, err := net.SplitHostPort(value)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return bad(name, "%q is not an address; write it like 127.0.0.1:8080 or :8080", value)
	}
	return nil
}
