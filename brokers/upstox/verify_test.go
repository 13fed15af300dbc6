package upstox_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/postbridge/postbridge/bridge"
)

func TestVerify(t *testing.T) {
	tokens, users := []string{"t1", "t2"}, []string{"7ABC11", "7ABC12"}
	const body = `{"placed_by":"7ABC12","order_id":"1","status":"open"}`
	for _, v := range []struct {
		name          string
		tokens, users []string
		path, query   string
		body          string
		want          string
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
		{"not JSON", tokens, nil, "t1", "", `{"order_id": ,}`, "token"},

		{"known user", tokens, users, "t1", "", body, "token"},
		{"known user, a number", tokens, []string{"712"}, "t1", "", `{"placed_by":712}`, "token"},
		{"unknown user", tokens, users, "t1", "", `{"placed_by":"7ABC13"}`, "403 user_id"},
		{"user in another case", tokens, users, "t1", "", `{"placed_by":"7abc12"}`, "403 user_id"},
		{"user_id", tokens, users, "t1", "", `{"user_id":"7ABC11","placed_by":null}`, "token"},
		{"userId", tokens, users, "t1", "", `{"userId":"7ABC11","user_id":""}`, "token"},
		{"placed_by comes first", tokens, users, "t1", "", `{"user_id":"7ABC11","placed_by":"x"}`, "403 user_id"},
		{"the last of two users", tokens, users, "t1", "", `{"placed_by":"7ABC12","placed_by":"x"}`, "403 user_id"},
		{"no user", tokens, users, "t1", "", `{"order_id":"1"}`, "403 user_id"},
		{"no user of an order", tokens, users, "t1", "", `{"update_type":"order","order_id":"1"}`, "403 user_id"},
		{"user and wrong token", tokens, users, "t3", "", body, "401 token"},

		{"GTT without a user", tokens, users, "t1", "", `{"update_type":"gtt_order"}`, "token"},
		{"GTT of a known user", tokens, users, "t1", "", `{"update_type":"gtt_order","user_id":"7ABC12"}`, "token"},
		{"GTT of an unknown user", tokens, users, "t1", "", `{"update_type":"gtt_order","user_id":"x"}`, "403 user_id"},
		{"unknown type without a user", tokens, users, "t1", "", `{"update_type":"basket"}`, "token"},
		{"user in an array", tokens, users, "t1", "", `["7ABC12"]`, "token"},
		{"user, not JSON", tokens, users, "t1", "", `{"placed_by":"x", ,}`, "token"},
	} {
		t.Run(v.name, func(t *testing.T) {
			p := &bridge.Postback{PathToken: v.path, QueryToken: v.query, Body: []byte(v.body)}
			how, err := newBroker(v.tokens, v.users).Verify(p)
			if r, ok := errors.AsType[*bridge.Refusal](err); ok {
				how = fmt.Sprintf("%d %s", r.Status, r.Reason)
				if strings.Contains(r.Detail, "t1") || strings.Contains(r.Detail, "7ABC1") {
					t.Errorf("%q contains an expected value", r.Detail)
				}
			}
			if how != v.want {
				t.Errorf("got %s, want %s", how, v.want)
			}
		})
	}
}
