// Package fyers reads the postbacks of the Fyers API v3.
//
// The documentation is https://myapi.fyers.in/docsv3, section Webhooks. A postback is one JSON object for one order. A
// webhook has a secret, but the documentation does not describe how Fyers uses it, so a token in the registered URL
// proves the origin. After an answer other than 200, Fyers sends nothing to the URL for half an hour.
package fyers

import "github.com/postbridge/postbridge/bridge"

// Credentials hold the secrets that verify a postback. They are immutable once returned.
type Credentials struct {
	// Tokens are the path tokens. Without one, no postback is verified.
	Tokens []string
	// ClientIDs are the Fyers clients whose orders are accepted; empty accepts all.
	ClientIDs []string
}

// Broker reads Fyers' postbacks.
type Broker struct{ credentials func() Credentials }

var _ bridge.PolicyBroker = (*Broker)(nil)

// New makes the adapter. The function returns the credentials in force; it is called once for each postback, from any
// goroutine.
func New(credentials func() Credentials) *Broker { return &Broker{credentials} }

// Name is fyers.
func (*Broker) Name() string { return "fyers" }

// Policy returns the policy of Fyers: it requests a URL before the URL is registered, and every verified postback has to
// be answered 200. The client's tax number (PAN) is personal data.
func (*Broker) Policy() bridge.Policy {
	return bridge.Policy{AnswerProbes: true, KeepUnreadable: true, Personal: []string{"pan"}}
}
