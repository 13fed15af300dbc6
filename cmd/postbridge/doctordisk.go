package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/postbridge/postbridge/bridge/spool"
	"github.com/postbridge/postbridge/publishers"
)

const (
	// fsyncs is the number of fsyncs to measure, within fsyncTime.
	fsyncs    = 50
	fsyncTime = 5 * time.Second
	// slowFsync is the duration above which an fsync is a problem, as every answer waits for one. quickFsync is the one
	// below which the fsync cannot have reached a disk.
	slowFsync  = 50 * time.Millisecond
	quickFsync = 50 * time.Microsecond
	// embeddedStreams is the number of streams of the embedded bus.
	embeddedStreams = 3
)

const repairDirectory = "run the doctor as the user of serve, or repair the directory"

// disk checks the file system of the spool and its free space.
func (d *doctor) disk() []publishers.CheckResult {
	data := filepath.Clean(d.config.DataDir)
	c := &publishers.Checks{Area: "disk", What: data}
	dir := data
	for _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist); _, err = os.Stat(dir) {
		dir = filepath.Dir(dir)
	}
	c.Info(dir != data, "does not exist; the disk of "+dir+" is checked", "start 'postbridge serve', which makes it")

	name := fileSystem(dir)
	memory := name == "tmpfs" || name == "ramfs"
	c.Fail(memory, "is in memory ("+name+"): what was answered 200 is lost with the machine",
		"set POSTBRIDGE_DATA_DIR to a directory on a disk")
	c.Warn(name == "overlay", "is in the container's own layer (overlay): it is lost when the container is removed",
		"mount a volume there")
	c.Warn(name != "" && !memory && name != "overlay",
		"is on a network file system ("+name+"), where fsync and locks may not hold",
		"set POSTBRIDGE_DATA_DIR to a directory on a local or block disk")

	d.checkSpace(c, dir)
	c.OK("is on a local disk with enough space")
	return c.Results
}

// checkSpace compares the free space with the limits of the spool and of the embedded bus.
func (d *doctor) checkSpace(c *publishers.Checks, dir string) {
	var free int64
	disk, err := spool.ReadDir(dir)
	if err == nil {
		free, err = disk.Free()
	}
	if err != nil {
		c.Fail(true, "cannot be used: "+err.Error(), repairDirectory)
		return
	}
	reserve, limit := int64(d.config.SpoolMinFreeBytes), int64(d.config.SpoolMaxBytes)
	remedy := "enlarge the disk, or lower POSTBRIDGE_SPOOL_MAX_BYTES"
	if d.config.embedded() {
		limit += embeddedStreams * int64(d.config.NATSMaxBytes)
		remedy += " or, before the streams are created, POSTBRIDGE_NATS_MAX_BYTES"
	}
	growth := max(0, limit-usedBytes(d.config.DataDir))
	text := fmt.Sprintf("has %s free, ", publishers.SizeText(free))
	c.Fail(free < reserve, text+"less than its reserve of "+publishers.SizeText(reserve)+": postbacks are answered 503",
		"free space, or enlarge the disk")
	c.Warn(free >= reserve && free-reserve < growth, fmt.Sprintf("%sand may take %s more, with a reserve of %s",
		text, publishers.SizeText(growth), publishers.SizeText(reserve)), remedy)
}

// usedBytes returns the size of all files below a directory that this user can see.
func usedBytes(dir string) (all int64) {
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // another user's, or removed meanwhile
		}
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			all += info.Size()
		}
		return nil
	})
	return all
}

// fsync measures fsyncs of a file in the data directory, if that exists.
func (d *doctor) fsync() []publishers.CheckResult {
	data := filepath.Clean(d.config.DataDir)
	times, err := measureFsync(data)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	c := &publishers.Checks{Area: "disk", What: data}
	if err != nil {
		c.Fail(true, "cannot be used: "+err.Error(), repairDirectory)
		return c.Results
	}
	median, p99 := times[len(times)/2], times[len(times)*99/100]
	text := fmt.Sprintf("makes 4KiB durable in %v (p50), %v (p99)", median, p99)
	c.Warn(p99 > slowFsync, text+": every answer waits for that",
		"use a faster disk, or one that nothing else keeps busy")
	c.Info(median < quickFsync, "has a cache that survives a loss of power, or an fsync that does nothing",
		"find out which, if this machine can lose power")
	c.OK(text)
	return c.Results
}

// measureFsync returns the durations of the fsyncs, in rising order. It removes its file.
func measureFsync(dir string) (times []time.Duration, err error) {
	file, err := os.CreateTemp(dir, ".doctor-*")
	if err != nil {
		return nil, err
	}
	defer func() { _ = errors.Join(file.Close(), os.Remove(file.Name())) }() // nothing is lost with it
	for end := time.Now().Add(fsyncTime); len(times) == 0 || len(times) < fsyncs && time.Now().Before(end); {
		began := time.Now()
		_, err := file.Write(make([]byte, 4<<10))
		if err = errors.Join(err, file.Sync()); err != nil {
			return nil, err
		}
		times = append(times, time.Since(began).Round(time.Microsecond))
	}
	slices.Sort(times)
	return times, nil
}
