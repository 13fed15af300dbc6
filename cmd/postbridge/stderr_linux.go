package main

import "syscall"

// crashTimeout bounds each write of the runtime's report of a crash to a socket.
const crashTimeout = 100_000 // microseconds

// keepCrashesFromBlocking makes writes to descriptor 2 fail rather than wait for a reader: the Go runtime reports a
// panic there with all goroutines stopped, and would never end the process. Where that is impossible, descriptor 2
// stays as it is.
func keepCrashesFromBlocking() {
	var st syscall.Stat_t
	if err := syscall.Fstat(2, &st); err != nil {
		return
	}
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFIFO, syscall.S_IFCHR:
		// Another open file of the same pipe or terminal: what else writes to it, other processes included, still waits.
		fd, err := syscall.Open("/proc/self/fd/2", syscall.O_WRONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY|syscall.O_CLOEXEC, 0)
		if err != nil {
			return
		}
		_ = syscall.Dup3(fd, 2, 0)
		_ = syscall.Close(fd)
	case syscall.S_IFSOCK: // of journald; it cannot be opened again
		_ = syscall.SetsockoptTimeval(2, syscall.SOL_SOCKET, syscall.SO_SNDTIMEO, &syscall.Timeval{Usec: crashTimeout})
	}
}
