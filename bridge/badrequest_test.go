package bridge_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/postbridge/postbridge/bridge"
)

// proxyV2 is a PROXY protocol v2 header for TCP over IPv4.
const proxyV2 = "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x01\xc0\x00\x02\x02\x30\x39\x01\xbb"

const request = "POST /kite HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"

// bad waits until the bridge has counted so many bad requests of a reason.
func (r *running) bad(reason string, n int) {
	r.t.Helper()
	want := fmt.Sprintf("postbridge_bad_requests_total{reason=%q} %d\n", reason, n)
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if _, metrics := r.get("/metrics"); strings.Contains(metrics, want) {
			return
		}
	}
	_, metrics := r.get("/metrics")
	r.t.Fatalf("waited in vain for %s in\n%s", want, metrics)
}

// totalBad is the sum of all reasons.
func (r *running) totalBad() (n int) {
	_, metrics := r.get("/metrics")
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, "postbridge_bad_requests_total{") {
			var m int
			_, _ = fmt.Sscan(line[strings.LastIndexByte(line, ' '):], &m)
			n += m
		}
	}
	return n
}

// over opens connections, with TLS or without.
type over func() net.Conn

// TestNoBadRequests: each reason is exported before the first bad request, so that a rate sees that one, too.
func TestNoBadRequests(t *testing.T) {
	t.Parallel()
	r, _ := startOver(t, "http")
	for _, reason := range []string{"header_too_large", "malformed", "plain_http", "proxy_protocol", "tls_handshake"} {
		r.bad(reason, 0)
	}
	_, metrics := r.get("/metrics")
	if n := strings.Count(metrics, "\npostbridge_bad_requests_total{"); n != 5 {
		t.Errorf("%d reasons are exported, want 5", n)
	}
}

// TestBadRequests sends what net/http answers by itself, with TLS and without: each leaves a count and one log line,
// whatever came before it on the connection, and none is counted as a postback.
func TestBadRequests(t *testing.T) {
	t.Parallel()
	large := "X: " + strings.Repeat("x", 32<<10) + "\r\n\r\n"
	for _, with := range []string{"http", "https"} {
		t.Run(with, func(t *testing.T) {
			r, open := startOver(t, with)
			counts := make(map[string]int)
			for _, row := range []struct {
				name, text, reason string
				status             int
			}{
				{"request line", "hello\r\n\r\n", "malformed", 400},
				{"method", "P@ST /kite HTTP/1.1\r\nHost: x\r\n\r\n", "malformed", 400},
				{"version", "POST /kite HTTP/3.0\r\nHost: x\r\n\r\n", "malformed", 505},
				{"no host", "POST /kite HTTP/1.1\r\n\r\n", "malformed", 400},
				{"header", "POST /kite HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", "malformed", 400},
				{"length", "POST /kite HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", "malformed", 400},
				{"encoding", "POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", "malformed", 501},
				{"expectation", "POST /kite HTTP/1.1\r\nHost: x\r\nExpect: x\r\n\r\n", "malformed", 417},
				{"half a header", "POST /kite HTTP/1.1\r\nHost:", "malformed", 400},
				{"large header", "POST /kite HTTP/1.1\r\nHost: x\r\n" + large, "header_too_large", 431},
				{"PROXY v1", "PROXY TCP4 192.0.2.1 192.0.2.2 12345 443\r\n" + request, "proxy_protocol", 400},
				{"PROXY v1, unknown", "PROXY UNKNOWN\r\n" + request, "proxy_protocol", 400},
				{"PROXY v2", proxyV2 + request, "proxy_protocol", 400},
				{"second request", request + "hello\r\n\r\n", "malformed", 400},
				{"second request, large header", request + "POST /kite HTTP/1.1\r\n" + large, "header_too_large", 431},
			} {
				conn := open()
				go func() {
					_, _ = io.WriteString(conn, row.text)
					if row.name == "half a header" {
						_ = conn.(interface{ CloseWrite() error }).CloseWrite()
					}
				}()
				answers := bufio.NewReader(conn)
				resp, err := http.ReadResponse(answers, nil)
				if strings.HasPrefix(row.name, "second") {
					if err != nil || resp.StatusCode != 403 {
						t.Fatalf("%s: the first is answered %v, %v", row.name, resp, err)
					}
					_, _ = io.Copy(io.Discard, resp.Body)
					resp, err = http.ReadResponse(answers, nil)
				}
				if err != nil || resp.StatusCode != row.status {
					t.Errorf("%s: answered %v, %v; want %d", row.name, resp, err, row.status)
				}
				if with == "https" && row.reason == "proxy_protocol" {
					row.reason = "malformed" // a load balancer sends that header before TLS: TestBadHandshakes
				}
				counts[row.reason]++
				r.bad(row.reason, counts[row.reason])
			}
			for reason := range counts {
				n := strings.Count(r.log.String(), "reason="+reason)
				if n != 1 ||
					!hasLine(
						r.log.String(),
						"rejected requests that are not valid HTTP or TLS",
						"reason="+reason,
						"remedy=",
					) {
					t.Errorf("%s is logged %d times:\n%s", reason, n, r.log)
				}
			}
			_, metrics := r.get("/metrics")
			if !strings.Contains(metrics, `postbridge_received_total{broker="kite"} 2`+"\n") {
				t.Errorf("not two postbacks:\n%s", metrics)
			}
		})
	}
}

