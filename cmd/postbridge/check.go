package main

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

func (c *config) checkHTTP() error {
	if err := cmp.Or(checkAddress("LISTEN", c.Listen), checkAddress("ADMIN_LISTEN", c.AdminListen)); err != nil {
		return err
	}
	switch {
	case c.Listen == c.AdminListen && !strings.HasSuffix(c.Listen, ":0"):
		return bad("ADMIN_LISTEN", "is the same address as POSTBRIDGE_LISTEN; give it another port")
	case c.MaxBody < 1<<10 || c.MaxBody > 4<<20: // JetStream's limit is 32 MiB: see bridge.MaxEventSize
		return bad("MAX_BODY", "%v is out of range; set it between 1KiB and 4MiB", c.MaxBody)
	case c.MaxConnections < 16 || c.MaxConnections > 1<<15:
		return bad("MAX_CONNECTIONS", "%d is out of range; set it between 16 and 32768", c.MaxConnections)
	case c.IdleTimeout < time.Second || c.IdleTimeout > 24*time.Hour:
		return bad("IDLE_TIMEOUT", "%v is out of range; set it between 1s and 24h", c.IdleTimeout)
	case c.TLSCertFile != "" && c.TLSKeyFile == "":
		return bad("TLS_CERT_FILE", "is set without its key; set POSTBRIDGE_TLS_KEY_FILE, too")
	case c.TLSCertFile == "" && c.TLSKeyFile != "":
		return bad("TLS_KEY_FILE", "is set without its certificate; set POSTBRIDGE_TLS_CERT_FILE, too")
	}
	return nil
}

// checkFiles reports a missing file at the start, before it looks like an outage of the bus.
func (c *config) checkFiles() error {
	for _, s := range slices.Concat(c.httpSecrets(), c.brokerSecrets(), c.accessSecrets(), c.busSecrets()) {
		if s.value != "" && s.path != "" {
			return bad(s.name, "is set together with POSTBRIDGE_%s_FILE; unset one of them", s.name)
		}
	}
	for _, f := range []struct{ name, path string }{
		{"NATS_CREDS_FILE", c.NATSCredsFile},
		{"NATS_NKEY_FILE", c.NATSNKeyFile},
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
	// A spool has eight segments or more, each with space for several of the largest events.
	least := max(1<<20, 16*c.MaxBody)
	switch {
	case c.SpoolMaxBytes < least:
		return bad("SPOOL_MAX_BYTES", "%v is too small; set it to %v or more", c.SpoolMaxBytes, least)
	case c.SpoolKeep < 0:
		return bad("SPOOL_KEEP", "must not be negative; set it like 24h, or to 0s")
	}
	return nil
}

func (c *config) checkLog() error {
	return cmp.Or(
		checkChoice("LOG_LEVEL", strings.ToLower(c.LogLevel), "debug", "info", "warn", "error"),
		checkChoice("LOG_FORMAT", cmp.Or(c.LogFormat, "json"), "json", "text"))
}

// bad returns a misuse of one setting.
func bad(name, format string, args ...any) error {
	return misuse("%s%s: %s", envPrefix, name, fmt.Sprintf(format, args...))
}

func checkChoice(name, value string, choices ...string) error {
	if slices.Contains(choices, value) {
		return nil
	}
	return bad(name, "%q is not known; set it to one of %s", value, strings.Join(choices, ", "))
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

// localAddress returns the address at which a program on this machine reaches a listener.
func localAddress(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if ip := net.ParseIP(host); err != nil || host != "" && !ip.IsUnspecified() {
		return listen
	}
	return net.JoinHostPort("127.0.0.1", port)
}
