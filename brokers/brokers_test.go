package brokers_test

import (
	"testing"

	"github.com/postbridge/postbridge/brokers"
)

func TestNew(t *testing.T) {
	for _, name := range brokers.Names() {
		b, err := brokers.New(name, brokers.Config{})
		if err != nil || b.Name() != name {
			t.Errorf("%s: %v, %v", name, b, err)
		}
	}
	if b, err := brokers.New("acme", brokers.Config{}); err == nil {
		t.Errorf("acme: %v", b)
	}
}
