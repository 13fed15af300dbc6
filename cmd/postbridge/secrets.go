package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"unicode"
	"unicode/utf8"

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

// checkSecret refuses a secret, or an entry of a list, that cannot be right: accepted, it would have each postback
// rejected. Its error continues "it" or "entry 1", and shows no character of the text but an invisible one.
func checkSecret(text string) error {
	invisible := strings.IndexFunc(text, func(r rune) bool { return !unicode.IsPrint(r) })
	first, _ := utf8.DecodeRuneInString(text)
	last, size := utf8.DecodeLastRuneInString(text)
	const quotes = "\"'`“”‘’"
	switch {
	case !utf8.ValidString(text):
		return errors.New("is not UTF-8; save it as UTF-8")
	case first == '\ufeff':
		return errors.New("starts with a byte order mark; save it without one")
	case invisible >= 0:
		r, _ := utf8.DecodeRuneInString(text[invisible:])
		return fmt.Errorf("has an invisible character (%U); remove it", r)
	case len(text) > size && strings.ContainsRune(quotes, first) && strings.ContainsRune(quotes, last):
		return errors.New("is in quotes; remove them")
	case strings.HasPrefix(text, "export ") || strings.HasPrefix(text, envPrefix):
		return errors.New("starts like a line of a shell script; leave only what is after the name and its =")
	}
	return nil
}

// readEntries takes a list of secrets apart and checks its entries, and the whole, which may be in quotes, too.
func readEntries(text string) ([]string, error) {
	entries := splitEntries(text)
	for i, entry := range entries {
		if err := checkSecret(entry); err != nil {
			return nil, fmt.Errorf("entry %d %w", i+1, err)
		}
	}
	if err := checkSecret(strings.Join(entries, ",")); err != nil {
		return nil, fmt.Errorf("it %w", err)
	}
	if entries == nil {
		return nil, errNoEntry
	}
	return entries, nil
}

var errNoEntry = errors.New("there is nothing in it; put at least one entry there")

// parseKiteSecrets reads app_id=api_secret entries. Errors count entries rather than show them: what looks like an app
// id may be a secret in the wrong place.
func parseKiteSecrets(text string) (secrets []kite.Secret, err error) {
	entries, err := readEntries(text)
	if err != nil {
		return nil, err
	}
	for i, entry := range entries {
		app, secret, ok := strings.Cut(entry, "=")
		app, secret = strings.TrimSpace(app), strings.TrimSpace(secret)
		switch {
		case !ok || app == "":
			return nil, fmt.Errorf("entry %d has no app id; write it like app_id=api_secret", i+1)
		case secret == "":
			return nil, fmt.Errorf("entry %d has an empty secret; write it like app_id=api_secret", i+1)
		case !isAppID(app):
			return nil, fmt.Errorf("entry %d has an app id that is not a number; it is the app_id of postbacks, not the api_key", i+1)
		case strings.ContainsFunc(secret, notInHeader):
			return nil, fmt.Errorf("entry %d has a blank in its secret, or a character that is not ASCII; remove it", i+1)
		}
		if err := checkSecret(secret); err != nil {
			return nil, fmt.Errorf("entry %d has a secret that %w", i+1, err)
		}
		if strings.ContainsAny(secret, "\"'`") { // of a list that is in quotes but for the first app id, or a slip
			return nil, fmt.Errorf("entry %d has a quotation mark in its secret; remove it", i+1)
		}
		secrets = append(secrets, kite.Secret{AppID: app, Secret: secret})
	}
	return secrets, nil
}

// isAppID reports whether a postback can have this app id: JSON numbers have no leading zeros.
func isAppID(app string) bool {
	n, err := strconv.ParseUint(app, 10, 64)
	return err == nil && strconv.FormatUint(n, 10) == app
}

// parseTokens reads path tokens.
func parseTokens(text string) ([]string, error) {
	tokens, err := readEntries(text)
	if err != nil {
		return nil, err
	}
	for i, t := range tokens {
		switch {
		case t == "":
			return nil, fmt.Errorf("entry %d is empty; write it like token1,token2", i+1)
		case strings.ContainsFunc(t, notInSegment):
			return nil, fmt.Errorf("entry %d cannot be part of a path; use letters, digits, - and _", i+1)
		}
	}
	return tokens, nil
}

// notInSegment reports a character that a URL cannot have in one segment of its path, or not as itself.
func notInSegment(r rune) bool {
	return notInHeader(r) || strings.ContainsRune(`/?#%"<>\^{|}`+"`", r)
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
	if err == nil && strings.ContainsFunc(token, notInHeader) {
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
	if err := checkSecret(word); err != nil {
		return "", fmt.Errorf("it %w", err)
	}
	return word, nil
}

// notInHeader reports what is not a printable character of ASCII, or a blank.
func notInHeader(r rune) bool { return r <= ' ' || r > '~' }
