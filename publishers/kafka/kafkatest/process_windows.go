package kafkatest

import "syscall"

// childAttributes puts a JVM in a process group of its own. It stays behind if this process is killed before it closes
// the cluster.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP}
}
