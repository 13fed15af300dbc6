package nats_test

import (
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/postbridge/postbridge/publishers/nats"
)

// fakeServer says text to everyone who connects, and tells of each. It reads what they say.
func fakeServer(t *testing.T, text string) (address string, connects <-chan struct{}) {
	t.Helper()
	address, connects, _ = fakeServerCounting(t, text)
	return address, connects
}

// fakeServerCounting counts those that stay connected, too.
func fakeServerCounting(t *testing.T, text string) (address string, connects <-chan struct{}, open *atomic.Int64) {
	t.Helper()
	open = new(atomic.Int64)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	came := make(chan struct{}, 100)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			came <- struct{}{}
			open.Add(1)
			fmt.Fprint(c, text)
			go func() {
				defer open.Add(-1)
				defer c.Close()
				for b := make([]byte, 1024); ; {
					if n, err := c.Read(b); err != nil {
						return
					} else if strings.Contains(string(b[:n]), "PING") {
						fmt.Fprint(c, "PONG\r\n-ERR 'Something Unheard Of'\r\n")
					}
				}
			}()
		}
	}()
	return l.Addr().String(), came, open
}

// An error that the library does not know closes its connection for good. We come back all the same.
func TestClosedForGood(t *testing.T) {
	t.Parallel()
	address, connects := fakeServer(
		t,
		`INFO {"server_id":"X","version":"2.10.0","proto":1,"headers":true,"max_payload":1048576,"jetstream":true}`+"\r\n",
	)
	e := openEdge(t, nats.Config{URL: "nats://" + address})
	for range 3 {
		select {
		case <-connects:
		case <-time.After(20 * time.Second):
			t.Fatalf("gave up; causes: %q", e.all())
		}
	}
	e.waitCause("connection", "Something Unheard Of")
}

// The library waits for a server that says nothing with its lock held. Close does not.
func TestCloseDoesNotWait(t *testing.T) {
	t.Parallel()
	address, connects := fakeServer(t, "")
	e := openEdge(t, nats.Config{URL: "nats://" + address})
	<-connects
	start := time.Now()
	e.Close()
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("Close took %v", d)
	}
}

// A connection over which we are not let in is closed, however long that goes on.
func TestRefusedConnectionsAreClosed(t *testing.T) {
	t.Parallel()
	address, connects, open := fakeServerCounting(
		t,
		`INFO {"server_id":"X","version":"2.10.0","proto":1,"headers":true,"max_payload":1048576}`+"\r\n-ERR 'Authorization Violation'\r\n",
	)
	e := openEdge(t, nats.Config{URL: "nats://" + address, User: "edge", Password: noPassword})
	for range 6 {
		select {
		case <-connects:
		case <-time.After(20 * time.Second):
			t.Fatalf("gave up; causes: %q", e.all())
		}
	}
	eventually(
		t,
		"closed connections",
		func() bool { return open.Load() <= 2 },
		func() any { return fmt.Sprint(open.Load(), " are open") },
	)
}

// What JetStream's own requests may not do is told by name, and at once.
func TestStreamLookUpDenied(t *testing.T) {
	t.Parallel()
	n := startServer(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "edge", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Deny: []string{"$JS.API.STREAM.INFO.ORDERS"}},
		}}}
	})
	e := openEdge(t, nats.Config{URL: n.url(), User: "edge", Password: noPassword, CreateStreams: true})
	held := e.offer(order(1))
	e.waitCause("stream ORDERS", `Publish to "$JS.API.STREAM.INFO.ORDERS": allow publishing to $JS.API`)
	e.publish(order(2).AsDeadletter())
	undone(t, held)
}

// Without permission to subscribe to answers, everything times out. The reason is told.
func TestAnswersDenied(t *testing.T) {
	t.Parallel()
	user := &server.User{Username: "edge", Permissions: &server.Permissions{
		Subscribe: &server.SubjectPermission{Deny: []string{"_INBOX.>"}},
	}}
	n := startServer(t, func(o *server.Options) { o.Users = []*server.User{user} })
	e := openEdge(t, nats.Config{URL: n.url(), User: "edge", Password: noPassword, CreateStreams: true})
	held := e.offer(order(1))
	e.waitCause("permission inbox", `Subscription to "_INBOX.`)
	e.waitCause("permission inbox", ": allow subscribing to _INBOX.>")
	e.waitCause("stream ORDERS", "see permission inbox")
	undone(t, held)

	n.options.Users = []*server.User{{Username: "edge"}}
	if err := n.server.ReloadOptions(n.options.Clone()); err != nil {
		t.Fatal(err)
	}
	if err := e.wait(held); err != nil {
		t.Error(err)
	}
	e.waitNoCauses()
}
