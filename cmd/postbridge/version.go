package main

import (
	"cmp"
	"context"
	"runtime/debug"
)

// version is set by the release build: -ldflags "-X main.version=v1.2.3".
var version string

const versionHelp = `Print the version, the revision it was built from, if it was recorded, and the Go release it was
built with.

Usage: postbridge version

Example:
  postbridge version
`

func (p *process) version(_ context.Context, args []string) error {
	if err := parseOnlyFlags(newFlags("version"), args); err != nil {
		return err
	}
	return p.print("postbridge " + buildVersion() + "\n")
}

// buildVersion returns the version of the release build, else the one that the Go tool recorded.
func buildVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return cmp.Or(version, "(unknown)")
	}
	v := cmp.Or(version, info.Main.Version)
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
