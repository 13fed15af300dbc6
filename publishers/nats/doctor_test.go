package nats_test

import (
	"cmp"
	"context"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/publishers/nats"
)

const maxEvent = 128 << 10

func examine(t *testing.T, cfg nats.Config) []bridge.Finding {
	t.Helper()
	return nats.Examine(t.Context(), cfg, bridge.Examination{MaxEvent: maxEvent})
}

// wantFinding wants one of the grade with these words in it, and with what to do unless it is ok.
func wantFinding(t *testing.T, findings []bridge.Finding, grade bridge.Grade, words ...string) {
	t.Helper()
	for _, f := range findings {
		if f.Grade == grade && containsAll(f.String(), words...) {
			if (f.Do == "") != (grade == bridge.OK) {
				t.Errorf("what to do about %q: %q", f.Text, f.Do)
			}
			return
		}
	}
	t.Errorf("no %v with %q in\n%s", grade, words, lines(findings))
}

// wantWorst wants nothing to be worse, but for findings with these words.
func wantWorst(t *testing.T, findings []bridge.Finding, worst bridge.Grade, except ...string) {
	t.Helper()
	for _, f := range findings {
		if f.Grade > worst && (len(except) == 0 || !containsAll(f.String(), except...)) {
			t.Errorf("%v %s", f.Grade, f)
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

func lines(findings []bridge.Finding) string {
	var b strings.Builder
	for _, f := range findings {
		b.WriteString(f.Grade.String() + " " + f.Area + " " + f.String() + "\n")
	}
	return b.String()
}

// TestExamineStreams grades streams as an operator may have made them.
func TestExamineStreams(t *testing.T) {
	t.Parallel()
	n := startServer(t, nil)
	js := n.admin(t)
	for prefix, c := range map[string]struct {
		change func(*jetstream.StreamConfig)
		grade  bridge.Grade
		words  string // "" for nothing but the one replica of this server
	}{
		"good":    {func(*jetstream.StreamConfig) {}, bridge.OK, ""},
		"memory":  {func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage }, bridge.Fail, "in memory"},
		"work":    {func(c *jetstream.StreamConfig) { c.Retention = jetstream.WorkQueuePolicy }, bridge.Fail, "workqueue"},
		"old":     {func(c *jetstream.StreamConfig) { c.Discard, c.MaxMsgs = jetstream.DiscardOld, 1000 }, bridge.Warn, "discard old"},
		"window":  {func(c *jetstream.StreamConfig) { c.Duplicates = 100 * time.Millisecond }, bridge.Warn, "duplicate window of 100ms"},
		"age":     {func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour }, bridge.Warn, "keeps events for 1h"},
		"small":   {func(c *jetstream.StreamConfig) { c.MaxMsgSize = maxEvent - 1 }, bridge.Warn, "max_msg_size"},
		"subject": {func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 3 }, bridge.Warn, "max_msgs_per_subject"},
		"full":    {func(c *jetstream.StreamConfig) { c.MaxMsgs = 1 }, bridge.Fail, "is full, and refuses"},
		"filling": {func(c *jetstream.StreamConfig) { c.MaxBytes = 70 }, bridge.Warn, "% full, and refuses"},
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
		findings := examine(t, nats.Config{URL: n.url(), Prefix: prefix})
		if c.words == "" {
			wantWorst(t, findings, bridge.Info, "has one replica")
			wantFinding(t, findings, bridge.Info, "before its fsync", "sync_interval: always")
			wantFinding(t, findings, bridge.OK, "may publish to all subjects")
			wantFinding(t, findings, bridge.OK, "clock", "agrees")
			wantFinding(t, findings, bridge.OK, "stream GOOD_ORDERS can be asked")
			wantFinding(t, findings, bridge.Warn, "stream GOOD_ORDERS has one replica")
			continue
		}
		wantFinding(t, findings, c.grade, "stream "+strings.ToUpper(prefix)+"_ORDERS", c.words)
		wantWorst(t, findings, bridge.Warn, c.words)
	}
	findings := nats.Examine(t.Context(), nats.Config{URL: n.url(), Prefix: "good"}, bridge.Examination{MaxEvent: 2 << 20})
	wantFinding(t, findings, bridge.Warn, "takes messages up to 1MiB", "max_payload")
}

