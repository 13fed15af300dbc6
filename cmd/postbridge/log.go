package main

import (
	"cmp"
	"io"
	"log/slog"
	"os/signal"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
)

// openLog opens the log of a long-running command on stderr and makes it the default log for libraries.
func (p *process) openLog(c *config, registry prometheus.Registerer) *slog.Logger {
	signal.Ignore(syscall.SIGPIPE) // in case a library writes to descriptor 2
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.LogLevel)) // checked by readConfig
	text := c.logFormat(isTerminal(p.stderr)) == "text"
	logTo := func(w io.Writer) *slog.Logger {
		o := &slog.HandlerOptions{Level: level}
		if text {
			return slog.New(slog.NewTextHandler(w, o))
		}
		return slog.New(slog.NewJSONHandler(w, o))
	}
	p.stderr.reportWith(func(w io.Writer, lost uint64) {
		logTo(w).Error("log lines were dropped: stderr was blocked or closed", "lines", lost)
	})
	log := logTo(p.stderr)
	slog.SetDefault(log)
	registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "postbridge_log_dropped_total", Help: "Log lines dropped because stderr was blocked or closed.",
	}, func() float64 { return float64(p.stderr.dropped.Load()) }))
	return log
}

// logFormat returns the effective format.
func (c *config) logFormat(terminal bool) string {
	if c.LogFormat == "" && terminal {
		return "text"
	}
	return cmp.Or(c.LogFormat, "json")
}
