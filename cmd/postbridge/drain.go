package main

import (
	"cmp"
	"context"
	"fmt"
	"os"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postbridge/postbridge/bridge"
)

const drainHelp = `Publish every event in a spool, then exit 0: for the volume of a replica that was removed.
It accepts no postbacks and listens nowhere. It waits for a bus that is down, and for another
postbridge to close the spool.

Usage: postbridge drain

The configuration is the environment, as for serve: POSTBRIDGE_DATA_DIR and the settings of the
buses are used, those of the brokers are not needed. drain never publishes to an embedded server,
which would store the events on the same volume. Events that the bus has already are not stored
twice. It may be stopped and run again. An empty volume has no events, and is a success.

Exit code: 0 if every event is published, 2 for a bad configuration, 1 for any other end.

Example:
  POSTBRIDGE_DATA_DIR=/var/lib/postbridge POSTBRIDGE_NATS_URL=nats://nats-1:4222 postbridge drain
`

func (p *process) drain(ctx context.Context, args []string) error {
	if err := parseOnlyFlags(newFlags("drain"), args); err != nil {
		return err
	}
	c, credentials, err := readBusConfig(p.env)
	if err == nil {
		err = cmp.Or(c.checkSpool(), c.checkLog())
	}
	if err != nil {
		return err
	}
	if c.embedded() {
		return misuse("drain: the embedded bus stores events on the same volume; " +
			"set POSTBRIDGE_NATS_URL or POSTBRIDGE_PUBLISH=kafka")
	}
	p.limitMemory(os.DirFS("/"))
	registry := prometheus.NewRegistry()
	log := p.openLog(c, registry)
	tracer, endTracer, err := p.openTracer(registry, log)
	if err != nil {
		return err
	}
	defer endTracer()
	credentials.files.start(ctx, log, registry)
	empty, err := c.emptyVolume()
	if !empty && err == nil {
		o := c.spoolOptions()
		o.Buses, o.Registry, o.Tracer, o.Log = c.buses(credentials, log), registry, tracer, log
		err = bridge.New(o).Drain(ctx)
	}
	if err != nil {
		log.Error("drain failed: events remain in the spool", "error", err)
		return &loggedError{err}
	}
	log.Info("every event is published", "data", c.DataDir)
	return nil
}

// emptyVolume reports whether the data directory is an empty volume. One that has other files and no spool is an error:
// it is not a data directory.
func (c *config) emptyVolume() (bool, error) {
	files, err := os.ReadDir(c.DataDir)
	if err != nil {
		return false, fmt.Errorf("cannot read the data directory; is POSTBRIDGE_DATA_DIR right? %w", err)
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
		return false, fmt.Errorf("%s has no spool, but %s; set POSTBRIDGE_DATA_DIR to the data of the replica",
			c.DataDir, other)
	}
	return true, nil
}

// spoolOptions returns the options of the spool.
func (c *config) spoolOptions() bridge.Options {
	return bridge.Options{
		DataDir:       c.DataDir,
		SpoolMaxBytes: int64(c.SpoolMaxBytes),
		SpoolMinFree:  int64(c.SpoolMinFreeBytes),
		SpoolKeep:     c.SpoolKeep,
	}
}