func TestExamineMissing(t *testing.T) {
	t.Parallel()
	n := startServer(t, nil)
	js := n.admin(t)
	findings := examine(t, nats.Config{URL: n.url()})
	wantFinding(t, findings, bridge.Fail, "stream ORDERS is missing", "create it with subjects orders.>")
	findings = examine(t, nats.Config{URL: n.url(), CreateStreams: true})
	wantFinding(t, findings, bridge.Info, "stream ORDERS is missing", "postbridge serve")
	wantWorst(t, findings, bridge.Info)
	if _, err := js.Stream(t.Context(), "ORDERS"); err == nil {
		t.Error("the doctor created it")
	}
	createStream(t, js, jetstream.StreamConfig{Name: "ALL", Subjects: []string{"orders.kite.>"}})
	findings = examine(t, nats.Config{URL: n.url(), CreateStreams: true})
	wantFinding(t, findings, bridge.Fail, "stream ORDERS is missing", "stream ALL takes some of orders.>")
}

// TestExamineLimits grades the storage of an account, also of one whose limits are those of tiers.
func TestExamineLimits(t *testing.T) {
	t.Parallel()
	limit := func(bytes int64) server.JetStreamAccountLimits {
		return server.JetStreamAccountLimits{MaxMemory: -1, MaxStore: bytes, MaxStreams: -1, MaxConsumers: -1}
	}
	for _, c := range []struct {
		limits map[string]server.JetStreamAccountLimits // by tier
		grade  bridge.Grade
		words  string
	}{
		{map[string]server.JetStreamAccountLimits{"": limit(-1)}, bridge.OK, "JetStream has no limit of storage for the account"},
		{map[string]server.JetStreamAccountLimits{"": limit(1 << 20)}, bridge.OK, "of the account's 1MiB of file storage in use"},
		{map[string]server.JetStreamAccountLimits{"": limit(0)}, bridge.Fail, "has 0B of the account's 0B of file storage in use, and refuses events"},
		{map[string]server.JetStreamAccountLimits{"": limit(0)}, bridge.Fail, "stream ORDERS is missing, and cannot be created: streams have reserved"},
		{map[string]server.JetStreamAccountLimits{"R3": limit(-1)}, bridge.Fail, "cannot be created: the account has no limits for 1 replicas"},
		{map[string]server.JetStreamAccountLimits{"R1": limit(1 << 10)}, bridge.Warn, "of tier R1's 1KiB of file storage in use: raise that limit"},
		{map[string]server.JetStreamAccountLimits{"R1": limit(-1)}, bridge.OK, "JetStream has no limit of storage for tier R1"},
	} {
		n := startServer(t, nil)
		if err := n.server.GlobalAccount().UpdateJetStreamLimits(c.limits); err != nil {
			t.Fatal(err)
		}
		if _, tiers := c.limits["R1"]; tiers {
			js := n.admin(t)
			createStream(t, js, jetstream.StreamConfig{Name: "USED", Subjects: []string{"used"}})
			if _, err := js.Publish(t.Context(), "used", make([]byte, 900)); err != nil {
				t.Fatal(err)
			}
		}
		wantFinding(t, examine(t, nats.Config{URL: n.url(), CreateStreams: true}), c.grade, c.words)
	}
}

