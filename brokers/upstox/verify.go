package upstox

import (
	"net/http"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/brokers/proof"
)

// Verify checks the token, in the path or in the query, and, if user ids are configured, the user id in the body. The
// token alone verifies a body that names no user and is no order update, such as a GTT order, and a body that is not a
// JSON object.
func (b *Broker) Verify(p *bridge.Postback) (how string, err error) {
	cred := b.credentials()
	if err := proof.Token(p, cred.Tokens); err != nil {
		return "", err
	}
	if len(cred.UserIDs) == 0 {
		return "token", nil
	}
	members, err := p.Members()
	if err != nil {
		return "token", nil // becomes a dead letter
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
