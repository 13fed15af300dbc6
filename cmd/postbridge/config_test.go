package main

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/caarlos0/env/v10"

	"github.com/postbridge/postbridge/brokers"
)

var update = flag.Bool("update", false, "write the golden file and the table in README.md anew")

// environ reads NAME=value words, without the prefix.
func environ(words string) []string {
	list := strings.Fields(words)
	for i := range list {
		list[i] = envPrefix + list[i]
	}
	return list
}

func TestConfigErrors(t *testing.T) {
	const kite = "KITE_SECRETS=1234=s3cret "
	const kafka = kite + "PUBLISH=kafka KAFKA_BROKERS=b:9092 "
	for _, test := range []struct{ environ, want string }{
		{"",
			"no broker is configured; set POSTBRIDGE_KITE_SECRETS to app_id=api_secret, or " +
				"POSTBRIDGE_DHAN_TOKENS or POSTBRIDGE_UPSTOX_TOKENS or POSTBRIDGE_FYERS_TOKENS"},
		{"KITE_SECRETS= DHAN_TOKENS=",
			"no broker is configured; set POSTBRIDGE_KITE_SECRETS to app_id=api_secret, or " +
				"POSTBRIDGE_DHAN_TOKENS or POSTBRIDGE_UPSTOX_TOKENS or POSTBRIDGE_FYERS_TOKENS"},
		{"KITE_SECRET=1234=s3cret",
			"POSTBRIDGE_KITE_SECRET: there is no such setting; did you mean POSTBRIDGE_KITE_SECRETS?"},
		{kite + "PORTS=1", "POSTBRIDGE_PORTS: there is no such setting; unset it"},
		{kite + "PORT=8080", "POSTBRIDGE_PORT: there is no such setting; unset it"},
		{kite + "NATS_PORT=4222", "POSTBRIDGE_NATS_PORT: there is no such setting; unset it"},
		{kite + "ADMIN_PORT=9090", "POSTBRIDGE_ADMIN_PORT: there is no such setting; unset it"},
		{kite + "NATS_SERVICE=tcp://10.0.0.2:4222", "POSTBRIDGE_NATS_SERVICE: there is no such setting; unset it"},
		{kite + "NATS_PORT_TCP=tcp://10.0.0.2:4222", "POSTBRIDGE_NATS_PORT_TCP: there is no such setting; unset it"},
		{kite + "NATS_URLS=tcp://bus",
			"POSTBRIDGE_NATS_URLS: there is no such setting; did you mean POSTBRIDGE_NATS_URL?"},
		{kite + "PORT_8080_XTP=1", "POSTBRIDGE_PORT_8080_XTP: there is no such setting; unset it"},
		{kite + "PUBLISH=kafka,kafka", "POSTBRIDGE_PUBLISH: names kafka twice; set it to nats, kafka or nats,kafka"},
		{kite + "PUBLISH=redis NATS_URL=bus",
			"POSTBRIDGE_PUBLISH: \"redis\" is not a bus; set it to nats, kafka or nats,kafka"},
		{kite + "PUBLISH=nats,", "POSTBRIDGE_PUBLISH: \"nats,\" has an empty entry; write it like one,two"},

		{"KITE_SECRETS=1234=", "POSTBRIDGE_KITE_SECRETS: entry 1 has an empty secret; write it like app_id=api_secret"},
		{"KITE_SECRETS=1234=a,s3cret",
			"POSTBRIDGE_KITE_SECRETS: entry 2 has no app id; write it like app_id=api_secret"},
		{"KITE_SECRETS=1234=a,", "POSTBRIDGE_KITE_SECRETS: entry 2 has no app id; write it like app_id=api_secret"},
		{"KITE_SECRETS==s3cret", "POSTBRIDGE_KITE_SECRETS: entry 1 has no app id; write it like app_id=api_secret"},
		{"DHAN_TOKENS=s3cret,,x", "POSTBRIDGE_DHAN_TOKENS: entry 2 is empty; write it like token1,token2"},
		{"DHAN_TOKENS=s3cret/x",
			"POSTBRIDGE_DHAN_TOKENS: entry 1 cannot be part of a path; use letters, digits, - and _"},
		{kite + "KITE_SECRETS_FILE=/s",
			"POSTBRIDGE_KITE_SECRETS: is set together with POSTBRIDGE_KITE_SECRETS_FILE; unset one of them"},
		{kite + "DHAN_TOKENS_FILE=/no/such",
			"POSTBRIDGE_DHAN_TOKENS_FILE: stat /no/such: no such file or directory; name a file that stays readable"},
		{kite + "DHAN_TOKENS_FILE=/dev/null",
			"POSTBRIDGE_DHAN_TOKENS_FILE: it is not a regular file; name a file that stays readable"},
		{kite + "KITE_CHECKSUM=order_id",
			"POSTBRIDGE_KITE_CHECKSUM: \"order_id\" is not known; set it to one of order_timestamp, user_id"},
		{"DHAN_TOKENS=t KITE_TOKENS=s3cret",
			"POSTBRIDGE_KITE_TOKENS: is set but Kite is off; set POSTBRIDGE_KITE_SECRETS to app_id=api_secret, too"},
		{kite + "DHAN_CLIENT_IDS=1",
			"POSTBRIDGE_DHAN_CLIENT_IDS: is set but Dhan is off; set POSTBRIDGE_DHAN_TOKENS, too"},
		{"DHAN_TOKENS=t UPSTOX_USER_IDS=1",
			"POSTBRIDGE_UPSTOX_USER_IDS: is set but Upstox is off; set POSTBRIDGE_UPSTOX_TOKENS, too"},
		{"UPSTOX_TOKENS=t UPSTOX_USER_IDS=1,'2'", "POSTBRIDGE_UPSTOX_USER_IDS: entry 2 is in quotes; remove them"},
		{"UPSTOX_TOKENS=s3cret,", "POSTBRIDGE_UPSTOX_TOKENS: entry 2 is empty; write it like token1,token2"},
		{"UPSTOX_TOKENS=t UPSTOX_TOKENS_FILE=/no/such",
			"POSTBRIDGE_UPSTOX_TOKENS: is set together with POSTBRIDGE_UPSTOX_TOKENS_FILE; unset one of them"},
		{"DHAN_TOKENS=t FYERS_CLIENT_IDS=1",
			"POSTBRIDGE_FYERS_CLIENT_IDS: is set but Fyers is off; set POSTBRIDGE_FYERS_TOKENS, too"},
		{"FYERS_TOKENS=t FYERS_CLIENT_IDS=1,'2'", "POSTBRIDGE_FYERS_CLIENT_IDS: entry 2 is in quotes; remove them"},
		{"FYERS_TOKENS=s3cret,", "POSTBRIDGE_FYERS_TOKENS: entry 2 is empty; write it like token1,token2"},
		{"FYERS_TOKENS=t FYERS_TOKENS_FILE=/no/such",
			"POSTBRIDGE_FYERS_TOKENS: is set together with POSTBRIDGE_FYERS_TOKENS_FILE; unset one of them"},

		{kite + "LISTEN=8080", "POSTBRIDGE_LISTEN: \"8080\" is not an address; write it like 127.0.0.1:8080 or :8080"},
		{kite + "ADMIN_LISTEN=:http",
			"POSTBRIDGE_ADMIN_LISTEN: \":http\" is not an address; write it like 127.0.0.1:8080 or :8080"},
		{kite + "ADMIN_LISTEN=:8080",
			"POSTBRIDGE_ADMIN_LISTEN: is the same address as POSTBRIDGE_LISTEN; give it another port"},
		{kite + "NATS_LISTEN=:65536",
			"POSTBRIDGE_NATS_LISTEN: \":65536\" is not an address; write it like 127.0.0.1:8080 or :8080"},
		{kite + "MAX_BODY=64KB",
			"POSTBRIDGE_MAX_BODY: \"64KB\" is not a size; write it like 64KiB, 512MiB, 8GiB or a plain number of " +
				"bytes"},
		{kite + "MAX_BODY=5MiB", "POSTBRIDGE_MAX_BODY: 5MiB is out of range; set it between 1KiB and 4MiB"},
		{kite + "MAX_BODY=1023", "POSTBRIDGE_MAX_BODY: 1023 is out of range; set it between 1KiB and 4MiB"},
		{kite + "MAX_CONNECTIONS=15", "POSTBRIDGE_MAX_CONNECTIONS: 15 is out of range; set it between 16 and 32768"},
		{kite + "MAX_CONNECTIONS=32769",
			"POSTBRIDGE_MAX_CONNECTIONS: 32769 is out of range; set it between 16 and 32768"},
		{kite + "MAX_CONNECTIONS=many", "POSTBRIDGE_MAX_CONNECTIONS: \"many\" is not a whole number"},
		{kite + "IDLE_TIMEOUT=620",
			"POSTBRIDGE_IDLE_TIMEOUT: \"620\" is not a duration; write it like 90s, 15m or 168h"},
		{kite + "IDLE_TIMEOUT=0s", "POSTBRIDGE_IDLE_TIMEOUT: 0s is out of range; set it between 1s and 24h"},
		{kite + "IDLE_TIMEOUT=-1m", "POSTBRIDGE_IDLE_TIMEOUT: -1m0s is out of range; set it between 1s and 24h"},
		{kite + "IDLE_TIMEOUT=999ms", "POSTBRIDGE_IDLE_TIMEOUT: 999ms is out of range; set it between 1s and 24h"},
		{kite + "IDLE_TIMEOUT=25h", "POSTBRIDGE_IDLE_TIMEOUT: 25h0m0s is out of range; set it between 1s and 24h"},
		{kite + "TLS_CERT_FILE=/c",
			"POSTBRIDGE_TLS_CERT_FILE: is set without its key; set POSTBRIDGE_TLS_KEY_FILE, too"},
		{kite + "TLS_KEY_FILE=/k",
			"POSTBRIDGE_TLS_KEY_FILE: is set without its certificate; set POSTBRIDGE_TLS_CERT_FILE, too"},
		{kite + "TLS_CERT_FILE=/no/such TLS_KEY_FILE=/k",
			"POSTBRIDGE_TLS_CERT_FILE: stat /no/such: no such file or directory; name a file that stays readable"},
		{kite + "TLS_CERT_FILE=main.go TLS_KEY_FILE=/no/such",
			"POSTBRIDGE_TLS_CERT_FILE: stat /no/such: no such file or directory; name a file that stays readable"},
		{kite + "TLS_CERT_FILE=main.go TLS_KEY_FILE=main.go",
			"POSTBRIDGE_TLS_CERT_FILE: cannot load the certificate and its key: tls: failed to find any PEM data in " +
				"certificate input"},
		{kite + "ADMIN_TOKEN=s3cret ADMIN_TOKEN_FILE=/t",
			"POSTBRIDGE_ADMIN_TOKEN: is set together with POSTBRIDGE_ADMIN_TOKEN_FILE; unset one of them"},
		{kite + "ADMIN_TOKEN=s3crét",
			"POSTBRIDGE_ADMIN_TOKEN: it cannot be a bearer token: it has a space or a non-ASCII character; remove it"},
		{kite + "ADMIN_TOKEN_FILE=/no/such",
			"POSTBRIDGE_ADMIN_TOKEN_FILE: stat /no/such: no such file or directory; name a file that stays readable"},
		{kite + "SPOOL_MAX_BYTES=1023KiB", "POSTBRIDGE_SPOOL_MAX_BYTES: 1023KiB is too small; set it to 1MiB or more"},
		{kite + "SPOOL_MAX_BYTES=10MiB MAX_BODY=1MiB",
			"POSTBRIDGE_SPOOL_MAX_BYTES: 10MiB is too small; set it to 16MiB or more"},
		{kite + "SPOOL_MAX_BYTES=-1",
			"POSTBRIDGE_SPOOL_MAX_BYTES: \"-1\" is not a size; write it like 64KiB, 512MiB, 8GiB or a plain number " +
				"of bytes"},
		{kite + "SPOOL_MAX_BYTES=9999999TiB",
			"POSTBRIDGE_SPOOL_MAX_BYTES: \"9999999TiB\" is not a size; write it like 64KiB, 512MiB, 8GiB or a plain " +
				"number of bytes"},
		{kite + "SPOOL_KEEP=1d", "POSTBRIDGE_SPOOL_KEEP: \"1d\" is not a duration; write it like 90s, 15m or 168h"},
		{kite + "SPOOL_KEEP=-1h", "POSTBRIDGE_SPOOL_KEEP: must not be negative; set it like 24h, or to 0s"},

		{kite + "NATS_URL=http://bus",
			"POSTBRIDGE_NATS_URL: is not a list of NATS servers; write it like nats://host:4222, several with commas"},
		{kite + "NATS_URL=nats://a,",
			"POSTBRIDGE_NATS_URL: is not a list of NATS servers; write it like nats://host:4222, several with commas"},
		{kite + "NATS_CREATE_STREAMS=maybe", "POSTBRIDGE_NATS_CREATE_STREAMS: \"maybe\" is neither true nor false"},
		{kite + "NATS_REPLICAS=3",
			"POSTBRIDGE_NATS_REPLICAS: must be 1 with the embedded server; set POSTBRIDGE_NATS_URL to use a cluster"},
		{kite + "NATS_URL=nats://a NATS_REPLICAS=6",
			"POSTBRIDGE_NATS_REPLICAS: 6 is out of range; set it between 1 and 5"},
		{kite + "NATS_REPLICAS=three", "POSTBRIDGE_NATS_REPLICAS: \"three\" is not a whole number"},
		{kite + "NATS_MAX_AGE=0s", "POSTBRIDGE_NATS_MAX_AGE: must be positive; set it like 168h"},
		{kite + "PREFIX=desk.1.",
			"POSTBRIDGE_PREFIX: \"desk.1.\" cannot begin a subject or topic; use letters, digits, _ and -, with dots " +
				"between them, at most 64 characters"},
		{kite + "NATS_TOKEN=s3cret",
			"POSTBRIDGE_NATS_TOKEN is set, but the embedded server has no login, permissions, TLS or domain; " +
				"unset it, or set POSTBRIDGE_NATS_URL"},
		{kite + "NATS_PASSWORD_FILE=/s",
			"POSTBRIDGE_NATS_PASSWORD is set, but the embedded server has no login, permissions, TLS or domain; " +
				"unset it, or set POSTBRIDGE_NATS_URL"},
		{kite + "NATS_TLS_CA_FILE=ca",
			"POSTBRIDGE_NATS_TLS_CA_FILE is set, but the embedded server has no login, permissions, TLS or domain; " +
				"unset it, or set POSTBRIDGE_NATS_URL"},
		{kite + "NATS_DOMAIN=hub",
			"POSTBRIDGE_NATS_DOMAIN is set, but the embedded server has no login, permissions, TLS or domain; " +
				"unset it, or set POSTBRIDGE_NATS_URL"},
		{kite + "NATS_URL=bus NATS_DOMAIN=$JS.hub.API",
			"POSTBRIDGE_NATS_DOMAIN: \"$JS.hub.API\" is not a JetStream domain; write what the jetstream block of " +
				"its servers has as domain, without dots"},
		{kite + "NATS_URL=bus NATS_USER=u",
			"POSTBRIDGE_NATS_USER: is set without a password; set POSTBRIDGE_NATS_PASSWORD, too"},
		{kite + "NATS_URL=bus NATS_PASSWORD=s3cret",
			"POSTBRIDGE_NATS_PASSWORD: is set without a user; set POSTBRIDGE_NATS_USER, too"},
		{kite + "NATS_URL=bus NATS_USER=u NATS_PASSWORD=s3cret NATS_TOKEN=s3cret",
			"POSTBRIDGE_NATS_USER and POSTBRIDGE_NATS_TOKEN are both set; NATS takes one way to log in, unset the " +
				"other"},
		{kite + "NATS_URL=nats://u:s3cret@bus NATS_TOKEN=s3cret",
			"POSTBRIDGE_NATS_TOKEN and a user in POSTBRIDGE_NATS_URL are both set; NATS takes one way to log in, " +
				"unset the other"},
		{kite + "NATS_URL=bus:4222 NATS_CREDS_FILE=/no/such",
			"POSTBRIDGE_NATS_CREDS_FILE: stat /no/such: no such file or directory; name a file that can be read"},
		{kite + "NATS_URL=bus:4222 NATS_NKEY_FILE=/no/such",
			"POSTBRIDGE_NATS_NKEY_FILE: stat /no/such: no such file or directory; name a file that can be read"},
		{kite + "NATS_URL=wss://bus NATS_TLS_FIRST=true",
			"POSTBRIDGE_NATS_TLS_FIRST: is set, but a WebSocket has TLS by wss://; unset it"},
		{kite + "NATS_URL=bus NATS_INBOX_PREFIX=_INBOX.>",
			"POSTBRIDGE_NATS_INBOX_PREFIX: \"_INBOX.>\" cannot begin a subject; write it like _INBOX_edge, without " +
				"wildcards and dot at its end"},
		{kite + "NATS_URL=bus NATS_TLS_CERT_FILE=c",
			"POSTBRIDGE_NATS_TLS_CERT_FILE: is set without its key; set POSTBRIDGE_NATS_TLS_KEY_FILE, too"},
		{kite + "NATS_URL=bus NATS_TLS_KEY_FILE=k",
			"POSTBRIDGE_NATS_TLS_KEY_FILE: is set without its certificate; set POSTBRIDGE_NATS_TLS_CERT_FILE, too"},

		{kite + "KAFKA_REPLICATION=3 KAFKA_BROKERS=b:9092",
			"POSTBRIDGE_KAFKA_BROKERS: is set but nothing is published to kafka; set POSTBRIDGE_PUBLISH to kafka or " +
				"nats,kafka, or unset it"},
		{kite + "PUBLISH=nats KAFKA_TLS=false",
			"POSTBRIDGE_KAFKA_TLS: is set but nothing is published to kafka; set POSTBRIDGE_PUBLISH to kafka or " +
				"nats,kafka, or unset it"},
		{kite + "KAFKA_PASSWORD_FILE=/s",
			"POSTBRIDGE_KAFKA_PASSWORD_FILE: is set but nothing is published to kafka; set POSTBRIDGE_PUBLISH to " +
				"kafka or nats,kafka, or unset it"},
		{kafka + "NATS_TOKEN=s3cret NATS_URL=bus",
			"POSTBRIDGE_NATS_URL: is set but nothing is published to nats; set POSTBRIDGE_PUBLISH to nats or " +
				"nats,kafka, or unset it"},
		{kafka + "NATS_LISTEN=127.0.0.1:4222",
			"POSTBRIDGE_NATS_LISTEN: is set but nothing is published to nats; set POSTBRIDGE_PUBLISH to nats or " +
				"nats,kafka, or unset it"},
		{kafka + "KAFKA_BROKER=b:9092",
			"POSTBRIDGE_KAFKA_BROKER: there is no such setting; did you mean POSTBRIDGE_KAFKA_BROKERS?"},
		{kite + "PUBLISH=kafka", "POSTBRIDGE_KAFKA_BROKERS: is not set; write host:port, several with commas"},
		{kite + "PUBLISH=nats,kafka", "POSTBRIDGE_KAFKA_BROKERS: is not set; write host:port, several with commas"},
		{kite + "PUBLISH=nats,kafka KAFKA_BROKERS=b:9092 NATS_REPLICAS=3",
			"POSTBRIDGE_NATS_REPLICAS: must be 1 with the embedded server; set POSTBRIDGE_NATS_URL to use a cluster"},
		{kite + "PUBLISH=kafka KAFKA_BROKERS=b",
			"POSTBRIDGE_KAFKA_BROKERS: \"b\" is not a broker; write host:port, several with commas"},
		{kite + "PUBLISH=kafka KAFKA_BROKERS=a:9092,u:s3cret@b:9092",
			"POSTBRIDGE_KAFKA_BROKERS: an entry with @ is not a broker; write host:port, several with commas"},
		{kite + "PUBLISH=kafka KAFKA_BROKERS=a:9092,",
			"POSTBRIDGE_KAFKA_BROKERS: \"a:9092,\" has an empty entry; write it like one,two"},
		{kafka + "PREFIX=desk/1",
			"POSTBRIDGE_PREFIX: \"desk/1\" cannot begin a subject or topic; use letters, digits, _ and -, with dots " +
				"between them, at most 64 characters"},
		{kafka + "KAFKA_SASL_MECHANISM=md5",
			"POSTBRIDGE_KAFKA_SASL_MECHANISM: \"MD5\" is not known; use one of PLAIN, SCRAM-SHA-256, " +
				"SCRAM-SHA-512, OAUTHBEARER"},
		{kafka + "KAFKA_SASL_MECHANISM=plain",
			"POSTBRIDGE_KAFKA_SASL_MECHANISM: is set without a user; set POSTBRIDGE_KAFKA_USER and " +
				"POSTBRIDGE_KAFKA_PASSWORD, too"},
		{kafka + "KAFKA_PASSWORD=s3cret",
			"POSTBRIDGE_KAFKA_PASSWORD or its _FILE is set without POSTBRIDGE_KAFKA_USER; set both, or neither"},
		{kafka + "KAFKA_USER=u",
			"POSTBRIDGE_KAFKA_USER: is set without a password; set POSTBRIDGE_KAFKA_PASSWORD, too"},
		{kafka + "KAFKA_USER=u KAFKA_PASSWORD=s3cret",
			"POSTBRIDGE_KAFKA_USER: is set without a way to log in; set POSTBRIDGE_KAFKA_SASL_MECHANISM to one of " +
				"PLAIN, SCRAM-SHA-256, SCRAM-SHA-512"},
		{kafka + "KAFKA_SASL_MECHANISM=PLAIN KAFKA_USER=u KAFKA_PASSWORD=s3cret KAFKA_PASSWORD_FILE=/s",
			"POSTBRIDGE_KAFKA_PASSWORD: is set together with POSTBRIDGE_KAFKA_PASSWORD_FILE; unset one of them"},
		{kafka + "KAFKA_SASL_MECHANISM=PLAIN KAFKA_USER=u KAFKA_PASSWORD_FILE=/no/such",
			"POSTBRIDGE_KAFKA_PASSWORD_FILE: stat /no/such: no such file or directory; name a file that stays " +
				"readable"},
		{kafka + "KAFKA_SASL_MECHANISM=oauthbearer",
			"POSTBRIDGE_KAFKA_SASL_MECHANISM: is OAUTHBEARER without a token; set POSTBRIDGE_KAFKA_OAUTH_TOKEN_FILE, " +
				"too"},
		{kafka + "KAFKA_SASL_MECHANISM=OAUTHBEARER KAFKA_OAUTH_TOKEN_FILE=/no/such",
			"POSTBRIDGE_KAFKA_OAUTH_TOKEN_FILE: stat /no/such: no such file or directory; name a file that stays " +
				"readable"},
		{kafka + "KAFKA_OAUTH_TOKEN_FILE=/s",
			"POSTBRIDGE_KAFKA_OAUTH_TOKEN_FILE: is for OAUTHBEARER; set POSTBRIDGE_KAFKA_SASL_MECHANISM to it, or " +
				"unset this"},
		{kafka + "KAFKA_TLS=yes", "POSTBRIDGE_KAFKA_TLS: \"yes\" is neither true nor false"},
		{kafka + "KAFKA_TLS_CA_FILE=/no/such",
			"POSTBRIDGE_KAFKA_TLS_CA_FILE: stat /no/such: no such file or directory; name a file that can be read"},
		{kafka + "KAFKA_TLS_CERT_FILE=c",
			"POSTBRIDGE_KAFKA_TLS_CERT_FILE: is set without its key; set POSTBRIDGE_KAFKA_TLS_KEY_FILE, too"},
		{kafka + "KAFKA_TLS_KEY_FILE=k",
			"POSTBRIDGE_KAFKA_TLS_KEY_FILE: is set without its certificate; set POSTBRIDGE_KAFKA_TLS_CERT_FILE, too"},
		{kafka + "KAFKA_TLS_CERT_FILE=/no/such KAFKA_TLS_KEY_FILE=/no/such",
			"POSTBRIDGE_KAFKA_TLS_CERT_FILE: stat /no/such: no such file or directory; name a file that can be read"},
		{kafka + "KAFKA_CREATE_TOPICS=no", "POSTBRIDGE_KAFKA_CREATE_TOPICS: \"no\" is neither true nor false"},
		{kafka + "KAFKA_PARTITIONS=0", "POSTBRIDGE_KAFKA_PARTITIONS: 0 is too few; set it to 1 or more"},
		{kafka + "KAFKA_REPLICATION=0",
			"POSTBRIDGE_KAFKA_REPLICATION: 0 is too few; set it to 1 or more, or to -1 for the cluster's default"},
		{kafka + "KAFKA_CLIENT_ID=a\u00e4",
			"POSTBRIDGE_KAFKA_CLIENT_ID: use at most 249 printable ASCII characters"},
		{kafka + "KAFKA_COMPRESSION=snappy",
			"POSTBRIDGE_KAFKA_COMPRESSION: \"snappy\" is not known; set it to one of lz4, gzip, none"},
		{kafka + "KAFKA_PARTITIONS=six", "POSTBRIDGE_KAFKA_PARTITIONS: \"six\" is not a whole number"},

		{kite + "LOG_LEVEL=loud",
			"POSTBRIDGE_LOG_LEVEL: \"loud\" is not known; set it to one of debug, info, warn, error"},
		{kite + "LOG_FORMAT=xml", "POSTBRIDGE_LOG_FORMAT: \"xml\" is not known; set it to one of json, text"},
	} {
		t.Run(test.environ, func(t *testing.T) {
			for _, command := range []string{"config", "serve"} {
				got := runWith(t, environ(test.environ), command)
				if want := (result{2, "", "postbridge: " + test.want + "\n"}); got != want {
					t.Errorf("%s: %+v\nwant %+v", command, got, want)
				}
			}
			if strings.Contains(test.want, "s3cret") {
				t.Error("shows a secret")
			}
		})
	}
}