// TestExamineCreate grades missing streams by whether serve could create them, and compares that with the server's word.
func TestExamineCreate(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		limits   server.JetStreamAccountLimits
		replicas int
		maxBytes int64
		words    string // "" if all three can be created
	}{
		"all":         {server.JetStreamAccountLimits{MaxStore: -1, MaxStreams: -1}, 1, 0, ""},
		"room":        {server.JetStreamAccountLimits{MaxStore: 3 << 20, MaxStreams: 3, StoreMaxStreamBytes: 1 << 20, MaxBytesRequired: true}, 1, 1 << 20, ""},
		"two streams": {server.JetStreamAccountLimits{MaxStore: -1, MaxStreams: 2}, 1, 0, "the account may have 2 streams: raise that limit"},
		"no size":     {server.JetStreamAccountLimits{MaxStore: -1, MaxStreams: -1, MaxBytesRequired: true}, 1, 0, "a limit of size for each stream: set POSTBRIDGE_NATS_MAX_BYTES"},
		"large":       {server.JetStreamAccountLimits{MaxStore: -1, MaxStreams: -1, StoreMaxStreamBytes: 1 << 20}, 1, 2 << 20, "no stream larger than 1MiB: lower POSTBRIDGE_NATS_MAX_BYTES"},
		"reserved":    {server.JetStreamAccountLimits{MaxStore: 3<<20 - 1, MaxStreams: -1}, 1, 1 << 20, "of the account's 2.9MiB: raise that limit, or lower POSTBRIDGE_NATS_MAX_BYTES"},
		"replicas":    {server.JetStreamAccountLimits{MaxStore: -1, MaxStreams: -1}, 3, 0, "a server alone cannot keep 3 replicas: lower POSTBRIDGE_NATS_REPLICAS"},
	} {
		n := startServer(t, nil)
		c.limits.MaxMemory, c.limits.MaxConsumers = -1, -1
		if err := n.server.GlobalAccount().UpdateJetStreamLimits(map[string]server.JetStreamAccountLimits{"": c.limits}); err != nil {
			t.Fatal(err)
		}
		findings := examine(t, nats.Config{URL: n.url(), CreateStreams: true, Replicas: c.replicas, MaxBytes: c.maxBytes})
		refused := 0
		for i, stream := range []string{"ORDERS", "REJECTS", "DEADLETTERS"} {
			_, err := n.admin(t).CreateStream(t.Context(), jetstream.StreamConfig{
				Name: stream, Subjects: []string{strings.ToLower(stream) + ".>"}, Replicas: c.replicas, MaxBytes: cmp.Or(c.maxBytes, -1),
			})
			if err == nil {
				wantFinding(t, findings, bridge.Info, "stream "+stream+" is missing: start 'postbridge serve', which creates it")
				continue
			}
			refused++
			if c.words == "" {
				t.Errorf("%s: stream %d is refused: %v", name, i, err)
				continue
			}
			wantFinding(t, findings, bridge.Fail, "stream "+stream+" is missing, and cannot be created: ", c.words)
		}
		if (refused > 0) != (c.words != "") {
			t.Errorf("%s: the server refuses %d streams", name, refused)
		}
	}
}

