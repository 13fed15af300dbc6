// Package fyers verifies and normalizes the postbacks of the Fyers API v3.
//
// The documentation is https://myapi.fyers.in/docsv3, section Webhooks. A postback is one JSON object for one order. A
// webhook has a secret, but the documentation does not describe how Fyers uses it, so a secret token in the
// registered URL proves the origin. After an answer other than 200, Fyers sends nothing to the URL for half an hour.
package fyers

import "github.com/postbridge/postbridge/bridge"

// Credentials verify a postback. They are immutable once returned.
type Credentials struct {
	// Tokens are the valid path tokens. Without one every postback is refused.
	Tokens []string
	// ClientIDs are the Fyers clients whose postbacks are accepted; empty accepts all.
	ClientIDs []string
}

// Broker is the adapter for Fyers. It implements bridge.PolicyBroker.
type Broker struct{ credentials func() Credentials }

var _ bridge.PolicyBroker = (*Broker)(nil)

// New returns the adapter. The function returns the current credentials; it is called once per postback, from any
// goroutine.
func New(credentials func() Credentials) *Broker { return &Broker{credentials} }

// Name returns "fyers".
func (*Broker) Name() string { return "fyers" }

// Policy returns the policy of Fyers: probes of the URL and unreadable postbacks are answered 200, since any other
// answer stops Fyers from sending for half an hour. The client's tax number (PAN) is personal data.
func (*Broker) Policy() bridge.Policy {
	return bridge.Policy{AnswerProbes: true, KeepUnreadable: true, Personal: []string{"pan"}}
}
