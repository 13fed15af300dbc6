package main

import (
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/postbridge/postbridge/publishers"
)

// shortToken is the least length of a path token, in characters, that cannot be guessed.
const shortToken = 16

// routes checks the proofs that postbacks need.
func (d *doctor) routes() []publishers.CheckResult {
	kite := &publishers.Checks{Area: "routes", What: d.config.kiteRoute()}
	if d.config.kiteOn() {
		tokens := load(&d.credentials.kiteTokens)
		kite.Warn(tokens == nil, "has the checksum for its only proof, which covers order id and time only: "+
			"a client that saw a postback can replay it with other fields",
			"set POSTBRIDGE_KITE_TOKENS, and register /kite/<token>")
		checkTokens(kite, "POSTBRIDGE_KITE_TOKENS", tokens)
	}
	all := kite.Results
	for _, b := range d.config.tokenBrokers() {
		if b.on() {
			route := &publishers.Checks{Area: "routes", What: b.route()}
			checkTokens(route, envPrefix+b.tokensSetting(), load(b.current(d.credentials)))
			all = append(all, route.Results...)
		}
	}
	return all
}

func checkTokens(route *publishers.Checks, setting string, tokens []string) {
	route.Warn(slices.ContainsFunc(tokens, func(t string) bool { return len(t) < shortToken }),
		fmt.Sprintf("accepts a token of less than %d characters, which can be guessed", shortToken),
		"put one of 'openssl rand -hex 24' beside it in "+setting+", register that, and remove the short one")
	route.OK("needs a path token")
}

// secrets checks that other users cannot read the files with secrets.
func (d *doctor) secrets() (all []publishers.CheckResult) {
	c := d.config
	paths := []string{c.NATSCredsFile, c.NATSNKeyFile, c.NATSTLSKeyFile, c.KafkaTLSKeyFile}
	for _, source := range slices.Concat(c.httpSecrets(), c.brokerSecrets(), c.accessSecrets(), c.busSecrets()) {
		paths = append(paths, cmp.Or(source.keyPath, source.path)) // a certificate beside its key is public
	}
	for _, path := range paths {
		if path == "" {
			continue
		}
		file := &publishers.Checks{Area: "secrets", What: path}
		file.Warn(everyoneReads(path), "holds secrets and may be read by every user of this machine",
			"chmod 600, or 440 with a group of postbridge's own")
		file.OK("cannot be read by every user")
		all = append(all, file.Results...)
	}
	return all
}

// accessTokens checks that 'postbridge reconcile' can use its access tokens. serve does not repeat this check: it may
// not be allowed to read them.
func (d *doctor) accessTokens() (all []publishers.CheckResult) {
	for _, source := range d.config.accessSecrets() {
		if source.value == "" && source.path == "" {
			continue
		}
		setting := envPrefix + source.name
		if source.path != "" {
			setting += "_FILE"
		}
		tokens := &publishers.Checks{Area: "reconcile", What: setting}
		if err := source.check(); err != nil {
			tokens.Fail(true, fmt.Sprintf("cannot be used: %v", err),
				"correct it, or run doctor as the user of 'postbridge reconcile'")
		}
		tokens.OK("can be read and is valid")
		all = append(all, tokens.Results...)
	}
	return all
}

// check reads and parses the secret, and keeps nothing.
func (s *secretSource) check() error {
	store := func(text string) error { return s.store(new(credentials), text) }
	if s.path == "" {
		return store(s.value)
	}
	_, err := (&secretFile{store: store, paths: []string{s.path}}).read()
	return err
}

// everyoneReads reports whether every user of the machine may read a file, by the modes of the file and of all
// directories above it.
func everyoneReads(path string) bool {
	path, err := filepath.Abs(path)
	all := err == nil && modesHaveRights && othersMay(0o004, path)
	for all && path != filepath.Dir(path) {
		path = filepath.Dir(path)
		all = othersMay(0o001, path)
	}
	return all
}

// othersMay reports whether users other than owner and group have a permission.
func othersMay(permission fs.FileMode, path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&permission != 0
}
