package upstox

import (
	"cmp"
	"net/http"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/brokers/proof"
)

// Verify checks the token, in the path or in the query, and the user if users are listed. A body that is no order needs
// the token only if it names no user, as GTT orders, positions and holdings do not: no order is made of it.
func (b *Broker) Verify(p *bridge.Postback) (verifiedBy string, err error) {
	cred := b.credentials()
	if !proof.OneOf(cmp.Or(p.PathToken, p.QueryToken), cred.Tokens) {
		return "", bridge.Refuse(http.StatusUnauthorized, "token", "the token is missing or wrong")
	}
	if len(cred.UserIDs) == 0 {
		return "token", nil
	}
	members, err := p.Members()
	if err != nil {
		return "token", nil // a dead letter
	}
	o := read(members)
	if o.UserID == "" && o.kind != "order" {
		return "token", nil
	}
	if !proof.OneOf(o.UserID, cred.UserIDs) {
		return "", bridge.Refuse(http.StatusForbidden, "user_id", "the user id is not a known one")
	}
	return "token", nil
}
