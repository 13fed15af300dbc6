// Package proof compares what a postback brings with the secrets that prove its origin.
package proof

import (
	"crypto/sha256"
	"crypto/subtle"
)

// OneOf reports whether the text given is one of the secrets. It takes the same time whichever it is, and however much
// of it fits: both sides are hashed first, so that their lengths do not tell either. An empty text is none of them.
func OneOf(given string, secrets []string) bool {
	sum := sha256.Sum256([]byte(given))
	match := 0
	for _, s := range secrets {
		secret := sha256.Sum256([]byte(s))
		match |= subtle.ConstantTimeCompare(sum[:], secret[:])
	}
	return match == 1 && given != ""
}
