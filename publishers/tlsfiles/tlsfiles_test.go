package tlsfiles_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postbridge/postbridge/publishers/tlsfiles"
)

// newPair returns a certificate that signs itself, and its key, in PEM.
func newPair(t *testing.T) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

func write(t *testing.T, file string, content []byte) {
	t.Helper()
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestNone(t *testing.T) {
	t.Parallel()
	if tlsfiles.New("", "", "", nil) != nil {
		t.Error("files that are not configured")
	}
}

// A pair that is replaced one file after the other, or wrongly, leaves the last good one in force, and is reported.
func TestRotated(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca, cert, key := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	var reported error
	f := tlsfiles.New(ca, cert, key, func(err error) { reported = err })
	inForce := func(want []byte) {
		t.Helper()
		pool, pair, err := f.Current()
		if err != nil || pool == nil {
			t.Fatalf("%v, %v", pool, err)
		}
		if got := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]}); string(
			got,
		) != string(
			want,
		) {
			t.Error("another certificate")
		}
	}
	wrong := func(name string) {
		t.Helper()
		if f.Changed() {
			t.Error("changed")
		}
		if reported == nil || !strings.Contains(reported.Error(), name) {
			t.Errorf("reported %v, want %s", reported, name)
		}
	}

	if _, _, err := f.Current(); err == nil {
		t.Error("there is nothing yet")
	}
	wrong("ca.pem")
	oneCert, oneKey := newPair(t)
	write(t, ca, oneCert)
	write(t, cert, oneCert)
	wrong("key.pem")
	write(t, key, oneKey)
	if !f.Changed() || reported != nil || f.Changed() {
		t.Errorf("reported %v", reported)
	}
	inForce(oneCert)

	twoCert, twoKey := newPair(t)
	write(t, cert, twoCert)
	wrong("cert.pem")
	inForce(oneCert)
	write(t, key, twoKey)
	if !f.Changed() || reported != nil {
		t.Errorf("reported %v", reported)
	}
	inForce(twoCert)

	write(t, ca, []byte("broken"))
	wrong("ca.pem: no PEM certificate in it")
	inForce(twoCert)
	if err := os.Remove(ca); err != nil {
		t.Fatal(err)
	}
	wrong("ca.pem")
	inForce(twoCert)
}

func TestPartly(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca, cert, key := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	certPEM, keyPEM := newPair(t)
	write(t, ca, certPEM)
	write(t, cert, certPEM)
	write(t, key, keyPEM)
	report := func(error) {}

	f := tlsfiles.New(ca, "", "", report)
	if pool, pair, err := f.Current(); pool == nil || pair.Certificate != nil || err != nil || f.HasPair() {
		t.Errorf("%v, %v, %v", pool, pair, err)
	}
	f = tlsfiles.New("", cert, key, report)
	pool, pair, err := f.Current()
	if pool != nil || len(pair.Certificate) != 1 || err != nil || !f.HasPair() {
		t.Errorf("%v, %v, %v", pool, pair, err)
	}
}
