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

// login logs in with the password or token as it is now. kafka-go's own login has no deadline and does not return the
// session lifetime.
func (t *transport) login(ctx context.Context, c *connection) error {
	current, with := t.cfg.Password, fmt.Sprintf("of user %q", t.cfg.User)
	if t.cfg.SASLMechanism == mechanismOAuth {
		current, with = t.cfg.OAuthToken, "with a token"
	}
	secret := current()
	mechanism, err := newMechanism(t.cfg, secret)
	if err == nil {
		err = c.authenticate(ctx, mechanism)
	}
	if err == nil {
		return nil
	}
	if secret != "" && strings.Contains(err.Error(), secret) {
		err = errors.New("the broker's message holds the password or token")
	}
	return c.failed(ctx, fmt.Sprintf("login %s (%s)", with, t.cfg.SASLMechanism), err)
}

// authenticate exchanges messages until the mechanism is satisfied: the broker has to prove itself, too.
func (c *connection) authenticate(ctx context.Context, mechanism sasl.Mechanism) error {
	offer, err := call[*saslhandshake.Response](c, &saslhandshake.Request{Mechanism: mechanism.Name()})
	if err != nil {
		return err
	}
	if code := kafkago.Error(offer.ErrorCode); code != 0 {
		return fmt.Errorf("%w; the broker offers %q", code, offer.Mechanisms)
	}
	state, message, err := mechanism.Start(ctx)
	for done := false; err == nil && !done; {
		answer, failed := call[*saslauthenticate.Response](c, &saslauthenticate.Request{AuthBytes: message})
		if failed != nil {
			return failed
		}
		if code := kafkago.Error(answer.ErrorCode); code != 0 {
			return fmt.Errorf("%w: %s", code, answer.ErrorMessage)
		}
		if lifetime := time.Duration(answer.SessionLifetimeMs) * time.Millisecond; lifetime > 0 {
			// After its lifetime (KIP-368), the broker closes the connection at the next request.
			c.expires = time.Now().Add(lifetime / 10 * 9)
		}
		done, message, err = state.Next(ctx, answer.AuthBytes)
	}
	return err
}

func newMechanism(cfg Config, secret string) (mechanism sasl.Mechanism, err error) {
	switch cfg.SASLMechanism {
	case mechanismScram256:
		mechanism, err = scram.Mechanism(scram.SHA256, cfg.User, secret)
	case mechanismScram512:
		mechanism, err = scram.Mechanism(scram.SHA512, cfg.User, secret)
	case mechanismOAuth:
		return oauthBearer{secret, cfg.OAuthExtensions}, nil
	default:
		return saslplain.Mechanism{Username: cfg.User, Password: secret}, nil
	}
	if err != nil { // its text shows the character
		err = errors.New("a character is not allowed in the user or the password")
	}
	return mechanism, err
}
