package kafka

import (
	"cmp"
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
		return &brokerError{address: c.address, login: true, text: t.cfg.SASLMechanism + " cannot log in with what is in " +
			"POSTBRIDGE_KAFKA_USER or POSTBRIDGE_KAFKA_PASSWORD: it has a character that is not allowed"}
	}
	l := &login{connection: c, password: password, name: fmt.Sprintf("the login of user %q (%s)", t.cfg.User, mechanism.Name())}
	if err := c.offerMechanism(mechanism.Name()); err != nil {
		return l.failed(ctx, err)
	}
	return l.converse(ctx, mechanism)
}

// login is one on its way.
type login struct {
	*connection
	name     string // in errors
	password string // what no error may show
}

// converse sends what the mechanism says, and has it judge what the broker says, until it is content.
func (l *login) converse(ctx context.Context, mechanism sasl.Mechanism) error {
	state, message, err := mechanism.Start(ctx)
	if err != nil {
		return l.refused(err.Error(), err)
	}
	for done := false; !done; {
		answer, err := l.say(ctx, message)
		if err != nil {
			return err
		}
		if done, message, err = state.Next(ctx, answer); err != nil {
			return l.refused(err.Error(), err)
		}
	}
	return nil
}

// say sends a message of the mechanism, and returns the broker's.
func (l *login) say(ctx context.Context, message []byte) ([]byte, error) {
	answer, err := l.authenticate(message)
	if err != nil {
		return nil, l.failed(ctx, err)
	}
	if code := kafkago.Error(answer.ErrorCode); code != 0 {
		return nil, l.refused(cmp.Or(answer.ErrorMessage, code.Error()), code)
	}
	if lifetime := time.Duration(answer.SessionLifetimeMs) * time.Millisecond; lifetime > 0 {
		// A login is for a time (KIP-368). After that, the broker ends the connection at the next request.
		l.expires = time.Now().Add(lifetime / 10 * 9)
	}
	return answer.AuthBytes, nil
}

// refused is that the broker does not let us in, or is not who it should be.
func (l *login) refused(words string, cause error) error {
	if l.password != "" && strings.Contains(words, l.password) {
		words = "in words that hold the password"
	}
	return &brokerError{address: l.address, login: true, cause: cause, text: fmt.Sprintf(
		"refuses %s: check POSTBRIDGE_KAFKA_USER and POSTBRIDGE_KAFKA_PASSWORD: %s", l.name, words)}
}

// failed is why there is no answer, unless err says all there is to say.
func (l *login) failed(ctx context.Context, err error) error {
	var said *brokerError
	switch {
	case errors.As(err, &said):
		return err
	case ctx.Err() == nil && ended(err):
		return l.refused("it closed the connection", err)
	}
	return outage(ctx, l.address, err, phrases{silent: "does not answer " + l.name})
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
	e := &brokerError{address: c.address, login: true, cause: code}
	switch code {
	case 0:
		return nil
	case kafkago.UnsupportedSASLMechanism:
		e.text = fmt.Sprintf("does not take %s: set POSTBRIDGE_KAFKA_SASL_MECHANISM to what it offers: %s",
			name, strings.Join(res.Mechanisms, ", "))
	case kafkago.IllegalSASLState:
		e.text = "takes no login: unset POSTBRIDGE_KAFKA_SASL_MECHANISM or use its SASL port"
	default:
		e.text = fmt.Sprintf("does not take %s: %s", name, code)
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
	address string // of the broker
	text    string // what it does, or what is wrong with it
	cause   error  // for errors.Is and As
	login   bool   // the broker can be reached, but does not let us in
}

// Error is part of the error interface.
func (e *brokerError) Error() string { return "Kafka broker " + e.address + ": " + e.text }

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
	e := &brokerError{address: address, cause: err}
	hint := ""
	if say.hint != "" {
		hint = ": " + say.hint
	}
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		e.cause = ctx.Err()
		e.text = e.cause.Error()
	case ctx.Err() != nil || timedOut(err):
		e.cause = context.DeadlineExceeded
		e.text = cmp.Or(say.silent, "does not answer") + hint + ": " + e.cause.Error()
	case ended(err):
		e.text = cmp.Or(say.closed, "closed the connection") + hint
	default:
		e.text = lasting(err)
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
		e := &brokerError{address: address, text: fmt.Sprintf("lookup %s: %s", dns.Name, reason), cause: err}
		if ctx.Err() != nil {
			e.cause = ctx.Err()
		}
		return e
	}
	return outage(ctx, address, err, phrases{})
}

// filesError is that there is nothing yet in the TLS files to connect with.
func (t *transport) filesError(err error) error {
	settings := "POSTBRIDGE_KAFKA_TLS_CA_FILE"
	if t.certificates.HasPair() {
		settings += ", POSTBRIDGE_KAFKA_TLS_CERT_FILE and POSTBRIDGE_KAFKA_TLS_KEY_FILE"
	}
	return fmt.Errorf("TLS files: %w: check %s", err, settings)
}

