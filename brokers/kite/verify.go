package kite

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"net/http"
	"strings"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/scan"
	"github.com/postbridge/postbridge/brokers/body"
	"github.com/postbridge/postbridge/brokers/proof"
)

// Verify checks the path token, if tokens are configured, and the checksum in the body. Both have to fit; only of a
// body that is not JSON, and so has no checksum, the token alone proves the origin.
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

// checkPath checks what follows /kite/. Without tokens that is nothing, or the word that a widely read guide tells
// people to register.
func checkPath(token string, tokens []string) error {
	switch {
	case len(tokens) > 0 && !proof.OneOf(token, tokens):
		return bridge.Refuse(http.StatusUnauthorized, "token", "the path token is missing or wrong")
	case len(tokens) == 0 && token != "" && token != "postback":
		return bridge.Refuse(http.StatusNotFound, "route", "no such route")
	}
	return nil
}

// claim is what a body says of its own origin.
type claim struct {
	orderID, orderTime, userID, appID, checksum string

	// userIDFormula is whether the checksum may cover the user id in place of the time.
	userIDFormula bool
	// times counts the names that are checksum, or one that it covers, without regard to case. A reader further on
	// may not be as exact in its names as this one, or take the first of two: what was proven and what is read then
	// differ.
	times struct{ orderID, orderTime, userID, checksum int }
}

func (c *claim) member(name string, v body.Value) {
	c.count(name)
	switch name {
	case "order_id":
		c.orderID = v.Literal()
	case "order_timestamp":
		c.orderTime = v.Literal()
	case "user_id":
		c.userID = v.Literal()
	case "app_id":
		c.appID = v.Text()
	case "checksum":
		c.checksum = v.Literal()
	}
}

func (c *claim) count(name string) {
	// Of these letters there are two forms each, so most names need no closer look.
	if name == "" || !strings.Contains("oOuUcC", name[:1]) {
		return
	}
	switch {
	case strings.EqualFold(name, "order_id"):
		c.times.orderID++
	case strings.EqualFold(name, "order_timestamp"):
		c.times.orderTime++
	case strings.EqualFold(name, "user_id"):
		c.times.userID++
	case strings.EqualFold(name, "checksum"):
		c.times.checksum++
	}
}

// repeated reports whether the body says twice what the checksum is to prove.
func (c *claim) repeated() bool {
	return c.times.orderID > 1 || c.times.orderTime > 1 || c.times.checksum > 1 || c.userIDFormula && c.times.userID > 1
}

// check finds the secret and the formula that made the checksum.
func (c *claim) check(secrets []Secret) (how string, err error) {
	if c.repeated() {
		return "", bridge.Refuse(
			http.StatusForbidden,
			"repeated_key",
			"a name that matters to the checksum appears twice",
		)
	}
	candidates := c.candidates(secrets)
	if len(candidates) == 0 && c.appID != "" {
		return "", bridge.Refuse(http.StatusForbidden, "app_id", "the app id is not a known one")
	}
	sum, ok := parseChecksum(c.checksum)
	byTime := beginsWithYear(c.orderTime) && c.madeWith(c.orderTime, sum, candidates)
	byUser := c.userIDFormula && c.madeWith(c.userID, sum, candidates)
	switch {
	case ok && byTime:
		return "checksum", nil
	case ok && byUser:
		return "checksum:user_id", nil
	}
	return "", bridge.Refuse(http.StatusForbidden, "checksum", "the checksum is missing or does not fit the body")
}

// beginsWithYear reports whether a time begins with four digits and no fifth. Nothing separates the order id from the
// time in the text that is hashed, so digits could be moved from one to the other, and the checksum would fit another
// order's id.
func beginsWithYear(time string) bool {
	digits := len(time) - len(strings.TrimLeft(time, "0123456789"))
	return digits == 4
}

// candidates are the secrets of the app that the body names: all of them if it names none.
func (c *claim) candidates(secrets []Secret) []Secret {
	if c.appID == "" {
		return secrets
	}
	var of []Secret
	for _, s := range secrets {
		if s.AppID == c.appID {
			of = append(of, s)
		}
	}
	return of
}

// madeWith reports whether sum is SHA-256(order id ‖ middle ‖ secret) for one of the secrets. It is a plain hash, not
// an HMAC, over the texts exactly as received (validatePostback in zerodha/kiteconnectjs). Nothing stands between the
// parts, so it does not say where the order id ends and the middle begins. All secrets are tried, whichever fits.
func (c *claim) madeWith(middle string, sum [sha256.Size]byte, secrets []Secret) bool {
	match := 0
	for _, s := range secrets {
		text := make([]byte, 0, 128)
		text = append(text, c.orderID...)
		text = append(text, middle...)
		text = append(text, s.Secret...)
		made := sha256.Sum256(text)
		match |= subtle.ConstantTimeCompare(made[:], sum[:])
	}
	return match == 1 && c.orderID != "" && middle != ""
}

// parseChecksum reads 64 hex digits, in whatever case.
func parseChecksum(s string) (sum [sha256.Size]byte, ok bool) {
	if len(s) != hex.EncodedLen(len(sum)) {
		return sum, false
	}
	_, err := hex.Decode(sum[:], []byte(s))
	return sum, err == nil
}
