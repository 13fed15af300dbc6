// Package kite verifies and normalizes the postbacks of Zerodha's Kite Connect.
//
// The documentation is https://kite.trade/docs/connect/v3/postbacks. A postback is one JSON object for one order. Its
// checksum covers only the order id and the order time: not the status, a quantity or a price. A client that has seen
// one postback can send it again with other fields; a path token prevents that.
package kite

import "github.com/postbridge/postbridge/bridge"

// Formula names the field that the checksum hashes between the order id and the API secret.
type Formula string

// The formulas.
const (
	// OrderTimestamp is the official formula. It is always accepted.
	OrderTimestamp Formula = "order_timestamp"
	// UserID is the formula of a third-party guide, accepted beside the official one. Its checksum stays the same
	// through all states of an order.
	UserID Formula = "user_id"
)

// Config is the configuration of the adapter.
type Config struct {
	// Checksum is UserID to accept that formula, too. Any other value, also none, is OrderTimestamp.
	Checksum Formula
	// Credentials returns the current credentials. It is called once per postback, from any goroutine.
	Credentials func() Credentials
}

// Credentials verify a postback. They are immutable once returned.
type Credentials struct {
	// Secrets are the API secrets of the apps. An app is listed twice while its secret is rotated.
	Secrets []Secret
	// Tokens are the valid path tokens. If there is none, the route has no token.
	Tokens []string
}

// Secret is the API secret of one Kite Connect app. Neither is empty: any client can hash an empty secret.
type Secret struct{ AppID, Secret string }

// Broker is the adapter for Kite. It implements bridge.Broker.
type Broker struct{ config Config }

var _ bridge.Broker = (*Broker)(nil)

// New returns the adapter.
func New(c Config) *Broker { return &Broker{c} }

// Name returns "kite".
func (*Broker) Name() string { return "kite" }
