package publishers_test

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers"
	"github.com/postbridge/postbridge/publishers/kafka"
	"github.com/postbridge/postbridge/publishers/nats"
)

// TestNew opens each bus while it is down, which is no error.
func TestNew(t *testing.T) {
	cfg := publishers.Config{
		NATS:  nats.Config{URL: "nats://127.0.0.1:1"},
		Kafka: kafka.Config{Brokers: []string{"127.0.0.1:1"}},
	}
	for _, name := range []string{"nats", "kafka"} {
		bus, err := publishers.New(name, cfg, slog.New(slog.DiscardHandler))
		if err != nil || bus.Name != name {
			t.Fatalf("%+v, %v", bus, err)
		}
		p, err := bus.Open(opening())
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestNewErrors(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	if _, err := publishers.New("rabbit", publishers.Config{}, log); err == nil || !strings.Contains(err.Error(), "available are nats and kafka") {
		t.Errorf("%v", err)
	}
	for _, name := range []string{"nats", "kafka"} {
		bus, err := publishers.New(name, publishers.Config{}, log)
		if err != nil {
			t.Fatal(err)
		}
		if p, err := bus.Open(opening()); err == nil || p != nil {
			t.Errorf("%s: %v, %v", name, p, err)
		}
	}
}

func opening() bridge.Opening {
	return bridge.Opening{Report: func(string, error) {}, KeepNote: func() error { return nil }}
}
