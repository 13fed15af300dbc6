package main

import (
	"crypto/tls"

	"github.com/prometheus/client_golang/prometheus"
)

// serverTLS shows brokers the certificate in force. A connection keeps the one that it began with.
func (c *credentials) serverTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return c.certificate.Load(), nil // there is one since the start
		},
	}
}

// certificateExpiry is when brokers will no longer take the certificate in force.
func (c *credentials) certificateExpiry() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "postbridge_tls_certificate_expiry_timestamp_seconds",
		Help: "When the certificate that brokers are shown expires, in Unix time.",
	}, func() float64 { return float64(c.certificate.Load().Leaf.NotAfter.Unix()) })
}
