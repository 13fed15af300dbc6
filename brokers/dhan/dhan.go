// Package dhan reads the postbacks of DhanHQ v2.
//
// The documentation is https://dhanhq.co/docs/v2/postback. A postback is one JSON object for one order, and Dhan signs
// nothing: what proves the origin is a token in the URL that was registered with the access token. The documented
// postback carries no price of the fill.
package dhan

import "github.com/postbridge/postbridge/bridge"

// Credentials are what proves a postback. Nobody changes them once they are returned.
type Credentials struct {
	// Tokens are the path tokens. Without one nothing is taken.
	Tokens []string
	// ClientIDs are the Dhan clients whose postbacks are taken: all if there is none.
	ClientIDs []string
}

// Broker reads Dhan's postbacks.
type Broker struct{ credentials func() Credentials }

var _ bridge.Broker = (*Broker)(nil)

// New makes the adapter. The function returns the credentials in force; it is called once for each postback, from any
// goroutine.
func New(credentials func() Credentials) *Broker { return &Broker{credentials} }

// Name is dhan.
func (*Broker) Name() string { return "dhan" }
