package nats_test

import (
	"net"
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

const maxEvent = 128 << 10

func checkBus(t *testing.T, cfg nats.Config) []publishers.CheckResult {
	t.Helper()
	return nats.Check(t.Context(), cfg, maxEvent)
}

// wantResult wants one of the severity with these words in it, and with what to do unless it is ok.
func wantResult(t *testing.T, results []publishers.CheckResult, severity publishers.Severity, words ...string) {
	t.Helper()
	for _, f := range results {
		if f.Severity == severity && containsAll(f.String(), words...) {
			if (f.Do == "") != (severity == publishers.OK) {
				t.Errorf("what to do about %q: %q", f.Text, f.Do)
			}
			return
		}
	}
	t.Errorf("no %v with %q in\n%s", severity, words, lines(results))
}

// wantWorst wants nothing to be worse, but for results with these words.
func wantWorst(t *testing.T, results []publishers.CheckResult, worst publishers.Severity, except ...string) {
	t.Helper()
	for _, f := range results {
		if f.Severity > worst && (len(except) == 0 || !containsAll(f.String(), except...)) {
			t.Errorf("%v %s", f.Severity, f)
		}
	}
}

func containsAll(text string, words ...string) bool {
	for _, word := range words {
		if !strings.Contains(text, word) {
			return false
		}
	}
	return true
}

func lines(results []publishers.CheckResult) string {
	var b strings.Builder
	for _, f := range results {
		b.WriteString(f.Severity.String() + " " + f.Area + " " + f.String() + "\n")
	}
	return b.String()
}

// TestCheckStreams checks streams as an operator may have made them.
func TestCheckStreams(t *testing.T) {
	t.Parallel()
	n := startServer(t, nil)
	js := n.admin(t)
	for prefix, c := range map[string]struct {
		change   func(*jetstream.StreamConfig)
		severity publishers.Severity
		words    string // "" for nothing but the one replica of this server
	}{
		"good": {func(*jetstream.StreamConfig) {}, publishers.OK, ""},
		"memory": {
			func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage }, publishers.Fail, "in memory",
		},
		"work": {
			func(c *jetstream.StreamConfig) { c.Retention = jetstream.WorkQueuePolicy }, publishers.Fail, "workqueue",
		},
		"old": {
			func(c *jetstream.StreamConfig) { c.Discard, c.MaxMsgs = jetstream.DiscardOld, 1000 },
			publishers.Warn, "discard old",
		},
		"window": {
			func(c *jetstream.StreamConfig) { c.Duplicates = 100 * time.Millisecond },
			publishers.Warn, "duplicate window of 100ms",
		},
		"age":   {func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour }, publishers.Warn, "keeps events for 1h"},
		"small": {func(c *jetstream.StreamConfig) { c.MaxMsgSize = maxEvent - 1 }, publishers.Warn, "max_msg_size"},
		"subject": {
			func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 3 }, publishers.Warn, "max_msgs_per_subject",
		},
		"full":    {func(c *jetstream.StreamConfig) { c.MaxMsgs = 1 }, publishers.Fail, "is full, and refuses"},
		"filling": {func(c *jetstream.StreamConfig) { c.MaxBytes = 70 }, publishers.Warn, "% full, and refuses"},
	} {
		for _, name := range []string{"orders", "rejects", "deadletters"} {
			config := jetstream.StreamConfig{
				Name: strings.ToUpper(prefix + "_" + name), Subjects: []string{prefix + "." + name + ".>"},
				AllowDirect: true, Discard: jetstream.DiscardNew, MaxAge: 168 * time.Hour, Duplicates: 2 * time.Minute,
			}
			if name == "orders" {
				c.change(&config)
				config.Duplicates = min(config.Duplicates, config.MaxAge)
			}
			createStream(t, js, config)
		}
		if _, err := js.Publish(t.Context(), prefix+".orders.kite.AB1234.1", []byte("{}")); err != nil {
			t.Fatal(err)
		}
		results := checkBus(t, nats.Config{URL: n.url(), Prefix: prefix})
		if c.words == "" {
			wantWorst(t, results, publishers.Info, "has 1 of the 3 replicas")
			wantResult(t, results, publishers.Info, "before its fsync", "sync_interval: always")
			wantResult(t, results, publishers.OK, "the bus at", "can be reached")
			wantResult(
				t,
				results,
				publishers.Warn,
				"stream GOOD_ORDERS has 1 of the 3 replicas",
				"set its replicas to 3",
			)
			continue
		}
		wantResult(t, results, c.severity, "stream "+strings.ToUpper(prefix)+"_ORDERS", c.words)
		wantWorst(t, results, publishers.Warn, c.words)
	}
	results := nats.Check(t.Context(), nats.Config{URL: n.url(), Prefix: "good"}, 2<<20)
	wantResult(t, results, publishers.Warn, "accepts messages up to 1MiB", "max_payload")
}

