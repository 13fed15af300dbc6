package main

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers/nats"
)

// shortToken is how long a path token should be at least: what cannot be guessed.
const shortToken = 16

// routes grades what proves a postback.
func (d *doctor) routes() []bridge.Finding {
	f := &bridge.Findings{Area: "routes"}
	c := d.config
	if c.kiteOn() {
		tokens := load(&d.credentials.kiteTokens)
		if tokens == nil {
			f.Add(bridge.Warn, c.kiteRoute(), "has the checksum for its only proof, which covers no more than order id and time: whoever saw a postback can send it again with other fields",
				"set POSTBRIDGE_KITE_TOKENS, and register /kite/<token>")
		} else if !gradeTokens(f, c.kiteRoute(), "POSTBRIDGE_KITE_TOKENS", tokens) {
			f.OK(c.kiteRoute(), "needs a path token and the checksum")
		}
	}
	if c.dhanOn() {
		const route = "/dhan/{token}"
		if !gradeTokens(f, route, "POSTBRIDGE_DHAN_TOKENS", load(&d.credentials.dhanTokens)) {
			f.OK(route, "needs a path token, since Dhan signs nothing")
		}
		if c.DhanClientIDs == nil {
			f.Add(bridge.Info, route, "takes postbacks of any client id", "set POSTBRIDGE_DHAN_CLIENT_IDS to those that are yours")
		}
	}
	return f.All
}

// gradeTokens reports whether there was anything to say of the tokens.
func gradeTokens(f *bridge.Findings, route, setting string, tokens []string) bool {
	short := slices.ContainsFunc(tokens, func(t string) bool { return len(t) < shortToken })
	if short {
		f.Add(bridge.Warn, route, fmt.Sprintf("takes a token of less than %d characters, which can be guessed", shortToken),
			"put one of 'openssl rand -hex 24' beside it in "+setting+", register that, and remove the short one")
	}
	return short
}

// secrets grades who can read them.
func (d *doctor) secrets() []bridge.Finding {
	f := &bridge.Findings{Area: "secrets"}
	var open []string
	files, inEnvironment := d.secretPlaces()
	for _, path := range files {
		if who := readers(path); who != "" {
			open = append(open, path)
			f.Add(bridge.Warn, path, "holds secrets and may be read by "+who, "chmod 600, or 440 with a group of postbridge's own")
		}
	}
	if files != nil && open == nil {
		f.OK(strings.Join(files, ", "), "can be read by nobody else")
	}
	if inEnvironment != nil {
		f.Add(bridge.Info, "the environment", "holds "+strings.Join(inEnvironment, ", ")+", which tools for processes and containers show",
			"give secrets as files (the same name with _FILE), which can be rotated without a restart")
	}
	if servers, _ := nats.ParseURL(d.config.NATSURL); slices.ContainsFunc(servers, hasLogin) {
		f.Add(bridge.Info, "the environment", "holds a login in POSTBRIDGE_NATS_URL", "take it out, and set POSTBRIDGE_NATS_USER and POSTBRIDGE_NATS_PASSWORD_FILE")
	}
	return f.All
}

// secretPlaces are the files with secrets in them, and the settings that are themselves secret.
func (d *doctor) secretPlaces() (files, inEnvironment []string) {
	c := d.config
	for _, of := range slices.Concat(c.httpSecrets(), c.brokerSecrets(), c.busSecrets()) {
		switch {
		case of.keyPath != "": // the other file is the certificate, which is shown to everybody
			files = append(files, of.keyPath)
		case of.path != "":
			files = append(files, of.path)
		case of.value != "":
			inEnvironment = append(inEnvironment, envPrefix+of.name)
		}
	}
	for _, path := range []string{c.NATSCredsFile, c.NATSTLSKeyFile, c.KafkaTLSKeyFile} {
		if path != "" {
			files = append(files, path)
		}
	}
	return files, inEnvironment
}

func hasLogin(u *url.URL) bool { return u.User != nil }

// readers says who else can read a file; empty if nobody can, or it cannot be looked at. Where the owner is another
// user, a group that we are in is how we read it.
func readers(path string) string {
	path, err := filepath.EvalSymlinks(path) // of a Kubernetes Secret
	if err != nil {
		return ""
	}
	info, err := os.Stat(path)
	if err != nil {
		return ""
	}
	mode := info.Mode().Perm()
	if mode&0o004 != 0 && reachable(filepath.Dir(path)) {
		return "every user of this machine"
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if ok && mode&0o040 != 0 && !inGroup(st.Gid) {
		return fmt.Sprintf("group %d, which postbridge is not in", st.Gid)
	}
	return ""
}

func inGroup(gid uint32) bool {
	groups, _ := os.Getgroups() // none is an answer, too
	return slices.Contains(append(groups, os.Getegid()), int(gid))
}
