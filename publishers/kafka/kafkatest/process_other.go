//go:build !linux

package kafkatest

import "syscall"

// dieWithParent does nothing: only Linux can. A JVM stays behind if this process is killed before it closes the cluster.
func dieWithParent(*syscall.SysProcAttr) {}
