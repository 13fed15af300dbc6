package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postbridge/postbridge/bridge"
)

const drainHelp = `Publish everything that waits in a spool, then exit 0: for the volume of a replica that was removed.
It takes no postbacks and listens nowhere. While the bus is down it waits for it; while another
postbridge has the spool open it waits for that to end.

Usage: postbridge drain

The configuration is the environment, as for serve: POSTBRIDGE_DATA_DIR says where the spool is, and
the names of the buses say where to publish. The brokers' are not needed. It never publishes to an
embedded server, which would store the events on the same volume. What the bus has already it does
not store twice. It may be stopped and run again. On an empty volume no replica has ever been, and
nothing is to be published.

Exit code: 0 when nothing waits, 2 for a bad configuration, 1 for any other end.

Example:
  POSTBRIDGE_DATA_DIR=/var/lib/postbridge POSTBRIDGE_NATS_URL=nats://nats-1:4222 postbridge drain
`

func (p *process) drain(ctx context.Context, args []string) error {
	flags := newFlags("drain")
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	if err := noArguments(flags); err != nil {
		return err
	}
	c, credentials, err := readBusConfig(p.env)
	if err == nil {
		err = firstError(c.checkSpool, c.checkLog)
	}
	if err != nil {
		return err
	}
	if c.embedded() {
		return misuse("drain: the bus is embedded, and what it stores stays on the same volume; set POSTBRIDGE_NATS_URL or POSTBRIDGE_PUBLISH=kafka")
	}
	p.limitMemory(os.DirFS("/"))
	registry := prometheus.NewRegistry()
	log := p.openLog(c, registry)
	tracer, endTracer, err := p.openTracer(registry, log)
	if err != nil {
		return err
	}
	defer endTracer()
	if err := c.drain(ctx, credentials, registry, tracer, log); err != nil {
		log.Error("not everything is published", "error", err)
		return &loggedError{err}
	}
	log.Info("everything is published", "data", c.DataDir)
	return nil
}

func (c *config) drain(ctx context.Context, credentials *credentials, registry *prometheus.Registry, tracer bridge.Tracer, log *slog.Logger) error {
	if never, err := c.neverServed(); never || err != nil {
		return err
	}
	credentials.files.start(ctx, log, registry)
	o := c.spoolOptions()
	o.Buses, o.Registry, o.Tracer, o.Log = c.buses(credentials, log), registry, tracer, log
	return bridge.New(o).Drain(ctx)
}

// neverServed reports whether the data directory is a volume on which no replica has ever been: there is nothing on it.
// Another one without a spool is an error, since it is not the one that was meant.
func (c *config) neverServed() (bool, error) {
	files, err := os.ReadDir(c.DataDir)
	if err != nil {
		return false, fmt.Errorf("the data of the replica cannot be read; is POSTBRIDGE_DATA_DIR right? %w", err)
	}
	other := ""
	for _, f := range files {
		switch f.Name() {
		case "spool":
			return false, nil
		case "lost+found":
		default:
			other = f.Name()
		}
	}
	if other != "" {
		return false, fmt.Errorf("there is no spool in %s, but %s: set POSTBRIDGE_DATA_DIR to the data of the replica", c.DataDir, other)
	}
	return true, nil
}

// spoolOptions are those of what is on disk.
func (c *config) spoolOptions() bridge.Options {
	return bridge.Options{
		DataDir:       c.DataDir,
		SpoolMaxBytes: int64(c.SpoolMaxBytes),
		SpoolMinFree:  int64(c.SpoolMinFreeBytes),
		SpoolKeep:     c.SpoolKeep,
	}
}
