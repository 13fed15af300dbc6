//go:build linux && image

// Package image tests the image of deploy/Dockerfile without a container engine.
package image

import (
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

const top = "../.." // root of the repository

// release builds the binary as the Dockerfile does, from the source in dir.
func release(t *testing.T, dir, goarch string, environ ...string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "postbridge")
	cmd := exec.Command("make", "release", "GOOS=linux", "GOARCH="+goarch, "VERSION=v0.0.0-test", "OUT="+out)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), environ...)
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make release: %v\n%s", err, output)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestReproducible(t *testing.T) {
	elsewhere := t.TempDir()
	for _, name := range []string{"Makefile", "go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(top, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(elsewhere, name), text, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"cmd", "bridge", "brokers", "publishers"} {
		if err := os.CopyFS(filepath.Join(elsewhere, name), os.DirFS(filepath.Join(top, name))); err != nil {
			t.Fatal(err)
		}
	}
	once := release(t, top, "amd64")
	again := release(t, elsewhere, "amd64", "GOCACHE="+t.TempDir())
	if !bytes.Equal(once, again) {
		t.Errorf("two builds differ, of %d and %d bytes", len(once), len(again))
	}
}

func TestStatic(t *testing.T) {
	for goarch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		f, err := elf.NewFile(bytes.NewReader(release(t, top, goarch)))
		if err != nil {
			t.Fatal(err)
		}
		if f.Machine != machine {
			t.Errorf("%s: the binary is for %v", goarch, f.Machine)
		}
		for _, p := range f.Progs {
			if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
				t.Errorf("%s: the binary is linked dynamically: %v", goarch, p.Type)
			}
		}
	}
}

// settings returns the instructions of the last stage of the Dockerfile.
func settings(t *testing.T) map[string]string {
	t.Helper()
	f, err := os.Open(top + "/deploy/Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all := make(map[string]string)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if name == "FROM" {
			clear(all)
		}
		all[name] = value
	}
	return all
}

// TestRunsInEmptyRoot runs the image as a container engine would, with a read-only root.
func TestRunsInEmptyRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("run it as root, to create namespaces and change the user")
	}
	image := settings(t)
	if image["FROM"] != "scratch" {
		t.Fatalf("the image is made from %q", image["FROM"])
	}
	var entrypoint, command []string
	for name, into := range map[string]*[]string{"ENTRYPOINT": &entrypoint, "CMD": &command} {
		if err := json.Unmarshal([]byte(image[name]), into); err != nil {
			t.Fatalf("%s %s: %v", name, image[name], err)
		}
	}
	root, data := t.TempDir(), t.TempDir()
	if err := os.WriteFile(root+"/postbridge", release(t, top, runtime.GOARCH), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(root+"/data", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(data, 65532, 65532); err != nil {
		t.Fatal(err)
	}
	ingest, admin, bus := freeAddress(t), freeAddress(t), freeAddress(t)
	const enter = `set -e; root=$1 data=$2 user=$3; shift 3
mount --bind "$root" "$root"; mount -o remount,bind,ro "$root"; mount --bind "$data" "$root/data"
exec chroot --userspec="$user" "$root" "$@"`
	cmd := exec.Command("sh", slices.Concat([]string{"-c", enter, "sh", root, data, image["USER"]}, entrypoint,
		command)...)
	if !strings.Contains(image["ENV"], "POSTBRIDGE_ADMIN_LISTEN=:9090") {
		t.Errorf("the admin address is not reached from outside of the container: %s", image["ENV"])
	}
	cmd.Env = append(strings.Fields(image["ENV"]),
		"PATH="+os.Getenv("PATH"), "POSTBRIDGE_KITE_SECRETS=1234=0hdv7iw5examplesecret",
		"POSTBRIDGE_LISTEN="+ingest, "POSTBRIDGE_ADMIN_LISTEN="+admin, "POSTBRIDGE_NATS_LISTEN="+bus)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID, Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}
	runtime.LockOSThread() // Pdeathsig is sent when this thread ends
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		if t.Failed() {
			t.Logf("output:\n%s", &output)
		}
	}()
	wait(t, "ready", func() error { _, err := get("http://" + admin + "/readyz"); return err })
	checkConfined(t, cmd.Process.Pid, root)
	sample, err := os.Open(top + "/deploy/samples/kite.json")
	if err != nil {
		t.Fatal(err)
	}
	defer sample.Close()
	resp, err := http.Post("http://"+ingest+"/kite", "application/json", sample)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("a valid postback is answered %s", resp.Status)
	}
	wait(t, "stored", func() error {
		status, err := get("http://" + admin + "/status")
		if err == nil && !strings.Contains(strings.ReplaceAll(status, " ", ""), `"stored":1`) {
			err = fmt.Errorf("the status is %s", status)
		}
		return err
	})
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
	if written, err := os.ReadDir(root + "/data"); err != nil || len(written) > 0 {
		t.Errorf("%d files were written to the root: %v", len(written), err)
	}
	files, err := filepath.Glob(data + "/spool/*.seg")
	if err != nil || len(files) == 0 {
		t.Errorf("no segment is on the volume: %v", err)
	}
	for _, f := range files {
		st, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		if uid := st.Sys().(*syscall.Stat_t).Uid; uid != 65532 {
			t.Errorf("%s belongs to user %d", f, uid)
		}
	}
}

// checkConfined checks that the process has no capabilities and a read-only root.
func checkConfined(t *testing.T, pid int, root string) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Name:\tpostbridge\n", "Uid:\t65532\t65532\t65532\t65532\n",
		"CapEff:\t0000000000000000\n"} {
		if !bytes.Contains(status, []byte(want)) {
			t.Errorf("the process has no %q in\n%s", want, status)
		}
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		// mountinfo lists the mount namespace of the process, relative to its root.
		if f := strings.Fields(line); f[4] == "/" && !strings.HasPrefix(f[5], "ro,") {
			t.Errorf("the root %s can be written: %s", root, line)
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func get(url string) (string, error) {
	resp, err := http.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %s: %s", url, resp.Status, &b)
	}
	return b.String(), err
}

func wait(t *testing.T, what string, try func() error) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not %s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
