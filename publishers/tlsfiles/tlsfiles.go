// Package tlsfiles keeps a CA and a client certificate as their files are now, for any bus.
package tlsfiles

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"sync"
)

// Files are the TLS files as they were when they last loaded as a whole.
type Files struct {
	files  [3]string // CA, certificate, key; "" for one that is not configured
	report func(error)

	mu sync.Mutex
	// Guarded by mu.
	loaded  bool
	content [3][]byte
	pool    *x509.CertPool
	pair    tls.Certificate
}

// New returns the files in PEM with these names; nil if there are none. Any may be "", cert and key only together. report
// is told after each look at them what is wrong with them, or nil; it must not call back.
func New(ca, cert, key string, report func(error)) *Files {
	if ca == "" && cert == "" {
		return nil
	}
	return &Files{files: [3]string{ca, cert, key}, report: report}
}

// HasCA reports whether there is a CA to trust instead of the system's.
func (f *Files) HasCA() bool { return f.files[0] != "" }

// HasPair reports whether there is a certificate to show.
func (f *Files) HasPair() bool { return f.files[1] != "" }

// Current returns what to connect with, read again; nil and zero for what is not configured. The error is that there is
// nothing yet.
func (f *Files) Current() (*x509.CertPool, tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err := f.load()
	if f.loaded {
		err = nil
	}
	return f.pool, f.pair, err
}

// Changed loads the files if they changed, and reports whether there is something new to connect with.
func (f *Files) Changed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	fresh, _ := f.load()
	return fresh
}

// load reads the files, and reports whether they are new. Files that do not load leave the last that did. Guarded by
// mu.
func (f *Files) load() (fresh bool, err error) {
	content, err := f.read()
	if err == nil && !f.same(content) {
		err = f.parse(content)
		fresh = err == nil
	}
	f.report(err)
	return fresh, err
}

func (f *Files) read() (content [3][]byte, err error) {
	for i, file := range f.files {
		if file == "" {
			continue
		}
		if content[i], err = os.ReadFile(file); err != nil {
			return content, err
		}
	}
	return content, nil
}

func (f *Files) same(content [3][]byte) bool {
	if !f.loaded {
		return false
	}
	for i := range content {
		if !bytes.Equal(content[i], f.content[i]) {
			return false
		}
	}
	return true
}

// parse takes the content over if all of it is right. A certificate and a key that are replaced one after the other do
// not match for a moment.
func (f *Files) parse(content [3][]byte) error {
	var pool *x509.CertPool
	var pair tls.Certificate
	var err error
	if f.HasCA() {
		pool = x509.NewCertPool()
		if !pool.AppendCertsFromPEM(content[0]) {
			return fmt.Errorf("%s: no PEM certificate in it", f.files[0])
		}
	}
	if f.HasPair() {
		if pair, err = tls.X509KeyPair(content[1], content[2]); err != nil {
			return fmt.Errorf("%s, %s: %w", f.files[1], f.files[2], err)
		}
	}
	f.loaded, f.content, f.pool, f.pair = true, content, pool, pair
	return nil
}
