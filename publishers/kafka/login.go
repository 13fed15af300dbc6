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

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/saslauthenticate"
	"github.com/segmentio/kafka-go/protocol/saslhandshake"
	"github.com/segmentio/kafka-go/sasl"
	saslplain "github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"
)

// login logs in with the password as it is now.
func (t *transport) login(ctx context.Context, c *connection) error {
	password := t.cfg.Password()
	mechanism, err := newMechanism(t.cfg.SASLMechanism, t.cfg.User, password)
	if err != nil {
		// Not its text, which shows the character.
		return &brokerError{login: true, text: fmt.Sprintf("broker %s: %s cannot log in with what is in "+
			"POSTBRIDGE_KAFKA_USER or POSTBRIDGE_KAFKA_PASSWORD: it has a character that is not allowed", c.address, t.cfg.SASLMechanism)}
	}
	who := fmt.Sprintf("the login of user %q (%s)", t.cfg.User, mechanism.Name())
	refused := func(words string, cause error) error {
		if password != "" && strings.Contains(words, password) {
			words = "in words that hold the password"
		}
		return &brokerError{login: true, cause: cause, text: fmt.Sprintf(
			"broker %s refuses %s: check POSTBRIDGE_KAFKA_USER and POSTBRIDGE_KAFKA_PASSWORD: %s", c.address, who, words)}
	}
	failed := func(err error) error {
		if ctx.Err() == nil && ended(err) {
			return refused("it closed the connection", err)
		}
		return outage(ctx, c.address, err, phrases{silent: "does not answer " + who})
	}

	if err := c.offerMechanism(mechanism.Name()); err != nil {
		var already *brokerError
		if errors.As(err, &already) {
			return err
		}
		return failed(err)
	}
	state, message, err := mechanism.Start(ctx)
	for done := false; !done && err == nil; {
		var answer *saslauthenticate.Response
		if answer, err = c.authenticate(message); err != nil {
			return failed(err)
		}
		if code := kafkago.Error(answer.ErrorCode); code != 0 {
			words := answer.ErrorMessage
			if words == "" {
				words = code.Error()
			}
			return refused(words, code)
		}
		if lifetime := time.Duration(answer.SessionLifetimeMs) * time.Millisecond; lifetime > 0 {
			// A login is for a time (KIP-368). After that, the broker ends the connection at the next request.
			c.expires = time.Now().Add(lifetime / 10 * 9)
		}
		done, message, err = state.Next(ctx, answer.AuthBytes)
	}
	if err != nil {
		return refused(err.Error(), err)
	}
	return nil
}

func newMechanism(name, user, password string) (sasl.Mechanism, error) {
	switch name {
	case mechanismScram256:
		return scram.Mechanism(scram.SHA256, user, password)
	case mechanismScram512:
		return scram.Mechanism(scram.SHA512, user, password)
	default:
		return saslplain.Mechanism{Username: user, Password: password}, nil
	}
}

// offerMechanism tells the broker how we log in.
func (c *connection) offerMechanism(name string) error {
	answer, err := c.exchange(&saslhandshake.Request{Mechanism: name})
	if err != nil {
		return err
	}
	res, ok := answer.(*saslhandshake.Response)
	if !ok {
		return fmt.Errorf("unexpected %T", answer)
	}
	code := kafkago.Error(res.ErrorCode)
	e := &brokerError{login: true, cause: code}
	switch code {
	case 0:
		return nil
	case kafkago.UnsupportedSASLMechanism:
		e.text = fmt.Sprintf("broker %s does not take %s: set POSTBRIDGE_KAFKA_SASL_MECHANISM to what it offers: %s",
			c.address, name, strings.Join(res.Mechanisms, ", "))
	case kafkago.IllegalSASLState:
		e.text = fmt.Sprintf("broker %s takes no login: unset POSTBRIDGE_KAFKA_SASL_MECHANISM or use its SASL port", c.address)
	default:
		e.text = fmt.Sprintf("broker %s does not take %s: %s", c.address, name, code)
	}
	return e
}

