package nats_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers/nats"
	"github.com/postbridge/postbridge/publishers/publishertest"
)

func TestContract(t *testing.T) {
	publishertest.Run(t, func(t *testing.T) publishertest.Bus { return startBus(t, 1) })
}

func TestContractCluster(t *testing.T) {
	t.Parallel()
	publishertest.RunCluster(t, func(t *testing.T) publishertest.Bus { return startBus(t, 3) })
}

// testBus is one server or a cluster, with a proxy before each. The publisher comes as user edge, the test as admin.
type testBus struct {
	nodes   []*node
	proxies []*publishertest.Proxy
	links   []routeLink // between the nodes
	denied  map[string]bool
	log     *slog.Logger // the publisher's
}

// routeLink is how one node reaches another.
type routeLink struct {
	from, to *node
	proxy    *publishertest.Proxy
}

// node is one server, which keeps its ports and its store when it is stopped.
type node struct {
	options *server.Options
	server  *server.Server
	saved   string // a copy of its store
}

func (n *node) start(t testing.TB) {
	t.Helper()
	s, err := server.NewServer(n.options.Clone())
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(20 * time.Second) {
		t.Fatalf("server %s on port %d is not ready", n.options.ServerName, n.options.Port)
	}
	n.server = s
	n.options.Port = s.Addr().(*net.TCPAddr).Port
}

func (n *node) stop() {
	n.server.Shutdown()
	n.server.WaitForShutdown()
}

// freePort is a port that was free a moment ago. The nodes of a cluster have to know each other's before they start.
func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// startBus starts so many nodes.
func startBus(t *testing.T, nodes int) *testBus {
	b := &testBus{denied: make(map[string]bool), log: slog.New(slog.DiscardHandler)}
	for i := range nodes {
		b.nodes = append(b.nodes, &node{options: b.nodeOptions(t, i, nodes)})
	}
	for _, n := range b.nodes {
		n.options.Routes = b.routes(t, n)
		n.start(t)
		b.proxies = append(b.proxies, publishertest.NewProxy(t, fmt.Sprint("127.0.0.1:", n.options.Port)))
	}
	t.Cleanup(func() {
		for _, n := range b.nodes {
			n.stop()
		}
	})
	if nodes > 1 {
		b.waitForMeta(t)
	}
	return b
}

func (b *testBus) nodeOptions(t *testing.T, i, nodes int) *server.Options {
	o := &server.Options{
		ServerName: fmt.Sprint("node", i), Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true,
		JetStream: true, StoreDir: t.TempDir(), JetStreamMaxStore: 1 << 40,
		Users: b.users(),
	}
	if nodes > 1 {
		// Without NoAdvertise, the publisher would hear of the nodes' own ports, past the proxies; and without an
		// address at which there is nothing, so would the nodes.
		o.Cluster = server.ClusterOpts{
			Name: "test", Host: "127.0.0.1", Port: freePort(t), NoAdvertise: true, Advertise: "127.0.0.1:1",
		}
	}
	return o
}

func (b *testBus) users() []*server.User {
	var deny []string
	for key := range b.denied {
		deny = append(deny, "orders."+key, "rejects."+key)
	}
	return []*server.User{
		{Username: "admin", Password: "admin"},
		{
			Username:    "edge",
			Password:    "secret",
			Permissions: &server.Permissions{Publish: &server.SubjectPermission{Deny: deny}},
		},
	}
}

// routes are those of a node to the others, with a proxy for each.
func (b *testBus) routes(t *testing.T, from *node) []*url.URL {
	var all []string
	for _, to := range b.nodes {
		if to != from {
			link := publishertest.NewProxy(t, fmt.Sprint("127.0.0.1:", to.options.Cluster.Port))
			b.links = append(b.links, routeLink{from, to, link})
			all = append(all, "nats://"+link.Addr())
		}
	}
	return server.RoutesFromStr(strings.Join(all, ","))
}

