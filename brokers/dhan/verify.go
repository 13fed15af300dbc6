package dhan

import (
	"net/http"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/brokers/proof"
)

// Verify checks the token and, if client ids are configured, the client id in the body. Dhan does not document whether
// it keeps the query of a registered URL, so the token may be in the path or in the query. The token alone also
// verifies a body that is not a JSON object and so names no client: the bridge stores it as a dead letter.
func (b *Broker) Verify(p *bridge.Postback) (how string, err error) {
	cred := b.credentials()
	if err := proof.Token(p, cred.Tokens); err != nil {
		return "", err
	}
	if len(cred.ClientIDs) == 0 {
		return "token", nil
	}
	members, err := p.Members()
	o := read(members)
	if err == nil && !proof.OneOf(o.UserID, cred.ClientIDs) {
		return "", bridge.Refuse(http.StatusForbidden, "client_id", "the client id is not a known one")
	}
	return "token", nil
}