func (c *connection) authenticate(message []byte) (*saslauthenticate.Response, error) {
	answer, err := c.exchange(&saslauthenticate.Request{AuthBytes: message})
	if err != nil {
		return nil, err
	}
	res, ok := answer.(*saslauthenticate.Response)
	if !ok {
		return nil, fmt.Errorf("unexpected %T", answer)
	}
	return res, nil
}

// brokerError says what is wrong with a broker, in words that stay the same from attempt to attempt.
type brokerError struct {
	text  string
	cause error // for errors.Is and As
	login bool  // the broker can be reached, but does not let us in
}

// Error is part of the error interface.
func (e *brokerError) Error() string { return e.text }

// Unwrap is for errors.Is and As.
func (e *brokerError) Unwrap() error { return e.cause }

// loginError reports whether err is that a broker can be reached, but does not let us in: for who we are or how we log
// in.
func loginError(err error) bool {
	var e *brokerError
	return errors.As(err, &e) && e.login
}

// phrases say what a broker did.
type phrases struct {
	closed string // when it closed the connection
	silent string // when it did not answer
	hint   string // what that may mean
}

// outage is err without what changes from attempt to attempt, said in these phrases if it is that the broker closed the
// connection or was silent until ctx ended.
func outage(ctx context.Context, address string, err error, say phrases) error {
	e := &brokerError{text: "broker " + address, cause: err}
	hint := ""
	if say.hint != "" {
		hint = ": " + say.hint
	}
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		e.cause = ctx.Err()
		e.text += ": " + e.cause.Error()
	case ctx.Err() != nil || timedOut(err):
		e.cause = context.DeadlineExceeded
		if say.silent == "" {
			say.silent = "does not answer"
		}
		e.text += " " + say.silent + hint + ": " + e.cause.Error()
	case ended(err):
		if say.closed == "" {
			say.closed = "closed the connection"
		}
		e.text += " " + say.closed + hint
	default:
		e.text += ": " + lasting(err)
	}
	return e
}

// dialError is why there is no connection.
func dialError(ctx context.Context, address string, err error) error {
	var dns *net.DNSError
	if errors.As(err, &dns) && !errors.Is(ctx.Err(), context.Canceled) {
		// Its text may hold our port of the question.
		reason := "the name servers have no answer"
		if dns.IsNotFound {
			reason = "no such host"
		}
		e := &brokerError{text: fmt.Sprintf("broker %s: lookup %s: %s", address, dns.Name, reason), cause: err}
		if ctx.Err() != nil {
			e.cause = ctx.Err()
		}
		return e
	}
	return outage(ctx, address, err, phrases{})
}

// tlsError is why there is no TLS.
func (t *transport) tlsError(ctx context.Context, c *connection, err error) error {
	unset := "unset POSTBRIDGE_KAFKA_TLS or use its TLS port"
	if t.certificates != nil {
		unset = "unset POSTBRIDGE_KAFKA_TLS and its files or use its TLS port"
	}
	say := phrases{closed: "closed the connection in the TLS handshake", silent: "does not answer the TLS handshake"}
	if !t.answered.Load() {
		say.hint = "perhaps it does not speak TLS: " + unset
	}
	var (
		notTLS     tls.RecordHeaderError
		invalid    x509.CertificateInvalidError
		wrongName  x509.HostnameError
		unverified *tls.CertificateVerificationError
	)
	text := ""
	switch {
	case ctx.Err() != nil:
	case errors.As(err, &notTLS):
		text = " does not speak TLS: " + unset
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		// Its text holds the time.
		text = fmt.Sprintf(": tls: failed to verify certificate: x509: certificate has expired or is not yet valid: "+
			"that of %q is good from %s to %s: renew it there, or check POSTBRIDGE_KAFKA_TLS_CA_FILE", invalid.Cert.Subject.CommonName,
			invalid.Cert.NotBefore.UTC().Format(time.RFC3339), invalid.Cert.NotAfter.UTC().Format(time.RFC3339))
	case errors.As(err, &wrongName):
		text = ": " + err.Error() + ": use a name of its certificate in POSTBRIDGE_KAFKA_BROKERS and the broker's advertised.listeners" +
			" (POSTBRIDGE_KAFKA_TLS_CA_FILE trusts it)"
	case errors.As(err, &unverified):
		text = ": " + err.Error() + ": check POSTBRIDGE_KAFKA_TLS_CA_FILE"
	case alert(err):
		return t.alertError(c, err)
	}
	if text != "" {
		return &brokerError{text: "broker " + c.address + text, cause: err}
	}
	return outage(ctx, c.address, err, say)
}

