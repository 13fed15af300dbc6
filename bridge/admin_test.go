package bridge_test

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/postbridge/postbridge/bridge"
)

// TestAdminToken asks for the token wherever more is said than that the process lives and is ready.
func TestAdminToken(t *testing.T) {
	t.Parallel()
	log := new(logBuffer)
	o := testOptions(t, log)
	o.Buses = []bridge.Bus{newFakeBus(t).bus()}
	var token atomic.Value
	token.Store("s3cret")
	next := "s3cret"
	o.AdminToken = func() string { return token.Load().(string) }
	o.Reload = func() bool { return token.Swap(next) != next } // requests come one after the other
	r := start(t, o, log)
	get := func(path, authorization string) int {
		req, err := http.NewRequest(http.MethodGet, r.admin, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.URL.Opaque = path // as it is
		if authorization != "" {
			req.Header.Set("Authorization", authorization)
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if challenge := resp.Header.Get("WWW-Authenticate"); (resp.StatusCode == 401) != strings.HasPrefix(
			challenge,
			"Bearer",
		) {
			t.Errorf("%s: %d, WWW-Authenticate %q", path, resp.StatusCode, challenge)
		}
		return resp.StatusCode
	}
	for _, row := range []struct {
		path, authorization string
		want                int
	}{
		{"/livez", "", 200},
		{"/readyz", "", 200},
		{"/readyz", "Bearer wrong", 200},
		{"/", "", 200}, // the page, which holds no data and asks for the token
		{"/page/page.js", "", 200},
		{"/page/data", "", 401},
		{"/page/data", "Bearer s3cret", 200},
		{"/page/", "", 401},
		{"//", "", 401},
		{"/status", "", 401},
		{"/metrics", "", 401},
		{"/nothing", "", 401},
		{"/livez/../status", "", 401},
		{"//status", "", 401},
		{"/livez/", "", 401},
		{"/%6civez/../metrics", "", 401},
		{"/status", "Bearer wrong", 401},
		{"/status", "Bearer", 401},
		{"/status", "Bearer ", 401},
		{"/status", "Basic s3cret", 401},
		{"/status", "s3cret", 401},
		{"/status", "Bearer s3cret1", 401},
		{"/status", "Bearer s3cre", 401},
		{"/status", "Bearer s3cret", 200},
		{"/metrics", "bearer  s3cret", 200},
		{"/status?token=s3cret", "", 401},
	} {
		if got := get(row.path, row.authorization); got != row.want {
			t.Errorf("%s with %q: answered %d, want %d", row.path, row.authorization, got, row.want)
		}
	}
	// A token that was rotated a moment ago is found before it is refused.
	next = "n3xt"
	if got := get("/status", "Bearer n3xt"); got != 200 {
		t.Errorf("the new token: answered %d", got)
	}
	if got := get("/status", "Bearer s3cret"); got != 401 {
		t.Errorf("the old token: answered %d", got)
	}
}
