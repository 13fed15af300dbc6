// Package upstox reads the postbacks of Upstox.
//
// The documentation is https://upstox.com/developer/api-documentation/webhook. A postback is one JSON object for one
// order, with the members that the portfolio stream and the order book have. Upstox signs nothing: a token in the
// registered URL proves the origin. Bodies of 2023 have no update_type and only the deprecated names.
package upstox

import "github.com/postbridge/postbridge/bridge"

// Credentials prove a postback. They must not change once they are returned.
type Credentials struct {
	// Tokens holds the valid path tokens. Without one every postback is refused.
	Tokens []string
	// UserIDs holds the Upstox users (UCC) whose postbacks are accepted; empty accepts all.
	UserIDs []string
}

// Broker reads Upstox's postbacks.
type Broker struct{ credentials func() Credentials }

var _ bridge.Broker = (*Broker)(nil)

// New returns the adapter. The function returns the current credentials; it is called once for each postback, from any
// goroutine.
func New(credentials func() Credentials) *Broker { return &Broker{credentials} }

// Name returns upstox.
func (*Broker) Name() string { return "upstox" }
