package fyers

import (
	"net/http"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/brokers/body"
	"github.com/postbridge/postbridge/brokers/proof"
)

// Verify checks the token, in the path or in the query, and, if client ids are configured, the client id in the body.
// The token alone verifies a body that names no client and is no order, such as a probe, and a body that is not a JSON
// object.
func (b *Broker) Verify(p *bridge.Postback) (how string, err error) {
	cred := b.credentials()
	if err := proof.Token(p, cred.Tokens); err != nil {
		return "", err
	}
	if len(cred.ClientIDs) == 0 {
		return "token", nil
	}
	members, _ := p.Members() // none if the body is not an object
	o := read(members)
	if (o.UserID != "" || body.Complete(&o.Order) == nil) && !proof.OneOf(o.UserID, cred.ClientIDs) {
		return "", bridge.Refuse(http.StatusForbidden, "client_id", "the client id is not a known one")
	}
	return "token", nil
}
