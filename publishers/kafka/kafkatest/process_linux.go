package kafkatest

import "syscall"

// childAttributes puts a JVM in a process group of its own, and has it killed with this process.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
