package nats

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"sync"

	natsgo "github.com/nats-io/nats.go"
)

// certificates are the TLS files as they were when they last loaded as a whole.
type certificates struct {
	files  [3]string // CA, certificate, key; "" for one that is not configured
	report func(error)

	mu sync.Mutex
	// Guarded by mu.
	loaded  bool
	content [3][]byte
	pool    *x509.CertPool
	pair    tls.Certificate
}

// newCertificates returns nil if no files are configured.
func newCertificates(cfg Config, report func(error)) *certificates {
	if cfg.TLSCAFile == "" && cfg.TLSCertFile == "" {
		return nil
	}
	return &certificates{files: [3]string{cfg.TLSCAFile, cfg.TLSCertFile, cfg.TLSKeyFile}, report: report}
}

// option makes the library ask for the files at each dial. It asks with its own lock held.
func (c *certificates) option(o *natsgo.Options) error {
	o.Secure = true
	o.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	if c.files[0] != "" {
		o.RootCAsCB = func() (*x509.CertPool, error) {
			pool, _, err := c.current()
			return pool, err
		}
	}
	if c.files[1] != "" {
		o.TLSCertCB = func() (tls.Certificate, error) {
			_, pair, err := c.current()
			return pair, err
		}
	}
	return nil
}

// current returns what to connect with; the error is that there is nothing yet.
func (c *certificates) current() (*x509.CertPool, tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.load()
	if c.loaded {
		err = nil
	}
	return c.pool, c.pair, err
}

// changed loads the files if they changed, and reports whether there is something new to connect with.
func (c *certificates) changed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	fresh, _ := c.load()
	return fresh
}

// load reads the files, and reports whether they are new. Files that do not load leave the last that did. Guarded by
// mu.
func (c *certificates) load() (fresh bool, err error) {
	content, err := c.read()
	if err == nil && !c.same(content) {
		err = c.parse(content)
		fresh = err == nil
	}
	c.report(err)
	return fresh, err
}

func (c *certificates) read() (content [3][]byte, err error) {
	for i, file := range c.files {
		if file == "" {
			continue
		}
		if content[i], err = os.ReadFile(file); err != nil {
			return content, err
		}
	}
	return content, nil
}

func (c *certificates) same(content [3][]byte) bool {
	if !c.loaded {
		return false
	}
	for i := range content {
		if !bytes.Equal(content[i], c.content[i]) {
			return false
		}
	}
	return true
}

// parse takes the content over if all of it is right. A certificate and a key that are replaced one after the other do
// not match for a moment.
func (c *certificates) parse(content [3][]byte) error {
	var pool *x509.CertPool
	var pair tls.Certificate
	var err error
	if c.files[0] != "" {
		pool = x509.NewCertPool()
		if !pool.AppendCertsFromPEM(content[0]) {
			return fmt.Errorf("%s: no PEM certificate in it", c.files[0])
		}
	}
	if c.files[1] != "" {
		if pair, err = tls.X509KeyPair(content[1], content[2]); err != nil {
			return fmt.Errorf("%s, %s: %w", c.files[1], c.files[2], err)
		}
	}
	c.loaded, c.content, c.pool, c.pair = true, content, pool, pair
	return nil
}
