// Package kite reads the postbacks of Zerodha's Kite Connect.
//
// The documentation is https://kite.trade/docs/connect/v3/postbacks. A postback is one JSON object for one order. Its
// checksum covers the order id and the order time, and nothing else: not the status, not a quantity, not a price. So
// whoever has seen one postback can send it again with other fields; a path token keeps such a sender out.
package kite

import "github.com/postbridge/postbridge/bridge"

// Formula is what stands between the order id and the API secret in the text that the checksum is a hash of.
type Formula string

// The formulas.
const (
	// OrderTimestamp is the official formula. It is always accepted.
	OrderTimestamp Formula = "order_timestamp"
	// UserID is the formula of a third-party guide, accepted beside the official one. Its checksum stays the same
	// through all states of an order.
	UserID Formula = "user_id"
)

// Config is what New needs.
type Config struct {
	// Checksum is UserID to accept that formula too. Anything else, also nothing, is OrderTimestamp.
	Checksum Formula
	// Credentials returns those in force. It is called once for each postback, from any goroutine.
	Credentials func() Credentials
}

// Credentials are the secrets that prove a postback. Nobody changes them once they are returned.
type Credentials struct {
	// Secrets are the API secrets of the apps. An app may be listed twice while its secret is changed.
	Secrets []Secret
	// Tokens are the path tokens. If there is none, the route has no token.
	Tokens []string
}

// Secret is the API secret of one Kite Connect app. Neither is empty: anybody can hash an empty secret.
type Secret struct{ AppID, Secret string }

// Broker reads Kite's postbacks.
type Broker struct{ config Config }

var _ bridge.Broker = (*Broker)(nil)

// New makes the adapter.
func New(c Config) *Broker { return &Broker{c} }

// Name is kite.
func (*Broker) Name() string { return "kite" }
