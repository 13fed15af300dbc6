package kafka

import (
	"strings"
	"testing"
)

// What is wrong is told by the name of the setting, and without the secrets in it.
func TestConfigErrors(t *testing.T) {
	t.Parallel()
	const secret = "hunter2"
	ask := func() string { return secret }
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"prefix":                     {func(c *Config) { c.Prefix = "a..b" }, "POSTBRIDGE_PREFIX: "},
		"long prefix":                {func(c *Config) { c.Prefix = strings.Repeat("a", 65) }, "POSTBRIDGE_PREFIX: "},
		"no brokers":                 {func(c *Config) { c.Brokers = nil }, "POSTBRIDGE_KAFKA_BROKERS: "},
		"no port":                    {func(c *Config) { c.Brokers = []string{"one:9092", "two"} }, `POSTBRIDGE_KAFKA_BROKERS: "two" `},
		"no host":                    {func(c *Config) { c.Brokers = []string{":9092"} }, "POSTBRIDGE_KAFKA_BROKERS: "},
		"bad port":                   {func(c *Config) { c.Brokers = []string{"one:http"} }, "POSTBRIDGE_KAFKA_BROKERS: "},
		"port 0":                     {func(c *Config) { c.Brokers = []string{"one:0"} }, "POSTBRIDGE_KAFKA_BROKERS: "},
		"empty broker":               {func(c *Config) { c.Brokers = []string{""} }, "POSTBRIDGE_KAFKA_BROKERS: "},
		"scheme":                     {func(c *Config) { c.Brokers = []string{"kafka://one:9092"} }, "POSTBRIDGE_KAFKA_BROKERS: "},
		"user in the broker":         {func(c *Config) { c.Brokers = []string{"kafka://edge:" + secret + "@one:9092"} }, "POSTBRIDGE_KAFKA_BROKERS: "},
		"user before the broker":     {func(c *Config) { c.Brokers = []string{secret + "@one:9092"} }, "POSTBRIDGE_KAFKA_BROKERS: "},
		"space":                      {func(c *Config) { c.Brokers = []string{"one two:9092"} }, "POSTBRIDGE_KAFKA_BROKERS: "},
		"unknown mechanism":          {func(c *Config) { c.SASLMechanism, c.User, c.Password = "GSSAPI", "edge", ask }, "POSTBRIDGE_KAFKA_SASL_MECHANISM: "},
		"mechanism in small letters": {func(c *Config) { c.SASLMechanism, c.User, c.Password = "plain", "edge", ask }, "use one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER"},
		"mechanism alone":            {func(c *Config) { c.SASLMechanism = "PLAIN" }, "POSTBRIDGE_KAFKA_SASL_MECHANISM: is set without a user"},
		"user alone":                 {func(c *Config) { c.SASLMechanism, c.User = "PLAIN", "edge" }, "POSTBRIDGE_KAFKA_USER: "},
		"password alone":             {func(c *Config) { c.SASLMechanism, c.Password = "PLAIN", ask }, "POSTBRIDGE_KAFKA_PASSWORD or its _FILE is set without POSTBRIDGE_KAFKA_USER; "},
		"no mechanism":               {func(c *Config) { c.User, c.Password = "edge", ask }, "set POSTBRIDGE_KAFKA_SASL_MECHANISM to one of PLAIN, "},
		"no token":                   {func(c *Config) { c.SASLMechanism = "OAUTHBEARER" }, "POSTBRIDGE_KAFKA_SASL_MECHANISM: is OAUTHBEARER without a token"},
		"token and user":             {func(c *Config) { c.SASLMechanism, c.OAuthToken, c.User = "OAUTHBEARER", ask, "edge" }, "POSTBRIDGE_KAFKA_USER: "},
		"token alone":                {func(c *Config) { c.OAuthToken = ask }, "POSTBRIDGE_KAFKA_OAUTH_TOKEN_FILE: "},
		"extension alone":            {func(c *Config) { c.OAuthExtensions = []string{"a=b"} }, "POSTBRIDGE_KAFKA_OAUTH_EXTENSIONS: is for OAUTHBEARER"},
		"token and PLAIN":            {func(c *Config) { c.SASLMechanism, c.OAuthToken, c.User, c.Password = "PLAIN", ask, "edge", ask }, "POSTBRIDGE_KAFKA_OAUTH_TOKEN_FILE: "},
		"token, certificate alone":   {func(c *Config) { c.SASLMechanism, c.OAuthToken, c.TLSCertFile = "OAUTHBEARER", ask, "c.pem" }, "POSTBRIDGE_KAFKA_TLS_CERT_FILE: "},
		"no extension":               {func(c *Config) { c.SASLMechanism, c.OAuthToken, c.OAuthExtensions = "OAUTHBEARER", ask, []string{"a"} }, `POSTBRIDGE_KAFKA_OAUTH_EXTENSIONS: "a" `},
		"extension auth": {func(c *Config) {
			c.SASLMechanism, c.OAuthToken, c.OAuthExtensions = "OAUTHBEARER", ask, []string{"auth=b"}
		}, "POSTBRIDGE_KAFKA_OAUTH_EXTENSIONS: "},
		"extension with a number": {func(c *Config) {
			c.SASLMechanism, c.OAuthToken, c.OAuthExtensions = "OAUTHBEARER", ask, []string{"a1=b"}
		}, "POSTBRIDGE_KAFKA_OAUTH_EXTENSIONS: "},
		"extension with a separator": {func(c *Config) {
			c.SASLMechanism, c.OAuthToken, c.OAuthExtensions = "OAUTHBEARER", ask, []string{"a=b\x01auth=x"}
		}, "POSTBRIDGE_KAFKA_OAUTH_EXTENSIONS: "},
		"certificate alone":    {func(c *Config) { c.TLSCertFile = "c.pem" }, "POSTBRIDGE_KAFKA_TLS_CERT_FILE: "},
		"key alone":            {func(c *Config) { c.TLSKeyFile = "k.pem" }, "POSTBRIDGE_KAFKA_TLS_KEY_FILE: "},
		"client id":            {func(c *Config) { c.ClientID = "a b" }, "POSTBRIDGE_KAFKA_CLIENT_ID: "},
		"long client id":       {func(c *Config) { c.ClientID = strings.Repeat("a", 250) }, "POSTBRIDGE_KAFKA_CLIENT_ID: "},
		"compression":          {func(c *Config) { c.Compression = "zstd" }, `POSTBRIDGE_KAFKA_COMPRESSION: "zstd" is not known; set it to one of lz4, gzip, none`},
		"partitions":           {func(c *Config) { c.Partitions = 0 }, "POSTBRIDGE_KAFKA_PARTITIONS: 0 "},
		"too many partitions":  {func(c *Config) { c.Partitions = 100_001 }, "POSTBRIDGE_KAFKA_PARTITIONS: 100001 is too many"},
		"replication":          {func(c *Config) { c.Replication = -2 }, "POSTBRIDGE_KAFKA_REPLICATION: -2 "},
		"too much replication": {func(c *Config) { c.Replication = 32768 }, "POSTBRIDGE_KAFKA_REPLICATION: 32768 is too many"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := Config{Brokers: []string{"one:9092"}, CreateTopics: true, Partitions: 6, Replication: 1}
			test.change(&c)
			err := c.Validate()
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("%v, want %q", err, test.want)
			}
			if strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "\n") {
				t.Errorf("tells the secret, or has several lines: %v", err)
			}
		})
	}
}