func TestCheckMissing(t *testing.T) {
	t.Parallel()
	n := startServer(t, nil)
	js := n.admin(t)
	results := checkBus(t, nats.Config{URL: n.url()})
	wantResult(t, results, publishers.Fail, "stream ORDERS is missing", "create it with subjects orders.>")
	results = checkBus(t, nats.Config{URL: n.url(), CreateStreams: true})
	wantResult(t, results, publishers.Info, "stream ORDERS is missing", "postbridge serve")
	wantWorst(t, results, publishers.Info)
	if _, err := js.Stream(t.Context(), "ORDERS"); err == nil {
		t.Error("the doctor created it")
	}
}

// TestCheckUnreachable is that whatever keeps the doctor out is a failure, soon.
func TestCheckUnreachable(t *testing.T) {
	t.Parallel()
	locked := startServer(t, func(o *server.Options) { o.Username, o.Password = "edge", "right-secret" })
	plain := startServer(t, func(o *server.Options) { o.JetStream = false })
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	wrong := func(urls string) nats.Config {
		return nats.Config{URL: urls, User: "edge", Password: func() string { return "wrong-secret" }}
	}
	const nobody = "nats://127.0.0.1:1"
	for _, c := range []struct {
		cfg      nats.Config
		severity publishers.Severity
		words    []string
	}{
		{wrong(locked.url()), publishers.Fail, []string{"refuses the login", "POSTBRIDGE_NATS_PASSWORD"}},
		{wrong(locked.url() + "," + nobody), publishers.Fail, []string{"refuses the login"}},
		{wrong(nobody + "," + locked.url()), publishers.Fail, []string{"refuses the login"}},
		{nats.Config{URL: nobody}, publishers.Fail, []string{"127.0.0.1:1 cannot be reached", "POSTBRIDGE_NATS_URL"}},
		{
			nats.Config{URL: "nats://" + l.Addr().String()}, publishers.Fail,
			[]string{"cannot be reached", "timeout", "POSTBRIDGE_NATS_URL"},
		},
		{
			nats.Config{URL: strings.Replace(plain.url(), "nats:", "tls:", 1)}, publishers.Fail,
			[]string{"cannot be reached", "POSTBRIDGE_NATS_TLS_CA_FILE"},
		},
		{
			nats.Config{URL: "tls://127.0.0.1:1," + plain.url()}, publishers.Fail,
			[]string{"cannot be reached", "secure connection not available"},
		},
		{
			nats.Config{URL: plain.url()}, publishers.Fail,
			[]string{"stream ORDERS cannot be looked up", "JetStream does not answer: enable it on the server"},
		},
		{
			nats.Config{URL: nobody, Embedded: new(nats.EmbeddedConfig)}, publishers.Warn,
			[]string{"does not run", "postbridge serve"},
		},
	} {
		began := time.Now()
		results := checkBus(t, c.cfg)
		wantResult(t, results, c.severity, c.words...)
		if text := lines(results); strings.Contains(text, "secret\"") || strings.Contains(text, "wrong-secret") {
			t.Errorf("tells the secret: %s", text)
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("%q took %v", c.words, took)
		}
	}
}

