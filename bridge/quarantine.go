package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/postbridge/postbridge/bridge/spool"
)

// refuse leaves an event that the bus can never accept to quarantineRefused.
func (p *pump) refuse(s *slot, cause error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.done {
		return
	}
	s.refusal = cause
	p.refused++
	p.wakeQuarantine()
	p.log.Error("the bus refuses a dead letter for good; it is quarantined",
		"spool", p.spoolID, "sequence", s.record.Sequence, "file", p.quarantine, "error", cause)
}

// wakeQuarantine wakes quarantineRefused if an event is refused. Needs mu.
func (p *pump) wakeQuarantine() {
	if p.refused > 0 {
		p.refusedOrFull.Signal()
	}
}

// quarantineRefused appends refused events to the quarantine file until ctx ends, and retries while the disk refuses.
// Those that are left then are published again after the next start.
func (p *pump) quarantineRefused(ctx context.Context) {
	for {
		s := p.nextRefused(ctx)
		put := func() error { return quarantineEvent(p.quarantine, s.delivery, s.refusal) }
		if s == nil || !p.retry(ctx, "quarantine", put) {
			return
		}
		p.finish(s, quarantined)
	}
}

// nextRefused waits for an event to quarantine; nil means that ctx ended. It is the oldest of the window, so that it is
// committed as soon as it is in the file and the next start does not quarantine it again. Only when the window is full,
// one behind an event in flight goes first, since it must not block what is behind it.
func (p *pump) nextRefused(ctx context.Context) *slot {
	p.mu.Lock()
	defer p.mu.Unlock()
	for ctx.Err() == nil {
		for i, s := range p.window {
			if i > 0 && !p.full() {
				break
			}
			if s.refusal != nil {
				return s
			}
		}
		p.refusedOrFull.Wait()
	}
	return nil
}

// quarantinedEvent is one line of the file.
type quarantinedEvent struct {
	Spool    string `json:"spool"`
	Sequence uint64 `json:"sequence"`
	Error    string `json:"error"`
	Event    []byte `json:"event"` // in base64, since it may be damaged
}

// quarantineEvent appends an event to the quarantine file: the events that a bus can never accept, one line of JSON for
// each, for operators; no program reads it. The line is durable when it returns nil. An event may have more than one
// line: the file is written before the cursor is saved, so after a kill or a power cut between the two the event is
// published, refused and written again, as after a rewind or a failed fsync.
func quarantineEvent(path string, d *Delivery, why error) error {
	line, err := json.Marshal(quarantinedEvent{d.Spool, d.Sequence, why.Error(), d.Data})
	if err == nil {
		err = appendLine(path, line)
	}
	if err != nil {
		return fmt.Errorf("cannot write to the quarantine file: %w", err)
	}
	return nil
}

// appendLine appends a line to a file and fsyncs both. It ends a torn line of an earlier crash first.
func appendLine(path string, line []byte) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	end := []byte{'\n'}
	if n := info.Size(); n > 0 {
		if _, err := f.ReadAt(end, n-1); err != nil {
			return err
		}
	}
	if end[0] != '\n' {
		line = append([]byte{'\n'}, line...)
	}
	if _, err := f.Write(append(line, '\n')); err != nil {
		return err
	}
	return errors.Join(f.Sync(), spool.SyncDir(filepath.Dir(path)))
}
