package bridge_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

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

// TestStatus checks what /status says beside the counts, and that it is readable: < and > stay as they are.
func TestStatus(t *testing.T) {
	t.Parallel()
	log := new(logBuffer)
	o := testOptions(t, log)
	o.Version, o.Host = "v1.2.3", "postbridge-0"
	bus := newFakeBus(t)
	bus.down = errors.New("create it with subjects orders.>")
	o.Buses = []bridge.Bus{bus.bus()}
	before := time.Now().Add(-time.Second)
	r := start(t, o, log)
	type status struct {
		Version, Host string
		Ready         bool
		Since         time.Time
		Spool         map[string]any
		Buses         map[string]struct {
			Up          bool
			Since       time.Time
			Causes      []string
			Conditions  []struct{ Name, Error string }
			LastError   string    `json:"last_error"`
			LastErrorAt time.Time `json:"last_error_at"`
		}
	}
	get := func() (st status, text string) {
		_, text = r.get("/status")
		if err := json.Unmarshal([]byte(text), &st); err != nil {
			t.Fatal(err)
		}
		return st, text
	}
	st, text := get()
	nats := st.Buses["nats"]
	if st.Version != "v1.2.3" || st.Host != "postbridge-0" || !st.Ready || st.Since.Before(before) ||
		nats.Up || nats.Since.Before(before) || nats.LastErrorAt.Before(nats.Since) || len(nats.Causes) != 1 ||
		len(nats.Conditions) != 1 || nats.Conditions[0].Name != "connection" ||
		nats.Causes[0] != "connection: create it with subjects orders.>" ||
		!strings.Contains(text, "orders.>") || st.Spool["full_in_seconds"] != nil {
		t.Errorf("while the bus is down: %s", text)
	}
	bus.report("connection", nil)
	st, text = get()
	up := st.Buses["nats"]
	if !up.Up || up.Since.Before(nats.Since) || up.Causes != nil || strings.Contains(text, "conditions") ||
		up.LastError != nats.Causes[0] || !up.LastErrorAt.Equal(nats.LastErrorAt) {
		t.Errorf("once the bus is up: %s", text)
	}
}
