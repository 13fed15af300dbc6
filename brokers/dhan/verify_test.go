package dhan_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/postbridge/postbridge/bridge"
)

func TestVerify(t *testing.T) {
	tokens, clients := []string{"t1", "t2"}, []string{"1000000001", "1000000003"}
	const body = `{"dhanClientId":"1000000003","orderId":"1","orderStatus":"PENDING"}`
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
		{"not JSON", tokens, nil, "t1", "", `{"legName": ,}`, "token"},
		{"an array", tokens, nil, "t1", "", `[]`, "token"},

		{"known client", tokens, clients, "t1", "", body, "token"},
		{"known client, a number", tokens, clients, "t1", "", `{"dhanClientId":1000000003}`, "token"},
		{"known client, another case", tokens, clients, "t1", "", `{"DhanClientID":"1000000001"}`, "token"},
		{"unknown client", tokens, clients, "t1", "", `{"dhanClientId":"1000000002"}`, "403 client_id"},
		{"the last of two clients", tokens, clients, "t1", "",
			`{"dhanClientId":"1000000003","dhanclientid":"1000000002"}`, "403 client_id"},
		{"no client", tokens, clients, "t1", "", `{"orderId":"1"}`, "403 client_id"},
		{"client null", tokens, clients, "t1", "", `{"dhanClientId":null}`, "403 client_id"},
		{"client in an array", tokens, clients, "t1", "", `["1000000003"]`, "token"},
		{"client, not JSON", tokens, clients, "t1", "", `{"dhanClientId":"1000000002","legName": ,}`, "token"},
		{"client and wrong token", tokens, clients, "t3", "", body, "401 token"},
	} {
		t.Run(v.name, func(t *testing.T) {
			how, err := newBroker(
				v.tokens,
				v.clients,
			).Verify(&bridge.Postback{PathToken: v.path, QueryToken: v.query, Body: []byte(v.body)})
			if r, ok := errors.AsType[*bridge.Refusal](err); ok {
				how = fmt.Sprintf("%d %s", r.Status, r.Reason)
				if strings.Contains(r.Detail, "t1") || strings.Contains(r.Detail, "1000000003") {
					t.Errorf("%q tells what was expected", r.Detail)
				}
			}
			if how != v.want {
				t.Errorf("got %s, want %s", how, v.want)
			}
		})
	}
}
