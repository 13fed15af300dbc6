//go:build unix && !linux

package kafkatest

import "syscall"

// childAttributes puts a JVM in a process group of its own. It stays behind if this process is killed before it closes
// the cluster: only Linux can kill it then.
func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
