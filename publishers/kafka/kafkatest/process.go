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
	err  error         // of that; to be read after done
}

// startProcess starts cmd. Linux kills it when the thread that has started it ends, so that thread does nothing else
// than to wait for it: a thread of the caller's could end before. A signal from the terminal goes to this process only.
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

// wait waits until the process has ended, and returns how.
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

// poll calls done at each interval until it says true or an error, or ctx ends.
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

// tail is the end of what a program has said.
func tail(said []byte) []byte { return said[max(0, len(said)-4000):] }