// TestConfig prints a configuration with many settings and redacts its secrets.
func TestConfig(t *testing.T) {
	tokens := write(t, "tokens", "s3cret1\ns3cret2\n")
	got := runWith(t, environ("KITE_SECRETS=1234=s3cret,1234=s3cret2 DHAN_TOKENS_FILE="+tokens+
		" NATS_URL=tls://bus1,bus3,nats://u:s3cret@bus2:4222 NATS_MAX_BYTES=1048576 PREFIX=desk1 "+
		"SPOOL_MAX_BYTES=1025KiB MAX_BODY=16384"+
		" DHAN_CLIENT_IDS=1,2 SPOOL_KEEP=90m KITE_TOKENS=s3cret ADMIN_TOKEN=s3cret MAX_CONNECTIONS=100"), "config")
	if got.code != 0 || got.stderr != "" {
		t.Fatalf("%+v", got)
	}
	if strings.Contains(got.stdout, "s3cret") {
		t.Error("shows a secret")
	}
	golden(t, "testdata/config.golden", strings.ReplaceAll(got.stdout, tokens, "/run/secrets/tokens"))
}

// TestConfigBuses prints the settings of both buses, or of one.
func TestConfigBuses(t *testing.T) {
	ca := write(t, "ca.pem", "a file that is there")
	kafka := " KAFKA_BROKERS=b1:9092,b2:9092 KAFKA_SASL_MECHANISM=Scram-Sha-256 KAFKA_USER=u KAFKA_PASSWORD=s3cret " +
		"KAFKA_COMPRESSION=GZIP KAFKA_TLS_CA_FILE=" + ca
	both := runWith(t, environ("DHAN_TOKENS=t PUBLISH=nats,kafka"+kafka), "config")
	one := runWith(t, environ("DHAN_TOKENS=t PUBLISH=kafka"+kafka), "config")
	for _, got := range []result{both, one} {
		if got.code != 0 || got.stderr != "" {
			t.Fatalf("%+v", got)
		}
		if strings.Contains(got.stdout, "s3cret") {
			t.Error("shows a secret")
		}
	}
	golden(t, "testdata/config-both.golden", strings.ReplaceAll(both.stdout, ca, "/etc/kafka/ca.pem"))
	var want []string
	for line := range strings.Lines(strings.Replace(both.stdout, "PUBLISH=nats,kafka", "PUBLISH=kafka", 1)) {
		if !strings.HasPrefix(line, "POSTBRIDGE_NATS_") {
			want = append(want, line)
		}
	}
	if want := strings.Join(want, ""); one.stdout != want {
		t.Errorf("%s\nwant\n%s", one.stdout, want)
	}
}

