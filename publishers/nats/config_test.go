package nats

import (
	"strings"
	"testing"
)

// What is wrong is told by the name of the setting, and without the secrets in it.
func TestConfigErrors(t *testing.T) {
	const secret = "hunter2"
	ask := func() string { return secret }
	for name, test := range map[string]struct {
		config Config
		want   string
	}{
		"prefix":                {Config{URL: "nats://host", Prefix: "a..b"}, "POSTBRIDGE_PREFIX: "},
		"no URL":                {Config{}, "POSTBRIDGE_NATS_URL: "},
		"scheme":                {Config{URL: "http://host"}, "POSTBRIDGE_NATS_URL: "},
		"scheme with a secret":  {Config{URL: "http://user:" + secret + "@host"}, "POSTBRIDGE_NATS_URL: "},
		"unreadable URL":        {Config{URL: "nats://user:" + secret + "@host:port"}, "POSTBRIDGE_NATS_URL: "},
		"certificate alone":     {Config{URL: "nats://host", TLSCertFile: "c.pem"}, "POSTBRIDGE_NATS_TLS_CERT_FILE: "},
		"key alone":             {Config{URL: "nats://host", TLSKeyFile: "k.pem"}, "POSTBRIDGE_NATS_TLS_KEY_FILE: "},
		"user alone":            {Config{URL: "nats://host", User: "edge"}, "POSTBRIDGE_NATS_USER: "},
		"password alone":        {Config{URL: "nats://host", Password: ask}, "POSTBRIDGE_NATS_PASSWORD: "},
		"user and token":        {Config{URL: "nats://host", User: "edge", Password: ask, Token: ask}, "_USER and POSTBRIDGE_NATS_TOKEN "},
		"user twice":            {Config{URL: "nats://edge:" + secret + "@host", User: "edge", Password: ask}, "_USER and a user in "},
		"credentials and token": {Config{URL: "nats://host", CredsFile: "edge.creds", Token: ask}, "_CREDS_FILE and POSTBRIDGE_NATS_TOKEN "},
		"nkey and token":        {Config{URL: "nats://host", NKeyFile: "edge.nk", Token: ask}, "_NKEY_FILE and POSTBRIDGE_NATS_TOKEN "},
		"domain":                {Config{URL: "nats://host", Domain: "$JS.hub.API"}, "POSTBRIDGE_NATS_DOMAIN: "},
		"inbox of all":          {Config{URL: "nats://host", InboxPrefix: "_INBOX.>"}, "POSTBRIDGE_NATS_INBOX_PREFIX: "},
		"inbox with dot":        {Config{URL: "nats://host", InboxPrefix: "_INBOX."}, "POSTBRIDGE_NATS_INBOX_PREFIX: "},
		"TLS first on ws":       {Config{URL: "nats://host,wss://host", TLSFirst: true}, "POSTBRIDGE_NATS_TLS_FIRST: "},
		"embedded with nkey":    {Config{Embedded: new(EmbeddedConfig), NKeyFile: "edge.nk"}, "POSTBRIDGE_NATS_NKEY_FILE is set, but "},
		"embedded with inbox":   {Config{Embedded: new(EmbeddedConfig), InboxPrefix: "_I"}, "POSTBRIDGE_NATS_INBOX_PREFIX is set, but "},
		"embedded, TLS first":   {Config{Embedded: new(EmbeddedConfig), TLSFirst: true}, "POSTBRIDGE_NATS_TLS_FIRST is set, but "},
		"embedded with login":   {Config{Embedded: new(EmbeddedConfig), Password: ask}, "POSTBRIDGE_NATS_PASSWORD is set, but "},
		"embedded with TLS":     {Config{Embedded: new(EmbeddedConfig), TLSCAFile: "ca.pem"}, "POSTBRIDGE_NATS_TLS_CA_FILE is set, but "},
	} {
		t.Run(name, func(t *testing.T) {
			err := test.config.Validate()
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("%v, want %q", err, test.want)
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("tells the secret: %v", err)
			}
		})
	}
}

func TestConfigHosts(t *testing.T) {
	c := Config{URL: "nats://edge:hunter2@one:4222, tls://two,three", Prefix: "de.desk-1"}
	if err := c.Validate(); err != nil || c.hosts() != "one:4222,two,three" {
		t.Errorf("hosts %q, %v", c.hosts(), err)
	}
}
