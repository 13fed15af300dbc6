package main

import (
	"context"
	"runtime/debug"
)

// version is set by the release build: -ldflags "-X main.version=v1.2.3".
var version string

const versionHelp = `Print the version, the revision it was built from and the Go release it was built with.

Usage: postbridge version

Example:
  postbridge version
`

func (p *process) version(_ context.Context, args []string) error {
	fs := newFlags("version")
	if err := parseFlags(fs, args); err != nil {
		return err
	}
	if err := noArguments(fs); err != nil {
		return err
	}
	return p.print("postbridge " + buildVersion() + "\n")
}

// buildVersion is what the release build set, else what the Go tool wrote into the binary.
func buildVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return orElse(version, "(unknown)")
	}
	v := orElse(version, info.Main.Version)
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			v += " " + s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			v += " (modified)"
		}
	}
	return v + " " + info.GoVersion
}

func orElse(s, fallback string) string {
	if s != "" {
		return s
	}
	return fallback
}
