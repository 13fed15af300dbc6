package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/postbridge/postbridge/brokers/kite"
)

// credentials are the secrets in force. Those that were given as files change while postbridge runs; a reader always
// sees a whole set, the old one or the new one.
type credentials struct {
	certificate            atomic.Pointer[tls.Certificate]
	adminToken             atomic.Pointer[string]
	kiteSecrets            atomic.Pointer[[]kite.Secret]
	kiteTokens, dhanTokens atomic.Pointer[[]string]
	natsPassword           atomic.Pointer[string]
	natsToken              atomic.Pointer[string]
	kafkaPassword          atomic.Pointer[string]

	files *secretFiles
}

// secretSource is where one kind of secret comes from, and what takes it in.
type secretSource struct {
	name, value, path string
	accept            func(c *credentials, text string) error
	// keyPath is another file, which is taken with the first as one text; "" if there is none.
	keyPath string
}

func (c *config) httpSecrets() []secretSource {
	return []secretSource{
		{name: "TLS_CERT", path: c.TLSCertFile, keyPath: c.TLSKeyFile, accept: (*credentials).setCertificate},
		{name: "ADMIN_TOKEN", value: string(c.AdminToken), path: c.AdminTokenFile, accept: (*credentials).setAdminToken},
	}
}

func (c *config) brokerSecrets() []secretSource {
	return []secretSource{
		{name: "KITE_SECRETS", value: string(c.KiteSecrets), path: c.KiteSecretsFile, accept: (*credentials).setKiteSecrets},
		{name: "KITE_TOKENS", value: string(c.KiteTokens), path: c.KiteTokensFile, accept: (*credentials).setKiteTokens},
		{name: "DHAN_TOKENS", value: string(c.DhanTokens), path: c.DhanTokensFile, accept: (*credentials).setDhanTokens},
	}
}

func (c *config) busSecrets() []secretSource {
	return []secretSource{
		{name: "NATS_PASSWORD", value: string(c.NATSPassword), path: c.NATSPasswordFile, accept: (*credentials).setNATSPassword},
		{name: "NATS_TOKEN", value: string(c.NATSToken), path: c.NATSTokenFile, accept: (*credentials).setNATSToken},
		{name: "KAFKA_PASSWORD", value: string(c.KafkaPassword), path: c.KafkaPasswordFile, accept: (*credentials).setKafkaPassword},
	}
}

// readCredentials takes the secrets from the configuration and from the files that it names. Its error is a misuse.
func readCredentials(sources []secretSource) (*credentials, error) {
	all := &credentials{files: newSecretFiles()}
	for _, of := range sources {
		var err error
		switch {
		case of.value != "":
			err = of.accept(all, of.value)
		case of.path != "":
			of.name += "_FILE"
			err = all.files.add(of.name, func(text string) error { return of.accept(all, text) }, of.path, of.keyPath)
		}
		if err != nil {
			return nil, bad(of.name, "%v", err)
		}
	}
	return all, nil
}

func (c *credentials) setCertificate(text string) error {
	return set(&c.certificate, text, parsePair)
}
func (c *credentials) setAdminToken(text string) error {
	return set(&c.adminToken, text, parseAdminToken)
}
func (c *credentials) setKiteSecrets(text string) error {
	return set(&c.kiteSecrets, text, parseKiteSecrets)
}
func (c *credentials) setKiteTokens(text string) error { return set(&c.kiteTokens, text, parseTokens) }
func (c *credentials) setDhanTokens(text string) error { return set(&c.dhanTokens, text, parseTokens) }
func (c *credentials) setNATSPassword(text string) error {
	return set(&c.natsPassword, text, parseWord)
}
func (c *credentials) setNATSToken(text string) error { return set(&c.natsToken, text, parseWord) }
func (c *credentials) setKafkaPassword(text string) error {
	return set(&c.kafkaPassword, text, parseWord)
}

// set puts what a text says in force.
func set[T any](value *atomic.Pointer[T], text string, parse func(string) (T, error)) error {
	v, err := parse(text)
	if err == nil {
		value.Store(&v)
	}
	return err
}

// load is what is in force, or nothing.
func load[T any](value *atomic.Pointer[T]) (v T) {
	if p := value.Load(); p != nil {
		v = *p
	}
	return v
}

// fresh is what is in force after a look at the files.
func (c *credentials) fresh(value *atomic.Pointer[string]) string {
	c.files.reload()
	return load(value)
}

// kite are the credentials in force of Kite.
func (c *credentials) kite() kite.Credentials {
	return kite.Credentials{Secrets: load(&c.kiteSecrets), Tokens: load(&c.kiteTokens)}
}

// splitEntries takes a list of secrets apart: entries are separated by commas or lines; empty lines do not count.
func splitEntries(text string) (entries []string) {
	for line := range strings.Lines(text) {
		if strings.TrimSpace(line) == "" {
			continue
		}
		for entry := range strings.SplitSeq(line, ",") {
			entries = append(entries, strings.TrimSpace(entry))
		}
	}
	return entries
}

var errNoEntry = errors.New("there is nothing in it; put at least one entry there")

// parseKiteSecrets reads app_id=api_secret entries. Errors count entries rather than show them: what looks like an app
// id may be a secret in the wrong place.
func parseKiteSecrets(text string) (secrets []kite.Secret, err error) {
	for i, entry := range splitEntries(text) {
		app, secret, ok := strings.Cut(entry, "=")
		app, secret = strings.TrimSpace(app), strings.TrimSpace(secret)
		switch {
		case !ok || app == "":
			return nil, fmt.Errorf("entry %d has no app id; write it like app_id=api_secret", i+1)
		case secret == "":
			return nil, fmt.Errorf("entry %d has an empty secret; write it like app_id=api_secret", i+1)
		}
		secrets = append(secrets, kite.Secret{AppID: app, Secret: secret})
	}
	if secrets == nil {
		return nil, errNoEntry
	}
	return secrets, nil
}

// parseTokens reads path tokens.
func parseTokens(text string) ([]string, error) {
	tokens := splitEntries(text)
	for i, t := range tokens {
		switch {
		case t == "":
			return nil, fmt.Errorf("entry %d is empty; write it like token1,token2", i+1)
		case strings.ContainsFunc(t, notInSegment):
			return nil, fmt.Errorf("entry %d cannot be part of a path; use letters, digits, - and _", i+1)
		}
	}
	if tokens == nil {
		return nil, errNoEntry
	}
	return tokens, nil
}

// notInSegment reports a character that a URL cannot have in one segment of its path, or not as itself.
func notInSegment(r rune) bool {
	return r <= ' ' || r > '~' || strings.ContainsRune(`/?#%"<>\^{|}`+"`", r)
}

// parsePair reads a certificate, with its chain, and its key, in whatever order.
func parsePair(text string) (tls.Certificate, error) {
	pair, err := tls.X509KeyPair([]byte(text), []byte(text))
	if err != nil {
		err = fmt.Errorf("the certificate and its key do not load: %w", err)
	}
	return pair, err
}

// parseAdminToken reads what a header can carry.
func parseAdminToken(text string) (string, error) {
	token, err := parseWord(text)
	if err == nil && strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", errors.New("it cannot be a bearer token; use letters and digits")
	}
	return token, err
}

// parseWord reads one secret; the end of the line is not part of it.
func parseWord(text string) (string, error) {
	word := strings.TrimRight(text, "\r\n")
	if word == "" {
		return "", errors.New("there is nothing in it; put the secret there")
	}
	return word, nil
}
