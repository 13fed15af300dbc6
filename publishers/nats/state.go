package nats

import (
	"bytes"
	"slices"
	"strings"

	"github.com/postbridge/postbridge/publishers"
)

// serversWord begins the line of the publisher state with the servers, and the domain, that the checkpoints belong to.
const serversWord = "servers "

// loadState reads the publisher state of an earlier run, and drops its checkpoints if no server is still configured.
func (p *Publisher) loadState(state []byte) {
	var rest []byte
	p.checkpoints, rest = publishers.LoadCheckpoints(state, publishers.BlindFor, p.log)
	now := p.cfg.places()
	before, known := strings.CutPrefix(string(bytes.TrimSpace(rest)), serversWord)
	configured := func(server string) bool { return slices.Contains(now, server) }
	if known && !slices.ContainsFunc(strings.Split(before, ","), configured) {
		p.log.Warn("the NATS servers or the domain have changed, and may not hold the events stored before; "+
			"only unpublished events go to them. To publish all events in the spool again, "+
			"stop postbridge, remove spool/cursor-nats and start it",
			"servers", strings.Join(now, ","))
		p.checkpoints.Forget()
	}
}

// State implements bridge.Publisher.
func (p *Publisher) State(committed uint64) []byte {
	return append([]byte(serversWord+strings.Join(p.cfg.places(), ",")+"\n"), p.checkpoints.State(committed)...)
}

// Rewind implements bridge.Publisher.
func (p *Publisher) Rewind() { p.checkpoints.Rewind() }