// isolate says whether the others of a cluster cannot reach a node, nor it them.
func (b *testBus) isolate(n *node, isolated bool) {
	for _, l := range b.links {
		if l.from == n || l.to == n {
			l.proxy.Refuse(isolated)
		}
	}
}

func (b *testBus) waitForMeta(t *testing.T) {
	t.Helper()
	b.retry(t, "a leader of the cluster", func(ctx context.Context, js jetstream.JetStream) error {
		s, err := js.CreateStream(
			ctx,
			jetstream.StreamConfig{Name: "WARM", Subjects: []string{"warm"}, Replicas: len(b.nodes)},
		)
		if err == nil {
			err = js.DeleteStream(ctx, s.CachedInfo().Config.Name)
		}
		return err
	})
}

// retry does something as admin until it works.
func (b *testBus) retry(t *testing.T, what string, do func(context.Context, jetstream.JetStream) error) {
	t.Helper()
	var last error
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if last = b.asAdmin(t, do); last == nil {
			return
		}
	}
	t.Fatalf("no %s: %v", what, last)
}

func (b *testBus) asAdmin(t *testing.T, do func(context.Context, jetstream.JetStream) error) error {
	var urls []string
	for _, n := range b.nodes {
		urls = append(urls, fmt.Sprint("nats://admin:admin@127.0.0.1:", n.options.Port))
	}
	nc, err := natsgo.Connect(strings.Join(urls, ","))
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	// A request that comes while there is no leader is not answered.
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return do(ctx, js)
}

// config is how the publisher gets there: through the proxies.
func (b *testBus) config() nats.Config {
	var urls []string
	for _, p := range b.proxies {
		urls = append(urls, "nats://"+p.Addr())
	}
	return nats.Config{
		URL: strings.Join(urls, ","), User: "edge", Password: func() string { return "secret" },
		CreateStreams: true, Replicas: len(b.nodes),
	}
}

