//go:build linux

package kube

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
)

// inSandbox is a variable set in the process that runs the tests.
const inSandbox = "KUBE_TEST_SANDBOX"

// bridgeName is the bridge that all pods are attached to.
const bridgeName = "pods"

// hosts are the names of servers outside the cluster. Each has its own address on the bridge.
func hosts() map[string][]string {
	return map[string][]string{
		"10.244.0.1": {"nats.nats", "kafka-0.kafka"},
		"10.244.0.2": {"nats.nats", "kafka-1.kafka"},
		"10.244.0.3": {"nats.nats", "kafka-2.kafka"},
		"10.244.0.4": {"nats.bus"},
		"10.244.0.5": {"nats.desk"},
		"10.244.0.6": {"nats.bus"},
		"10.244.0.7": {"nats.bus"},
		"10.244.0.8": {"nats.books"},
	}
}

func hostsFile() []byte {
	b := []byte("127.0.0.1 localhost\n")
	for address, names := range hosts() {
		b = fmt.Appendf(b, "%s %s\n", address, strings.Join(names, " "))
	}
	return b
}

// runInSandbox runs this test binary again in new namespaces, and returns its exit code.
func runInSandbox() int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "kube: run it as root: it needs namespaces, networks and mounts of its own")
		return 1
	}
	dir, err := os.MkdirTemp("", "kube-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := buildImages(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inSandbox+"="+dir, "TMPDIR="+dir) // dir is removed in any case
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		// The kernel kills all processes of the namespace with its first.
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
	}
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() > 0 {
			return exit.ExitCode()
		}
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// Versions of postbridge with an image.
const (
	firstVersion = "v0.1.0"
	nextVersion  = "v0.1.1"
)

// buildImages builds the binary of each image postbridge:<version>.
func buildImages(dir string) error {
	for _, version := range []string{firstVersion, nextVersion} {
		cmd := exec.Command("make", "--no-print-directory", "release", "VERSION="+version,
			"OUT="+image(dir, "postbridge:"+version))
		cmd.Dir = top
		if output, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("make release: %w\n%s", err, output)
		}
	}
	return nil
}

// image returns the path of the binary in the image.
func image(dir, name string) string {
	return filepath.Join(dir, "images", strings.ReplaceAll(name, ":", "-"))
}

// enterSandbox sets up mounts and network in the namespaces of this process.
func enterSandbox(dir string) error {
	hosts := filepath.Join(dir, "hosts")
	return errors.Join(
		syscall.Mount("", "/", "", syscall.MS_PRIVATE|syscall.MS_REC, ""),
		syscall.Mount("proc", "/proc", "proc", 0, ""),
		os.WriteFile(hosts, hostsFile(), 0o644),
		syscall.Mount(hosts, "/etc/hosts", "", syscall.MS_BIND, ""),
		makeBridge(),
	)
}

func makeBridge() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	// By default a bridge takes the lowest MAC address of its ports. When a pod that starts or ends changes it, the
	// others would send to the old one for half a minute.
	address := net.HardwareAddr{0x02, 0, 0, 0, 0, 0x01}
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName, HardwareAddr: address}}
	if err := errors.Join(netlink.LinkSetUp(lo), netlink.LinkAdd(bridge)); err != nil {
		return err
	}
	for address := range hosts() {
		if err := netlink.AddrAdd(bridge, &netlink.Addr{IPNet: onBridge(address)}); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(bridge)
}

func onBridge(address string) *net.IPNet {
	return &net.IPNet{IP: net.ParseIP(address), Mask: net.CIDRMask(16, 32)}
}
