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

	"github.com/postbridge/postbridge/brokers/book"
	"github.com/postbridge/postbridge/brokers/kite"
)

// credentials holds the current secrets. Those in files change while postbridge runs; each is replaced atomically.
type credentials struct {
	certificate   atomic.Pointer[tls.Certificate]
	adminToken    atomic.Pointer[string]
	kiteSecrets   atomic.Pointer[[]kite.Secret]
	kiteTokens    atomic.Pointer[[]string]
	dhanTokens    atomic.Pointer[[]string]
	upstoxTokens  atomic.Pointer[[]string]
	fyersTokens   atomic.Pointer[[]string]
	kiteAccess    atomic.Pointer[[]book.Account]
	dhanAccess    atomic.Pointer[[]book.Account]
	upstoxAccess  atomic.Pointer[[]book.Account]
	fyersAccess   atomic.Pointer[[]book.Account]
	natsPassword  atomic.Pointer[string]
	natsToken     atomic.Pointer[string]
	kafkaPassword atomic.Pointer[string]
	kafkaToken    atomic.Pointer[string]

	files *secretFiles
}

// secretSource describes one setting that is a secret or a file of secrets.
type secretSource struct {
	name, value, path string
	keyPath           string // a second file, appended to the first; "" if there is none
	store             func(c *credentials, text string) error
}

func (c *config) httpSecrets() []secretSource {
	return []secretSource{
		{"TLS_CERT", "", c.TLSCertFile, c.TLSKeyFile,
			func(c *credentials, text string) error { return set(&c.certificate, text, parsePair) }},
		{"ADMIN_TOKEN", string(c.AdminToken), c.AdminTokenFile, "",
			func(c *credentials, text string) error { return set(&c.adminToken, text, parseBearerToken) }},
	}
}

func (c *config) brokerSecrets() []secretSource {
	all := []secretSource{
		{"KITE_SECRETS", string(c.KiteSecrets), c.KiteSecretsFile, "",
			func(c *credentials, text string) error { return set(&c.kiteSecrets, text, parseKiteSecrets) }},
		{"KITE_TOKENS", string(c.KiteTokens), c.KiteTokensFile, "",
			func(c *credentials, text string) error { return set(&c.kiteTokens, text, parseTokens) }},
	}
	for _, b := range c.tokenBrokers() {
		all = append(all, secretSource{b.tokensSetting(), string(b.tokens), b.tokensFile, "",
			func(c *credentials, text string) error { return set(b.current(c), text, parseTokens) }})
	}
	return all
}

// accessSecrets returns the access tokens of the order books.
func (c *config) accessSecrets() (all []secretSource) {
	for _, b := range c.books() {
		all = append(all, secretSource{b.setting(), string(b.tokens), b.tokensFile, "",
			func(c *credentials, text string) error { return set(b.current(c), text, b.parse) }})
	}
	return all
}

func (c *config) busSecrets() []secretSource {
	return []secretSource{
		{"NATS_PASSWORD", string(c.NATSPassword), c.NATSPasswordFile, "",
			func(c *credentials, text string) error { return set(&c.natsPassword, text, parseWord) }},
		{"NATS_TOKEN", string(c.NATSToken), c.NATSTokenFile, "",
			func(c *credentials, text string) error { return set(&c.natsToken, text, parseWord) }},
		{"KAFKA_PASSWORD", string(c.KafkaPassword), c.KafkaPasswordFile, "",
			func(c *credentials, text string) error { return set(&c.kafkaPassword, text, parseWord) }},
		{"KAFKA_OAUTH_TOKEN", "", c.KafkaOAuthTokenFile, "",
			func(c *credentials, text string) error { return set(&c.kafkaToken, text, parseBearerToken) }},
	}
}

// readCredentials reads the secrets from the settings and from the files that they name. Its error is a misuse.
func readCredentials(sources []secretSource) (*credentials, error) {
	all := &credentials{files: newSecretFiles()}
	for _, s := range sources {
		var err error
		switch {
		case s.value != "":
			err = s.store(all, s.value)
		case s.path != "":
			s.name += "_FILE"
			err = all.files.add(s.name, func(text string) error { return s.store(all, text) }, s.path, s.keyPath)
		}
		if err != nil {
			return nil, bad(s.name, "%v", err)
		}
	}
	return all, nil
}

// set parses text and makes it the current value.
func set[T any](value *atomic.Pointer[T], text string, parse func(string) (T, error)) error {
	v, err := parse(text)
	if err == nil {
		value.Store(&v)
	}
	return err
}

