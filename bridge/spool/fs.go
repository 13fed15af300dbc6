package spool

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// ErrLocked means that another process has the spool open.
var ErrLocked = errors.New("another process has the spool open")

// FS is the directory of a spool. Names have no slashes. What a method did survives a crash only where that is said.
type FS interface {
	// List returns the files of the directory, in no order.
	List() ([]FileInfo, error)
	// Create makes a file, empty, in place of one of the same name. Its name survives after SyncDir.
	Create(name string) (File, error)
	// Open opens a file that exists, to read and to write.
	Open(name string) (File, error)
	// Rename replaces to at once: whoever opens it finds the old file or the new one. It survives after SyncDir.
	Rename(from, to string) error
	// Remove removes a file. A reader that has it open can read on, or else Remove fails (Windows). It survives after
	// SyncDir.
	Remove(name string) error
	// SyncDir makes names survive.
	SyncDir() error
	// Free returns how many bytes can still be written to the disk.
	Free() (int64, error)
	// Lock takes the lock of that name until it is closed or the process ends; ErrLocked if another has it.
	Lock(name string) (io.Closer, error)
}

// FileInfo is what List says of a file.
type FileInfo struct {
	Name string
	Size int64
}

// File is one open file. Reads may run beside one writer.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Truncate cuts the file to size bytes. It survives after Sync.
	Truncate(size int64) error
	// Sync makes the content survive. After an error nothing is known of what was written; it must not be retried.
	Sync() error
}

// OSDir is the FS of a directory of the operating system. It makes the directory if there is none.
func OSDir(dir string) (FS, error) {
	if err := makeDir(filepath.Clean(dir)); err != nil {
		return nil, fmt.Errorf("cannot make the spool directory: %w", err)
	}
	return osDir(dir), nil
}

// makeDir makes a directory and what is missing above it, and makes their names survive.
func makeDir(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := makeDir(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return SyncDir(filepath.Dir(dir))
}

type osDir string

func (d osDir) path(name string) string { return filepath.Join(string(d), name) }

func (d osDir) List() ([]FileInfo, error) {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return nil, err
	}
	var files []FileInfo
	for _, e := range entries {
		info, err := os.Stat(d.path(e.Name())) // a link is as large as what it leads to
		if errors.Is(err, os.ErrNotExist) && e.Type()&os.ModeSymlink == 0 || err == nil && info.IsDir() {
			continue // removed just now, or none of ours
		}
		if err != nil {
			return nil, err
		}
		files = append(files, FileInfo{e.Name(), info.Size()})
	}
	return files, nil
}

func (d osDir) Create(name string) (File, error) {
	return osFile(os.OpenFile(d.path(name), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600))
}

func (d osDir) Open(name string) (File, error) {
	return osFile(os.OpenFile(d.path(name), os.O_RDWR, 0))
}

// osFile keeps a nil *os.File from becoming a File that is not nil.
func osFile(f *os.File, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (d osDir) Rename(from, to string) error { return rename(d.path(from), d.path(to)) }
func (d osDir) Remove(name string) error     { return os.Remove(d.path(name)) }
func (d osDir) SyncDir() error               { return SyncDir(string(d)) }

func (d osDir) Free() (int64, error) { return freeSpace(string(d)) }

func (d osDir) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(d.path(name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	return lockFile(f, exclusive)
}

// lockMode says who may hold the lock at the same time.
type lockMode int

const (
	exclusive lockMode = iota // nobody else
	shared                    // others that take it shared
)

// lockFile takes the lock of an open file without waiting, and returns what releases it. It closes f if it fails.
func lockFile(f *os.File, mode lockMode) (io.Closer, error) {
	if err := tryLock(f, mode); err != nil {
		_ = f.Close() // nothing was written to it
		return nil, err
	}
	return f, nil // closing the file releases the lock
}

// ReadDir is the FS of a directory for Inspect alone: it makes nothing, and files are opened only to read them.
func ReadDir(dir string) (FS, error) {
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		err = &os.PathError{Op: "read", Path: dir, Err: syscall.ENOTDIR}
	}
	if err != nil {
		return nil, err
	}
	return readDir{osDir(dir)}, nil
}

type readDir struct{ osDir }

func (d readDir) Open(name string) (File, error) { return osFile(os.Open(d.path(name))) }

// Lock takes a lock that others may share, of a file that is there.
func (d readDir) Lock(name string) (io.Closer, error) {
	f, err := os.Open(d.path(name))
	if err != nil {
		return nil, err
	}
	return lockFile(f, shared)
}
