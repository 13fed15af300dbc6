package fyers

import (
	"cmp"
	"net/http"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/brokers/body"
	"github.com/postbridge/postbridge/brokers/proof"
)

// Verify checks the token in the path or the query, and that the client is listed, if clients are listed. A body that
// neither names a client nor is an order is verified by the token alone.
func (b *Broker) Verify(p *bridge.Postback) (how string, err error) {
	cred := b.credentials()
	if !proof.OneOf(cmp.Or(p.PathToken, p.QueryToken), cred.Tokens) {
		return "", bridge.Refuse(http.StatusUnauthorized, "token", "the token is missing or wrong")
	}
	if len(cred.ClientIDs) == 0 {
		return "token", nil
	}
	members, _ := p.Members() // none if the body is not an object
	var o order
	for _, m := range members {
		o.member(m.Name, body.Value(m.Value))
	}
	if (o.UserID != "" || body.Complete(&o.Order) == nil) && !proof.OneOf(o.UserID, cred.ClientIDs) {
		return "", bridge.Refuse(http.StatusForbidden, "client_id", "the client id is not a known one")
	}
	return "token", nil
}
