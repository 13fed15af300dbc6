package main

import (
	"math"
	"syscall"
)

// fileSystem returns the type of a directory's file system; empty for a disk or an unknown type.
func fileSystem(dir string) string {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return ""
	}
	// The numbers are in linux/magic.h. st.Type may be negative.
	return map[uint32]string{
		0x01021994: "tmpfs", 0x858458f6: "ramfs",
		0x794c7630: "overlay",
		0x6969:     "NFS", 0xff534d42: "CIFS", 0xfe534d42: "SMB", 0x01021997: "9p", 0x65735546: "FUSE",
	}[uint32(st.Type)]
}

// clockUnsynchronized reports whether nothing synchronizes the kernel's clock.
func clockUnsynchronized() (bool, error) {
	const unsynchronized = 0x40 // STA_UNSYNC
	var t syscall.Timex
	_, err := syscall.Adjtimex(&t) // without modes it changes nothing
	return t.Status&unsynchronized != 0, err
}

// openFiles returns the limit of open files, which the Go runtime has raised to the hard limit.
func openFiles() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > math.MaxInt32 {
		return math.MaxInt32
	}
	return int(limit.Cur)
}
