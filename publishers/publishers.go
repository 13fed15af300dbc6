// Package publishers makes the buses of POSTBRIDGE_PUBLISH.
package publishers

import (
	"fmt"
	"log/slog"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers/kafka"
	"github.com/postbridge/postbridge/publishers/nats"
)

// Config holds the configuration of every bus there is.
type Config struct {
	NATS  nats.Config
	Kafka kafka.Config
}

// New returns the bus of that name. The bus is not opened yet.
func New(name string, cfg Config, log *slog.Logger) (bridge.Bus, error) {
	switch name {
	case "nats":
		return bridge.Bus{Name: name, Delay: cfg.NATS.Delay(), Open: func(o bridge.Opening) (bridge.Publisher, error) {
			p, err := nats.Open(cfg.NATS, o, log)
			if err != nil {
				return nil, err
			}
			return p, nil
		}}, nil
	case "kafka":
		return bridge.Bus{Name: name, Open: func(o bridge.Opening) (bridge.Publisher, error) {
			p, err := kafka.Open(cfg.Kafka, o, log)
			if err != nil {
				return nil, err
			}
			return p, nil
		}}, nil
	default:
		return bridge.Bus{}, fmt.Errorf("there is no bus %q: available are nats and kafka", name)
	}
}
