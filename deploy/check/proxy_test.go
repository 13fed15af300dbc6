package check

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// pathToken is in the requests of the tests, and must not be in the log of a proxy.
const pathToken = "3f9c1e"

// TestNginx runs nginx with proxy/nginx.conf.
func TestNginx(t *testing.T) {
	program, err := exec.LookPath("nginx")
	if err != nil {
		t.Skip("no nginx is installed")
	}
	p := newProxy(t)
	conf := p.adapt(t, "proxy/nginx.conf",
		"listen 443 ssl", "listen "+p.address+" ssl", "/etc/ssl/postbacks.pem", p.file("cert.pem"),
		"/etc/ssl/postbacks.key", p.file("key.pem"), "/var/log/nginx/postbacks.log", p.file("access.log"))
	var temp strings.Builder
	for _, name := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&temp, "%s_temp_path %s;\n", name, p.file(name))
	}
	write(t, p.dir, "main.conf", fmt.Sprintf("daemon off; master_process off; pid %s; error_log stderr;\nevents {}\n"+
		"http {\n%s%s}\n", p.file("pid"), &temp, conf))
	p.check(t, program, "-p", p.dir, "-e", "stderr", "-c", p.file("main.conf"))
}

// TestCaddy runs Caddy with proxy/Caddyfile.
func TestCaddy(t *testing.T) {
	program, err := exec.LookPath("caddy")
	if err != nil {
		t.Skip("no Caddy is installed")
	}
	p := newProxy(t)
	write(t, p.dir, "Caddyfile", p.adapt(t, "proxy/Caddyfile",
		"{\n\tlog {", "{\n\tadmin off\n\tauto_https off\n\tlog {",
		"postbacks.example.com {",
		fmt.Sprintf("https://%s {\n\ttls %s %s", p.address, p.file("cert.pem"), p.file("key.pem"))))
	p.check(t, program, "run", "--config", p.file("Caddyfile"))
}

// proxy is a proxy in front of a server that answers 202 to everything.
type proxy struct {
	dir, address string
	upstream     *httptest.Server
	client       *http.Client
}

func newProxy(t *testing.T) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := &proxy{dir: t.TempDir(), address: l.Addr().String(), upstream: httptest.NewServer(http.HandlerFunc(
		func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) }))}
	t.Cleanup(p.upstream.Close)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, p.dir, "cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})))
	write(t, p.dir, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(readFile(t, p.file("cert.pem"))))
	p.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	return p
}

func (p *proxy) file(name string) string { return filepath.Join(p.dir, name) }

// adapt returns a configuration with the addresses and files of the test. Each text that it replaces occurs once.
func (p *proxy) adapt(t *testing.T, name string, replace ...string) string {
	t.Helper()
	text := read(t, name)
	replace = append(replace, "127.0.0.1:8080", p.upstream.Listener.Addr().String())
	for i := 0; i < len(replace); i += 2 {
		if strings.Count(text, replace[i]) != 1 {
			t.Fatalf("%s has %q %d times", name, replace[i], strings.Count(text, replace[i]))
		}
		text = strings.Replace(text, replace[i], replace[i+1], 1)
	}
	return text
}

// check runs the proxy: it passes on the routes of brokers and nothing else, and no token is in its log, also if
// postbridge is down.
func (p *proxy) check(t *testing.T, program string, args ...string) {
	t.Helper()
	var output bytes.Buffer
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.Env = []string{"HOME=" + p.dir}
	cmd.Dir = p.dir
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	p.await(t, ended, &output)
	for _, path := range []string{
		"/kite", "/kite/" + pathToken, "/dhan/" + pathToken, "/dhan?token=" + pathToken, "/upstox/" + pathToken,
		"/fyers/" + pathToken,
	} {
		p.request(t, http.MethodPost, path, http.StatusAccepted)
	}
	p.request(t, http.MethodGet, "/fyers/"+pathToken, http.StatusAccepted)
	p.request(t, http.MethodHead, "/fyers/"+pathToken, http.StatusAccepted)
	for _, path := range []string{"/", "/metrics", "/status", "/livez", "/page/data", "/kitex/" + pathToken, "/x/kite"} {
		p.request(t, http.MethodGet, path, http.StatusNotFound)
	}
	p.upstream.Close()
	p.request(t, http.MethodPost, "/kite/"+pathToken, http.StatusBadGateway)
	p.request(t, http.MethodGet, "/", http.StatusNotFound) // on the same connection: the one before is in the log then
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-ended
	log := output.String()
	if access, err := os.ReadFile(p.file("access.log")); err == nil {
		log += string(access)
	}
	if !strings.Contains(log, "502") || strings.Contains(log, pathToken) {
		t.Errorf("the log has no status, or a token:\n%s", log)
	}
}

// await waits until the proxy listens.
func (p *proxy) await(t *testing.T, ended <-chan error, output *bytes.Buffer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for ctx.Err() == nil {
		select {
		case err := <-ended:
			t.Fatalf("%v\n%s", err, output)
		case <-time.After(20 * time.Millisecond):
		}
		if c, err := net.Dial("tcp", p.address); err == nil {
			_ = c.Close()
			return
		}
	}
	t.Fatal("the proxy does not listen")
}

func (p *proxy) request(t *testing.T, method, path string, want int) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "https://"+p.address+path, strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := p.client.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	_, _ = io.Copy(io.Discard, resp.Body) // for the next request to use the connection
	_ = resp.Body.Close()
	if resp.StatusCode != want {
		t.Errorf("%s %s: answered %d, want %d", method, path, resp.StatusCode, want)
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
