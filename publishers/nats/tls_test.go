package nats_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"

	"github.com/postbridge/postbridge/publishers"
	"github.com/postbridge/postbridge/publishers/nats"
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

// issue returns a certificate for name, and its key, in PEM.
func (a *authority) issue(name string) (cert, key []byte) {
	a.t.Helper()
	k := newTLSKey(a.t)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
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

// serverTLS makes the server ask for a certificate of the authority.
func (a *authority) serverTLS(o *server.Options) {
	a.t.Helper()
	cert, key := a.issue("server")
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		a.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	o.TLS, o.TLSVerify, o.TLSTimeout = true, true, 5
	o.TLSConfig = &tls.Config{
		Certificates: []tls.Certificate{
			pair,
		}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12,
	}
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

// client is the name in the certificate of the publisher that is connected, "" without one.
func (n *node) client(t *testing.T) string {
	t.Helper()
	z, err := n.server.Connz(&server.ConnzOptions{Username: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range z.Conns {
		for _, cert := range c.TLSPeerCerts {
			return cert.Subject
		}
	}
	return ""
}

func TestTLSRotated(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	n := startServer(t, ca.serverTLS)
	dir := t.TempDir()
	caFile, certFile, keyFile := filepath.Join(
		dir,
		"ca.pem",
	), filepath.Join(
		dir,
		"cert.pem",
	), filepath.Join(
		dir,
		"key.pem",
	)
	e := openEdge(t, nats.Config{
		URL: n.url(), CreateStreams: true, TLSCAFile: caFile, TLSCertFile: certFile, TLSKeyFile: keyFile,
	})
	isClient := func(name string) {
		t.Helper()
		eventually(
			t,
			"connection of "+name,
			func() bool { return n.client(t) == "CN="+name },
			func() any { return e.all() },
		)
	}

	// Not there yet: an outage.
	held := e.offer(order(1))
	e.waitCause("certificate", "ca.pem")
	e.waitCause("certificate", ": correct the file")
	cert, key := ca.issue("one")
	replace(t, caFile, ca.pem)
	replace(t, certFile, cert)
	replace(t, keyFile, key)
	if err := e.wait(held); err != nil {
		t.Error(err)
	}
	e.waitNoCauses()
	isClient("one")

	// The connection is renewed when the pair changes, but not before the pair is whole.
	cert, key = ca.issue("two")
	replace(t, certFile, cert)
	e.waitCause("certificate", "cert.pem")
	e.publish(order(2))
	isClient("one")
	replace(t, keyFile, key)
	isClient("two")
	e.publish(order(3))
	e.waitNoCauses()

	// A broken file leaves the last good pair in force, also for a connection that is made anew.
	replace(t, certFile, []byte("broken"))
	e.waitCause("certificate", "cert.pem")
	n.stop()
	e.waitCause("connection", "127.0.0.1")
	n.start(t)
	e.publish(order(4))
	isClient("two")
}

func TestTLSUnknownAuthority(t *testing.T) {
	t.Parallel()
	n := startServer(t, newAuthority(t).serverTLS)
	file := filepath.Join(t.TempDir(), "ca.pem")
	replace(t, file, newAuthority(t).pem)
	e := openEdge(t, nats.Config{URL: n.url(), TLSCAFile: file})
	e.waitCause("connection", "unknown authority")
}

// tlsFiles writes the files of a client of the authority into the configuration.
func (a *authority) tlsFiles(cfg *nats.Config) {
	a.t.Helper()
	dir := a.t.TempDir()
	cfg.TLSCAFile = filepath.Join(dir, "ca.pem")
	cfg.TLSCertFile, cfg.TLSKeyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	cert, key := a.issue("edge")
	replace(a.t, cfg.TLSCAFile, a.pem)
	replace(a.t, cfg.TLSCertFile, cert)
	replace(a.t, cfg.TLSKeyFile, key)
}

// TestTLSFirst: a server with handshake_first sends nothing before the handshake, and one without it no handshake. The
// condition names the setting in both cases.
func TestTLSFirst(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	first := startServer(t, func(o *server.Options) {
		ca.serverTLS(o)
		o.TLSHandshakeFirst = true
	})
	cfg := nats.Config{URL: first.url(), CreateStreams: true}
	ca.tlsFiles(&cfg)
	wantResult(t, checkBus(t, cfg), publishers.Fail, "cannot be reached", "i/o timeout",
		"handshake_first, set POSTBRIDGE_NATS_TLS_FIRST=true")
	cfg.TLSFirst = true
	openEdge(t, cfg).publish(order(1))
	wantResult(t, checkBus(t, cfg), publishers.OK, "can be reached")

	cfg.URL = startServer(t, ca.serverTLS).url()
	openEdge(t, cfg).waitCause("connection", "without handshake_first; unset POSTBRIDGE_NATS_TLS_FIRST")
}

// TestTLSFirstForgotten: the publisher names the setting, too, when its dial timed out.
func TestTLSFirstForgotten(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for a timeout")
	}
	t.Parallel()
	ca := newAuthority(t)
	n := startServer(t, func(o *server.Options) {
		ca.serverTLS(o)
		o.TLSHandshakeFirst = true
	})
	cfg := nats.Config{URL: n.url()}
	ca.tlsFiles(&cfg)
	openEdge(t, cfg).waitCause("connection", "set POSTBRIDGE_NATS_TLS_FIRST=true")
}

// TestWebSocket: over a WebSocket, with and without TLS.
func TestWebSocket(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	var tlsOptions server.Options
	ca.serverTLS(&tlsOptions)
	for scheme, config := range map[string]*tls.Config{"ws": nil, "wss": tlsOptions.TLSConfig} {
		port := freePort(t)
		n := startServer(t, func(o *server.Options) {
			o.Websocket = server.WebsocketOpts{Host: "127.0.0.1", Port: port, TLSConfig: config, NoTLS: config == nil}
		})
		cfg := nats.Config{URL: fmt.Sprintf("%s://127.0.0.1:%d", scheme, port), CreateStreams: true}
		if config != nil {
			ca.tlsFiles(&cfg)
		}
		e := openEdge(t, cfg)
		e.publish(order(1))
		e.waitNoCauses()
		wantStored(t, n.admin(t), "ORDERS", 1)
		wantResult(t, checkBus(t, cfg), publishers.OK, "can be reached")
		n.stop()
		e.waitCause("connection", "127.0.0.1")
		n.start(t)
		e.publish(order(2))
	}
}

// Another client gets in by the same configuration as the publisher.
func TestConnectOptions(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	n := startServer(t, func(o *server.Options) {
		ca.serverTLS(o)
		o.Username, o.Password = "edge", "secret"
	})
	cfg := nats.Config{
		URL: n.url(), User: "edge", Password: func() string { return "secret" }, CreateStreams: true,
	}
	ca.tlsFiles(&cfg)
	openEdge(t, cfg).publish(order(1))
	nc, err := natsgo.Connect(cfg.URL, nats.ConnectOptions(cfg)...)
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	cfg.Password = func() string { return "wrong" }
	if _, err := natsgo.Connect(cfg.URL, nats.ConnectOptions(cfg)...); !errors.Is(err, natsgo.ErrAuthorization) {
		t.Errorf("%v", err)
	}
}
