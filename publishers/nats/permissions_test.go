package nats_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/publishers/nats"
	"github.com/postbridge/postbridge/publishers/publishertest"
)

// The permissions that the comment of the package lists are enough, lookups included. Without one that a lookup
// needs, events would be stored twice here.
func TestPermissions(t *testing.T) {
	t.Parallel()
	publish := []string{
		"orders.>", "rejects.>", "deadletters.>",
		"$JS.API.STREAM.INFO.ORDERS", "$JS.API.STREAM.INFO.REJECTS", "$JS.API.STREAM.INFO.DEADLETTERS",
	}
	create := []string{
		"$JS.API.STREAM.CREATE.ORDERS",
		"$JS.API.STREAM.CREATE.REJECTS",
		"$JS.API.STREAM.CREATE.DEADLETTERS",
	}
	direct := []string{
		"$JS.API.DIRECT.GET.ORDERS", "$JS.API.DIRECT.GET.ORDERS.>", "$JS.API.DIRECT.GET.REJECTS", "$JS.API.DIRECT.GET.REJECTS.>",
	}
	get := []string{"$JS.API.STREAM.MSG.GET.ORDERS", "$JS.API.STREAM.MSG.GET.REJECTS"}
	t.Run("missing streams", func(t *testing.T) {
		t.Parallel()
		n := startRestricted(t, publish, create, direct)
		checkPermissions(t, n)
	})
	t.Run("existing streams", func(t *testing.T) {
		t.Parallel()
		n := startRestricted(t, publish, direct)
		createAll(t, n, true)
		checkPermissions(t, n)
	})
	t.Run("without allow_direct", func(t *testing.T) {
		t.Parallel()
		n := startRestricted(t, publish, get)
		createAll(t, n, false)
		checkPermissions(t, n)
	})
}

// startRestricted starts a server on which user edge may publish to these subjects and hear answers, and no more.
func startRestricted(t *testing.T, subjects ...[]string) *node {
	t.Helper()
	permissions := &server.Permissions{
		Publish:   &server.SubjectPermission{},
		Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.>"}},
	}
	for _, s := range subjects {
		permissions.Publish.Allow = append(permissions.Publish.Allow, s...)
	}
	return startServer(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "admin", Password: "admin"}, {Username: "edge", Permissions: permissions}}
	})
}

func createAll(t *testing.T, n *node, allowDirect bool) {
	t.Helper()
	js := n.admin(t, natsgo.UserInfo("admin", "admin"))
	for _, name := range []string{"orders", "rejects", "deadletters"} {
		createStream(
			t,
			js,
			jetstream.StreamConfig{
				Name:        strings.ToUpper(name),
				Subjects:    []string{name + ".>"},
				AllowDirect: allowDirect,
			},
		)
	}
}

// checkPermissions publishes, and offers the same again when the streams remember no message id any more.
func checkPermissions(t *testing.T, n *node) {
	t.Helper()
	js := n.admin(t, natsgo.UserInfo("admin", "admin"))
	cfg := nats.Config{URL: n.url(), User: "edge", Password: noPassword, CreateStreams: true}
	rejected, dead := old(6)[0], order(7).AsDeadletter()
	rejected.Status = event.StatusRejected

	first := openEdge(t, cfg)
	first.publish(old(1, 2, 4, 5)...)
	first.publish(rejected, dead)
	first.Close()
	forgetAll(t, js, "ORDERS", "orders.test.probe.1")
	forgetAll(t, js, "REJECTS", "rejects.test.probe.1")

	again := openEdge(t, cfg)
	again.publish(rejected)
	again.publish(old(2, 3)...) // the last on the subject is another: all of them are looked at
	again.waitNoCauses()
	wantStored(t, js, "ORDERS", 1, 2, 4, 5, 6, 3)
	wantStored(t, js, "REJECTS", 6)
	wantStored(t, js, "DEADLETTERS", 7)
}

// forgetAll has a stream forget the message ids that it knows. The server may look at them with the window of before
// when the window is changed, and then not for minutes, so it is changed until it does.
func forgetAll(t *testing.T, js jetstream.JetStream, stream, subject string) {
	t.Helper()
	c := streamConfig(t, js, stream)
	forgotten := func() bool {
		ack, err := js.Publish(t.Context(), subject, nil, jetstream.WithMsgID(t.Name()))
		if err != nil {
			t.Fatal(err)
		}
		return !ack.Duplicate
	}
	forgotten()
	tries := 0
	eventually(t, "forgotten id", func() bool {
		tries++
		c.Duplicates = time.Duration(200+tries%2) * time.Millisecond
		if _, err := js.UpdateStream(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		return forgotten()
	}, func() any { return tries })
	s, err := js.Stream(t.Context(), stream)
	if err == nil {
		err = s.Purge(t.Context(), jetstream.WithPurgeSubject(subject))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestDeniedNamesNobody: the server quotes a subject that it denies. Neither conditions nor log lines do.
func TestDeniedNamesNobody(t *testing.T) {
	t.Parallel()
	user := &server.User{Username: "edge", Permissions: &server.Permissions{
		Publish: &server.SubjectPermission{Deny: []string{"orders.kite.AB1234.>", "deadletters.kite"}},
	}}
	n := startServer(t, func(o *server.Options) { o.Users = []*server.User{user} })
	proxy := publishertest.NewProxy(t, n.url()[len("nats://"):])
	var seen logBuffer
	cfg := nats.Config{URL: "nats://" + proxy.Addr(), User: "edge", Password: noPassword, CreateStreams: true}
	e := openEdgeReporting(t, cfg,
		func(e *edge, cause string, err error) {
			e.report(cause, err)
			if err != nil {
				fmt.Fprintln(&seen, err)
			}
		})
	d := order(1)
	e.offer(d)
	e.offer(order(2).AsDeadletter())
	e.waitCause("permission orders", "no permission to publish to some subjects of orders.>")
	e.waitCause("permission deadletters", "no permission to publish to some subjects of deadletters.>")
	proxy.Refuse(true) // the library's last error was the violation
	e.waitCause("connection", "bus at")
	for _, text := range []string{seen.String(), e.log.String()} {
		if strings.Contains(text, d.UserID) || strings.Contains(text, d.OrderID) {
			t.Errorf("an order is named: %s", text)
		}
	}
}

// TestDeniedLookupNamesNobody: the server quotes the subject of a lookup that it denies, with a user and an order in
// it. The log line does not.
func TestDeniedLookupNamesNobody(t *testing.T) {
	t.Parallel()
	user := &server.User{Username: "edge", Permissions: &server.Permissions{
		Publish: &server.SubjectPermission{Deny: []string{"$JS.API.DIRECT.GET.ORDERS.>"}},
	}}
	n := startServer(t, func(o *server.Options) { o.Users = []*server.User{user} })
	e := openEdge(t, nats.Config{URL: n.url(), User: "edge", Password: noPassword, CreateStreams: true})
	d := old(1)[0]
	e.publish(d)
	eventually(t, "a line on the lookup", func() bool {
		return strings.Contains(e.log.String(), "no permission to look up")
	}, func() any { return e.log.String() })
	if text := e.log.String(); strings.Contains(text, d.UserID) || strings.Contains(text, d.OrderID) {
		t.Errorf("an order is named: %s", text)
	}
}
