package nats

import (
	"bytes"
	"slices"
	"strings"

	"github.com/postbridge/postbridge/publishers"
)

// serversWord begins the line of the publisher state that says which servers the checkpoints are of.
const serversWord = "servers "

// loadState reads the publisher state of an earlier run. Of other servers it says nothing.
func (p *Publisher) loadState(state []byte) {
	var rest []byte
	p.checkpoints, rest = publishers.LoadCheckpoints(state, publishers.BlindFor, p.log)
	p.servers = "embedded"
	if p.cfg.Embedded == nil {
		p.servers = p.cfg.hosts()
	}
	now := strings.Split(p.servers, ",")
	before, known := strings.CutPrefix(string(bytes.TrimSpace(rest)), serversWord)
	if known && !slices.ContainsFunc(strings.Split(before, ","), func(s string) bool { return slices.Contains(now, s) }) {
		p.log.Warn("these are other NATS servers than before, and what was stored may not be on them; what waits is published here. To publish again what the spool keeps, stop postbridge, remove spool/cursor-nats and start it",
			"servers", p.hosts)
		p.checkpoints.Forget()
	}
}

// State implements bridge.Publisher.
func (p *Publisher) State(committed uint64) []byte {
	return append([]byte(serversWord+p.servers+"\n"), p.checkpoints.State(committed)...)
}

// Rewind implements bridge.Publisher.
func (p *Publisher) Rewind(committed uint64) { p.checkpoints.Rewind(committed) }
