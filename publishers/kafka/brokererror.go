package kafka

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

// brokerError is a failure at one broker: what was tried, why it failed, and which settings to check. Its text is the
// same at every attempt, so that an outage is logged once.
type brokerError struct {
	broker string // address
	op     string // the request, or the step of the handshake
	cause  error
	check  string // settings; may be empty
	login  bool   // the broker was reached, but does not accept who we are or how we log in
}

// Error never holds a password.
func (e *brokerError) Error() string {
	text := "Kafka broker " + e.broker + ": " + e.op + ": " + reason(e.cause)
	if e.check != "" {
		text += "; check " + e.check
	}
	return text
}

// Unwrap returns the cause.
func (e *brokerError) Unwrap() error { return e.cause }

// loginError reports whether err is that a broker was reached, but does not accept who we are or how we log in.
func loginError(err error) bool {
	var e *brokerError
	return errors.As(err, &e) && e.login
}

// failed returns the error of an operation. If ctx ended, that is the cause: it closes the connection.
func (c *connection) failed(ctx context.Context, op string, err error, check string) *brokerError {
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return &brokerError{broker: c.address, op: op, cause: err, check: check}
}

// tlsFailed returns the error of a step that fails if one side expects TLS and the other does not, or one does not
// accept the certificate of the other.
func (c *connection) tlsFailed(ctx context.Context, op string, err error) *brokerError {
	e := c.failed(ctx, op, err, "POSTBRIDGE_KAFKA_TLS and the port")
	var (
		alert      *net.OpError
		unverified *tls.CertificateVerificationError
		otherName  x509.HostnameError
	)
	switch {
	case errors.As(err, &otherName):
		e.check = "POSTBRIDGE_KAFKA_BROKERS and the broker's advertised.listeners"
	case errors.As(err, &unverified):
		e.check = "POSTBRIDGE_KAFKA_TLS_CA_FILE"
	case errors.As(err, &alert) && alert.Op == "remote error":
		e.check = "POSTBRIDGE_KAFKA_TLS_CERT_FILE and POSTBRIDGE_KAFKA_TLS_KEY_FILE"
		e.login = strings.Contains(err.Error(), "certificate") // TLS 1.2 has only "handshake failure" for a missing one
	}
	return e
}

// reason is the text of err without what differs from attempt to attempt: the local port, the time.
func reason(err error) string {
	var (
		dns     *net.DNSError
		timeout net.Error
		expired x509.CertificateInvalidError
		call    *os.SyscallError
		op      *net.OpError
	)
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return "lookup " + dns.Name + ": no such host"
	case errors.As(err, &dns):
		return "lookup " + dns.Name + ": no answer from the name servers"
	case errors.As(err, &timeout) && timeout.Timeout(): // context.DeadlineExceeded, too
		return "no answer in time"
	case ended(err):
		return "the broker closed the connection"
	case errors.As(err, &expired) && expired.Reason == x509.Expired:
		return fmt.Sprintf("x509: certificate has expired or is not yet valid: that of %q is valid from %s to %s",
			expired.Cert.Subject.CommonName,
			expired.Cert.NotBefore.UTC().Format(time.RFC3339), expired.Cert.NotAfter.UTC().Format(time.RFC3339))
	case errors.As(err, &call):
		return call.Error()
	case errors.As(err, &op):
		return op.Op + ": " + op.Err.Error()
	}
	return err.Error()
}

// ended reports whether err is that the other side closed the connection.
func ended(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
