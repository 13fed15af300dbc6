// Package tlsfiles reloads a CA and a client certificate when their files change, for any bus.
package tlsfiles

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"sync"
)

// Files holds the TLS files as last loaded without an error. It is safe for concurrent use.
type Files struct {
	files  [3]string // CA, certificate, key; "" for one that is not configured
	report func(error)

	mu sync.Mutex
	// Guarded by mu.
	loaded  bool
	content [3]string
	pool    *x509.CertPool
	pair    tls.Certificate
}

// New returns the PEM files with these names; nil if there are none. Any may be "", cert and key only together.
// After each load report is called with its error or nil; it must not call back.
func New(ca, cert, key string, report func(error)) *Files {
	if ca == "" && cert == "" {
		return nil
	}
	return &Files{files: [3]string{ca, cert, key}, report: report}
}

// HasPair reports whether there is a client certificate.
func (f *Files) HasPair() bool { return f.files[1] != "" }

// Current reads the files and returns the CA and the certificate; nil and zero if not configured. If the files do
// not load it returns the last that did, and an error only if there are none.
func (f *Files) Current() (*x509.CertPool, tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err := f.load()
	if f.loaded {
		err = nil
	}
	return f.pool, f.pair, err
}

// Changed loads the files, and reports whether they changed and loaded without an error.
func (f *Files) Changed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	changed, _ := f.load()
	return changed
}

// load reads the files, and reports whether they changed. On an error the last loaded files stay. Needs mu.
func (f *Files) load() (changed bool, err error) {
	defer func() { f.report(err) }()
	var content [3]string
	for i, file := range f.files {
		if file == "" {
			continue
		}
		b, err := os.ReadFile(file)
		if err != nil {
			return false, err
		}
		content[i] = string(b)
	}
	if f.loaded && content == f.content {
		return false, nil
	}
	err = f.parse(content)
	return err == nil, err
}

// parse replaces the loaded files if all of them are valid. A certificate and a key that are replaced one after the
// other do not match in between.
func (f *Files) parse(content [3]string) (err error) {
	var pool *x509.CertPool
	var pair tls.Certificate
	if f.files[0] != "" {
		pool = x509.NewCertPool()
		if !pool.AppendCertsFromPEM([]byte(content[0])) {
			return fmt.Errorf("%s: no PEM certificate in it", f.files[0])
		}
	}
	if f.HasPair() {
		if pair, err = tls.X509KeyPair([]byte(content[1]), []byte(content[2])); err != nil {
			return fmt.Errorf("%s, %s: %w", f.files[1], f.files[2], err)
		}
	}
	f.loaded, f.content, f.pool, f.pair = true, content, pool, pair
	return nil
}
