package nats_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/publishers"
	"github.com/postbridge/postbridge/publishers/nats"
)

// startWithUsers starts a server with the users of deploy/nats and the feature flags. The password of each user is its
// name and "-secret".
func startWithUsers(t *testing.T, flags map[string]bool) *node {
	t.Helper()
	for _, user := range []string{"admin", "edge", "reconcile", "strategy", "risk"} {
		t.Setenv(strings.ToUpper(user)+"_PASSWORD", user+"-secret")
	}
	written, err := server.ProcessConfigFile("../../deploy/nats/nats-server.conf") // includes users.conf
	if err != nil {
		t.Fatal(err)
	}
	return startServer(t, func(o *server.Options) { o.Users, o.FeatureFlags = written.Users, flags })
}

// configOf returns the configuration of a user of deploy/nats.
func (n *node) configOf(user string) nats.Config {
	return nats.Config{
		URL: n.url(), User: user, Password: func() string { return user + "-secret" },
		CreateStreams: true, Replicas: 1, MaxAge: 168 * time.Hour,
	}
}

// TestUsers is that the users of deploy/nats can do their work, and nothing else, with both formats of the subjects of
// acknowledgements.
func TestUsers(t *testing.T) {
	for _, v2 := range []bool{false, true} {
		t.Run(fmt.Sprint(server.FeatureFlagJsAckFormatV2, "=", v2), func(t *testing.T) {
			testUsers(t, startWithUsers(t, map[string]bool{server.FeatureFlagJsAckFormatV2: v2}))
		})
	}
}

func testUsers(t *testing.T, n *node) {
	js := n.admin(t, natsgo.UserInfo("admin", "admin-secret"))

	cfg := n.configOf("edge")
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
		"strategy": {append([]string{"$JS.API.CONSUMER.CREATE.REJECTS.strategy.rejects.>", "$JS.API.CONSUMER.MSG.NEXT.REJECTS.risk", "$JS.ACK.REJECTS.risk.1", "$JS.ACK.hub.hash.REJECTS.risk.1"},
			consumers...), []string{"rejects.>", ">", "_INBOX.>", "_INBOX_risk.>"}},
		"risk": {append([]string{"$JS.API.CONSUMER.CREATE.ORDERS.risk.orders.>", "$JS.API.CONSUMER.MSG.NEXT.ORDERS.strategy", "$JS.ACK.ORDERS.strategy.1", "$JS.ACK.hub.hash.ORDERS.strategy.1"},
			consumers...), []string{"orders.>", ">", "_INBOX.>", "_INBOX_strategy.>"}},
	} {
		wantDenied(t, n, user, c.publish, c.subscribe)
	}
}

// TestUserReconcile is that the user of 'postbridge reconcile' can read and publish events, and nothing else.
func TestUserReconcile(t *testing.T) {
	n := startWithUsers(t, nil)
	log := new(violations)
	n.server.SetLogger(log, false, false)
	openEdge(t, n.configOf("edge")) // creates the streams
	var events *nats.Events
	eventually(t, "streams", func() (ok bool) {
		var err error
		events, err = nats.OpenEvents(t.Context(), n.configOf("reconcile"), "0badcafe")
		return err == nil
	}, func() any { return log.all() })
	defer events.Close()
	start := time.Now()
	rejected := orderEvent(1, "7/x", event.StatusRejected)
	for _, want := range []error{nil, bridge.ErrMoved} {
		revisions := map[bridge.Destination]uint64{bridge.Orders: 0, bridge.Rejects: 0}
		if err := events.Publish(t.Context(), rejected, revisions); !errors.Is(err, want) {
			t.Errorf("publish as the first event of an order: %v, want %v", err, want)
		}
	}
	checkLast(t, events, bridge.Orders, rejected, "1")
	checkLast(t, events, bridge.Rejects, rejected, "1")
	letter := orderEvent(2, "8", event.StatusUnknown)
	letter.Deadletter = true
	if err := events.Publish(t.Context(), letter, map[bridge.Destination]uint64{bridge.Deadletters: 0}); err != nil {
		t.Error(err)
	}
	ids, err := events.Orders(t.Context(), "kite", "AB.1", start.Add(-time.Minute), time.Now())
	if err != nil || !slices.Equal(ids, []string{"7%2Fx"}) {
		t.Errorf("orders %q, %v", ids, err)
	}
	if all := log.all(); len(all) > 0 {
		t.Errorf("violations: %q", all)
	}

	wantDenied(t, n, "reconcile", []string{
		"$JS.API.STREAM.CREATE.ORDERS", "$JS.API.STREAM.DELETE.ORDERS", "$JS.API.STREAM.PURGE.ORDERS",
		"$JS.API.STREAM.UPDATE.ORDERS", "$JS.API.STREAM.MSG.DELETE.ORDERS", "$JS.API.CONSUMER.DELETE.ORDERS.strategy",
		"$JS.API.CONSUMER.CREATE.REJECTS.x.rejects.>", "$JS.API.CONSUMER.CREATE.ORDERS.x.orders.>",
		"$JS.API.CONSUMER.CREATE.ORDERS.x", "$JS.API.CONSUMER.DURABLE.CREATE.ORDERS.strategy",
		"$JS.API.CONSUMER.MSG.NEXT.REJECTS.risk", "$JS.ACK.ORDERS.strategy.1",
		"$JS.API.DIRECT.GET.DEADLETTERS.deadletters.kite",
	}, []string{"orders.>", ">", "_INBOX_strategy.>"})
}

// violations is a log of a server that keeps the violations of permissions.
type violations struct {
	mu    sync.Mutex
	texts []string // guarded by mu
}

func (v *violations) Errorf(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); strings.Contains(text, "Violation") {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.texts = append(v.texts, text)
	}
}

func (v *violations) all() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.texts)
}

func (*violations) Noticef(string, ...any) {}
func (*violations) Warnf(string, ...any)   {}
func (*violations) Fatalf(string, ...any)  {}
func (*violations) Debugf(string, ...any)  {}
func (*violations) Tracef(string, ...any)  {}

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