// TestBadHandshakes begins with anything but TLS that becomes a connection.
func TestBadHandshakes(t *testing.T) {
	t.Parallel()
	r, _ := startOver(t, "https")
	address := strings.TrimPrefix(r.ingest, "http://")
	counts := make(map[string]int)
	hello := clientHello(t)
	for _, row := range []struct{ name, text, reason string }{
		{"plain HTTP", request, "plain_http"},
		{"another method", "GET / HTTP/1.0\r\n\r\n", "plain_http"},
		{"PROXY v1", "PROXY TCP4 192.0.2.1 192.0.2.2 12345 443\r\n" + hello, "proxy_protocol"},
		{"PROXY v2", proxyV2 + hello, "proxy_protocol"},
		{"garbage", "\xff\x00garbage\xff garbage", "tls_handshake"},
		{"a truncated hello", hello[:20], "tls_handshake"},
		{"only a hello", hello, "tls_handshake"},
		{"something else after the hello", hello + "garbage", "tls_handshake"},
	} {
		conn := dial(t, address)
		_, _ = io.WriteString(conn, row.text)
		_ = conn.(*net.TCPConn).CloseWrite()
		answer, _ := io.ReadAll(conn)
		if (row.reason == "plain_http") != bytes.HasPrefix(answer, []byte("HTTP/1.0 400 Bad Request\r\n")) {
			t.Errorf("%s: answered %q", row.name, answer)
		}
		counts[row.reason]++
		r.bad(row.reason, counts[row.reason])
	}
	// Clients that give up: one does not trust the certificate, one speaks an old version.
	old := &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}
	for _, c := range []*tls.Config{{ServerName: "example.com"}, old} {
		if _, err := tls.Dial("tcp", address, c); err == nil {
			t.Error("connected")
		}
		counts["tls_handshake"]++
		r.bad("tls_handshake", counts["tls_handshake"])
	}
	if n := strings.Count(r.log.String(), "reason=tls_handshake"); n != 1 {
		t.Errorf("logged %d times:\n%s", n, r.log)
	}
}

