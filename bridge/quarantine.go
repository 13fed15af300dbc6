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

// quarantine is the file of events that a bus can never accept, one line of JSON for each, for operators; no program
// reads it. An event may have more than one line: the file is written before the cursor is saved, so after a kill or a
// power cut between the two the event is published, refused and written again, as after a rewind or a failed fsync.
type quarantine struct {
	path string
	mu   sync.Mutex // held while a line is written
}

// quarantinedEvent is one line of the file.
type quarantinedEvent struct {
	Spool    string `json:"spool"`
	Sequence uint64 `json:"sequence"`
	Error    string `json:"error"`
	Event    []byte `json:"event"` // in base64, since it may be damaged
}

// put appends the event. The line is durable when it returns nil.
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
