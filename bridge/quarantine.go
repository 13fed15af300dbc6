package bridge

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/postbridge/postbridge/bridge/spool"
)

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
