package main

import (
	"crypto/tls"

	"github.com/prometheus/client_golang/prometheus"
)

// serverTLS returns the TLS configuration for brokers. Each handshake uses the current certificate.
func (c *credentials) serverTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return c.certificate.Load(), nil // set since the start
		},
	}
}

// certificateExpiry returns the metric of the current certificate's expiry.
func (c *credentials) certificateExpiry() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "postbridge_tls_certificate_expiry_timestamp_seconds",
		Help: "Expiry of the certificate for brokers, in Unix time.",
	}, func() float64 { return float64(c.certificate.Load().Leaf.NotAfter.Unix()) })
}