// TestNotBadRequests has connections that end without one: probes that only connect, and clients that have had all
// their answers.
func TestNotBadRequests(t *testing.T) {
	t.Parallel()
	for _, with := range []string{"http", "https"} {
		r, open := startOver(t, with)
		probe := dial(t, strings.TrimPrefix(r.ingest, "http://"))
		_ = probe.Close()
		conn := open()
		for _, text := range []string{
			request, "GET /kite HTTP/1.1\r\nHost: x\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
			"POST /kite HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n" +
				"Connection: close\r\n\r\n{}",
		} {
			_, _ = io.WriteString(conn, text)
		}
		if answer, err := io.ReadAll(conn); err != nil || bytes.Count(answer, []byte("HTTP/1.1 ")) < 4 {
			t.Fatalf("%s: answered %q, %v", with, answer, err)
		}
		// All of them have ended when nothing is open any more.
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			if _, metrics := r.get("/metrics"); strings.Contains(metrics, "postbridge_connections 0\n") {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: connections stay open", with)
			}
		}
		if n := r.totalBad(); n != 0 {
			t.Errorf("%s: %d bad requests\n%s", with, n, r.log)
		}
	}
}

// startOver runs a bridge that speaks HTTP or HTTPS. Its base URL is of the address only.
func startOver(t *testing.T, with string) (*running, over) {
	t.Helper()
	if with == "https" {
		r, client := runTLS(t, 64)
		config := client.Transport.(*http.Transport).TLSClientConfig.Clone()
		config.ServerName = "example.com"
		return r, func() net.Conn {
			conn := tls.Client(dial(t, r.ingest), config)
			if err := conn.Handshake(); err != nil {
				t.Fatal(err)
			}
			return conn
		}
	}
	log := new(logBuffer)
	o := testOptions(t, log)
	o.Buses = []bridge.Bus{newFakeBus(t).bus()}
	r := start(t, o, log)
	return r, func() net.Conn { return dial(t, r.ingest) }
}

// clientHello is what a TLS client begins with.
func clientHello(t *testing.T) string {
	t.Helper()
	client, server := net.Pipe()
	go func() { _ = tls.Client(client, &tls.Config{ServerName: "example.com"}).Handshake() }()
	hello := make([]byte, 4<<10)
	n, err := server.Read(hello)
	_ = server.Close()
	if err != nil {
		t.Fatal(err)
	}
	return string(hello[:n])
}

// TestHeaderLimit answers 431 to a header that is too large, before anybody looks at it, and takes one that is not.
func TestHeaderLimit(t *testing.T) {
	t.Parallel()
	r, _ := limited(t, 16)
	status := func(header string) int {
		conn := dial(t, r.ingest)
		go io.WriteString(conn, header+"{}")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode
	}
	const limit = 16 << 10
	fill := func(begin, repeat, end string, size int) string {
		n := (size - len(begin) - len(end)) / len(repeat)
		return begin + strings.Repeat(repeat, n) + strings.Repeat("x", size-len(begin)-len(end)-n*len(repeat)) + end
	}
	for name, header := range map[string]func(size int) string{
		"one field": func(size int) string {
			return fill("POST /kite HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nX: ", "x", "\r\n\r\n", size)
		},
		"many fields": func(size int) string {
			return fill("POST /kite HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n", "X: x\r\n", "Y: \r\n\r\n", size)
		},
		"a long path": func(size int) string {
			return fill("POST /kite?", "x", " HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n", size)
		},
	} {
		if got := status(header(limit)); got != 403 {
			t.Errorf("%s, of 16 KiB: answered %d", name, got)
		}
		for _, size := range []int{limit + 1, limit + 4<<10, 3 * limit} {
			if got := status(header(size)); got != http.StatusRequestHeaderFieldsTooLarge {
				t.Errorf("%s, of %d bytes: answered %d", name, size, got)
			}
		}
	}
	if _, metrics := r.get("/metrics"); !strings.Contains(metrics, `postbridge_received_total{broker="kite"} 3`+"\n") {
		t.Errorf("headers that are too large are counted as postbacks:\n%s", metrics)
	}
	r.bad("header_too_large", 9)
}