// TestWarnings checks the warnings about settings at the start.
func TestWarnings(t *testing.T) {
	const login = "PUBLISH=kafka KAFKA_BROKERS=b:9092 KAFKA_USER=u KAFKA_PASSWORD=p KAFKA_SASL_MECHANISM="
	const example = "0hdv7iw5examplesecret"
	ca, token := write(t, "ca.pem", "a file that is there"), write(t, "token", "admin-token")
	oauth := "PUBLISH=kafka KAFKA_BROKERS=b:9092 KAFKA_SASL_MECHANISM=OAUTHBEARER KAFKA_OAUTH_TOKEN_FILE=" +
		write(t, "oauth", "s3cret")
	for _, test := range []struct{ environ, want string }{
		{"", ""},
		{"KITE_SECRETS=1=s KITE_CHECKSUM=user_id", `setting=POSTBRIDGE_KITE_CHECKSUM reason="is user_id`},
		{"NATS_LISTEN=:4222", `setting=POSTBRIDGE_NATS_LISTEN reason="is open to other machines`},
		{"NATS_LISTEN=:4222 NATS_URL=bus", ""},
		{"ADMIN_LISTEN=:9090", `setting=POSTBRIDGE_ADMIN_LISTEN reason="is open to other machines without a token`},
		{"ADMIN_LISTEN=10.0.0.1:9090", `setting=POSTBRIDGE_ADMIN_LISTEN reason="is open`},
		{"ADMIN_LISTEN=:9090 ADMIN_TOKEN=admin-token", ""},
		{"ADMIN_LISTEN=:9090 ADMIN_TOKEN_FILE=" + token, ""},
		{"ADMIN_LISTEN=localhost:9090", ""},
		{"LISTEN=:8080", `setting=POSTBRIDGE_NATS_URL reason="is not set`},
		{"LISTEN=:8080 NATS_URL=bus", ""},
		{"LISTEN=:8080 " + login + "SCRAM-SHA-512", ""},
		{"KITE_SECRETS=1234=" + example, ""},
		{"NATS_URL=bus LISTEN=:8080 KITE_SECRETS=1=s,1234=" + example,
			`setting=POSTBRIDGE_KITE_SECRETS reason="has the example secret of Kite's documentation`},
		{"NATS_URL=bus LISTEN=:8080 KITE_SECRETS_FILE=" + write(t, "kite", "1234="+example),
			`setting=POSTBRIDGE_KITE_SECRETS reason="has the example secret`},
		{"NATS_URL=bus LISTEN=:8080 UPSTOX_TOKENS=dev-upstox-token", `setting=POSTBRIDGE_UPSTOX_TOKENS reason="has an example token`},
		{"NATS_URL=bus LISTEN=:8080 KITE_SECRETS=1=s KITE_TOKENS=t,dev-kite-token",
			`setting=POSTBRIDGE_KITE_TOKENS reason="has an example token`},
		{"UPSTOX_TOKENS=dev-upstox-token", ""},
		{login + "plain", `setting=POSTBRIDGE_KAFKA_SASL_MECHANISM reason="is PLAIN without TLS`},
		{login + "PLAIN KAFKA_TLS=true", ""},
		{login + "PLAIN KAFKA_TLS_CA_FILE=" + ca, ""},
		{login + "SCRAM-SHA-512", ""},
		{oauth, `setting=POSTBRIDGE_KAFKA_SASL_MECHANISM reason="is OAUTHBEARER without TLS`},
		{oauth + " KAFKA_TLS=true", ""},
	} {
		c, credentials, err := readConfig(env.ToMap(environ("DHAN_TOKENS=t LISTEN=127.0.0.1:8080 " + test.environ)))
		if err != nil {
			t.Fatalf("%s: %v", test.environ, err)
		}
		var log bytes.Buffer
		c.warn(slog.New(slog.NewTextHandler(&log, nil)), credentials)
		if got := log.String(); !strings.Contains(got, test.want) ||
			strings.Count(got, "\n") != min(len(test.want), 1) {
			t.Errorf("%s: %q\nwant %q", test.environ, got, test.want)
		}
	}
}

