package nats_test

import (
	"fmt"
	"net"
	"net/url"
	"strings"
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

// startHub starts a server of the domain hub that accepts leaf nodes.
func startHub(t *testing.T) *node {
	t.Helper()
	return startServer(t, func(o *server.Options) {
		o.ServerName, o.JetStreamDomain = "hub", "hub"
		o.LeafNode = server.LeafNodeOpts{Host: "127.0.0.1", Port: freePort(t)}
	})
}

// startLeaf starts a leaf node of the hub; change, if not nil, changes its options.
func startLeaf(t *testing.T, hub *node, change func(*server.Options)) *node {
	t.Helper()
	address := net.JoinHostPort("127.0.0.1", fmt.Sprint(hub.options.LeafNode.Port))
	leaf := startServer(t, func(o *server.Options) {
		o.ServerName = "leaf"
		o.LeafNode.ReconnectInterval = 50 * time.Millisecond
		o.LeafNode.Remotes = []*server.RemoteLeafOpts{{URLs: []*url.URL{{Scheme: "nats-leaf", Host: address}}}}
		if change != nil {
			change(o)
		}
	})
	eventually(t, "leaf link", func() bool { return leaf.server.NumLeafNodes() == 1 && hub.server.NumLeafNodes() == 1 },
		func() any { return leaf.server.NumLeafNodes() })
	return leaf
}

func noJetStream(o *server.Options) { o.JetStream = false }

func ownDomain(o *server.Options) { o.JetStreamDomain = "leaf" }

// TestLeafWithoutJetStream: the condition names the domain as the remedy, and with it the events are stored on the hub.
func TestLeafWithoutJetStream(t *testing.T) {
	t.Parallel()
	hub := startHub(t)
	leaf := startLeaf(t, hub, noJetStream)
	cfg := nats.Config{URL: leaf.url(), CreateStreams: true}
	without := openEdge(t, cfg)
	without.offer(order(1))
	without.waitCause("stream ORDERS", "on a leaf node, set POSTBRIDGE_NATS_DOMAIN")
	wantResult(t, checkBus(t, cfg), publishers.Fail, "stream ORDERS cannot be looked up", "POSTBRIDGE_NATS_DOMAIN")
	without.Close()

	cfg.Domain = "elsewhere"
	wrong := openEdge(t, cfg)
	wrong.offer(order(1))
	wrong.waitCause("stream ORDERS", "JetStream does not answer: check that POSTBRIDGE_NATS_DOMAIN=elsewhere")
	wrong.Close()

	cfg.Domain = "hub"
	e := openEdge(t, cfg)
	rejected := order(2)
	rejected.Status = event.StatusRejected
	e.publish(order(1), rejected, order(3).AsDeadletter())
	e.publish(old(1, 4)...) // are looked up
	e.waitNoCauses()
	js := hub.admin(t)
	wantStored(t, js, "ORDERS", 1, 2, 4)
	wantStored(t, js, "REJECTS", 2)
	wantStored(t, js, "DEADLETTERS", 3)
	results := checkBus(t, cfg)
	wantWorst(t, results, publishers.Info, "has 1 of the 3 replicas")
	wantResult(t, results, publishers.OK, "can be reached")
}

// TestLeafWithJetStream: the streams are created in the domain that is named, else in that of the server, which is
// logged.
func TestLeafWithJetStream(t *testing.T) {
	t.Parallel()
	for domain, on := range map[string]string{"": "leaf", "leaf": "leaf", "hub": "hub"} {
		t.Run("domain "+domain, func(t *testing.T) {
			t.Parallel()
			hub := startHub(t)
			leaf := startLeaf(t, hub, ownDomain)
			cfg := nats.Config{URL: leaf.url(), Domain: domain, CreateStreams: true}
			e := openEdge(t, cfg)
			e.publish(order(1))
			e.waitNoCauses()
			wantStored(t, map[string]*node{"hub": hub, "leaf": leaf}[on].admin(t), "ORDERS", 1)
			if text := e.log.String(); !strings.Contains(text, "domain="+on) {
				t.Errorf("the log does not name the domain: %s", text)
			}
			if domain == "" {
				wantResult(t, checkBus(t, cfg), publishers.Info, "stream ORDERS is in JetStream domain leaf")
			}
		})
	}
}

// TestForeignAck: streams in two domains store each event, and both acknowledge it. The positions in the other one are
// not those of ours: they would look like lost events.
func TestForeignAck(t *testing.T) {
	t.Parallel()
	for _, domain := range []string{"hub", "leaf"} {
		t.Run(domain, func(t *testing.T) {
			t.Parallel()
			hub := startHub(t)
			leaf := startLeaf(t, hub, ownDomain)
			for i, n := range []*node{hub, leaf} {
				js := n.admin(t)
				for _, name := range []string{"orders", "rejects", "deadletters"} {
					createStream(t, js, jetstream.StreamConfig{
						Name: strings.ToUpper(name), Subjects: []string{name + ".>"}, AllowDirect: true,
						FirstSeq: uint64(1 + 1000*i),
					})
				}
			}
			cfg := nats.Config{URL: leaf.url(), Domain: domain}
			e := openEdge(t, cfg)
			e.waitAll(e.offerAll(orders(100)))
			var all []*bridge.Delivery
			for i := range uint64(20) {
				all = append(all, order(1000+i).AsDeadletter())
			}
			e.waitAll(e.offerAll(all))
			e.waitNoCauses()
			again := openEdgeWith(t, cfg, e.State(100), (*edge).report) // checks the positions of the events
			last := orders(100)[99]
			last.Redelivered = true
			again.publish(last)
			if n := e.rewound.Load() + again.rewound.Load(); n != 0 {
				t.Errorf("said %d times that the bus had lost events", n)
			}
			js := map[string]*node{"hub": hub, "leaf": leaf}[domain].admin(t)
			if n := len(stored(t, js, "ORDERS")); n != 100 {
				t.Errorf("ORDERS of %s holds %d messages for 100 events", domain, n)
			}
			if n := len(stored(t, js, "DEADLETTERS")); n != 20 {
				t.Errorf("DEADLETTERS of %s holds %d messages for 20 events", domain, n)
			}
			if text := e.log.String(); domain == "hub" &&
				strings.Count(text, "a stream of another JetStream domain stores the events, too") != 2 {
				t.Errorf("not said once for each destination: %s", text)
			}
		})
	}
}

// TestForeignAckOnly: an acknowledgement of another domain does not count if ours has none.
func TestForeignAckOnly(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for an acknowledgement in vain")
	}
	t.Parallel()
	hub := startHub(t)
	leaf := startLeaf(t, hub, func(o *server.Options) {
		ownDomain(o)
		o.LeafNode.Remotes[0].DenyExports = []string{"orders.>"}
	})
	createStream(t, leaf.admin(t), jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})
	cfg := nats.Config{URL: leaf.url(), Domain: "hub", CreateStreams: true}
	e := openEdge(t, cfg)
	held := e.offer(order(1))
	const why = `acknowledged in JetStream domain "leaf"`
	e.waitCause("publish orders", why)
	undone(t, held)
	wantStored(t, hub.admin(t), "ORDERS")

	events, err := nats.OpenEvents(t.Context(), cfg, "0badcaff")
	if err != nil {
		t.Fatal(err)
	}
	defer events.Close()
	d := order(2)
	d.OrderID = "2"
	err = events.Publish(t.Context(), d, map[bridge.Destination]uint64{bridge.Orders: 0})
	if err == nil || !strings.Contains(err.Error(), why) {
		t.Errorf("published to the hub: %v", err)
	}
}

