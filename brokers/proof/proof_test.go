package proof_test

import (
	"testing"

	"github.com/postbridge/postbridge/brokers/proof"
)

func TestOneOf(t *testing.T) {
	for _, v := range []struct {
		given   string
		secrets []string
		want    bool
	}{
		{"a", []string{"a"}, true},
		{"b", []string{"a", "b", "c"}, true},
		{"b", []string{"b", "b"}, true},
		{"B", []string{"b"}, false},
		{"ab", []string{"a", "b"}, false},
		{"", []string{"a"}, false},
		{"", []string{""}, false},
		{"", nil, false},
		{"a", nil, false},
	} {
		if got := proof.OneOf(v.given, v.secrets); got != v.want {
			t.Errorf("OneOf(%q, %q) is %v", v.given, v.secrets, got)
		}
	}
}
