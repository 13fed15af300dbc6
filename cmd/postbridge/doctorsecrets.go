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

// shortToken is how many characters a path token should have at least, so that nobody can guess it.
const shortToken = 16

// routes checks how postbacks are verified.
func (d *doctor) routes() []publishers.CheckResult {
	kite := publishers.Checks{Area: "routes", What: d.config.kiteRoute()}
	if tokens := load(&d.credentials.kiteTokens); d.config.kiteOn() && tokens == nil {
		kite.Warn("has the checksum for its only proof, which covers order id and time only: "+
			"who saw a postback can send it again with other fields",
			"set POSTBRIDGE_KITE_TOKENS, and register /kite/<token>")
	} else if d.config.kiteOn() {
		checkTokens(&kite, "POSTBRIDGE_KITE_TOKENS", tokens)
	}
	dhan := publishers.Checks{Area: "routes", What: "/dhan/{token}"}
	if d.config.dhanOn() {
		checkTokens(&dhan, "POSTBRIDGE_DHAN_TOKENS", load(&d.credentials.dhanTokens))
	}
	return slices.Concat(kite.Results, dhan.Results)
}

func checkTokens(route *publishers.Checks, setting string, tokens []string) {
	if slices.ContainsFunc(tokens, func(t string) bool { return len(t) < shortToken }) {
		route.Warn(fmt.Sprintf("takes a token of less than %d characters, which can be guessed", shortToken),
			"put one of 'openssl rand -hex 24' beside it in "+setting+", register that, and remove the short one")
	}
	route.OK("needs a path token")
}

// secrets checks that other users cannot read the files with secrets.
func (d *doctor) secrets() (all []publishers.CheckResult) {
	c := d.config
	paths := []string{c.NATSCredsFile, c.NATSTLSKeyFile, c.KafkaTLSKeyFile}
	for _, of := range slices.Concat(c.httpSecrets(), c.brokerSecrets(), c.busSecrets()) {
		paths = append(paths, cmp.Or(of.keyPath, of.path)) // a certificate beside its key is public
	}
	for _, path := range slices.DeleteFunc(paths, func(path string) bool { return path == "" }) {
		file := publishers.Checks{Area: "secrets", What: path}
		if everyoneReads(path) {
			file.Warn("holds secrets and may be read by every user of this machine",
				"chmod 600, or 440 with a group of postbridge's own")
		}
		file.OK("cannot be read by every user")
		all = append(all, file.Results...)
	}
	return all
}

// everyoneReads reports whether every user of the machine may read a file, by its mode and those of the directories
// above it.
func everyoneReads(path string) bool {
	path, err := filepath.Abs(path)
	if err != nil || !modesHaveRights || !othersMay(0o004, path) {
		return false
	}
	dir := filepath.Dir(path)
	for ; dir != filepath.Dir(dir) && othersMay(0o001, dir); dir = filepath.Dir(dir) {
	}
	return othersMay(0o001, dir)
}

// othersMay reports whether a permission is given to others than owner and group.
func othersMay(permission fs.FileMode, path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&permission != 0
}
