package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// authority is a CA that lasts as long as its test.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	of := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, of, of, key.Public(), key)
	if err != nil {
		return nil, err
	}
	of, err = x509.ParseCertificate(der)
	return &authority{of, key}, err
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.certificate.Raw})
}

// issue makes a certificate of edge.example.com and 127.0.0.1 that is good for so long, and its key.
func (a *authority) issue(serial int64, lasts time.Duration) (certificate, key []byte, err error) {
	secret, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	of := &x509.Certificate{
		SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(lasts),
		DNSNames: []string{"edge.example.com"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, of, a.certificate, secret.Public(), a.key)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(secret)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), err
}

// issuing is a certificate authority with the certificates that it issued.
func issuing(t testing.TB) (a *authority, issue func(serial int64) (certificate, key string)) {
	t.Helper()
	a, err := newAuthority()
	if err != nil {
		t.Fatal(err)
	}
	return a, func(serial int64) (string, string) {
		certificate, key, err := a.issue(serial, 24*time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return string(certificate), string(key)
	}
}

// TestCertificateReload walks the two files through good and bad states; whatever they are, there is a pair to show.
func TestCertificateReload(t *testing.T) {
	_, issue := issuing(t)
	cert1, key1 := issue(1)
	cert2, key2 := issue(2)
	certPath, keyPath := write(t, "tls.crt", strings.TrimSpace(cert1)), write(t, "tls.key", key1)
	synctest.Test(t, func(t *testing.T) {
		c := &config{TLSCertFile: certPath, TLSKeyFile: keyPath}
		credentials, err := readCredentials(c.httpSecrets())
		if err != nil {
			t.Fatal(err)
		}
		log, registry := new(bytes.Buffer), prometheus.NewRegistry()
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		credentials.files.start(ctx, slog.New(slog.NewTextHandler(log, nil)), registry)
		for _, step := range []struct {
			name           string
			do             func()
			serial, ok     int64
			logged, unlike string
		}{
			{"as it was", func() {}, 1, 1, "", "TLS"},
			{"the certificate alone", func() { rewrite(t, certPath, cert2) }, 1, 0,
				"cannot load the certificate and its key", ""},
			{"its key, too", func() { rewrite(t, keyPath, key2) }, 2, 1, "secrets reloaded", ""},
			{"no certificate", func() { rewrite(t, certPath, "s3cret") }, 2, 0,
				"cannot load the certificate and its key", "s3cret"},
			{"the key is gone", func() { _ = os.Remove(keyPath) }, 2, 0, "no such file", ""},
			{"as before", func() { rewrite(t, certPath, cert2); rewrite(t, keyPath, key2) }, 2, 1, "valid again", ""},
		} {
			step.do()
			time.Sleep(pollInterval)
			synctest.Wait()
			shown, err := credentials.serverTLS().GetCertificate(nil)
			if err != nil || shown.Leaf.SerialNumber.Int64() != step.serial {
				t.Errorf("%s: shown is %v, %v; want %d", step.name, shown.Leaf.SerialNumber, err, step.serial)
			}
			families, err := registry.Gather()
			if err != nil {
				t.Fatal(err)
			}
			if got := families[0].GetMetric()[0].GetGauge().GetValue(); int64(got) != step.ok {
				t.Errorf("%s: the metric is %v", step.name, got)
			}
			credentials.files.mu.Lock() // held by who logs
			text := log.String()
			log.Reset()
			credentials.files.mu.Unlock()
			if !strings.Contains(text, step.logged) || step.unlike != "" && strings.Contains(text, step.unlike) ||
				strings.Contains(text, "PRIVATE") {
				t.Errorf("%s: logged %q", step.name, text)
			}
		}
	})
}

// TestServerTLS checks that TLS below 1.2 and protocols other than HTTP/1.1 are rejected.
func TestServerTLS(t *testing.T) {
	a, issue := issuing(t)
	cert, key := issue(1)
	c := &config{TLSCertFile: write(t, "tls.crt", cert), TLSKeyFile: write(t, "tls.key", key)}
	credentials, err := readCredentials(c.httpSecrets())
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", credentials.serverTLS())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.(*tls.Conn).Handshake() // the other side looks at how it ends
			_ = conn.Close()
		}
	}()
	pool := x509.NewCertPool()
	pool.AddCert(a.certificate)
	for _, row := range []struct {
		name    string
		version uint16
		offered []string
		ok      bool
	}{
		{"TLS 1.0", tls.VersionTLS10, nil, false},
		{"TLS 1.1", tls.VersionTLS11, nil, false},
		{"TLS 1.2", tls.VersionTLS12, nil, true},
		{"TLS 1.3", tls.VersionTLS13, []string{"h2", "http/1.1"}, true},
		{"only HTTP/2", tls.VersionTLS13, []string{"h2"}, false},
	} {
		conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{
			RootCAs: pool, NextProtos: row.offered, MinVersion: tls.VersionTLS10, MaxVersion: row.version,
		})
		if (err == nil) != row.ok {
			t.Errorf("%s: %v", row.name, err)
		}
		if err != nil {
			continue
		}
		if s := conn.ConnectionState(); s.Version != row.version || s.NegotiatedProtocol == "h2" {
			t.Errorf("%s: version %x, protocol %q", row.name, s.Version, s.NegotiatedProtocol)
		}
		_ = conn.Close()
	}
	if got, err := testValue(credentials.certificateExpiry()); err != nil ||
		time.Until(time.Unix(int64(got), 0)).Round(time.Hour) != 24*time.Hour {
		t.Errorf("expires at %v, %v", got, err)
	}
}

// testValue is the value of the one metric of a collector.
func testValue(c prometheus.Collector) (float64, error) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil {
		return 0, err
	}
	return families[0].GetMetric()[0].GetGauge().GetValue(), nil
}
