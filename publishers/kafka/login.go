package kafka

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/saslauthenticate"
	"github.com/segmentio/kafka-go/protocol/saslhandshake"
	"github.com/segmentio/kafka-go/sasl"
	saslplain "github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"
)

// login is one SASL exchange on a connection. kafka-go's own has no deadline and does not return the session lifetime.
type login struct {
	*connection
	op       string // in errors
	password string // which no error may show
}

// login logs in with the password as it is now.
func (t *transport) login(ctx context.Context, c *connection) error {
	l := &login{c, fmt.Sprintf("login of user %q (%s)", t.cfg.User, t.cfg.SASLMechanism), t.cfg.Password()}
	mechanism, err := newMechanism(t.cfg.SASLMechanism, t.cfg.User, l.password)
	if err != nil {
		// Its text shows the character.
		return l.refused(ctx, errors.New("a character is not allowed in the user or the password"))
	}
	offer, err := call[*saslhandshake.Response](c, &saslhandshake.Request{Mechanism: mechanism.Name()})
	if err != nil {
		return l.refused(ctx, err)
	}
	if code := kafkago.Error(offer.ErrorCode); code != 0 {
		e := c.failed(ctx, l.op, code, "POSTBRIDGE_KAFKA_SASL_MECHANISM and the port")
		if len(offer.Mechanisms) > 0 {
			e.cause = fmt.Errorf("%w; the broker offers %s", code, strings.Join(offer.Mechanisms, ", "))
		}
		e.login = true
		return e
	}
	return l.authenticate(ctx, mechanism)
}

// authenticate exchanges messages until the mechanism is satisfied: the broker has to prove itself, too.
func (l *login) authenticate(ctx context.Context, mechanism sasl.Mechanism) error {
	state, message, err := mechanism.Start(ctx)
	for done := false; err == nil && !done; {
		var answer *saslauthenticate.Response
		answer, err = call[*saslauthenticate.Response](l.connection, &saslauthenticate.Request{AuthBytes: message})
		if err != nil {
			break
		}
		if code := kafkago.Error(answer.ErrorCode); code != 0 {
			err = fmt.Errorf("%w: %s", code, answer.ErrorMessage)
			break
		}
		if lifetime := time.Duration(answer.SessionLifetimeMs) * time.Millisecond; lifetime > 0 {
			// After its lifetime (KIP-368), the broker closes the connection at the next request.
			l.expires = time.Now().Add(lifetime / 10 * 9)
		}
		done, message, err = state.Next(ctx, answer.AuthBytes)
	}
	if err != nil {
		return l.refused(ctx, err)
	}
	return nil
}

// refused is the error of a broker that was reached and does not accept the login. A broker may also just close the
// connection; one that does not answer in time refuses nothing.
func (l *login) refused(ctx context.Context, err error) error {
	if l.password != "" && strings.Contains(err.Error(), l.password) {
		err = errors.New("the broker's message holds the password")
	}
	e := l.failed(ctx, l.op, err, "POSTBRIDGE_KAFKA_USER and POSTBRIDGE_KAFKA_PASSWORD")
	e.login = ctx.Err() == nil
	return e
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
