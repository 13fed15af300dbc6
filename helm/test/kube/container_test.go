//go:build linux

package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// asContainer is the argv[0] with which this program runs as the first process of a container, before it executes the
// container's program.
const asContainer = "kube-test-container"

// containerSpec configures the first process of a container.
type containerSpec struct {
	Hostname                          string
	Address                           string // on the bridge
	Root                              string // directory
	ReadOnlyRoot                      bool
	Mounts                            []mount
	NoNewPrivileges, DropCapabilities bool
	UID, GID                          int
	Groups                            []int
	Args, Env                         []string
}

type mount struct {
	From, To string // path on the host, path in the container
	ReadOnly bool
}

// container is a running container.
type container struct {
	cmd  *exec.Cmd
	spec containerSpec
	done chan struct{} // closed when it has ended

	started time.Time
}

// startContainer runs a program in a new container, and writes its output to log.
func startContainer(spec containerSpec, log *os.File) (*container, error) {
	for _, m := range spec.Mounts {
		if err := makeTarget(m.From, filepath.Join(spec.Root, m.To)); err != nil {
			return nil, err
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{asContainer}
	cmd.Env = []string{}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{r}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS |
			syscall.CLONE_NEWIPC,
	}
	err = cmd.Start()
	_ = r.Close()
	if err != nil {
		return nil, err
	}
	c := &container{cmd: cmd, spec: spec, done: make(chan struct{}), started: time.Now()}
	go func() {
		_ = cmd.Wait() // the result is in ProcessState
		close(c.done)
	}()
	if err := errors.Join(connect(cmd.Process.Pid), json.NewEncoder(w).Encode(spec)); err != nil {
		c.signal(syscall.SIGKILL)
		return nil, err
	}
	return c, nil
}

// makeTarget creates the mount point for from.
func makeTarget(from, to string) error {
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return os.MkdirAll(to, 0o755)
	}
	return errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, nil, 0o644))
}

// connect links the network namespace of a process to the bridge, as eth0.
func connect(pid int) error {
	bridge, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return err
	}
	here := fmt.Sprintf("pod%d", pid)
	link := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: here, MasterIndex: bridge.Attrs().Index},
		PeerName:  "eth0", PeerNamespace: netlink.NsPid(pid),
	}
	if err := netlink.LinkAdd(link); err != nil {
		return fmt.Errorf("link to a pod: %w", err)
	}
	made, err := netlink.LinkByName(here)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(made)
}

// exec returns a command to run in the container, as kubectl exec does.
func (c *container) exec(ctx context.Context, args []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{
		"--target", fmt.Sprint(c.cmd.Process.Pid), "--mount", "--net", "--pid", "--ipc", "--uts", "--root", "--wd",
		"--setuid", fmt.Sprint(c.spec.UID), "--setgid", fmt.Sprint(c.spec.GID), "--",
	}, args...)...)
	cmd.Env = c.spec.Env
	return cmd
}

func (c *container) signal(s syscall.Signal) { _ = c.cmd.Process.Signal(s) }

// exitCode returns the exit code of an ended container: 128 plus the signal if it was killed.
func (c *container) exitCode() int32 {
	status := c.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int32(status.Signal())
	}
	return int32(status.ExitStatus())
}

// becomeContainer is the main function under the name asContainer. It returns only on errors.
func becomeContainer() error {
	runtime.LockOSThread() // namespaces and credentials are set for one thread, which then executes the program
	var spec containerSpec
	file := os.NewFile(3, "spec")
	if err := json.NewDecoder(file).Decode(&spec); err != nil {
		return fmt.Errorf("read the container spec: %w", err)
	}
	_ = file.Close()
	if err := errors.Join(syscall.Sethostname([]byte(spec.Hostname)), setUpNetwork(spec.Address),
		enterRoot(spec)); err != nil {
		return err
	}
	if spec.DropCapabilities {
		for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
				return fmt.Errorf("drop capability %d: %w", c, err)
			}
		}
	}
	if err := errors.Join(syscall.Setgroups(spec.Groups), syscall.Setgid(spec.GID),
		syscall.Setuid(spec.UID)); err != nil {
		return err
	}
	if spec.NoNewPrivileges {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s: %w", spec.Args[0], syscall.Exec(spec.Args[0], spec.Args, spec.Env))
}

func setUpNetwork(address string) error {
	for name, addr := range map[string]*net.IPNet{"lo": nil, "eth0": onBridge(address)} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if addr != nil {
			if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: addr}); err != nil {
				return err
			}
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
	}
	return nil
}

func enterRoot(spec containerSpec) error {
	bind := func(from, to string, readOnly bool) error {
		if err := syscall.Mount(from, to, "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s at %s: %w", from, to, err)
		}
		if !readOnly {
			return nil
		}
		return syscall.Mount("", to, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, "")
	}
	if err := errors.Join(
		syscall.Mount("", "/", "", syscall.MS_PRIVATE|syscall.MS_REC, ""),
		bind(spec.Root, spec.Root, false),
	); err != nil {
		return err
	}
	for _, m := range spec.Mounts {
		if err := bind(m.From, filepath.Join(spec.Root, m.To), m.ReadOnly); err != nil {
			return err
		}
	}
	if err := syscall.Mount("proc", filepath.Join(spec.Root, "proc"), "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if spec.ReadOnlyRoot {
		if err := syscall.Mount("", spec.Root, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY,
			""); err != nil {
			return err
		}
	}
	return errors.Join(syscall.Chroot(spec.Root), syscall.Chdir("/"))
}
