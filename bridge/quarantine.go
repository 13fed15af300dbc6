package bridge

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/postbridge/postbridge/bridge/spool"
)

// quarantine is the file of events that a bus can take nowhere, one line of JSON for each. People look at it; nothing
// reads it. An event may have more than one line: the file is written before the cursor is saved, so after a kill or a
// power cut between the two the event is offered, refused and written again, as it is after a rewind and after an fsync
// that failed.
type quarantine struct {
	path string
	mu   sync.Mutex // held while a line is written
}

// quarantinedEvent is one line of the file.
type quarantinedEvent struct {
	Spool    string `json:"spool"`
	Sequence uint64 `json:"sequence"`
	Error    string `json:"error"`
	Event    []byte `json:"event"` // in base64: it may be nothing that can be read
}

// put appends the event. Once it has returned nil the line survives a crash.
func (q *quarantine) put(d *Delivery, why error) error {
	line, err := json.Marshal(quarantinedEvent{d.Spool, d.Sequence, why.Error(), d.Data})
	if err == nil {
		q.mu.Lock()
		defer q.mu.Unlock()
		err = appendLine(q.path, line)
	}
	if err != nil {
		return fmt.Errorf("cannot write to the quarantine file: %w", err)
	}
	return nil
}

// appendLine appends a line to a file and makes both survive. A line that a crash cut short is ended first.
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