// TestDomainPermissions: what is denied is recognized, on a server of the domain and outside it.
func TestDomainPermissions(t *testing.T) {
	t.Parallel()
	denying := func(subjects ...string) func(*server.Options) {
		return func(o *server.Options) {
			o.Users = []*server.User{{Username: "edge", Permissions: &server.Permissions{
				Publish: &server.SubjectPermission{Deny: subjects},
			}}}
		}
	}
	leaf := startLeaf(t, startHub(t), func(o *server.Options) {
		denying("$JS.hub.API.DIRECT.GET.>", "$JS.hub.API.STREAM.INFO.REJECTS")(o)
		o.JetStream = false
	})
	hub := startServer(t, func(o *server.Options) {
		denying("$JS.API.DIRECT.GET.>", "$JS.API.STREAM.INFO.REJECTS")(o)
		o.JetStreamDomain = "hub"
	})
	for n, denied := range map[*node]string{
		leaf: "$JS.hub.API.STREAM.INFO.REJECTS", hub: "$JS.API.STREAM.INFO.REJECTS",
	} {
		cfg := nats.Config{URL: n.url(), User: "edge", Password: noPassword, Domain: "hub", CreateStreams: true}
		e := openEdge(t, cfg)
		e.publish(old(1)...)
		eventually(t, "a line on the lookup", func() bool {
			return strings.Contains(e.log.String(), "allow publishing to $JS.hub.API.DIRECT.GET.ORDERS")
		}, func() any { return e.log.String() })
		e.waitCause("stream REJECTS", fmt.Sprintf("Publish to %q", denied))
	}
	results := checkBus(t, nats.Config{URL: leaf.url(), User: "edge", Password: noPassword, Domain: "hub"})
	wantResult(t, results, publishers.Warn, "stream ORDERS cannot be read", "$JS.hub.API.DIRECT.GET.ORDERS")
	wantResult(t, results, publishers.Fail, "stream REJECTS", "allow publishing to $JS.hub.API.STREAM.INFO.REJECTS")
}

