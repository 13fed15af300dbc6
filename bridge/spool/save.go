package spool

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// replaceFile replaces the content of a file atomically and durably: write a .tmp file, sync it, rename it, sync the
// directory. A crash in between leaves the old file, and perhaps a .tmp file that Open removes.
func replaceFile(fs FS, name string, content []byte) error {
	// A .tmp file of an earlier attempt is truncated. Callers hold files, or are Open, so no other goroutine writes to
	// it.
	f, err := fs.Create(name + tmpSuffix)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(content, 0)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	// The content must be durable before the rename: otherwise a crash could leave the new name with old or no
	// content.
	if err := fs.Rename(name+tmpSuffix, name); err != nil {
		return err
	}
	// A crash before this line finds the old content or the new, after it only the new.
	return fs.SyncDir()
}

// quarantine writes damaged bytes to a .bad file, if MaxBytes allows; else it returns an error that wraps ErrFull.
// existed reports that the file was there before. The damaged bytes stay in their segment until it is removed, so a
// crash loses nothing: the file is written when they are read again.
func (s *Spool) quarantine(name string, damage []byte) (existed bool, err error) {
	s.files.Lock()
	defer s.files.Unlock()
	// Another cursor, or an earlier run, has quarantined these bytes.
	if f, err := s.fs.Open(name); err == nil {
		return true, f.Close()
	}
	// Reserve the space first, so that records accepted meanwhile still fit.
	n := int64(len(damage))
	s.mu.Lock()
	fits := s.bytes+s.reserved()+n <= s.o.MaxBytes-overhead
	if fits {
		s.bytes += n
	}
	s.mu.Unlock()
	if !fits {
		return false, fmt.Errorf("%w: no space for %d more bytes", ErrFull, n)
	}
	if err = replaceFile(s.fs, name, damage); err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.bytes -= n
	}
	return false, err
}

// runSaver is the saver goroutine. It writes the cursors outside of the path of records, at most once per
// saveInterval.
func (s *Spool) runSaver() {
	defer s.finished.Done()
	failing := false
	delay := s.o.CursorDelay
	for open := true; open; {
		select {
		case <-s.save:
		case <-s.closing:
			// The last save: every batch is committed or failed by the time Close returns, and no Commit follows.
			open, delay = false, 0
		}
		var err error
		for _, c := range s.cursors {
			err = errors.Join(err, s.saveCursor(c, delay))
		}
		// Logged once until a save succeeds.
		if err != nil && !failing {
			s.o.Log.Error("cannot save the cursors; retrying; after a crash more events are published again",
				"error", err)
		}
		// A cursor that moves all the time is written once per saveInterval; its token is in s.save again by then.
		failing = err != nil
		select {
		case <-time.After(saveInterval):
		case <-s.closing:
		}
	}
}

// saveCursor writes the newest position of a cursor that is at least delay old to its file, if there is one to save.
func (s *Spool) saveCursor(c *Cursor, delay time.Duration) error {
	s.files.Lock()
	defer s.files.Unlock()
	// Before mu: the snapshot function may block on a caller of Commit.
	c.capture()
	s.mu.Lock()
	m, ok := c.popDue(time.Now().Add(-delay))
	// A Rewind during the write below makes its content obsolete.
	rewinds, highWater := c.rewinds, c.highWater
	if len(c.unsaved) > 0 {
		signal(s.save) // retried until it is old enough
	}
	s.mu.Unlock()
	if !ok {
		return nil
	}
	// A crash before writeSlot returns may leave the older position: records after it are returned again.
	err := s.writeSlot(c, position{committed: m.committed, highWater: highWater, state: m.state})
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case c.rewinds != rewinds:
		// Rewound meanwhile: the file is ahead of the cursor until it is saved again.
	case err != nil:
		c.unsaved = slices.Insert(c.unsaved, 0, m) // retried; a newer one may supersede it
		signal(s.save)
	default:
		// Commit point of a cursor: only now may segments up to this position be removed.
		c.saved = m.committed
		signal(s.background)
	}
	if err != nil {
		return fmt.Errorf("%s%s: %w", cursorPrefix, c.name, err)
	}
	return nil
}

// raiseHighWater makes a higher high-water mark durable, if it is due, beside the position in the file: that may have
// to lag by Options.CursorDelay, and the mark must never lag. An error is logged and the cursor continues, because only
// publishing frees the disk.
func (s *Spool) raiseHighWater(c *Cursor) {
	if err := s.saveHighWater(c); err != nil {
		s.o.Log.Error("cannot save the high-water mark of a bus; after a crash it may store events twice",
			"bus", c.name, "error", err)
		c.MarkDirty() // the next save has it, too
	}
}

// saveHighWater is raiseHighWater without the log line.
func (s *Spool) saveHighWater(c *Cursor) error {
	s.files.Lock()
	defer s.files.Unlock()
	s.mu.Lock()
	highWater, due := c.nextHighWater()
	s.mu.Unlock()
	if !due {
		return nil // another goroutine has raised it
	}
	p := c.inFile
	p.highWater = highWater
	err := s.writeSlot(c, p)
	s.mu.Lock()
	defer s.mu.Unlock()
	// Only now may Next return records above the previous mark: a crash finds the new one, or else the error is logged.
	c.highWater = highWater
	return err
}

// writeSlot writes a position to the slot that is not in force and syncs it: the commit point, before which a crash
// finds the other slot. If there is no file yet, the position does not fit, or that fails, it replaces the file. Needs
// s.files.
func (s *Spool) writeSlot(c *Cursor, p position) error {
	if p.committed < c.inFile.committed {
		c.closeFile() // after a Rewind no slot may have the position before it
	}
	p.second, p.generation = c.inFile.second, c.inFile.generation+1
	content := s.id.formatSlot(p)
	if c.file != nil && int64(len(content)) <= p.second {
		_, err := c.file.WriteAt(content, int64(p.generation-1)%2*p.second)
		if err == nil {
			err = c.file.Sync()
		}
		if err == nil {
			c.inFile = p
			return nil
		}
	}
	// After a failed sync the file must not be used again.
	c.closeFile()
	// A state may grow.
	p.second, p.generation = (int64(len(content))*5/4/slotUnit+1)*slotUnit, 1
	content = s.id.formatSlot(p)
	// The second slot takes no more space, so a full disk does not stop it.
	whole := append(content, make([]byte, p.second)...)
	if err := replaceFile(s.fs, cursorPrefix+c.name, whole); err != nil {
		return err
	}
	c.inFile = p
	c.openFile()
	return nil
}

// openFile opens the file with the slots. If that fails, the next save replaces it. Needs s.files, except in Open.
func (c *Cursor) openFile() { c.file, _ = c.s.fs.Open(cursorPrefix + c.name) }

// closeFile closes the file with the slots. Needs s.files.
func (c *Cursor) closeFile() {
	if c.file != nil {
		_ = c.file.Close() // what it has is synced
		c.file = nil
	}
}
