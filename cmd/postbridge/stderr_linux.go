package main

import "syscall"

// crashTimeout limits each write of the runtime's crash report to a socket.
const crashTimeout = 100_000 // microseconds

// keepCrashesFromBlocking makes writes to descriptor 2 fail instead of waiting for a reader: the Go runtime writes a
// panic there with all goroutines stopped, and would never exit. Where that is impossible, descriptor 2 is unchanged.
func keepCrashesFromBlocking() {
	var st syscall.Stat_t
	if err := syscall.Fstat(2, &st); err != nil {
		return
	}
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFIFO, syscall.S_IFCHR:
		// Open the pipe or terminal again: O_NONBLOCK on the shared open file would affect other processes.
		const flags = syscall.O_WRONLY | syscall.O_NONBLOCK | syscall.O_NOCTTY | syscall.O_CLOEXEC
		fd, err := syscall.Open("/proc/self/fd/2", flags, 0)
		if err != nil {
			return
		}
		_ = syscall.Dup3(fd, 2, 0)
		_ = syscall.Close(fd)
	case syscall.S_IFSOCK: // of journald; a socket cannot be opened again
		timeout := &syscall.Timeval{Usec: crashTimeout}
		_ = syscall.SetsockoptTimeval(2, syscall.SOL_SOCKET, syscall.SO_SNDTIMEO, timeout)
	}
}
