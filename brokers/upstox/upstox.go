// Package upstox verifies and normalizes the postbacks of Upstox.
//
// The documentation is https://upstox.com/developer/api-documentation/webhook. A postback is one JSON object for one
// order, with the members that the portfolio stream and the order book have. Upstox signs nothing, so a secret token in
// the registered URL proves the origin. Bodies of 2023 have no update_type and only the deprecated names.
package upstox

import "github.com/postbridge/postbridge/bridge"

// Credentials verify a postback. They are immutable once returned.
type Credentials struct {
	// Tokens are the valid path tokens. Without one every postback is refused.
	Tokens []string
	// UserIDs are the Upstox users (UCC) whose postbacks are accepted; empty accepts all.
	UserIDs []string
}

// Broker is the adapter for Upstox. It implements bridge.Broker.
type Broker struct{ credentials func() Credentials }

var _ bridge.Broker = (*Broker)(nil)

// New returns the adapter. The function returns the current credentials; it is called once per postback, from any
// goroutine.
func New(credentials func() Credentials) *Broker { return &Broker{credentials} }

// Name returns "upstox".
func (*Broker) Name() string { return "upstox" }