// TestRegistrations checks that serve logs for every broker what to register, and no token.
func TestRegistrations(t *testing.T) {
	c, credentials, err := readConfig(env.ToMap(environ("KITE_SECRETS=1=s3cret KITE_TOKENS=s3cret DHAN_TOKENS=s3cret " +
		"UPSTOX_TOKENS=s3cret FYERS_TOKENS=s3cret")))
	if err != nil {
		t.Fatal(err)
	}
	_, routes, err := c.brokers(credentials)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	c.logRegistrations(slog.New(slog.NewTextHandler(&log, nil)), routes)
	got := log.String()
	for _, broker := range brokers.Names() {
		if r := registrations()[broker]; r.where == "" || r.check == "" ||
			!strings.Contains(got, `broker=`+broker+` url="https://<your host>/`+broker+`/{token}" where="`+r.where) {
			t.Errorf("%s: not logged", broker)
		}
	}
	if strings.Contains(got, "s3cret") || strings.Count(got, "\n") != len(brokers.Names())+1 {
		t.Errorf("logged:\n%s", got)
	}
}

// TestConnections checks that files are reserved for the spool and the buses at any limit of open files.
func TestConnections(t *testing.T) {
	for _, test := range []struct{ set, files, want int }{
		{1024, 1 << 20, 1024}, {1024, 1280, 1024}, {1024, 1279, 1023}, {1024, 1024, 768}, {32768, 4096, 3840},
		{1024, 256, 16}, {20, 64, 16},
	} {
		if got := (&config{MaxConnections: test.set}).connections(test.files); got != test.want {
			t.Errorf("%d of %d files: %d, want %d", test.set, test.files, got, test.want)
		}
	}
}

