package kafka

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"
)

// authority is a CA of our own.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, cert: &x509.Certificate{
		SerialNumber: big.NewInt(
			time.Now().UnixNano(),
		), Subject: pkix.Name{CommonName: "CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}}
	a.key = newTLSKey(t)
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return a
}

func newTLSKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// issue returns a certificate for name that ends after so long, and its key, in PEM.
func (a *authority) issue(name string, lifetime time.Duration) (cert, key []byte) {
	a.t.Helper()
	k := newTLSKey(a.t)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(lifetime),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, a.cert, k.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		a.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

// server returns the configuration of a server with a certificate of the authority.
func (a *authority) server(lifetime time.Duration) *tls.Config {
	a.t.Helper()
	pair, err := tls.X509KeyPair(a.issue("broker", lifetime))
	if err != nil {
		a.t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
}

// wantCertificates makes the server ask for a certificate of the authority; client returns the name in the last one.
func (a *authority) wantCertificates(c *tls.Config) (client func() string) {
	var last atomic.Value
	c.ClientCAs = x509.NewCertPool()
	c.ClientCAs.AddCert(a.cert)
	c.ClientAuth = tls.RequireAndVerifyClientCert
	c.VerifyConnection = func(s tls.ConnectionState) error {
		last.Store(s.PeerCertificates[0].Subject.CommonName)
		return nil
	}
	return func() string { return last.Load().(string) }
}

// replace writes a file as a mounted secret changes: at once.
func replace(t *testing.T, file string, content []byte) {
	t.Helper()
	if err := os.WriteFile(file+".new", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// caFile is a file with the authority's certificate.
func (a *authority) caFile() string {
	a.t.Helper()
	file := filepath.Join(a.t.TempDir(), "ca.pem")
	replace(a.t, file, a.pem)
	return file
}

func startTLSKfake(t *testing.T, config *tls.Config) net.Addr {
	t.Helper()
	return kafkago.TCP(startKfake(t, kfake.NumBrokers(1), kfake.TLS(config)).ListenAddrs()...)
}

func TestTLSCARotated(t *testing.T) {
	t.Parallel()
	before, after := newAuthority(t), newAuthority(t)
	var current atomic.Pointer[tls.Config]
	current.Store(before.server(time.Hour))
	addr := startTLSKfake(
		t,
		&tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return current.Load(), nil
		}},
	)
	cfg := Config{TLSCAFile: filepath.Join(t.TempDir(), "ca.pem")}
	tr := openTransport(t, cfg)
	fails(t, tr, addr, "TLS files: ", "ca.pem")
	replace(t, cfg.TLSCAFile, before.pem)
	mustAsk(t, tr, addr)

	current.Store(after.server(time.Hour))
	mustAsk(t, tr, addr) // the connection is there
	tr.renew()
	fails(t, tr, addr, "Kafka broker "+addr.String()+": TLS handshake: tls: failed to verify certificate: x509: ",
		"unknown authority")
	replace(t, cfg.TLSCAFile, after.pem)
	if !tr.certificates.Changed() {
		t.Error("a new CA is no change")
	}
	mustAsk(t, tr, addr)
	replace(t, cfg.TLSCAFile, []byte("broken")) // leaves the last one
	tr.renew()
	mustAsk(t, tr, addr)
}

func TestTLSClientCertificate(t *testing.T) {
	t.Parallel()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			t.Parallel()
			ca := newAuthority(t)
			config := ca.server(time.Hour)
			config.MaxVersion = version
			client := ca.wantCertificates(config)
			addr := startTLSKfake(t, config)
			cfg := Config{TLSCAFile: ca.caFile()}

			fails(t, openTransport(t, cfg), addr, ": remote error: tls: ")

			cfg.TLSCertFile, cfg.TLSKeyFile = filepath.Join(
				t.TempDir(),
				"cert.pem",
			), filepath.Join(
				t.TempDir(),
				"key.pem",
			)
			cert, key := newAuthority(t).issue("stranger", time.Hour)
			replace(t, cfg.TLSCertFile, cert)
			replace(t, cfg.TLSKeyFile, key)
			tr := openTransport(t, cfg)
			fails(t, tr, addr, ": remote error: tls: ")

			for _, name := range []string{"one", "two"} {
				cert, key := ca.issue(name, time.Hour)
				replace(t, cfg.TLSCertFile, cert)
				replace(t, cfg.TLSKeyFile, key)
				tr.renew()
				mustAsk(t, tr, addr)
				if client() != name {
					t.Errorf("%s, want %s", client(), name)
				}
			}
		})
	}
}

func TestTLSLogin(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	cluster := startKfake(
		t,
		kfake.NumBrokers(1),
		kfake.TLS(ca.server(time.Hour)),
		kfake.EnableSASL(),
		kfake.Superuser(mechanismScram512, "edge", "secret"),
	)
	cfg := Config{
		Brokers: cluster.ListenAddrs(), TLS: true, TLSCAFile: ca.caFile(),
		SASLMechanism: mechanismScram512, User: "edge", Password: constant("secret"),
	}
	client, end := NewClient(cfg)
	defer end()
	if _, err := client.Metadata(t.Context(), &kafkago.MetadataRequest{}); err != nil {
		t.Error(err)
	}
	cfg.Password = constant("wrong")
	fails(t, openTransport(t, cfg), kafkago.TCP(cfg.Brokers...), "login of user")
}

func TestTLSErrors(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	addr := startTLSKfake(t, ca.server(time.Hour))
	_, port, err := net.SplitHostPort(addr.String())
	if err != nil {
		t.Fatal(err)
	}
	file := ca.caFile()
	cases := map[string]struct {
		addr   net.Addr
		config Config
		want   string
	}{
		"the system's authorities": {addr, Config{TLS: true}, "unknown authority"},
		"another name": {kafkago.TCP("localhost:" + port), Config{TLSCAFile: file},
			"x509: certificate is not valid for any names, but wanted to match localhost"},
		"expired": {startTLSKfake(t, ca.server(-time.Minute)), Config{TLSCAFile: file},
			`x509: certificate has expired or is not yet valid: that of "broker" is valid from `},
		"plain to TLS": {
			addr,
			Config{},
			" ApiVersions: the broker closed the connection",
		},
		"closes on TLS": {
			startRaw(t, func(conn net.Conn) { io.ReadFull(conn, make([]byte, 4)) }).addr,
			Config{TLS: true},
			" TLS handshake: the broker closed the connection",
		},
		"answers in plain": {startRaw(t, func(conn net.Conn) {
			io.ReadFull(conn, make([]byte, 4))
			io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\n\r\n")
			io.Copy(io.Discard, conn)
		}).addr, Config{TLS: true}, " TLS handshake: tls: first record does not look like a TLS handshake"},
	}
	for name, test := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr := openTransport(t, test.config)
			err := fails(t, tr, test.addr, "Kafka broker "+test.addr.String()+": ", test.want)
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("%v", err)
			}
		})
	}
}
