// Package dhan verifies and normalizes the postbacks of DhanHQ v2.
//
// The documentation is https://dhanhq.co/docs/v2/postback. A postback is one JSON object for one order. Dhan signs
// nothing, so a secret token in the registered URL proves the origin. The documented postback has no fill price.
package dhan

import "github.com/postbridge/postbridge/bridge"

// Credentials verify a postback. They are immutable once returned.
type Credentials struct {
	// Tokens are the valid path tokens. Without one every postback is refused.
	Tokens []string
	// ClientIDs are the Dhan clients whose postbacks are accepted; empty accepts all.
	ClientIDs []string
}

// Broker is the adapter for Dhan. It implements bridge.Broker.
type Broker struct{ credentials func() Credentials }

var _ bridge.Broker = (*Broker)(nil)

// New returns the adapter. The function returns the current credentials; it is called once per postback, from any
// goroutine.
func New(credentials func() Credentials) *Broker { return &Broker{credentials} }

// Name returns "dhan".
func (*Broker) Name() string { return "dhan" }
