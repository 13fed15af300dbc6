//go:build unix

package spool

import (
	"errors"
	"os"
	"syscall"
)

// SyncDir makes the names in a directory durable. It returns the error of the open or of the fsync.
func SyncDir(dir string) error {
	// An fsync of the directory covers creations, renames and removals in it.
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// rename replaces a file atomically. The new name is durable after SyncDir of its directory; a crash before that
// leaves the old file or the new one.
func rename(from, to string) error { return os.Rename(from, to) }

// freeSpace returns the bytes that an unprivileged user may still write to the file system of dir.
func freeSpace(dir string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	// Bavail excludes the blocks reserved for root, which Bfree includes.
	return int64(st.Bavail) * int64(st.Bsize), nil
}

// tryLock locks the file with flock, or returns ErrLocked. The kernel releases the lock when the file is closed or the
// process ends.
func tryLock(f *os.File, mode lockMode) error {
	how := syscall.LOCK_EX
	if mode == shared {
		how = syscall.LOCK_SH
	}
	// LOCK_NB: the caller decides whether to wait, and logs it.
	err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EWOULDBLOCK):
		return ErrLocked
	}
	return &os.PathError{Op: "flock", Path: f.Name(), Err: err}
}