// TestConfigDefaults prints the defaults; an empty variable is not set.
func TestConfigDefaults(t *testing.T) {
	got := runWith(t, environ("DHAN_TOKENS=dev-dhan-token LISTEN= NATS_REPLICAS= KITE_SECRETS="), "config")
	if got.code != 0 || got.stderr != "" {
		t.Fatalf("%+v", got)
	}
	golden(t, "testdata/config-defaults.golden", got.stdout)
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		rewrite(t, path, got)
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; go test -update writes it", err)
	}
	if got != string(want) {
		t.Errorf("%s is not\n%s\ngo test -update writes it anew", path, got)
	}
}

func TestKubernetesNames(t *testing.T) {
	got := runWith(t, environ(`DHAN_TOKENS=t
		SERVICE_HOST=10.0.0.1 SERVICE_PORT=80 SERVICE_PORT_HTTP=80 SERVICE_PORT_ADMIN_2=81
		PORT=tcp://10.0.0.1:80 PORT_8080_TCP=tcp://10.0.0.1:8080 PORT_8080_TCP_PROTO=tcp PORT_8080_TCP_PORT=8080
		PORT_8080_TCP_ADDR=10.0.0.1 PORT_53_UDP_ADDR=1 PORT_53_SCTP=1
		NATS_SERVICE_HOST=10.0.0.2 NATS_SERVICE_PORT=4222 NATS_SERVICE_PORT_CLIENT=4222 NATS_PORT=tcp://10.0.0.2:4222
		NATS_PORT_4222_TCP=tcp://10.0.0.2:4222 NATS_PORT_4222_TCP_PROTO=tcp NATS_PORT_4222_TCP_PORT=4222
		NATS_PORT_4222_TCP_ADDR=10.0.0.2 KAFKA_SERVICE_HOST=10.0.0.3 KAFKA_PORT=tcp://[fd00::3]:9092
		KAFKA_0_INTERNAL_SERVICE_PORT=9092 ADMIN_PORT=udp://10.0.0.4:9090`), "config")
	if got.code != 0 {
		t.Errorf("%+v", got)
	}
	for _, name := range settingNames() {
		if regexp.MustCompile(serviceLink).MatchString(name + "=tcp://10.0.0.1:80") {
			t.Errorf("Kubernetes may set %s, too", name)
		}
	}
}