// TestImportedJetStream: an account that imports the JetStream of another one under the prefix of a domain uses it like
// a domain, although its server has none.
func TestImportedJetStream(t *testing.T) {
	t.Parallel()
	central, desk := server.NewAccount("CENTRAL"), server.NewAccount("DESK")
	n := startServer(t, func(o *server.Options) {
		o.Accounts = []*server.Account{central, desk}
		o.Users = []*server.User{
			{Username: "admin", Password: "admin", Account: central}, {Username: "edge", Account: desk},
		}
	})
	central, desk = n.account(t, "CENTRAL"), n.account(t, "DESK")
	if err := central.EnableJetStream(nil, nil); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{
		"$JS.API.>": "$JS.central.API.>", "orders.>": "orders.>", "rejects.>": "rejects.>",
		"deadletters.>": "deadletters.>",
	} {
		if err := central.AddServiceExport(from, nil); err != nil {
			t.Fatal(err)
		}
		if err := desk.AddServiceImport(central, to, from); err != nil {
			t.Fatal(err)
		}
	}
	e := openEdge(t, nats.Config{
		URL: n.url(), User: "edge", Password: noPassword, Domain: "central", CreateStreams: true,
	})
	e.publish(old(1, 2)...)
	e.publish(order(3).AsDeadletter())
	e.waitNoCauses()
	wantStored(t, n.admin(t, natsgo.UserInfo("admin", "admin")), "ORDERS", 1, 2)
}

func (n *node) account(t *testing.T, name string) *server.Account {
	t.Helper()
	a, err := n.server.LookupAccount(name)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestEventsInDomain: events of the order book go to the domain, too.
func TestEventsInDomain(t *testing.T) {
	t.Parallel()
	hub := startHub(t)
	leaf := startLeaf(t, hub, noJetStream)
	cfg := nats.Config{URL: leaf.url(), Domain: "hub", CreateStreams: true}
	openEdge(t, cfg).publish(order(1), order(2).AsDeadletter(), old(3)[0])
	rejected := order(4)
	rejected.Status = event.StatusRejected
	openEdge(t, cfg).publish(rejected)
	events, err := nats.OpenEvents(t.Context(), cfg, "0badcaff")
	if err != nil {
		t.Fatal(err)
	}
	defer events.Close()
	last, err := events.Last(t.Context(), bridge.Orders, order(5))
	if err != nil || last.Data == nil || last.Revision != 3 {
		t.Fatalf("%+v, %v", last, err)
	}
	err = events.Publish(t.Context(), order(5), map[bridge.Destination]uint64{bridge.Orders: last.Revision})
	if err != nil {
		t.Error(err)
	}
	ids, err := events.Orders(t.Context(), "kite", "AB1234", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	if err != nil || len(ids) != 1 {
		t.Errorf("%q, %v", ids, err)
	}

	cfg.Domain = ""
	if _, err := nats.OpenEvents(t.Context(), cfg, "0badcaff"); err == nil ||
		!strings.Contains(err.Error(), "POSTBRIDGE_NATS_DOMAIN") {
		t.Errorf("without the domain: %v", err)
	}
}

// TestDomainChanged: the checkpoints of one domain say nothing of another one.
func TestDomainChanged(t *testing.T) {
	t.Parallel()
	hub := startHub(t)
	leaf := startLeaf(t, hub, ownDomain)
	cfg := nats.Config{URL: leaf.url(), CreateStreams: true}
	first := openEdge(t, cfg)
	first.publish(order(1))
	state := first.State(1)
	cfg.Domain = "hub"
	e := openEdgeWith(t, cfg, state, (*edge).report)
	e.publish(order(2))
	e.waitNoCauses()
	if e.rewound.Load() != 0 || !strings.Contains(e.log.String(), "have changed") {
		t.Errorf("rewound %d times; log: %s", e.rewound.Load(), e.log.String())
	}
}
