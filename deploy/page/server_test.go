package page

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const top = "../.." // of the repository

const (
	appID     = 1234
	appSecret = "0hdv7iw5examplesecret"
	dhanToken = "a-token-that-nobody-is-shown"
)

// build makes the program, once.
var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "page-test-")
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "postbridge")
	cmd := exec.Command("go", "build", "-ldflags", "-X main.version=v0.1.0", "-o", out, "./cmd/postbridge")
	cmd.Dir = top
	if output, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, output)
	}
	return out, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := build(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// server is a postbridge that may be ended and started again.
type server struct {
	t       *testing.T
	environ map[string]string
	ingest  string // base URLs
	admin   string
	bus     string // of the embedded server

	cmd *exec.Cmd // nil if it does not run
}

// serve starts a postbridge with these settings beside its own, which ends with the test.
func serve(t *testing.T, settings map[string]string) *server {
	t.Helper()
	findChromium(t) // before anything is started for it
	s := &server{t: t, environ: map[string]string{
		"KITE_SECRETS": fmt.Sprintf("%d=%s", appID, appSecret), "DHAN_TOKENS": dhanToken, "DATA_DIR": t.TempDir(),
		"LISTEN": freeAddress(t), "ADMIN_LISTEN": freeAddress(t), "NATS_LISTEN": freeAddress(t),
	}}
	maps.Copy(s.environ, settings)
	s.ingest, s.admin, s.bus = "http://"+s.environ["LISTEN"], "http://"+s.environ["ADMIN_LISTEN"],
		"nats://"+s.environ["NATS_LISTEN"]
	s.start()
	t.Cleanup(s.kill)
	return s
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

// start runs it until kill, and waits until it is ready.
func (s *server) start() {
	s.t.Helper()
	s.cmd = s.command("serve")
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		resp, err := http.Get(s.admin + "/readyz")
		if err != nil {
			continue
		}
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			return
		}
	}
	s.t.Fatalf("postbridge is not ready:\n%s", s.cmd.Stderr)
}

func (s *server) kill() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

func (s *server) command(args ...string) *exec.Cmd {
	s.t.Helper()
	program, err := build()
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(program, args...)
	cmd.Env = []string{}
	for name, value := range s.environ {
		cmd.Env = append(cmd.Env, "POSTBRIDGE_"+name+"="+value)
	}
	cmd.Stderr = new(bytes.Buffer)
	return cmd
}

// send runs postbridge send against it, until the test ends.
func (s *server) send(args ...string) {
	s.t.Helper()
	cmd := s.command(append([]string{"send", "--tolerate"}, args...)...)
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

// post posts a genuine Kite postback with these fields.
func (s *server) post(fields map[string]any) {
	s.t.Helper()
	body := map[string]any{"app_id": appID, "user_id": "AB1234", "order_timestamp": "2026-01-02 10:00:00",
		"quantity": 10}
	maps.Copy(body, fields)
	body["checksum"] = fmt.Sprintf("%x",
		sha256.Sum256(fmt.Append(nil, body["order_id"], body["order_timestamp"], appSecret)))
	text, err := json.Marshal(body)
	if err != nil {
		s.t.Fatal(err)
	}
	if status := s.postText("/kite", string(text)); status != http.StatusOK {
		s.t.Fatalf("%s is answered %d", text, status)
	}
}

func (s *server) postText(path, body string) (status int) {
	s.t.Helper()
	resp, err := http.Post(s.ingest+path, "application/json", strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}