func TestConfigValid(t *testing.T) {
	t.Parallel()
	ask := func() string { return "" }
	for _, c := range []Config{
		{Brokers: []string{"one:9092"}},
		{Brokers: []string{"[::1]:9092", "127.0.0.1:9093"}, CreateTopics: true, Partitions: 1, Replication: 1, Prefix: "de.desk-1_a"},
		{Brokers: []string{"one:9092"}, CreateTopics: true, Partitions: 100_000, Replication: 32767},
		{Brokers: []string{"one:9092"}, Partitions: 100_001, Replication: 32768}, // not used
		{Brokers: []string{"one:9092"}, SASLMechanism: "PLAIN", User: "edge", Password: ask},
		{Brokers: []string{"one:9092"}, SASLMechanism: "SCRAM-SHA-512", User: "edge", Password: ask, TLS: true},
		{Brokers: []string{"one:9092"}, CreateTopics: true, Partitions: 1, Replication: -1},
		{Brokers: []string{"one:9092"}, ClientID: "edge-1,ws_az=ap-south-1a"},
		{Brokers: []string{"one:9092"}, Compression: "lz4"},
		{Brokers: []string{"one:9092"}, Compression: "gzip"},
		{Brokers: []string{"one:9092"}, Compression: "none"},
		{Brokers: []string{"one:9092"}, SASLMechanism: "OAUTHBEARER", OAuthToken: ask},
		{
			Brokers: []string{"one:9092"}, SASLMechanism: "OAUTHBEARER", OAuthToken: ask, TLS: true,
			OAuthExtensions: []string{"logicalCluster=lkc-1", "identityPoolId=pool-1="},
		},
		{Brokers: []string{"one:9092"}, TLSCAFile: "ca.pem", TLSCertFile: "c.pem", TLSKeyFile: "k.pem"},
	} {
		if err := c.Validate(); err != nil {
			t.Errorf("%+v: %v", c.Brokers, err)
		}
	}
}

func TestUnencryptedSecret(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		config Config
		want   bool
	}{
		{Config{}, false},
		{Config{SASLMechanism: mechanismPlain}, true},
		{Config{SASLMechanism: mechanismPlain, TLS: true}, false},
		{Config{SASLMechanism: mechanismPlain, TLSCAFile: "ca.pem"}, false},
		{Config{SASLMechanism: mechanismPlain, TLSCertFile: "c.pem", TLSKeyFile: "k.pem"}, false},
		{Config{SASLMechanism: mechanismScram256}, false},
		{Config{SASLMechanism: mechanismOAuth}, true},
		{Config{SASLMechanism: mechanismOAuth, TLS: true}, false},
	} {
		if got := test.config.UnencryptedSecret(); got != test.want {
			t.Errorf("%+v: %t", test.config, got)
		}
	}
}
