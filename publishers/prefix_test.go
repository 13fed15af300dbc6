package publishers_test

import (
	"strings"
	"testing"

	"github.com/postbridge/postbridge/publishers"
)

func TestCheckPrefix(t *testing.T) {
	for _, prefix := range []string{"", "desk1", "desk-1_A", "de.ace.events", strings.Repeat("a", 64)} {
		if err := publishers.CheckPrefix(prefix); err != nil {
			t.Error(err)
		}
	}
	for _, prefix := range []string{
		".", "a.", ".a", "a..b", "a b", "a*", "a.>", "$JS.API", "a/b", "ü", "a\n", strings.Repeat("a", 65),
		strings.Repeat("a.", 32) + "a",
	} {
		err := publishers.CheckPrefix(prefix)
		if err == nil || !strings.HasPrefix(err.Error(), "POSTBRIDGE_PREFIX: ") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v", prefix, err)
		}
	}
}
