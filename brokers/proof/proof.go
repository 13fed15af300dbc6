// Package proof compares the tokens of a postback with the configured ones.
package proof

import (
	"cmp"
	"crypto/sha256"
	"crypto/subtle"
	"net/http"

	"github.com/postbridge/postbridge/bridge"
)

// Token returns a refusal, 401, unless the token in the path, or else in the query, of a postback is one of the tokens.
func Token(p *bridge.Postback, tokens []string) error {
	if !OneOf(cmp.Or(p.PathToken, p.QueryToken), tokens) {
		return bridge.Refuse(http.StatusUnauthorized, "token", "the token is missing or wrong")
	}
	return nil
}

// OneOf reports whether the given text is one of the secrets, in constant time: both sides are hashed first, so that
// neither a common prefix nor the length shows in the time. An empty text never matches.
func OneOf(given string, secrets []string) bool {
	sum := sha256.Sum256([]byte(given))
	match := 0
	for _, s := range secrets {
		secret := sha256.Sum256([]byte(s))
		match |= subtle.ConstantTimeCompare(sum[:], secret[:])
	}
	return match == 1 && given != ""
}