func TestByteSize(t *testing.T) {
	for text, want := range map[string]byteSize{"0": 0, "1": 1, "64KiB": 1 << 16, "8GiB": 8 << 30, "1TiB": 1 << 40,
		"1536KiB": 3 << 19} {
		var got byteSize
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want || got.String() != text {
			t.Errorf("%s: %d %v, %v", text, got, got, err)
		}
	}
	for _, text := range []string{"", "KiB", "1 KiB", "1.5GiB", "+1", "1e3", "8388608TiB", "9223372036854775808"} {
		if err := new(byteSize).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is taken for a size", text)
		}
	}
}

// TestReadme compares the table in README.md with the struct that it describes.
func TestReadme(t *testing.T) {
	if err := compareSection("README.md", "config", configTable(t)); err != nil {
		t.Error(err)
	}
}

// configTable returns the table of settings: names and defaults from the tags, meanings from the comments.
func configTable(t *testing.T) string {
	t.Helper()
	meanings := fieldComments(t)
	var b strings.Builder
	b.WriteString("| name | default | meaning |\n| --- | --- | --- |\n")
	for _, f := range reflect.VisibleFields(reflect.TypeFor[config]()) {
		meaning, fallback := meanings[f.Name], f.Tag.Get("envDefault")
		if meaning == "" {
			t.Errorf("config.%s has no comment", f.Name)
		}
		if fallback != "" {
			fallback = "`" + fallback + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", settingName(f), fallback, meaning)
	}
	return b.String()
}

func fieldComments(t *testing.T) map[string]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "settings.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	comments := make(map[string]string)
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok || spec.Name.Name != "config" {
			return true
		}
		for _, f := range spec.Type.(*ast.StructType).Fields.List {
			comments[f.Names[0].Name] = strings.ReplaceAll(strings.TrimSpace(f.Doc.Text()), "\n", " ")
			if tag, err := strconv.Unquote(f.Tag.Value); err != nil || !strings.HasPrefix(tag, `env:"`) {
				t.Errorf("config.%s has the tag %s", f.Names[0].Name, f.Tag.Value)
			}
		}
		return false
	})
	return comments
}

// TestBusSettingsOfNoUse checks that a wrong setting of a bus does not stop a command that connects to none.
func TestBusSettingsOfNoUse(t *testing.T) {
	for _, settings := range []string{"PUBLISH=kafka NATS_URL=bus", "PUBLISH=redis", "KAFKA_BROKERS=b:9092"} {
		for args, want := range map[string]result{
			"send --secret 1=2 /no/such": {1, "", "postbridge: send: open /no/such: no such file or directory\n"},
			"spool ls": {1, "", "postbridge: there is no spool in data; set POSTBRIDGE_DATA_DIR " +
				"to the data of serve\n"},
		} {
			if got := runWith(t, environ(settings), strings.Fields(args)...); got != want {
				t.Errorf("%s with %s: %+v\nwant %+v", args, settings, got, want)
			}
		}
	}
}
