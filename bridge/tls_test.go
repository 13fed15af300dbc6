package bridge_test

import (
	"bufio"
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/postbridge/postbridge/bridge"
)

// startTLS runs a bridge that speaks TLS, and returns its address and a client that trusts it.
func startTLS(t *testing.T, limit int) (address string, client *http.Client) {
	t.Helper()
	r, client := runTLS(t, limit)
	return strings.TrimPrefix(r.ingest, "http://"), client
}

func runTLS(t *testing.T, limit int) (*running, *http.Client) {
	t.Helper()
	of := httptest.NewTLSServer(nil) // for its certificate, and the client that trusts it
	t.Cleanup(of.Close)
	log := new(logBuffer)
	o := testOptions(t, log)
	o.MaxConnections, o.Buses = limit, []bridge.Bus{newFakeBus(t).bus()}
	o.TLS = &tls.Config{
		Certificates: of.TLS.Certificates,
		NextProtos:   []string{"http/1.1"},
		MinVersion:   tls.VersionTLS12,
	}
	r := startUnready(t, o, log)
	log.waitFor(t, regexp.MustCompile(`ready: POST postbacks to https://([0-9.:]+)/kite`))
	return r, of.Client()
}

func TestTLS(t *testing.T) {
	t.Parallel()
	const limit = 8
	address, client := startTLS(t, limit)
	post := func(order string) {
		t.Helper()
		resp, err := client.Post(
			"https://"+address+"/kite",
			"application/json",
			strings.NewReader(kiteBody(order, "OPEN", 1)),
		)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK || resp.ProtoMajor != 1 {
			t.Errorf("answered %s in %s", resp.Status, resp.Proto)
		}
	}
	post("1")

	// Who does not speak TLS gets nothing, and who begins with nothing takes no connection from anybody.
	if status := postOn(dial(t, address), kiteBody("plain", "OPEN", 1)); status != http.StatusBadRequest &&
		status != 0 {
		t.Errorf("plain HTTP: answered %d", status)
	}
	for range 4 * limit {
		dial(t, address)
	}
	client.CloseIdleConnections()
	post("2")
}

// TestSlowHandshake cuts a client that never begins with TLS, and one that never ends its header.
func TestSlowHandshake(t *testing.T) {
	if testing.Short() {
		t.Skip("left out by -short: takes as long as the header timeout")
	}
	t.Parallel()
	address, client := startTLS(t, 8)
	silent := dial(t, address)
	slow, err := tls.Dial(
		"tcp",
		address,
		&tls.Config{RootCAs: client.Transport.(*http.Transport).TLSClientConfig.RootCAs, ServerName: "example.com"},
	)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	if _, err := slow.Write([]byte("POST /kite HTTP/1.1\r\nHost:")); err != nil {
		t.Fatal(err)
	}
	isClosed(t, silent)
	if resp, err := http.ReadResponse(bufio.NewReader(slow), nil); err == nil && resp.StatusCode == http.StatusOK {
		t.Errorf("answered %s", resp.Status)
	}
}