// negotiateError is why the broker does not answer the first question. Over TLS 1.3, that is also where it says what it
// does not like about our certificate.
func (t *transport) negotiateError(ctx context.Context, c *connection, err error) error {
	var size *sizeError
	switch {
	case ctx.Err() != nil:
	case alert(err):
		return t.alertError(c, err)
	case errors.As(err, &size) && size.tlsAlert() && !t.tls():
		return &brokerError{text: "broker " + c.address + " answers in TLS: set POSTBRIDGE_KAFKA_TLS or use its plain port", cause: err}
	case errors.As(err, &size):
		return &brokerError{text: "broker " + c.address + " " + err.Error(), cause: err}
	}
	say := phrases{closed: "closed the connection before a word", silent: "says nothing"}
	switch {
	case t.answered.Load():
	case !t.tls():
		say.hint = "perhaps it wants TLS (POSTBRIDGE_KAFKA_TLS)"
	case t.certificates == nil || !t.certificates.HasPair():
		say.hint = "perhaps it wants a client certificate (POSTBRIDGE_KAFKA_TLS_CERT_FILE)"
	default:
		say.hint = "perhaps it refuses our certificate (POSTBRIDGE_KAFKA_TLS_CERT_FILE)"
	}
	return outage(ctx, c.address, err, say)
}

// requestError is why there is no answer to a request.
func (t *transport) requestError(ctx context.Context, c *connection, key protocol.ApiKey, err error) error {
	say := phrases{silent: "does not answer " + key.String()}
	if ctx.Err() == nil && ended(err) && !c.used && !t.answered.Load() && t.cfg.SASLMechanism == "" {
		say.closed = "closed the connection at the first request"
		say.hint = "perhaps it wants a login (POSTBRIDGE_KAFKA_SASL_MECHANISM)"
	}
	return outage(ctx, c.address, err, say)
}

// alert reports whether err is what the other side of TLS does not like.
func alert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

func (t *transport) alertError(c *connection, err error) error {
	e := &brokerError{text: "broker " + c.address, cause: err}
	const settings = "POSTBRIDGE_KAFKA_TLS_CERT_FILE and POSTBRIDGE_KAFKA_TLS_KEY_FILE"
	pair := t.certificates != nil && t.certificates.HasPair()
	switch {
	case !strings.Contains(err.Error(), "certificate"):
		if !pair { // before TLS 1.3, there is no alert of its own for that
			e.text += " refuses TLS: perhaps it wants a client certificate (POSTBRIDGE_KAFKA_TLS_CERT_FILE)"
		}
	case pair:
		e.text += " refuses our certificate: check " + settings
		e.login = true
	default:
		e.text += " wants a client certificate: set " + settings
		e.login = true
	}
	e.text += ": " + lasting(err)
	return e
}

// ended reports whether err is that the other side closed the connection.
func ended(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func timedOut(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

// lasting is the text of err without what changes from attempt to attempt: our own port.
func lasting(err error) string {
	var call *os.SyscallError
	var op *net.OpError
	switch {
	case errors.As(err, &call):
		return call.Error()
	case errors.As(err, &op):
		return op.Op + ": " + op.Err.Error()
	}
	return err.Error()
}
