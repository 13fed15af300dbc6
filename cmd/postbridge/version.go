package main

import (
	"cmp"
	"context"
	"runtime"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
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
	return p.print("postbridge " + readBuild().String() + "\n")
}

// build is what is known of how this program was built.
type build struct {
	version, revision, goVersion string
	modified                     bool // the revision was, before the build
}

// readBuild returns the build. Its version is that of the release build, else the one that the Go tool recorded.
func readBuild() build {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return build{version: cmp.Or(version, "(unknown)"), goVersion: runtime.Version()}
	}
	b := build{version: cmp.Or(version, info.Main.Version, "(devel)"), goVersion: info.GoVersion}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.revision = s.Value
		case "vcs.modified":
			b.modified = s.Value == "true"
		}
	}
	return b
}

// String returns the build on one line.
func (b build) String() string {
	text := b.version
	if b.revision != "" {
		text += " " + b.revision
	}
	if b.modified {
		text += " (modified)"
	}
	return text + " " + b.goVersion
}

// collector exports the build.
func (b build) collector() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "postbridge_build_info",
		Help:        "1; its labels say which build runs.",
		ConstLabels: prometheus.Labels{"version": b.version, "revision": b.revision, "goversion": b.goVersion},
	}, func() float64 { return 1 })
}
