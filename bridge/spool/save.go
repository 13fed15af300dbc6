package spool

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"
)

// replaceFile puts a file in place of another of that name, at once and for good.
func replaceFile(fs FS, name string, content []byte) error {
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
	if err := fs.Rename(name+tmpSuffix, name); err != nil {
		return err
	}
	return fs.SyncDir()
}

// saveMoved is the goroutine that writes cursors: off the way of the records, at most once in saveInterval.
func (s *Spool) runSaver() {
	defer s.finished.Done()
	failing := false
	ago := s.o.CursorDelay
	for open := true; open; {
		select {
		case <-s.save:
		case <-s.closing:
			open, ago = false, 0
		}
		var err error
		for _, c := range s.cursors {
			err = errors.Join(err, s.saveCursor(c, ago))
		}
		if err != nil && !failing {
			s.o.Log.Error("cannot save the cursors; after a crash more would be offered to the buses again", "error", err)
		}
		failing = err != nil
		select {
		case <-time.After(saveInterval):
		case <-s.closing:
		}
	}
}

// saveCursor writes what the cursor had committed that long ago, unless its file says so already.
func (s *Spool) saveCursor(c *Cursor, ago time.Duration) error {
	s.files.Lock()
	defer s.files.Unlock()
	c.capture()
	s.mu.Lock()
	m, ok := c.popDue(time.Now().Add(-ago))
	rewinds := c.rewinds
	if len(c.unsaved) > 0 {
		signal(s.save) // its time comes
	}
	s.mu.Unlock()
	if !ok {
		return nil
	}
	err := replaceFile(s.fs, cursorPrefix+c.name, m.content)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case c.rewinds != rewinds: // the file is ahead of the cursor, until it is saved again
	case err != nil:
		c.unsaved = slices.Insert(c.unsaved, 0, m)
		signal(s.save)
	default:
		c.saved = m.committed
		signal(s.background)
	}
	if err != nil {
		return fmt.Errorf("%s%s: %w", cursorPrefix, c.name, err)
	}
	return nil
}

// raiseOffered brings to disk how far the cursor may offer records, before it goes beyond that.
func (s *Spool) raiseHighWater(c *Cursor) {
	if err := s.saveHighWater(c); err != nil {
		s.o.Log.Error("cannot save how far a bus was offered events; after a crash it may store some twice",
			"bus", c.name, "error", err)
	}
}

// replaceOffered writes the file of the high-water mark, if it is time to raise it. Where the disk refuses, no file is
// better than one that says too little; the error says that there may be such a file.
func (s *Spool) saveHighWater(c *Cursor) (err error) {
	s.files.Lock()
	defer s.files.Unlock()
	s.mu.Lock()
	offered, due := c.nextHighWater()
	s.mu.Unlock()
	if !due {
		return nil // done meanwhile
	}
	name := highWaterPrefix + c.name
	if failure := replaceFile(s.fs, name, s.id.formatHighWater(offered)); failure != nil {
		left := s.fs.Remove(name)
		if errors.Is(left, os.ErrNotExist) {
			left = nil
		}
		if left = errors.Join(left, s.fs.SyncDir()); left != nil {
			err = errors.Join(failure, left)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c.highWater = offered
	return err
}