func (b *testBus) Open(t *testing.T, o bridge.Opening) bridge.Publisher {
	t.Helper()
	p, err := nats.Open(b.config(), o, b.log)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (b *testBus) Stored(t *testing.T, dest bridge.Destination) []publishertest.Message {
	t.Helper()
	var all []publishertest.Message
	b.retry(t, "look at what is stored", func(ctx context.Context, js jetstream.JetStream) error {
		all = nil
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
		defer cancel()
		return eachMessage(ctx, js, strings.ToUpper(string(dest)), func(m jetstream.Msg) error {
			message, err := decode(m)
			all = append(all, message)
			return err
		})
	})
	return all
}

// eachMessage reads a stream from its first message to the last there is.
func eachMessage(ctx context.Context, js jetstream.JetStream, stream string, each func(jetstream.Msg) error) error {
	s, err := js.Stream(ctx, stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	left := int(s.CachedInfo().State.Msgs)
	c, err := js.OrderedConsumer(ctx, stream, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return err
	}
	for left > 0 {
		batch, err := c.Fetch(min(left, 1000), jetstream.FetchMaxWait(5*time.Second))
		if err != nil {
			return err
		}
		for m := range batch.Messages() {
			left--
			if err := each(m); err != nil {
				return err
			}
		}
		if err := batch.Error(); err != nil {
			return err
		}
	}
	return nil
}

// decode reads a message as a consumer would that knows nothing but the contract.
func decode(m jetstream.Msg) (publishertest.Message, error) {
	_, key, _ := strings.Cut(m.Subject(), ".")
	message := publishertest.Message{
		Key: key, Attributes: make(map[string]string), Data: m.Data(),
		ContentType: m.Headers()["ce-datacontenttype"][0],
	}
	for name, values := range m.Headers() {
		attribute, ok := strings.CutPrefix(name, "ce-")
		if !ok && name != "traceparent" {
			continue
		}
		value, err := url.PathUnescape(values[0])
		if err != nil || len(values) != 1 {
			return message, fmt.Errorf("header %s: %q: %w", name, values, err)
		}
		if !ok {
			attribute = name
		}
		message.Attributes[attribute] = value
	}
	return message, nil
}

func (b *testBus) Cut() {
	for _, p := range b.proxies {
		p.Cut()
	}
}

func (b *testBus) LoseAnswers(lose bool) {
	for _, p := range b.proxies {
		p.LoseAnswers(lose)
	}
}

func (b *testBus) Stop(*testing.T) {
	for _, n := range b.nodes {
		n.stop()
	}
}

func (b *testBus) Start(t *testing.T) {
	t.Helper()
	for _, n := range b.nodes {
		n.start(t)
	}
}

// Save copies the stores.
func (b *testBus) Save(t *testing.T) {
	t.Helper()
	for _, n := range b.nodes {
		n.saved = t.TempDir()
		if err := os.CopyFS(n.saved, os.DirFS(n.options.StoreDir)); err != nil {
			t.Fatal(err)
		}
	}
}

func (b *testBus) Restore(t *testing.T) {
	t.Helper()
	for _, n := range b.nodes {
		if err := errors.Join(os.RemoveAll(n.options.StoreDir), os.CopyFS(n.options.StoreDir, os.DirFS(n.saved))); err != nil {
			t.Fatal(err)
		}
	}
}

func (b *testBus) Recreate(t *testing.T, dest bridge.Destination) {
	t.Helper()
	b.retry(t, string(dest)+" made anew", func(ctx context.Context, js jetstream.JetStream) error {
		name := strings.ToUpper(string(dest))
		s, err := js.Stream(ctx, name)
		if err != nil {
			return err
		}
		if err := js.DeleteStream(ctx, name); err != nil {
			return err
		}
		_, err = js.CreateStream(ctx, s.CachedInfo().Config)
		return err
	})
}

func (b *testBus) SetFull(t *testing.T, dest bridge.Destination, full bool) {
	t.Helper()
	b.update(t, dest, func(info *jetstream.StreamInfo) {
		info.Config.MaxBytes = -1
		if full {
			info.Config.MaxBytes = int64(max(info.State.Bytes, 1))
		}
	})
}

func (b *testBus) SetMaxMessage(t *testing.T, bytes int) {
	t.Helper()
	for _, dest := range []bridge.Destination{bridge.Orders, bridge.Rejects, bridge.Deadletters} {
		b.update(t, dest, func(info *jetstream.StreamInfo) { info.Config.MaxMsgSize = int32(bytes) })
	}
}

func (b *testBus) update(t *testing.T, dest bridge.Destination, change func(*jetstream.StreamInfo)) {
	t.Helper()
	b.retry(t, "update of "+string(dest), func(ctx context.Context, js jetstream.JetStream) error {
		s, err := js.Stream(ctx, strings.ToUpper(string(dest)))
		if err != nil {
			return err
		}
		info := s.CachedInfo()
		change(info)
		_, err = js.UpdateStream(ctx, info.Config)
		return err
	})
}

func (b *testBus) SetDenied(t *testing.T, key string, denied bool) {
	t.Helper()
	b.denied[key] = denied
	if !denied {
		delete(b.denied, key)
	}
	for _, n := range b.nodes {
		n.options.Users = b.users()
		if err := n.server.ReloadOptions(n.options.Clone()); err != nil {
			t.Fatal(err)
		}
	}
}

func (b *testBus) KillLeader(t *testing.T, dest bridge.Destination) {
	t.Helper()
	leader := b.leader(t, dest, "")
	for _, n := range b.nodes {
		if n.options.ServerName == leader {
			n.stop()
			b.leader(t, dest, leader)
			n.start(t)
		}
	}
}

// leader waits until a node other than not leads the destination, and returns it.
func (b *testBus) leader(t *testing.T, dest bridge.Destination, not string) (leader string) {
	t.Helper()
	b.retry(t, "leader of "+string(dest), func(ctx context.Context, js jetstream.JetStream) error {
		s, err := js.Stream(ctx, strings.ToUpper(string(dest)))
		if err != nil {
			return err
		}
		leader = s.CachedInfo().Cluster.Leader
		if leader == "" || leader == not {
			return errors.New("none yet")
		}
		return nil
	})
	return leader
}
