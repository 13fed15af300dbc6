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
	// fsyncs is how many are measured, for fsyncTime at most.
	fsyncs    = 50
	fsyncTime = 5 * time.Second
	// slowFsync is longer than an fsync should take: every answer waits for one. No disk that has to write is faster
	// than quickFsync.
	slowFsync  = 50 * time.Millisecond
	quickFsync = 50 * time.Microsecond
	// embeddedStreams is how many the embedded bus has.
	embeddedStreams = 3
)

// disk checks what the spool is on. With measure, it writes a file of its own there and removes it.
func (d *doctor) disk(measure bool) []publishers.CheckResult {
	data := filepath.Clean(d.config.DataDir)
	c := &publishers.Checks{Area: "disk", What: data}
	dir := data
	for _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist); _, err = os.Stat(dir) {
		dir = filepath.Dir(dir)
	}
	if dir != data {
		c.Info("does not exist; the disk of "+dir+" is checked", "start 'postbridge serve', which makes it")
	}
	checkFileSystem(c, dir)
	err := d.checkSpace(c, dir)
	if err == nil {
		c.OK("is on a local disk with enough space")
	}
	if err == nil && measure && dir == data {
		err = checkFsync(c, data)
	}
	if err != nil {
		c.Fail("cannot be used: "+err.Error(), "run the doctor as the user of serve, or repair the directory")
	}
	return c.Results
}

func checkFileSystem(c *publishers.Checks, dir string) {
	switch name := fileSystem(dir); name {
	case "":
	case "tmpfs", "ramfs":
		c.Fail("is in memory ("+name+"): what was answered 200 is lost with the machine",
			"set POSTBRIDGE_DATA_DIR to a directory on a disk")
	case "overlay":
		c.Warn("is in the container's own layer (overlay): it is lost when the container is removed",
			"mount a volume there")
	default:
		c.Warn("is on a network file system ("+name+"), where fsync and locks may not hold",
			"set POSTBRIDGE_DATA_DIR to a directory on a local or block disk")
	}
}

// checkSpace compares the free space with what spool and embedded bus may still take.
func (d *doctor) checkSpace(c *publishers.Checks, dir string) error {
	disk, err := spool.OSDir(dir)
	if err != nil {
		return err
	}
	free, err := disk.Free()
	if err != nil {
		return err
	}
	reserve, limit := int64(d.config.SpoolMinFreeBytes), int64(d.config.SpoolMaxBytes)
	fix := "enlarge the disk, or lower POSTBRIDGE_SPOOL_MAX_BYTES"
	if d.config.embedded() {
		limit += embeddedStreams * int64(d.config.NATSMaxBytes)
		fix += " or, before the streams are created, POSTBRIDGE_NATS_MAX_BYTES"
	}
	text := fmt.Sprintf("has %s free, ", publishers.SizeText(free))
	if grow := max(0, limit-usedBytes(d.config.DataDir)); free < reserve {
		c.Fail(text+"less than its reserve of "+publishers.SizeText(reserve)+": postbacks are answered 503",
			"free space, or enlarge the disk")
	} else if free-reserve < grow {
		c.Warn(fmt.Sprintf("%sand may take %s more, with a reserve of %s",
			text, publishers.SizeText(grow), publishers.SizeText(reserve)), fix)
	}
	return nil
}

// usedBytes is the size of all files below a directory that can be seen.
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

func checkFsync(c *publishers.Checks, dir string) error {
	times, err := measureFsync(dir)
	if err != nil {
		return err
	}
	median, p99 := times[len(times)/2], times[len(times)*99/100]
	text := fmt.Sprintf("makes 4KiB durable in %v (p50), %v (p99)", median, p99)
	if p99 > slowFsync {
		c.Warn(text+": every answer waits for that", "use a faster disk, or one that nothing else keeps busy")
	} else if median < quickFsync {
		c.Info(text+": its cache survives a loss of power, or its fsync does nothing",
			"find out which, if this machine can lose power")
	} else {
		c.OK(text)
	}
	return nil
}

// measureFsync returns the times of all fsyncs, in rising order.
func measureFsync(dir string) (times []time.Duration, err error) {
	file, err := os.CreateTemp(dir, ".doctor-*")
	if err != nil {
		return nil, err
	}
	defer func() { _ = errors.Join(file.Close(), os.Remove(file.Name())) }() // it held nothing
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
