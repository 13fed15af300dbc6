package main

import (
	"log/slog"
	"path/filepath"
	"slices"
	"strings"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers/kafka"
	"github.com/postbridge/postbridge/publishers/nats"
)

// busNames returns the names of all buses.
func busNames() []string { return []string{"nats", "kafka"} }

// settingBus returns the bus that a setting configures, or "".
func settingBus(setting string) string {
	for _, bus := range busNames() {
		if strings.HasPrefix(setting, envPrefix+strings.ToUpper(bus)+"_") {
			return bus
		}
	}
	return ""
}

func (c *config) publishes(bus string) bool { return slices.Contains(c.Publish, bus) }

// embedded reports whether postbridge embeds its NATS server.
func (c *config) embedded() bool { return c.publishes("nats") && c.NATSURL == "" }

// checkPublish rejects an unknown bus, and settings of a bus that is not published to, which would have no effect.
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
		if bus := settingBus(name); environ[name] != "" && bus != "" && !c.publishes(bus) {
			return misuse("%s: is set but nothing is published to %s; "+
				"set POSTBRIDGE_PUBLISH to %s or nats,kafka, or unset it", name, bus, bus)
		}
	}
	return nil
}

// checkBuses checks the settings of the buses that are published to, and sets the defaults that depend on others.
func (c *config) checkBuses() error {
	if c.publishes("nats") {
		if err := c.checkNATS(); err != nil {
			return err
		}
	}
	if c.publishes("kafka") {
		c.KafkaSASLMechanism = strings.ToUpper(c.KafkaSASLMechanism)
		c.KafkaCompression = strings.ToLower(c.KafkaCompression)
		c.KafkaTLS = c.KafkaTLS || c.KafkaTLSCAFile != "" || c.KafkaTLSCertFile != ""
		k := c.kafkaConfig(nil)
		if err := k.Validate(); err != nil {
			return misuse("%v", err)
		}
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
		return bad("NATS_MAX_AGE", "must be positive; set it like 168h")
	}
	if c.embedded() && c.NATSMaxBytes == 0 {
		c.NATSMaxBytes = 4 << 30
	}
	return nil
}

// buses returns the buses of POSTBRIDGE_PUBLISH.
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

// natsConfig returns the configuration of NATS. Its secrets are read for each connection.
func (c *config) natsConfig(credentials *credentials) nats.Config {
	n := nats.Config{
		URL:           c.NATSURL,
		CredsFile:     c.NATSCredsFile,
		NKeyFile:      c.NATSNKeyFile,
		User:          c.NATSUser,
		TLSCAFile:     c.NATSTLSCAFile,
		TLSCertFile:   c.NATSTLSCertFile,
		TLSKeyFile:    c.NATSTLSKeyFile,
		TLSFirst:      c.NATSTLSFirst,
		InboxPrefix:   c.NATSInboxPrefix,
		Domain:        c.NATSDomain,
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

// kafkaConfig returns the configuration of Kafka. Its password or token is read for each connection.
func (c *config) kafkaConfig(credentials *credentials) kafka.Config {
	k := kafka.Config{
		Brokers:       c.KafkaBrokers,
		SASLMechanism: c.KafkaSASLMechanism,
		User:          c.KafkaUser,
		TLS:           c.KafkaTLS,
		TLSCAFile:     c.KafkaTLSCAFile,
		TLSCertFile:   c.KafkaTLSCertFile,
		TLSKeyFile:    c.KafkaTLSKeyFile,
		ClientID:      c.KafkaClientID,
		Compression:   c.KafkaCompression,
		Prefix:        c.Prefix,
		CreateTopics:  c.KafkaCreateTopics,
		Partitions:    c.KafkaPartitions,
		Replication:   c.KafkaReplication,
	}
	if c.KafkaPassword != "" || c.KafkaPasswordFile != "" {
		k.Password = func() string { return credentials.fresh(&credentials.kafkaPassword) }
	}
	k.OAuthExtensions = c.KafkaOAuthExtensions
	if c.KafkaOAuthTokenFile != "" {
		k.OAuthToken = func() string { return credentials.fresh(&credentials.kafkaToken) }
	}
	return k
}

// natsAddress returns the NATS URL for commands other than serve.
func (c *config) natsAddress() string {
	if c.embedded() {
		return "nats://" + localAddress(c.NATSListen)
	}
	return c.NATSURL
}
