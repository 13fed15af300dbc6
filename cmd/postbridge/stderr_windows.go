package main

import "os"

// openStderr returns stderr: Windows has no SIGPIPE.
func openStderr() *os.File { return os.Stderr }
