package kafkatest

import (
	"context"
	"os/exec"
	"runtime"
	"time"
)

// process is a JVM that ends with this process, even if this one is killed.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	err  error         // of Wait; valid after done is closed
}

// startProcess starts cmd. Linux kills it when the thread that started it ends (PDEATHSIG), so a thread of its own
// waits for it. A signal from the terminal reaches only this process, not cmd.
func startProcess(cmd *exec.Cmd) (*process, error) {
	cmd.SysProcAttr = childAttributes()
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
		}
	}()
	return p, <-started
}

// wait waits for the end of the process and returns its error.
func (p *process) wait() error {
	<-p.done
	return p.err
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// poll calls done at each interval until it returns true or an error, or ctx ends.
func poll(ctx context.Context, interval time.Duration, done func() (bool, error)) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// tail returns the end of a program's output.
func tail(output []byte) []byte { return output[max(0, len(output)-4000):] }
