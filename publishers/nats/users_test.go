package nats_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/publishers"
	"github.com/postbridge/postbridge/publishers/nats"
)

// TestUsers is that the users of deploy/nats can do their work, and nothing else.
func TestUsers(t *testing.T) {
	for _, user := range []string{"admin", "edge", "strategy", "risk"} {
		t.Setenv(strings.ToUpper(user)+"_PASSWORD", user+"-secret")
	}
	written, err := server.ProcessConfigFile("../../deploy/nats/nats-server.conf") // includes users.conf
	if err != nil {
		t.Fatal(err)
	}
	n := startServer(t, func(o *server.Options) { o.Users = written.Users })
	js := n.admin(t, natsgo.UserInfo("admin", "admin-secret"))

	cfg := nats.Config{
		URL: n.url(), User: "edge", Password: func() string { return "edge-secret" }, CreateStreams: true, Replicas: 1, MaxAge: 168 * time.Hour,
	}
	e := openEdge(t, cfg)
	rejected := old(3)[0] // old: so that it is looked up
	rejected.Status = event.StatusRejected
	e.publish(old(1, 2)...)
	e.publish(rejected, order(4).AsDeadletter())
	e.waitNoCauses()
	wantStored(t, js, "ORDERS", 1, 2, 3)
	wantStored(t, js, "REJECTS", 3)
	wantStored(t, js, "DEADLETTERS", 4)

	results := checkBus(t, cfg)
	wantWorst(t, results, publishers.Info, "has 1 of the 3 replicas")
	wantResult(t, results, publishers.OK, "can be reached")

	for _, c := range []struct {
		user, stream, subject string
		events                int
	}{{"strategy", "ORDERS", "orders.>", 3}, {"risk", "REJECTS", "rejects.>", 1}} {
		consume(t, n, c.user, c.stream, c.subject, c.events)
	}

	others := []string{
		"$JS.API.STREAM.DELETE.ORDERS", "$JS.API.STREAM.PURGE.ORDERS", "$JS.API.STREAM.UPDATE.ORDERS",
		"$JS.API.STREAM.MSG.DELETE.ORDERS", "$JS.API.CONSUMER.DELETE.ORDERS.strategy",
	}
	consumers := append(
		[]string{"orders.kite.AB1234.1", "rejects.kite.AB1234.1", "$JS.API.STREAM.CREATE.ORDERS"},
		others...)
	for user, c := range map[string]struct{ publish, subscribe []string }{
		"edge": {append([]string{"$JS.API.CONSUMER.CREATE.ORDERS.edge.>"}, others...), []string{"orders.>", ">", "_INBOX_strategy.>"}},
		"strategy": {append([]string{"$JS.API.CONSUMER.CREATE.REJECTS.strategy.rejects.>", "$JS.API.CONSUMER.MSG.NEXT.REJECTS.risk", "$JS.ACK.REJECTS.risk.1"},
			consumers...), []string{"rejects.>", ">", "_INBOX.>", "_INBOX_risk.>"}},
		"risk": {append([]string{"$JS.API.CONSUMER.CREATE.ORDERS.risk.orders.>", "$JS.API.CONSUMER.MSG.NEXT.ORDERS.strategy", "$JS.ACK.ORDERS.strategy.1"},
			consumers...), []string{"orders.>", ">", "_INBOX.>", "_INBOX_strategy.>"}},
	} {
		wantDenied(t, n, user, c.publish, c.subscribe)
	}
}

// consume reads and acknowledges all of a stream, with a durable consumer of the user's name.
func consume(t *testing.T, n *node, user, stream, subject string, events int) {
	t.Helper()
	conn, err := natsgo.Connect(
		n.url(),
		natsgo.UserInfo(user, user+"-secret"),
		natsgo.CustomInboxPrefix("_INBOX_"+user),
	)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	c, err := js.CreateOrUpdateConsumer(t.Context(), stream, jetstream.ConsumerConfig{
		Durable: user, FilterSubject: subject, AckPolicy: jetstream.AckExplicitPolicy,
	})
	if err != nil {
		t.Fatalf("%s: %v", user, err)
	}
	for range events {
		m, err := c.Next(jetstream.FetchMaxWait(10 * time.Second))
		if err == nil {
			err = m.DoubleAck(t.Context())
		}
		if err != nil {
			t.Fatalf("%s: %v", user, err)
		}
	}
	if info, err := c.Info(t.Context()); err != nil || info.NumPending != 0 || info.NumAckPending != 0 {
		t.Errorf("%s: %+v, %v", user, info, err)
	}
}

// wantDenied wants the server to refuse each of these to the user.
func wantDenied(t *testing.T, n *node, user string, publish, subscribe []string) {
	t.Helper()
	refused := make(chan error, 10)
	conn, err := natsgo.Connect(n.url(), natsgo.UserInfo(user, user+"-secret"),
		natsgo.ErrorHandler(func(_ *natsgo.Conn, _ *natsgo.Subscription, err error) { refused <- err }))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	try := func(what, subject string, err error) {
		t.Helper()
		if err == nil {
			err = conn.Flush()
		}
		if err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-refused:
			if !errors.Is(err, natsgo.ErrPermissionViolation) ||
				!strings.Contains(err.Error(), fmt.Sprintf("%q", subject)) {
				t.Errorf("%s: %s %s: %v", user, what, subject, err)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s may %s %s", user, what, subject)
		}
	}
	for _, s := range publish {
		try("publish to", s, conn.Publish(s, nil))
	}
	for _, s := range subscribe {
		_, err := conn.SubscribeSync(s)
		try("subscribe to", s, err)
	}
}
