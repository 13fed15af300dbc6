//go:build unix

package main

import (
	"os"
	"syscall"
)

// openStderr returns stderr on a descriptor other than 2. A write to a pipe without a reader is an error there; on
// descriptors 1 and 2 the Go runtime ends the process with SIGPIPE.
func openStderr() *os.File {
	fd, err := syscall.Dup(2)
	if err != nil {
		return os.Stderr
	}
	syscall.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "stderr")
}
