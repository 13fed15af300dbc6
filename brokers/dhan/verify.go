package dhan

import (
	"cmp"
	"net/http"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/brokers/body"
	"github.com/postbridge/postbridge/brokers/proof"
)

// Verify checks the token, and that the client is a known one if clients are listed. Dhan does not say whether it
// keeps the query of a registered URL, so the token may be in the path or in the query. It proves the origin of a body
// that is not an object too, which names no client and is kept as a dead letter.
func (b *Broker) Verify(p *bridge.Postback) (how string, err error) {
	cred := b.credentials()
	if !proof.OneOf(cmp.Or(p.PathToken, p.QueryToken), cred.Tokens) {
		return "", bridge.Refuse(http.StatusUnauthorized, "token", "the token is missing or wrong")
	}
	if len(cred.ClientIDs) == 0 {
		return "token", nil
	}
	members, err := p.Members()
	var o order
	for _, m := range members {
		o.member(m.Name, body.Value(m.Value))
	}
	if err == nil && !proof.OneOf(o.UserID, cred.ClientIDs) {
		return "", bridge.Refuse(http.StatusForbidden, "client_id", "the client id is not a known one")
	}
	return "token", nil
}
