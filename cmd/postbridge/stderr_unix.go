//go:build unix

package main

import (
	"os"
	"syscall"
)

// openStderr returns stderr on a descriptor other than 2: there a write to a pipe without a reader is an error, and
// not, as the Go runtime has it on 1 and 2, the end of the process by SIGPIPE.
func openStderr() *os.File {
	fd, err := syscall.Dup(2)
	if err != nil {
		return os.Stderr
	}
	syscall.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "stderr")
}
