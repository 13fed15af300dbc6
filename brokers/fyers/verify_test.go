package fyers_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/postbridge/postbridge/bridge"
)

func TestVerify(t *testing.T) {
	tokens, clients := []string{"t1", "t2"}, []string{"FX00002", "FX00001"}
	const body = `{"clientId":"FX00001","id":"1","status":6}`
	for _, v := range []struct {
		name            string
		tokens, clients []string
		path, query     string
		body            string
		want            string
	}{
		{"path token", tokens, nil, "t1", "", body, "token"},
		{"another path token", tokens, nil, "t2", "", body, "token"},
		{"query token", tokens, nil, "", "t2", body, "token"},
		{"no token", tokens, nil, "", "", body, "401 token"},
		{"wrong token", tokens, nil, "t3", "", body, "401 token"},
		{"beginning of a token", tokens, nil, "t", "", body, "401 token"},
		{"wrong query token", tokens, nil, "", "T1", body, "401 token"},
		{"the path comes first", tokens, nil, "t3", "t1", body, "401 token"},
		{"none configured", nil, nil, "", "", body, "401 token"},
		{"an empty one configured", []string{""}, nil, "", "", body, "401 token"},
		{"empty", tokens, nil, "t1", "", ``, "token"},
		{"not JSON", tokens, nil, "t1", "", `{"pan": ,}`, "token"},
		{"an array", tokens, nil, "t1", "", `[]`, "token"},

		{"known client", tokens, clients, "t1", "", body, "token"},
		{"known client, another case", tokens, clients, "t1", "", `{"CLIENTID":"FX00002"}`, "token"},
		{"unknown client", tokens, clients, "t1", "", `{"clientId":"FX00003"}`, "403 client_id"},
		{"unknown client, a number", tokens, clients, "t1", "", `{"clientId":3}`, "403 client_id"},
		{"the last of two clients", tokens, clients, "t1", "", `{"clientId":"FX00001","clientid":"FX00003"}`, "403 client_id"},
		{"an order of no client", tokens, clients, "t1", "", `{"id":"1","status":6}`, "403 client_id"},
		{"an order of client null", tokens, clients, "t1", "", `{"clientId":null,"id":"1","status":6}`, "403 client_id"},
		{"no client, no order", tokens, clients, "t1", "", `{"test":true}`, "token"},
		{"clients, an array", tokens, clients, "t1", "", `["FX00003"]`, "token"},
		{"clients, not JSON", tokens, clients, "t1", "", `{"clientId":"FX00003","pan": ,}`, "token"},
		{"clients, empty", tokens, clients, "t1", "", ``, "token"},
		{"client and wrong token", tokens, clients, "t3", "", body, "401 token"},
	} {
		t.Run(v.name, func(t *testing.T) {
			p := &bridge.Postback{PathToken: v.path, QueryToken: v.query, Body: []byte(v.body)}
			how, err := newBroker(v.tokens, v.clients).Verify(p)
			if r, ok := errors.AsType[*bridge.Refusal](err); ok {
				how = fmt.Sprintf("%d %s", r.Status, r.Reason)
				if strings.Contains(r.Detail, "t1") || strings.Contains(r.Detail, "FX00001") {
					t.Errorf("%q contains an expected value", r.Detail)
				}
			}
			if how != v.want {
				t.Errorf("got %s, want %s", how, v.want)
			}
		})
	}
}
