package publishers

import (
	"fmt"
	"slices"
	"strings"

	"github.com/postbridge/postbridge/bridge/event"
)

// maxPrefix is the longest prefix, in bytes.
const maxPrefix = 64

// CheckPrefix returns an error unless a prefix can begin subjects and topics: empty, or tokens with dots between them.
func CheckPrefix(prefix string) error {
	escaped := func(token string) bool { return event.EscapeToken(token) != token }
	if prefix == "" || len(prefix) <= maxPrefix && !slices.ContainsFunc(strings.Split(prefix, "."), escaped) {
		return nil
	}
	return fmt.Errorf("POSTBRIDGE_PREFIX: %q cannot begin a subject or topic; "+
		"use letters, digits, _ and -, with dots between them, at most %d characters", prefix, maxPrefix)
}
