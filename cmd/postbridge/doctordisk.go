package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/postbridge/postbridge/bridge"
)

const (
	// fsyncs is how many are measured, for fsyncTime at most.
	fsyncs    = 50
	fsyncTime = 5 * time.Second
	// slowFsync is what an fsync should not take: every answer waits for one. quickFsync is what no disk can do that
	// has to write it down.
	slowFsync  = 50 * time.Millisecond
	quickFsync = 50 * time.Microsecond
	// streams is how many the embedded bus has.
	streams = 3
)

// disk grades what the spool is on. With measure, it writes a file of its own there, which it removes.
func (d *doctor) disk(measure bool) []bridge.Finding {
	f := &bridge.Findings{Area: "disk"}
	what := d.config.DataDir
	dir, err := existing(what)
	switch {
	case err != nil:
		f.Add(bridge.Fail, what, "cannot be looked at: "+reason(err), "run the doctor as the user of serve, or mend the directory")
		return f.All
	case dir != filepath.Clean(what):
		f.Add(bridge.Info, what, "is not there yet; its disk is graded by "+dir, "start 'postbridge serve', which makes it")
		measure = false
	}
	gradeFileSystem(f, what, dir)
	d.gradeRoom(f, what, dir)
	if dir == filepath.Clean(what) {
		gradeReaders(f, dir)
		gradeLeftovers(f, what, dir)
	}
	if measure {
		gradeFsync(f, what, dir)
	}
	return f.All
}

// existing is the directory, or the nearest above it that is there.
func existing(dir string) (string, error) {
	dir = filepath.Clean(dir)
	for {
		info, err := os.Stat(dir)
		switch {
		case err == nil && !info.IsDir():
			return "", &os.PathError{Op: "stat", Path: dir, Err: syscall.ENOTDIR}
		case !errors.Is(err, fs.ErrNotExist):
			return dir, err
		}
		dir = filepath.Dir(dir)
	}
}

// reason is an error without the path, which its finding names.
func reason(err error) string {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Op + ": " + path.Err.Error()
	}
	return err.Error()
}

func gradeFileSystem(f *bridge.Findings, what, dir string) {
	name, err := fileSystem(dir)
	switch {
	case err != nil:
		f.Add(bridge.Warn, what, "does not tell its file system: "+err.Error(), "see that it is on a disk of this machine")
	case name == "tmpfs" || name == "ramfs":
		f.Add(bridge.Fail, what, "is in memory ("+name+"): what was answered 200 is gone with the machine", "set POSTBRIDGE_DATA_DIR to a directory on a disk")
	case name == "overlay":
		f.Add(bridge.Warn, what, "is in the container's own layer (overlay): it is gone when the container is removed", "mount a volume there")
	case name != "":
		f.Add(bridge.Warn, what, "is not on a disk of this machine ("+name+"): fsync and locks are what the other side makes of them", "set POSTBRIDGE_DATA_DIR to a directory on a local or block disk")
	default:
		f.OK(what, "is on a disk")
	}
}

// gradeRoom compares what is free with what spool and embedded bus may still come to need.
func (d *doctor) gradeRoom(f *bridge.Findings, what, dir string) {
	free, err := freeBytes(dir)
	if err != nil {
		f.Add(bridge.Fail, what, "does not tell what is free: "+reason(err), "look at the disk")
		return
	}
	c := d.config
	reserve, grow := int64(c.SpoolMinFreeBytes), max(0, int64(c.SpoolMaxBytes)-usedBytes(filepath.Join(dir, "spool")))
	need, fix := "the spool's limit", "enlarge the disk, or lower POSTBRIDGE_SPOOL_MAX_BYTES"
	if c.embedded() {
		grow += max(0, streams*int64(c.NATSMaxBytes)-usedBytes(filepath.Join(dir, "nats")))
		need, fix = "the limits of the spool and of the embedded bus", fix+" or, before the streams are created, POSTBRIDGE_NATS_MAX_BYTES"
	}
	switch {
	case free < reserve:
		f.Add(bridge.Fail, what, fmt.Sprintf("has %s free, less than its reserve of %s: postbacks are answered 503", bridge.SizeText(free), bridge.SizeText(reserve)),
			"make room, or enlarge the disk")
	case free-reserve < grow:
		f.Add(bridge.Warn, what, fmt.Sprintf("has %s free, and %s, with a reserve of %s, may take %s more", bridge.SizeText(free), need, bridge.SizeText(reserve), bridge.SizeText(grow)), fix)
	default:
		f.OK(what, fmt.Sprintf("has %s free, which is room for %s", bridge.SizeText(free), need))
	}
}