func TestCheckPermissions(t *testing.T) {
	t.Parallel()
	all := []string{
		"orders.>", "rejects.>", "deadletters.>", "$SYS.REQ.USER.INFO",
		"$JS.API.STREAM.INFO.*", "$JS.API.DIRECT.GET.*", "$JS.API.DIRECT.GET.*.>",
	}
	for _, c := range []struct {
		denied   string
		severity publishers.Severity
		words    []string
	}{
		{"", publishers.Info, []string{"before its fsync"}},
		{
			"rejects.>", publishers.Fail,
			[]string{"stream REJECTS cannot be published to", "allow publishing to rejects.>"},
		},
		{"$SYS.REQ.USER.INFO", publishers.Info, []string{"does not show the permissions", "$SYS.REQ.USER.INFO"}},
		{
			"$JS.API.STREAM.INFO.*", publishers.Fail,
			[]string{"stream ORDERS cannot be looked up", "$JS.API.STREAM.INFO.ORDERS"},
		},
		{"$JS.API.DIRECT.GET.*.>", publishers.Warn, []string{"stored twice", "$JS.API.DIRECT.GET.ORDERS"}},
	} {
		var allow []string
		for _, subject := range all {
			if subject != c.denied {
				allow = append(allow, subject)
			}
		}
		n := startRestricted(t, allow)
		createAll(t, n, true)
		results := checkBus(t, nats.Config{URL: n.url(), User: "edge", Password: noPassword})
		wantResult(t, results, c.severity, c.words...)
		if c.denied == "" {
			wantWorst(t, results, publishers.Info, "has 1 of the 3 replicas")
		}
	}
	// What is read is tried, so it needs no word of the server.
	blind := startRestricted(t, []string{"orders.>", "rejects.>", "deadletters.>", "$JS.API.STREAM.INFO.*"})
	createAll(t, blind, false)
	results := checkBus(t, nats.Config{URL: blind.url(), User: "edge", Password: noPassword})
	wantResult(t, results, publishers.Info, "does not show the permissions")
	wantResult(t, results, publishers.Warn, "stream ORDERS cannot be read", "$JS.API.STREAM.MSG.GET.ORDERS")

	may := startRestricted(t, append(all, "$JS.API.STREAM.CREATE.*"))
	results = checkBus(t, nats.Config{URL: may.url(), User: "edge", Password: noPassword, CreateStreams: true})
	wantResult(t, results, publishers.Info, "stream ORDERS is missing: start 'postbridge serve', which creates it")

	mute := startServer(t, func(o *server.Options) {
		nothing := &server.Permissions{Subscribe: &server.SubjectPermission{Deny: []string{">"}}}
		o.Users = []*server.User{{Username: "edge", Permissions: nothing}}
	})
	results = checkBus(t, nats.Config{URL: mute.url(), User: "edge", Password: noPassword})
	wantResult(t, results, publishers.Fail, "stream ORDERS cannot be looked up", "_INBOX.>")
}

func TestCheckCluster(t *testing.T) {
	t.Parallel()
	b := startBus(t, 3)
	js := b.nodes[0].admin(t, natsgo.UserInfo("admin", "admin"))
	cfg := nats.Config{
		URL:           b.nodes[0].url(),
		User:          "edge",
		Password:      func() string { return "secret" },
		CreateStreams: true,
		Replicas:      1,
	}
	wantResult(t, checkBus(t, cfg), publishers.Info, "stream ORDERS is missing", "postbridge serve")
	for name, replicas := range map[string]int{"orders": 1, "rejects": 3, "deadletters": 3} {
		createStream(
			t,
			js,
			jetstream.StreamConfig{Name: strings.ToUpper(name), Subjects: []string{name + ".>"}, Replicas: replicas},
		)
	}
	results := checkBus(t, cfg)
	wantResult(t, results, publishers.Warn, "stream ORDERS has 1 of the 3 replicas", "set its replicas to 3")
	wantResult(t, results, publishers.OK, "stream REJECTS stores events in files (replicas: 3)")

	b.nodes[2].stop()
	eventually(t, "replica that is away", func() bool {
		results = checkBus(t, cfg)
		return strings.Contains(lines(results), "warn nats stream REJECTS lacks its replica on node2")
	}, func() any { return lines(results) })
}

// TestCheckEmbedded checks an embedded server through its port, beside the publisher that has it.
func TestCheckEmbedded(t *testing.T) {
	t.Parallel()
	probe, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listen := probe.Addr().String()
	probe.Close()
	cfg := nats.Config{
		URL: "nats://" + listen, Embedded: &nats.EmbeddedConfig{Listen: listen, StoreDir: t.TempDir()},
		CreateStreams: true, DiscardOld: true, MaxAge: 168 * time.Hour, MaxBytes: 1 << 30,
	}
	e := openEdge(t, cfg)
	e.publish(order(1), order(2).AsDeadletter())
	rejected := order(3)
	rejected.Status = event.StatusRejected
	e.publish(rejected)
	results := checkBus(t, cfg)
	wantWorst(t, results, publishers.Info)
	wantResult(t, results, publishers.OK, "stream ORDERS stores events in files")
}
