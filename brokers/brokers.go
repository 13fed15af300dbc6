// Package brokers lists the adapters of all stock brokers and makes them by name.
package brokers

import (
	"fmt"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/brokers/book"
	"github.com/postbridge/postbridge/brokers/dhan"
	"github.com/postbridge/postbridge/brokers/fyers"
	"github.com/postbridge/postbridge/brokers/kite"
	"github.com/postbridge/postbridge/brokers/upstox"
)

// Config has the configuration of each adapter. New reads only that of the broker it makes.
type Config struct {
	Kite   kite.Config
	Dhan   func() dhan.Credentials
	Upstox func() upstox.Credentials
	Fyers  func() fyers.Credentials
}

// Names returns the names of all brokers, in the sequence of the routes and of error messages.
func Names() []string { return []string{"kite", "dhan", "upstox", "fyers"} }

// Book returns the order book of a broker; an error if no broker has the name.
func Book(name string) (book.Book, error) {
	switch name {
	case "kite":
		return kite.Book(), nil
	case "dhan":
		return dhan.Book(), nil
	case "upstox":
		return upstox.Book(), nil
	case "fyers":
		return fyers.Book(), nil
	default:
		return book.Book{}, fmt.Errorf("no broker is called %q", name)
	}
}

// New returns the adapter of a broker; an error if no broker has the name.
func New(name string, c Config) (bridge.Broker, error) {
	switch name {
	case "kite":
		return kite.New(c.Kite), nil
	case "dhan":
		return dhan.New(c.Dhan), nil
	case "upstox":
		return upstox.New(c.Upstox), nil
	case "fyers":
		return fyers.New(c.Fyers), nil
	default:
		return nil, fmt.Errorf("no broker is called %q", name)
	}
}