func freeBytes(dir string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}

// usedBytes is the size of what is in a directory, as far as it can be looked at.
func usedBytes(dir string) (all int64) {
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // others have it, or it is gone by now
		}
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			all += info.Size()
		}
		return nil
	})
	return all
}

// gradeReaders looks for what in the data directory other users of the machine may read.
func gradeReaders(f *bridge.Findings, dir string) {
	var open []string
	if reachable(dir) {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if info, err := e.Info(); err == nil && info.Mode().Perm()&0o004 != 0 && (info.IsDir() || info.Mode().IsRegular()) {
				open = append(open, path)
			}
		}
	}
	if open != nil {
		f.Add(bridge.Warn, strings.Join(open, ", "), "may be read by every user of this machine, and holds orders", "chmod o-rwx")
		return
	}
	f.OK(dir, "is read by no other users")
}

// reachable reports whether others than owner and group may go into all directories down to this one.
func reachable(dir string) bool {
	dir, err := filepath.Abs(dir)
	for err == nil {
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm()&0o001 == 0 {
			return false
		}
		if dir == filepath.Dir(dir) {
			return true
		}
		dir = filepath.Dir(dir)
	}
	return false
}

// gradeLeftovers finds what is there for people to look at.
func gradeLeftovers(f *bridge.Findings, what, dir string) {
	bad, _ := filepath.Glob(filepath.Join(dir, "spool", "*.bad"))
	quarantined, _ := filepath.Glob(filepath.Join(dir, "quarantine-*.jsonl"))
	if bad != nil {
		f.Add(bridge.Warn, what, fmt.Sprintf("has %d files of what could not be read in the spool (spool/*.bad)", len(bad)),
			"compare with the broker's order book as the runbook says (PostbridgeEventsSkipped), then move them away")
	}
	if quarantined != nil {
		f.Add(bridge.Warn, what, "has events that the bus takes nowhere ("+filepath.Base(quarantined[0])+")",
			"look at them as the runbook says (PostbridgeDeadletters), then move the file away while serve is stopped")
	}
}

// gradeFsync measures what every answer waits for.
func gradeFsync(f *bridge.Findings, what, dir string) {
	times, err := measureFsync(dir)
	if err != nil {
		f.Add(bridge.Fail, what, "cannot be written: "+reason(err), "run the doctor as the user of serve, or mend the directory")
		return
	}
	slices.Sort(times)
	median, p99 := times[len(times)/2], times[len(times)*99/100]
	text := fmt.Sprintf("makes 4KiB durable in %v (p50), %v (p99)", median.Round(time.Microsecond), p99.Round(time.Microsecond))
	switch {
	case p99 > slowFsync:
		f.Add(bridge.Warn, what, text+": every answer waits for that", "use a faster disk, or one that nobody else keeps busy")
	case median < quickFsync:
		f.Add(bridge.Info, what, text+": its cache is protected from a loss of power, or it does not tell the truth", "see which, if this machine can lose power")
	default:
		f.OK(what, text)
	}
}

func measureFsync(dir string) (times []time.Duration, err error) {
	file, err := os.CreateTemp(dir, ".doctor-*")
	if err != nil {
		return nil, err
	}
	defer func() { _ = errors.Join(file.Close(), os.Remove(file.Name())) }() // it held nothing
	block := make([]byte, 4<<10)
	for start := time.Now(); len(times) < fsyncs && time.Since(start) < fsyncTime; {
		began := time.Now()
		if _, err := file.Write(block); err != nil {
			return nil, err
		}
		if err := file.Sync(); err != nil {
			return nil, err
		}
		times = append(times, time.Since(began))
	}
	return times, nil
}
