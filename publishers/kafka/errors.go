package kafka

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	kafkago "github.com/segmentio/kafka-go"
)

// brokerError is the failure of an operation at one broker. The remedies are in deploy/README.md. Its text is the same
// at every attempt, so that an outage is logged once, and never holds a password.
type brokerError struct {
	broker string // address
	op     string // the request, or the step of the handshake
	cause  error
}

// opDial is the operation of a brokerError for a broker that was not reached.
const opDial = "dial"

// Error returns the broker, the operation and the cause.
func (e *brokerError) Error() string {
	return "Kafka broker " + e.broker + ": " + e.op + ": " + reason(e.cause)
}

// Unwrap returns the cause.
func (e *brokerError) Unwrap() error { return e.cause }

// reason returns the text of err without the parts that differ from attempt to attempt: the local port, the time.
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

// ended reports whether the other side closed the connection.
func ended(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// fromBroker reports whether err is an error code that a broker answered.
func fromBroker(err error) bool {
	var code kafkago.Error
	return errors.As(err, &code)
}

// Plain removes the name of the function that kafka-go puts before each error.
func Plain(err error) error {
	if strings.HasPrefix(err.Error(), "kafka.(*Client)") {
		if cause := errors.Unwrap(err); cause != nil {
			return cause
		}
	}
	return err
}