// TestExamineUnreachable is that whatever keeps the doctor out is a finding, soon.
func TestExamineUnreachable(t *testing.T) {
	t.Parallel()
	locked := startServer(t, func(o *server.Options) { o.Username, o.Password = "edge", "right-secret" })
	plain := startServer(t, func(o *server.Options) { o.JetStream = false })
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, c := range []struct {
		cfg   nats.Config
		grade bridge.Grade
		words []string
	}{
		{nats.Config{URL: locked.url(), User: "edge", Password: func() string { return "wrong-secret" }}, bridge.Fail, []string{"refuses the login", "POSTBRIDGE_NATS_PASSWORD"}},
		{nats.Config{URL: locked.url() + ",nats://127.0.0.1:1", User: "edge", Password: func() string { return "wrong-secret" }}, bridge.Fail, []string{"refuses the login"}},
		{nats.Config{URL: "nats://127.0.0.1:1," + locked.url(), User: "edge", Password: func() string { return "wrong-secret" }}, bridge.Fail, []string{"refuses the login"}},
		{nats.Config{URL: "nats://127.0.0.1:1"}, bridge.Fail, []string{"127.0.0.1:1 cannot be reached", "POSTBRIDGE_NATS_URL"}},
		{nats.Config{URL: "nats://" + l.Addr().String()}, bridge.Fail, []string{"does not answer", "POSTBRIDGE_NATS_URL"}},
		{nats.Config{URL: strings.Replace(plain.url(), "nats:", "tls:", 1)}, bridge.Fail, []string{"does not let us in", "POSTBRIDGE_NATS_TLS_CA_FILE"}},
		{nats.Config{URL: "tls://127.0.0.1:1," + plain.url()}, bridge.Fail, []string{"does not let us in", "secure connection not available"}},
		{nats.Config{URL: plain.url()}, bridge.Fail, []string{"JetStream is not enabled"}},
		{nats.Config{URL: "nats://127.0.0.1:1", Embedded: new(nats.EmbeddedConfig)}, bridge.Warn, []string{"does not run", "postbridge serve"}},
	} {
		began := time.Now()
		findings := examine(t, c.cfg)
		wantFinding(t, findings, c.grade, c.words...)
		if text := lines(findings); strings.Contains(text, "secret\"") || strings.Contains(text, "wrong-secret") {
			t.Errorf("tells the secret: %s", text)
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("%q took %v", c.words, took)
		}
	}
}

func TestExaminePermissions(t *testing.T) {
	t.Parallel()
	all := []string{
		"orders.>", "rejects.>", "deadletters.>", "$JS.API.INFO", "$SYS.REQ.USER.INFO",
		"$JS.API.STREAM.INFO.*", "$JS.API.DIRECT.GET.*", "$JS.API.DIRECT.GET.*.>",
	}
	for _, c := range []struct {
		denied string
		grade  bridge.Grade
		words  []string
	}{
		{"", bridge.OK, []string{"the user may publish to all destinations"}},
		{"rejects.>", bridge.Fail, []string{"may not publish to rejects.*.*.*", "allow it"}},
		{"$JS.API.INFO", bridge.Info, []string{"limits of the account", "$JS.API.INFO"}},
		{"$SYS.REQ.USER.INFO", bridge.Info, []string{"is not told", "$SYS.REQ.USER.INFO"}},
		{"$JS.API.STREAM.INFO.*", bridge.Fail, []string{"stream ORDERS cannot be looked up", "$JS.API.STREAM.INFO.ORDERS"}},
		{"$JS.API.DIRECT.GET.*.>", bridge.Warn, []string{"stored twice", "$JS.API.DIRECT.GET.ORDERS"}},
	} {
		var allow []string
		for _, subject := range all {
			if subject != c.denied {
				allow = append(allow, subject)
			}
		}
		n := startRestricted(t, allow)
		createAll(t, n, true)
		findings := examine(t, nats.Config{URL: n.url(), User: "edge", Password: noPassword})
		wantFinding(t, findings, c.grade, c.words...)
	}
	findings := examine(t, nats.Config{URL: startRestricted(t, all).url(), User: "edge", Password: noPassword, CreateStreams: true})
	wantFinding(t, findings, bridge.Fail, "stream ORDERS is missing, and may not be created", "$JS.API.STREAM.CREATE.ORDERS")
	may := startRestricted(t, append(all, "$JS.API.STREAM.CREATE.*"))
	findings = examine(t, nats.Config{URL: may.url(), User: "edge", Password: noPassword, CreateStreams: true})
	wantFinding(t, findings, bridge.Info, "stream ORDERS is missing: start 'postbridge serve', which creates it")

	untold := slices.DeleteFunc(slices.Clone(all), func(subject string) bool { return subject == "$SYS.REQ.USER.INFO" })
	findings = examine(t, nats.Config{URL: startRestricted(t, untold).url(), User: "edge", Password: noPassword, CreateStreams: true})
	wantFinding(t, findings, bridge.Info, "stream ORDERS is missing, and whether serve may create it is not told", "$JS.API.STREAM.CREATE.ORDERS")

	mute := startServer(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "edge", Permissions: &server.Permissions{Subscribe: &server.SubjectPermission{Deny: []string{">"}}}}}
	})
	findings = examine(t, nats.Config{URL: mute.url(), User: "edge", Password: noPassword})
	wantFinding(t, findings, bridge.Fail, "the user may not subscribe to answers", "_INBOX.>")
}

