package kite

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/scan"
	"github.com/postbridge/postbridge/brokers/body"
	"github.com/postbridge/postbridge/brokers/proof"
)

// Verify checks the path token, if tokens are configured, and the checksum in the body. Both must match. A body that is
// not JSON has no checksum, so the token alone verifies it.
func (b *Broker) Verify(p *bridge.Postback) (how string, err error) {
	cred := b.config.Credentials()
	if err := checkPath(p.PathToken, cred.Tokens); err != nil {
		return "", err
	}
	withToken := len(cred.Tokens) > 0

	members, err := p.Members()
	switch {
	case errors.Is(err, scan.ErrNotJSON) && withToken:
		return "token", nil
	case errors.Is(err, scan.ErrNotJSON):
		return "", bridge.Refuse(http.StatusBadRequest, "not_json", "the body is not JSON")
	case err != nil:
		return "", bridge.Refuse(http.StatusForbidden, "checksum", "the body is not an object with a checksum")
	}
	c := claim{userIDFormula: b.config.Checksum == UserID}
	for _, m := range members {
		c.member(m.Name, body.Value(m.Value))
	}
	how, err = c.check(cred.Secrets)
	if err == nil && withToken {
		how += "+token"
	}
	return how, err
}

// checkPath checks the part of the path after /kite/. Without tokens it is empty, or "postback", which a widely read
// guide tells people to register.
func checkPath(token string, tokens []string) error {
	switch {
	case len(tokens) > 0 && !proof.OneOf(token, tokens):
		return bridge.Refuse(http.StatusUnauthorized, "token", "the path token is missing or wrong")
	case len(tokens) == 0 && token != "" && token != "postback":
		return bridge.Refuse(http.StatusNotFound, "route", "no such route")
	}
	return nil
}

// claim holds the members of a body that the checksum covers or that select the secret.
type claim struct {
	orderID, orderTime, userID, checksum covered

	appID string

	// userIDFormula accepts a checksum that covers the user id in place of the time.
	userIDFormula bool
}

// covered is the checksum or a member that it covers.
type covered struct {
	value string
	// times counts the members of that name without regard to case. A consumer of raw may match names without regard
	// to case, or use the first of two: it would read a value that the checksum does not cover.
	times int
}

func (c *claim) member(name string, v body.Value) {
	switch name[:min(len(name), 1)] { // fast path: most names begin with another letter
	case "o", "O":
		c.orderID.member("order_id", name, v)
		c.orderTime.member("order_timestamp", name, v)
	case "u", "U":
		c.userID.member("user_id", name, v)
	case "c", "C":
		c.checksum.member("checksum", name, v)
	case "a":
		if name == "app_id" {
			c.appID = v.Text()
		}
	}
}

func (c *covered) member(want, name string, v body.Value) {
	if name == want {
		c.value = v.Literal()
	}
	if strings.EqualFold(name, want) {
		c.times++
	}
}

// repeated reports whether the body has a member twice that the checksum covers.
func (c *claim) repeated() bool {
	return c.orderID.times > 1 || c.orderTime.times > 1 || c.checksum.times > 1 || c.userIDFormula && c.userID.times > 1
}

// check returns the formula with which the checksum matches one of the secrets.
func (c *claim) check(secrets []Secret) (how string, err error) {
	if c.repeated() {
		return "", bridge.Refuse(
			http.StatusForbidden,
			"repeated_key",
			"a name that matters to the checksum appears twice",
		)
	}
	if c.appID != "" && !slices.ContainsFunc(secrets, c.isCandidate) {
		return "", unknownApp(c.appID)
	}
	sum, ok := parseChecksum(c.checksum.value)
	byTime := beginsWithYear(c.orderTime.value) && c.madeWith(c.orderTime.value, sum, secrets)
	byUser := c.userIDFormula && c.madeWith(c.userID.value, sum, secrets)
	switch {
	case ok && byTime:
		return "checksum", nil
	case ok && byUser:
		return "checksum:user_id", nil
	}
	return "", bridge.Refuse(http.StatusForbidden, "checksum", "the checksum is missing or does not fit the body")
}

// unknownApp returns the refusal of a postback of an app without a secret. Its log line has the id, which is not secret:
// the console of Kite shows an app's api_key and api_secret, but not the app_id.
func unknownApp(id string) error {
	no := &bridge.Refusal{Status: http.StatusForbidden, Reason: "app_id", Detail: "the app id is not a known one"}
	const longest = 20 // characters
	if strings.Trim(id, "0123456789") == "" && len(id) <= longest {
		no.Remedy = "if it is your app, set POSTBRIDGE_KITE_SECRETS=" + id + "=<api_secret>, beside those of other apps"
	} else {
		no.Remedy = fmt.Sprintf("none: Kite's app ids are numbers, and this one begins with %+.*q", longest, id)
	}
	return no
}

// beginsWithYear reports whether a time begins with exactly four digits. The hashed text has no separator between order
// id and time, so digits could be moved from one to the other and the checksum would match another order id.
func beginsWithYear(time string) bool {
	digits := len(time) - len(strings.TrimLeft(time, "0123456789"))
	return digits == 4
}

// isCandidate reports whether a secret is of the app that the body names; any is if it names none.
func (c *claim) isCandidate(s Secret) bool { return c.appID == "" || s.AppID == c.appID }

// madeWith reports whether sum is SHA-256(order id ‖ middle ‖ secret) for one of the candidates: a plain hash, not an
// HMAC, over the texts exactly as received (validatePostback in zerodha/kiteconnectjs). The parts have no separator;
// see beginsWithYear. All candidates are tried even after a match, so that the time does not depend on which one
// matches.
func (c *claim) madeWith(middle string, sum [sha256.Size]byte, secrets []Secret) bool {
	match := 0
	for _, s := range secrets {
		if !c.isCandidate(s) {
			continue
		}
		text := make([]byte, 0, 128)
		text = append(text, c.orderID.value...)
		text = append(text, middle...)
		text = append(text, s.Secret...)
		made := sha256.Sum256(text)
		match |= subtle.ConstantTimeCompare(made[:], sum[:])
	}
	return match == 1 && c.orderID.value != "" && middle != ""
}

// parseChecksum parses 64 hex digits in upper or lower case.
func parseChecksum(s string) (sum [sha256.Size]byte, ok bool) {
	if len(s) != hex.EncodedLen(len(sum)) {
		return sum, false
	}
	_, err := hex.Decode(sum[:], []byte(s))
	return sum, err == nil
}
