package spool

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

// This file compiles in CI; its code has never run on Windows.
//
// Windows refuses to remove or replace a file that is open without FILE_SHARE_DELETE, and package os opens files so.
// This process closes a file before it renames or removes it, with one exception: a cursor may still have the oldest
// segment open, and then the removal fails and the background goroutine retries it every second. Another process that
// reads the spool (spool ls, spool dump, a virus scanner) has the same effect on the file that it reads; a cursor is
// then saved later, and a failure to raise a high-water mark is logged.

// SyncDir does nothing: Windows has no fsync for a directory. NTFS journals names, and rename writes them through.
func SyncDir(string) error { return nil }

// rename replaces a file at once, and returns when the new name is durable.
func rename(from, to string) error {
	old, err := windows.UTF16PtrFromString(from)
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	name, err := windows.UTF16PtrFromString(to)
	if err == nil {
		err = windows.MoveFileEx(old, name, windows.MOVEFILE_REPLACE_EXISTING|windows.MOVEFILE_WRITE_THROUGH)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

// freeSpace returns the bytes that this user may still write to the volume of dir, quotas included.
func freeSpace(dir string) (int64, error) {
	name, err := windows.UTF16PtrFromString(dir)
	var free uint64
	if err == nil {
		err = windows.GetDiskFreeSpaceEx(name, &free, nil, nil)
	}
	if err != nil {
		return 0, &os.PathError{Op: "GetDiskFreeSpaceEx", Path: dir, Err: err}
	}
	return int64(free), nil
}

// tryLock locks the first byte of the file with LockFileEx, or returns ErrLocked. Windows releases the lock when the
// file is closed or the process ends.
func tryLock(f *os.File, mode lockMode) error {
	flags := uint32(windows.LOCKFILE_FAIL_IMMEDIATELY)
	if mode == exclusive {
		flags |= windows.LOCKFILE_EXCLUSIVE_LOCK
	}
	err := windows.LockFileEx(windows.Handle(f.Fd()), flags, 0, 1, 0, new(windows.Overlapped))
	switch {
	case err == nil:
		return nil
	case errors.Is(err, windows.ERROR_LOCK_VIOLATION), errors.Is(err, windows.ERROR_IO_PENDING):
		return ErrLocked
	}
	return &os.PathError{Op: "LockFileEx", Path: f.Name(), Err: err}
}
