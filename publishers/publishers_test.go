package publishers_test

import (
	"log/slog"
	"testing"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers/kafka"
	"github.com/postbridge/postbridge/publishers/nats"
)

// TestOpen opens each bus while it is down, which is no error.
func TestOpen(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	for name, bus := range map[string]bridge.Bus{
		"nats":  nats.NewBus(nats.Config{URL: "nats://127.0.0.1:1"}, log),
		"kafka": kafka.NewBus(kafka.Config{Brokers: []string{"127.0.0.1:1"}}, log),
	} {
		p, err := bus.Open(opening())
		if err != nil || bus.Name != name {
			t.Fatalf("%s: %+v, %v", name, bus, err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	for _, bus := range []bridge.Bus{nats.NewBus(nats.Config{}, log), kafka.NewBus(kafka.Config{}, log)} {
		if p, err := bus.Open(opening()); err == nil || p != nil {
			t.Errorf("%s: %v, %v", bus.Name, p, err)
		}
	}
}

func opening() bridge.Opening {
	return bridge.Opening{Report: func(string, error) {}, SaveState: func() error { return nil }}
}