// tlsError is why there is no TLS.
func (t *transport) tlsError(ctx context.Context, c *connection, err error) error {
	unset := "unset POSTBRIDGE_KAFKA_TLS or use its TLS port"
	if t.certificates != nil {
		unset = "unset POSTBRIDGE_KAFKA_TLS and its files or use its TLS port"
	}
	var notTLS tls.RecordHeaderError
	switch text := certificateError(err); {
	case ctx.Err() != nil:
	case errors.As(err, &notTLS):
		return &brokerError{address: c.address, text: "does not speak TLS on this port: " + unset, cause: err}
	case text != "":
		return &brokerError{address: c.address, text: text, cause: err}
	case alert(err):
		return t.alertError(c, err)
	}
	return outage(ctx, c.address, err, phrases{
		closed: "closed the connection in the TLS handshake",
		silent: "does not answer the TLS handshake",
		hint:   t.guess(ctx, c.address, err, "perhaps it does not speak TLS: "+unset),
	})
}

// certificateError is what is wrong with a broker's certificate, and what to do; empty if it is not that.
func certificateError(err error) string {
	var (
		invalid    x509.CertificateInvalidError
		wrongName  x509.HostnameError
		unknown    x509.UnknownAuthorityError
		unverified *tls.CertificateVerificationError
	)
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		// Its text holds the time.
		return fmt.Sprintf("tls: failed to verify certificate: x509: certificate has expired or is not yet valid: "+
			"that of %q is good from %s to %s: renew it there, or check POSTBRIDGE_KAFKA_TLS_CA_FILE", invalid.Cert.Subject.CommonName,
			invalid.Cert.NotBefore.UTC().Format(time.RFC3339), invalid.Cert.NotAfter.UTC().Format(time.RFC3339))
	case errors.As(err, &wrongName):
		return err.Error() + ": use a name of its certificate in POSTBRIDGE_KAFKA_BROKERS and the broker's advertised.listeners" +
			" (POSTBRIDGE_KAFKA_TLS_CA_FILE trusts it)"
	case errors.As(err, &unknown):
		return err.Error() + ": set POSTBRIDGE_KAFKA_TLS_CA_FILE to the CA of the Kafka brokers"
	case errors.As(err, &unverified):
		return err.Error() + ": check POSTBRIDGE_KAFKA_TLS_CA_FILE"
	}
	return ""
}

// negotiateError is why the broker does not answer the first question. Over TLS 1.3, that is also where it says what it
// does not like about our certificate.
func (t *transport) negotiateError(ctx context.Context, c *connection, err error) error {
	var size *sizeError
	switch {
	case ctx.Err() != nil:
	case alert(err):
		return t.alertError(c, err)
	case errors.As(err, &size) && size.tlsAlert() && !t.cfg.tls():
		return &brokerError{address: c.address, text: "answers in TLS: set POSTBRIDGE_KAFKA_TLS or use its plain port", cause: err}
	case errors.As(err, &size):
		return &brokerError{address: c.address, text: err.Error(), cause: err}
	}
	hint := "perhaps it refuses our certificate (POSTBRIDGE_KAFKA_TLS_CERT_FILE)"
	switch {
	case !t.cfg.tls():
		hint = "perhaps it wants TLS (POSTBRIDGE_KAFKA_TLS)"
	case !t.hasPair():
		hint = "perhaps it wants a client certificate (POSTBRIDGE_KAFKA_TLS_CERT_FILE)"
	}
	return outage(ctx, c.address, err, phrases{
		closed: "closed the connection before a word",
		silent: "says nothing",
		hint:   t.guess(ctx, c.address, err, hint),
	})
}

// requestError is why there is no answer to a request.
func (t *transport) requestError(ctx context.Context, c *connection, key protocol.ApiKey, err error) error {
	say := phrases{silent: "does not answer " + key.String()}
	if ctx.Err() == nil && ended(err) && !c.used && !t.answered.Load() && t.cfg.SASLMechanism == "" {
		say.closed = "closed the connection at the first request"
		say.hint = t.guess(ctx, c.address, err, "perhaps it wants a login (POSTBRIDGE_KAFKA_SASL_MECHANISM)")
	}
	return outage(ctx, c.address, err, say)
}

// guess returns what the failure of a new connection may mean, if it is time to say it: not once some broker answered,
// and if it is that this one closed it, not before it closed some in a row.
func (t *transport) guess(ctx context.Context, address string, err error, hint string) string {
	closed := ctx.Err() == nil && ended(err)
	if n := t.row(address, closed); t.answered.Load() || closed && n < guessAfter {
		return ""
	}
	return hint
}

// row counts how many new connections in a row a broker closed. Another failure ends the row.
func (t *transport) row(address string, closed bool) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !closed {
		delete(t.closings, address)
		return 0
	}
	t.closings[address]++
	return t.closings[address]
}

// alert reports whether err is what the other side of TLS does not like.
func alert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

func (t *transport) alertError(c *connection, err error) error {
	const settings = "POSTBRIDGE_KAFKA_TLS_CERT_FILE and POSTBRIDGE_KAFKA_TLS_KEY_FILE"
	e := &brokerError{address: c.address, text: lasting(err), cause: err, login: strings.Contains(err.Error(), "certificate")}
	switch {
	case e.login && t.hasPair():
		e.text = "refuses our certificate: check " + settings + ": " + e.text
	case e.login:
		e.text = "wants a client certificate: set " + settings + ": " + e.text
	case !t.hasPair(): // before TLS 1.3, there is no alert of its own for that
		e.text = "refuses TLS: perhaps it wants a client certificate (POSTBRIDGE_KAFKA_TLS_CERT_FILE): " + e.text
	}
	return e
}

// hasPair reports whether there is a certificate to show.
func (t *transport) hasPair() bool { return t.certificates != nil && t.certificates.HasPair() }

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
