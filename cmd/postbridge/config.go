package main

import (
	"context"
	"fmt"
	"reflect"
	"strings"

	"github.com/postbridge/postbridge/publishers/nats"
)

const configHelp = `Check the configuration, as serve would, and print what is in effect, secrets redacted.

Usage: postbridge config

The configuration is the environment, names that start with POSTBRIDGE_; the table is in
cmd/postbridge/README.md. A bad one is one line on stderr and exit code 2. Secrets may be in files:
the name with _FILE after it. These files are read and checked, too. The settings of NATS and of
Kafka are printed for the buses in POSTBRIDGE_PUBLISH.

Example:
  POSTBRIDGE_DHAN_TOKENS=dev-dhan-token postbridge config
`

func (p *process) config(_ context.Context, args []string) error {
	if err := parseOnlyFlags(newFlags("config"), args); err != nil {
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

// lines returns the settings as NAME=value lines in the order of the struct, without those of buses not published to.
func (c *config) lines() string {
	var b strings.Builder
	v := reflect.ValueOf(c).Elem()
	for _, f := range reflect.VisibleFields(v.Type()) {
		if bus := settingBus(settingName(f)); bus != "" && !c.publishes(bus) {
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

// redactedNATSURL returns NATS_URL without users and passwords.
func (c *config) redactedNATSURL() string {
	if c.NATSURL == "" {
		return ""
	}
	servers, _ := nats.ParseURL(c.NATSURL) // checked by readConfig
	texts := make([]string, len(servers))
	for i, u := range servers {
		texts[i] = u.String()
		if u.User != nil {
			texts[i] = u.Scheme + "://(set)@" + u.Host
		}
	}
	return strings.Join(texts, ",")
}
