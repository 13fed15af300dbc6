package kafka_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/publishers"
	"github.com/postbridge/postbridge/publishers/kafka"
	"github.com/postbridge/postbridge/publishers/kafka/kafkatest"
	"github.com/postbridge/postbridge/publishers/publishertest"
)

// TestRealRights is that deploy/kafka/acls.sh lets everybody do their work, and nothing else.
func TestRealRights(t *testing.T) {
	t.Parallel()
	c := kafkatest.StartFor(t, kafkatest.Options{Secure: true, ACLs: true})
	for _, user := range []string{"reconcile", "strategy", "risk"} {
		_, err := c.Java(t.Context(), "kafka.admin.ConfigCommand", "--bootstrap-server", c.Brokers()[0], "--alter",
			"--entity-type", "users", "--entity-name", user, "--add-config", "SCRAM-SHA-512=[password="+user+"-secret]")
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range aclCommands(t, c.Brokers()[0]) {
		if _, err := c.Java(t.Context(), "org.apache.kafka.tools.AclCommand", args...); err != nil {
			t.Fatal(err)
		}
	}

	bus := secureReal(t, c, "")
	r := publishertest.Open(t, bus)
	all := publishertest.Events(1, 200, 40)
	for _, d := range all {
		d.Data = decodable(d)
	}
	r.Publish(all...)
	r.WaitDone(all...)
	r.CheckStored(all...)
	waitNoCauses(r)
	if n := bus.warnings("level=WARN") + bus.warnings("level=ERROR"); n > 0 {
		t.Errorf("%d warnings: %s", n, bus.logs.String())
	}

	reconcileAs(t, bus.config, "reconcile")

	results := checkBus(t, bus.config)
	for _, r := range results { // of one broker
		if r.Severity > publishers.Info && !strings.Contains(r.Text, "has 1 of the 3 replicas") {
			t.Errorf("%v %s", r.Severity, r)
		}
	}

	for _, test := range []struct {
		user, topic, group string
		refused            error
	}{
		{"strategy", "orders", "strategy", nil},
		{"risk", "rejects", "risk", nil},
		{"strategy", "rejects", "strategy", kerr.TopicAuthorizationFailed},
		{"strategy", "deadletters", "strategy", kerr.TopicAuthorizationFailed},
		{"risk", "orders", "risk", kerr.TopicAuthorizationFailed},
		{"strategy", "orders", "risk", kerr.GroupAuthorizationFailed},
		{"reconcile", "orders", "strategy", kerr.GroupAuthorizationFailed},
		{"risk", "rejects", "strategy", kerr.GroupAuthorizationFailed},
	} {
		if err := readInGroup(t, c, test.user, test.topic, test.group); !errors.Is(err, test.refused) {
			t.Errorf("%s reads %s in group %s: %v, want %v", test.user, test.topic, test.group, err, test.refused)
		}
	}
	for _, user := range []string{"strategy", "risk"} {
		for _, topic := range []string{"orders", "rejects"} {
			err := as(
				t,
				c,
				user,
			).ProduceSync(t.Context(), &kgo.Record{Topic: topic, Value: []byte("forged")}).
				FirstErr()
			if !errors.Is(err, kerr.TopicAuthorizationFailed) {
				t.Errorf("%s writes to %s: %v", user, topic, err)
			}
		}
	}

	last := publishertest.Events(201, 1, 40)[0]
	last.UserID, last.OrderID, last.Status = "AB1234", "last", event.StatusRejected
	last.Data = decodable(last)
	r.Publish(last)
	riskInPython(t, c, last.Key())
}

// decodable returns the payload of an event as consumers decode it.
func decodable(d *bridge.Delivery) []byte {
	e := event.Event{
		ID: d.ID, Broker: d.Broker, Order: event.Order{UserID: d.UserID, OrderID: d.OrderID, Status: d.Status},
		ReceivedAt: d.ReceivedAt.UTC().Format(event.TimeFormat), Source: event.SourcePostback,
	}
	return e.Append(nil)
}

// riskInPython runs the risk system of deploy/examples as the user risk, until it has counted the order.
func riskInPython(t *testing.T, c *kafkatest.Cluster, order string) {
	t.Helper()
	if err := exec.Command("python3", "-c", "import kafka, lz4").Run(); err != nil {
		if os.Getenv("PYTHON_TEST_REQUIRED") == "1" {
			t.Errorf("python3 with kafka-python and lz4: %v", err)
		}
		t.Logf("no python3 with kafka-python and lz4, so the risk system is not run: %v", err)
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "python3", "-B", "../../deploy/examples/risk.py", "kafka")
	cmd.Env = append(os.Environ(), "KAFKA_BROKERS="+c.SecureBrokers()[0], "KAFKA_PASSWORD=risk-secret",
		"KAFKA_CA="+c.CAFile(), "STATE="+filepath.Join(t.TempDir(), "risk.db"))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	found := false
	for lines := bufio.NewScanner(out); !found && lines.Scan(); {
		found = strings.HasPrefix(lines.Text(), "rejected "+order+":")
	}
	cancel()
	_ = cmd.Wait() // killed
	if !found {
		t.Errorf("it did not count %s: %s", order, stderr.String())
	}
}

// reconcileAs publishes an event as 'postbridge reconcile' does, and reads it back.
func reconcileAs(t *testing.T, cfg kafka.Config, user string) {
	t.Helper()
	cfg.User, cfg.Password = user, func() string { return user + "-secret" }
	events, err := kafka.OpenEvents(cfg, "0badcafe", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer events.Close()
	rejected := &bridge.Delivery{
		ID: strings.Repeat("0", 32), Broker: "kite", UserID: "AB1234", OrderID: "reconciled",
		Status: event.StatusRejected, ReceivedAt: time.Now(),
	}
	rejected.Data = decodable(rejected)
	if err := events.Publish(t.Context(), rejected, nil); err != nil {
		t.Fatalf("%s: %v", user, err)
	}
	if _, err := events.Refresh(t.Context(), time.Now().Add(-time.Hour)); err != nil {
		t.Fatalf("%s: %v", user, err)
	}
	for _, dest := range []bridge.Destination{bridge.Orders, bridge.Rejects} {
		if last, err := events.Last(t.Context(), dest, rejected); err != nil || last.Data == nil {
			t.Errorf("%s: last event in %s: %q, %v", user, dest, last.Data, err)
		}
	}
}

// aclCommands are the arguments of each call in acls.sh.
func aclCommands(t *testing.T, bootstrap string) (all [][]string) {
	t.Helper()
	dir := t.TempDir()
	said := filepath.Join(dir, "said")
	const tool = "#!/bin/sh\necho \"$*\" >>\"$SAID\"\n"
	if err := os.WriteFile(filepath.Join(dir, "kafka-acls.sh"), []byte(tool), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("../../deploy/kafka/acls.sh")
	cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "SAID="+said, "BOOTSTRAP="+bootstrap)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text, err := os.ReadFile(said)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		all = append(all, strings.Fields(line))
	}
	return all
}

// as is a client that logs in as that user.
func as(t *testing.T, c *kafkatest.Cluster, user string, options ...kgo.Opt) *kgo.Client {
	t.Helper()
	text, err := os.ReadFile(c.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	ca := x509.NewCertPool()
	ca.AppendCertsFromPEM(text)
	client, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(c.SecureBrokers()...), kgo.DialTLSConfig(&tls.Config{RootCAs: ca}),
		kgo.SASL(scram.Auth{User: user, Pass: user + "-secret"}.AsSha512Mechanism()),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableIdempotentWrite(),
	}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// readInGroup reads something and commits it.
func readInGroup(t *testing.T, c *kafkatest.Cluster, user, topic, group string) error {
	t.Helper()
	client := as(t, c, user, kgo.ConsumeTopics(topic), kgo.ConsumerGroup(group), kgo.DisableAutoCommit())
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	fetches := client.PollFetches(ctx)
	if err := fetches.Err(); err != nil {
		return err
	}
	return client.CommitRecords(ctx, fetches.Records()...)
}
