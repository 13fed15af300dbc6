package spool

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// ErrLocked means that another process has the spool open; the caller waits and retries.
var ErrLocked = errors.New("another process has the spool open")

// FS is the directory of a spool. Names contain no slashes. An operation is durable, that is, survives a loss of
// power, only as stated for each method; until then a crash may undo it, in any combination with others.
type FS interface {
	// List returns the files of the directory, in any order.
	List() ([]FileInfo, error)
	// Create creates an empty file, or truncates an existing one. Its name is durable after SyncDir.
	Create(name string) (File, error)
	// Open opens an existing file for reading and writing.
	Open(name string) (File, error)
	// Rename replaces to atomically: Open finds the old file or the new one. It is durable after SyncDir.
	Rename(from, to string) error
	// Remove removes a file. If a reader has it open, the reader can read on, or Remove fails (Windows). It is durable
	// after SyncDir.
	Remove(name string) error
	// SyncDir makes all names durable.
	SyncDir() error
	// Free returns how many more bytes can be written to the disk.
	Free() (int64, error)
	// Lock acquires the lock with that name, until it is closed or the process ends. It returns ErrLocked if another
	// process has it.
	Lock(name string) (io.Closer, error)
}

// FileInfo is a file in List. Size is in bytes.
type FileInfo struct {
	Name string
	Size int64
}

// File is an open file. Reads may run concurrently with one writer.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Truncate shortens the file to size bytes. It is durable after Sync.
	Truncate(size int64) error
	// Sync makes the content durable. After an error the state of what was written is unknown: it must not be retried.
	Sync() error
}

// OSDir returns a directory of the operating system as an FS. It creates the directory, mode 0700, if there is none.
func OSDir(dir string) (FS, error) {
	if err := makeDir(filepath.Clean(dir)); err != nil {
		return nil, fmt.Errorf("cannot make the spool directory: %w", err)
	}
	return osDir(dir), nil
}

// makeDir creates a directory and its missing parents, and makes their names durable.
func makeDir(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := makeDir(filepath.Dir(dir)); err != nil {
		return err
	}
	// The events are private: no other user may read them.
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	// A crash before this line may lose the directory with everything durable in it.
	return SyncDir(filepath.Dir(dir))
}

// osDir is the path of a directory.
type osDir string

// path returns the path of a file in the directory.
func (d osDir) path(name string) string { return filepath.Join(string(d), name) }

func (d osDir) List() ([]FileInfo, error) {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return nil, err
	}
	var files []FileInfo
	for _, e := range entries {
		// A broken link is an error, not a missing file: the disk that it points to may come back.
		info, err := os.Stat(d.path(e.Name())) // Stat follows a link, as Open does
		if errors.Is(err, os.ErrNotExist) && e.Type()&os.ModeSymlink == 0 || err == nil && info.IsDir() {
			continue // removed since ReadDir, or a directory
		}
		if err != nil {
			return nil, err
		}
		files = append(files, FileInfo{e.Name(), info.Size()})
	}
	return files, nil
}

func (d osDir) Create(name string) (File, error) {
	return opened(os.OpenFile(d.path(name), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600))
}

func (d osDir) Open(name string) (File, error) {
	return opened(os.OpenFile(d.path(name), os.O_RDWR, 0))
}

// osFile is a file whose Sync leaves out what no read needs, such as the time of the last write: then the sync of a
// preallocated segment writes nothing to the journal of the file system.
type osFile struct{ *os.File }

func (f osFile) Sync() error { return datasync(f.File) }

// opened keeps a nil *os.File from becoming a File that is not nil.
func opened(f *os.File, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (d osDir) Rename(from, to string) error { return rename(d.path(from), d.path(to)) }
func (d osDir) Remove(name string) error     { return os.Remove(d.path(name)) }
func (d osDir) SyncDir() error               { return SyncDir(string(d)) }

func (d osDir) Free() (int64, error) { return freeSpace(string(d)) }

func (d osDir) Lock(name string) (io.Closer, error) {
	// The lock is on the open file, not in its content: it does not outlive the process, and the file is never
	// removed.
	f, err := os.OpenFile(d.path(name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	return lockFile(f, exclusive)
}

// lockMode is how a lock can be shared.
type lockMode int

const (
	exclusive lockMode = iota // no other holder: Open and Repair
	shared                    // other shared holders: Inspect
)

// lockFile locks an open file without waiting and returns what releases the lock. It closes f if it fails.
func lockFile(f *os.File, mode lockMode) (io.Closer, error) {
	if err := tryLock(f, mode); err != nil {
		_ = f.Close() // nothing was written to it
		return nil, err
	}
	return f, nil // closing the file releases the lock
}

// ReadDir returns a directory as an FS for Inspect: it creates nothing and opens files read-only.
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

// readDir is an osDir without write access.
type readDir struct{ osDir }

func (d readDir) Open(name string) (File, error) { return opened(os.Open(d.path(name))) }

// Lock acquires a shared lock on an existing file.
func (d readDir) Lock(name string) (io.Closer, error) {
	f, err := os.Open(d.path(name))
	if err != nil {
		return nil, err
	}
	return lockFile(f, shared)
}