func TestExamineCluster(t *testing.T) {
	t.Parallel()
	b := startBus(t, 3)
	js := b.nodes[0].admin(t, natsgo.UserInfo("admin", "admin"))
	cfg := nats.Config{URL: b.nodes[0].url(), User: "edge", Password: func() string { return "secret" }, CreateStreams: true, Replicas: 1}
	wantFinding(t, examine(t, cfg), bridge.Warn, "stream ORDERS is missing", "POSTBRIDGE_NATS_REPLICAS=3")
	for name, replicas := range map[string]int{"orders": 1, "rejects": 3, "deadletters": 3} {
		createStream(t, js, jetstream.StreamConfig{Name: strings.ToUpper(name), Subjects: []string{name + ".>"}, Replicas: replicas})
	}
	findings := examine(t, cfg)
	wantFinding(t, findings, bridge.Warn, "stream ORDERS has 1 of the 3 replicas", "set its replicas to 3")
	wantFinding(t, findings, bridge.OK, "stream REJECTS has 3 replicas")

	b.nodes[2].stop()
	eventually(t, "replica that is away", func() bool {
		findings = examine(t, cfg)
		return strings.Contains(lines(findings), "warn nats stream REJECTS lacks its replica on node2")
	}, func() any { return lines(findings) })
}

// TestExamineEmbedded grades an embedded server through its port, beside the publisher that has it.
func TestExamineEmbedded(t *testing.T) {
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
	findings := examine(t, cfg)
	wantWorst(t, findings, bridge.Info)
	wantFinding(t, findings, bridge.OK, "server postbridge is embedded", "syncs its files every 1s")
	wantFinding(t, findings, bridge.Info, "stream ORDERS drops its oldest events when it has 1GiB")
}

// TestProbe is that a probe is stored where no order goes, and that without one nothing is.
func TestProbe(t *testing.T) {
	t.Parallel()
	n := startServer(t, nil)
	js := n.admin(t)
	for _, name := range []string{"orders", "rejects", "deadletters"} {
		createStream(t, js, jetstream.StreamConfig{Name: strings.ToUpper(name), Subjects: []string{name + ".>"}, AllowDirect: true})
	}
	count := func() (all uint64) {
		for _, name := range []string{"ORDERS", "REJECTS", "DEADLETTERS"} {
			s, err := js.Stream(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			all += s.CachedInfo().State.LastSeq
		}
		return all
	}
	cfg := nats.Config{URL: n.url()}
	examine(t, cfg)
	if got := count(); got != 0 {
		t.Fatalf("%d messages without a probe", got)
	}
	findings := nats.Examine(t.Context(), cfg, bridge.Examination{MaxEvent: maxEvent, Probe: true})
	wantFinding(t, findings, bridge.OK, "the probe is stored on deadletters.doctor", "read back")
	s, err := js.Stream(t.Context(), "DEADLETTERS")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	m, err := s.GetLastMsgForSubject(ctx, "deadletters.doctor")
	if err != nil || m.Header.Get("ce-type") != "postbridge.probe.v1" || count() != 1 {
		t.Errorf("%+v, %v, %d messages", m, err, count())
	}
	if err := js.DeleteStream(t.Context(), "DEADLETTERS"); err != nil {
		t.Fatal(err)
	}
	findings = nats.Examine(t.Context(), cfg, bridge.Examination{MaxEvent: maxEvent, Probe: true})
	wantFinding(t, findings, bridge.Fail, "the probe is not stored")
}