// load returns the current value, or the zero value.
func load[T any](value *atomic.Pointer[T]) (v T) {
	if p := value.Load(); p != nil {
		v = *p
	}
	return v
}

// fresh returns the current value after a reload of the files.
func (c *credentials) fresh(value *atomic.Pointer[string]) string {
	c.files.reload()
	return load(value)
}

// kite returns the current credentials of Kite.
func (c *credentials) kite() kite.Credentials {
	return kite.Credentials{Secrets: load(&c.kiteSecrets), Tokens: load(&c.kiteTokens)}
}

// splitEntries splits a list of secrets at commas and lines. Empty lines are ignored.
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

// checkSecret rejects a secret, or an entry of a list, that cannot be right: with it every postback would be refused.
// Its error continues "it" or "entry 1" and shows no character of the secret but an invisible one.
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
		return errors.New("starts like a line of a shell script; keep only the value after the =")
	}
	return nil
}

// parseEntries splits a list of secrets, checks each entry and the whole list, which may be in quotes, too, and parses
// the entries. Its errors give the number of an entry instead of its text, which may be a secret.
func parseEntries[T any](text string, parse func(entry string) (T, error)) (all []T, err error) {
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
		return nil, errors.New("it is empty; add at least one entry")
	}
	for i, entry := range entries {
		one, err := parse(entry)
		if err != nil {
			return nil, fmt.Errorf("entry %d %w", i+1, err)
		}
		all = append(all, one)
	}
	return all, nil
}

// parseKiteSecrets parses app_id=api_secret entries.
func parseKiteSecrets(text string) ([]kite.Secret, error) { return parseEntries(text, parseKiteSecret) }

func parseKiteSecret(entry string) (kite.Secret, error) {
	app, secret, ok := strings.Cut(entry, "=")
	app, secret = strings.TrimSpace(app), strings.TrimSpace(secret)
	err := checkSecret(secret)
	switch {
	case !ok || app == "":
		err = errors.New("has no app id; write it like app_id=api_secret")
	case secret == "":
		err = errors.New("has an empty secret; write it like app_id=api_secret")
	case !isAppID(app):
		err = errors.New("has an app id that is not a number; it is the app_id of postbacks, not the api_key")
	case strings.ContainsFunc(secret, notInHeader):
		err = errors.New("has a space or a non-ASCII character in its secret; remove it")
	case err != nil:
		err = fmt.Errorf("has a secret that %w", err)
	case strings.ContainsAny(secret, "\"'`"): // of a list in quotes after the first app id
		err = errors.New("has a quotation mark in its secret; remove it")
	}
	return kite.Secret{AppID: app, Secret: secret}, err
}

// isAppID reports whether a postback can have this app id: JSON numbers have no leading zeros.
func isAppID(app string) bool {
	n, err := strconv.ParseUint(app, 10, 64)
	return err == nil && strconv.FormatUint(n, 10) == app
}

// parseTokens parses path tokens.
func parseTokens(text string) ([]string, error) {
	return parseEntries(text, func(token string) (string, error) {
		switch {
		case token == "":
			return "", errors.New("is empty; write it like token1,token2")
		case strings.ContainsFunc(token, notInSegment):
			return "", errors.New("cannot be part of a path; use letters, digits, - and _")
		}
		return token, nil
	})
}

// notInSegment reports whether a URL cannot have the character, unescaped, in a segment of its path.
func notInSegment(r rune) bool {
	return notInHeader(r) || strings.ContainsRune(`/?#%"<>\^{|}`+"`", r)
}

// parsePair parses a certificate with its chain and its key, in any order.
func parsePair(text string) (tls.Certificate, error) {
	pair, err := tls.X509KeyPair([]byte(text), []byte(text))
	if err != nil {
		err = fmt.Errorf("cannot load the certificate and its key: %w", err)
	}
	return pair, err
}

// parseBearerToken parses a token that fits in an HTTP header.
func parseBearerToken(text string) (string, error) {
	token, err := parseWord(text)
	if err == nil && strings.ContainsFunc(token, notInHeader) {
		return "", errors.New("it cannot be a bearer token: it has a space or a non-ASCII character; remove it")
	}
	return token, err
}

// parseWord parses one secret, which may end with a line break.
func parseWord(text string) (string, error) {
	word := strings.TrimRight(text, "\r\n")
	if word == "" {
		return "", errors.New("it is empty; it should hold the secret")
	}
	if err := checkSecret(word); err != nil {
		return "", fmt.Errorf("it %w", err)
	}
	return word, nil
}

// notInHeader reports whether the character is a space or not printable ASCII.
func notInHeader(r rune) bool { return r <= ' ' || r > '~' }
