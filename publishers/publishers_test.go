package publishers_test

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers"
	"github.com/postbridge/postbridge/publishers/nats"
)

func TestNew(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	bus, err := publishers.New("nats", publishers.Config{NATS: nats.Config{URL: "nats://127.0.0.1:1"}}, log)
	if err != nil || bus.Name != "nats" {
		t.Fatalf("%+v, %v", bus, err)
	}
	p, err := bus.Open(bridge.Opening{Report: func(string, error) {}}) // the bus is down, which is no error
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

func TestNewErrors(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	if _, err := publishers.New("rabbit", publishers.Config{}, log); err == nil || !strings.Contains(err.Error(), "available is nats") {
		t.Errorf("%v", err)
	}
	bus, err := publishers.New("nats", publishers.Config{}, log)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := bus.Open(bridge.Opening{Report: func(string, error) {}}); err == nil || p != nil {
		t.Errorf("%v, %v", p, err)
	}
}
