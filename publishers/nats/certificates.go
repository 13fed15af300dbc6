package nats

import (
	"crypto/tls"
	"crypto/x509"

	natsgo "github.com/nats-io/nats.go"

	"github.com/postbridge/postbridge/publishers/tlsfiles"
)

// newCertificates returns the configured TLS files; nil if there are none.
func newCertificates(cfg Config, report func(error)) *tlsfiles.Files {
	return tlsfiles.New(cfg.TLSCAFile, cfg.TLSCertFile, cfg.TLSKeyFile, report)
}

// withCertificates makes the library read the files at each dial, with its own lock held.
func withCertificates(files *tlsfiles.Files) natsgo.Option {
	return func(o *natsgo.Options) error {
		o.Secure = true
		o.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12}
		if files.HasCA() {
			o.RootCAsCB = func() (*x509.CertPool, error) {
				pool, _, err := files.Current()
				return pool, err
			}
		}
		if files.HasPair() {
			o.TLSCertCB = func() (tls.Certificate, error) {
				_, pair, err := files.Current()
				return pair, err
			}
		}
		return nil
	}
}
