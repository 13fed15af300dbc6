package kafkatest_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"

	"github.com/postbridge/postbridge/publishers/kafka/kafkatest"
)

func TestMain(m *testing.M) { os.Exit(kafkatest.Main(m)) }

// skipShort skips a test that starts a JVM, which takes more processor time than the test: make test-long runs it.
func skipShort(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("skipped by -short: it starts a Kafka of its own")
	}
}

func TestPlain(t *testing.T) {
	skipShort(t)
	t.Parallel()
	ctx := context.Background()
	brokers := kafkatest.Plain(t)
	if again := kafkatest.Plain(t); again[0] != brokers[0] {
		t.Errorf("Plain returned %v, then %v", brokers, again)
	}
	client := newClient(t, brokers, nil, nil)
	createTopic(t, client, "plain.orders", 1)
	produce(t, client, "plain.orders", "1")
	if got := fetch(ctx, t, client, "plain.orders"); got != "1" {
		t.Errorf("fetched %q, want 1", got)
	}
}

// TestKillAndStartAgain also holds the flags of the console consumer that other tests and people rely on.
func TestKillAndStartAgain(t *testing.T) {
	t.Parallel()
	c := kafkatest.StartFor(t, kafkatest.Options{})
	client := newClient(t, c.Brokers(), nil, nil)
	createTopic(t, client, "some.orders", 1)
	produce(t, client, "some.orders", "1")

	if err := c.Kill(0); err != nil {
		t.Fatal(err)
	}
	if err := c.Kill(0); err == nil {
		t.Error("a node that does not run was killed")
	}
	if err := c.StartNode(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	produce(t, client, "some.orders", "2")
	if err := c.Stop(0); err != nil {
		t.Fatal(err)
	}
	if err := c.StartNode(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if node, err := c.Leader(t.Context(), "some.orders", 0); node != 0 || err != nil {
		t.Errorf("Leader: %d, %v, want 0", node, err)
	}
	got, err := c.Java(
		t.Context(),
		"org.apache.kafka.tools.consumer.ConsoleConsumer",
		"--bootstrap-server",
		c.Brokers()[0],
		"--topic",
		"some.orders",
		"--from-beginning",
		"--max-messages",
		"2",
		"--timeout-ms",
		"30000",
		"--formatter-property",
		"print.partition=true",
		"--formatter-property",
		"print.headers=true",
		"--formatter-property",
		"print.key=true",
	)
	if err != nil {
		t.Fatal(err)
	}
	if want := "Partition:0\tname:value,other:\tkey\t1\nPartition:0\tname:value,other:\tkey\t2\n"; string(got) != want {
		t.Errorf("the console consumer printed\n%q, want\n%q", got, want)
	}
	if out, err := c.Java(t.Context(), "org.apache.kafka.tools.NoSuchTool"); err == nil {
		t.Errorf("a class that is not there printed %q", out)
	}

	c.Close()
	c.Close()
	if err := c.Stop(0); err == nil {
		t.Error("a node was stopped after Close")
	}
}

func TestLogins(t *testing.T) {
	t.Parallel()
	c := kafkatest.StartFor(t, kafkatest.Options{Secure: true, ClientAuth: true, ACLs: true})
	admin := newClient(t, c.Brokers(), nil, nil)
	createTopic(t, admin, "granted.orders", 1)
	createTopic(t, admin, "other.orders", 1)
	grant(t, admin, "granted.orders", kafka.ACLOperationTypeWrite)
	grant(t, admin, "other.orders", kafka.ACLOperationTypeDescribe)

	ca := x509.NewCertPool()
	if text, err := os.ReadFile(c.CAFile()); err != nil || !ca.AppendCertsFromPEM(text) {
		t.Fatalf("%s is no certificate, or %v", c.CAFile(), err)
	}
	certificate, err := tls.LoadX509KeyPair(c.ClientCertFile(), c.ClientKeyFile())
	if err != nil {
		t.Fatal(err)
	}
	server := &tls.Config{RootCAs: ca}
	both := &tls.Config{RootCAs: ca, Certificates: []tls.Certificate{certificate}}
	login := func(a scram.Algorithm, password string) sasl.Mechanism {
		m, err := scram.Mechanism(a, kafkatest.User, password)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	for _, tt := range []struct {
		name    string
		brokers []string
		tls     *tls.Config
		login   sasl.Mechanism
		fails   bool
	}{
		{"PLAIN", c.SecureBrokers(), server, plain.Mechanism{Username: kafkatest.User, Password: kafkatest.Password},
			false},
		{"SCRAM-SHA-256", c.SecureBrokers(), server, login(scram.SHA256, kafkatest.Password), false},
		{"SCRAM-SHA-512", c.SecureBrokers(), server, login(scram.SHA512, kafkatest.Password), false},
		{"certificate", c.ClientAuthBrokers(), both, nil, false},
		{"wrong password, PLAIN", c.SecureBrokers(), server, plain.Mechanism{Username: kafkatest.User,
			Password: "wrong"}, true},
		{"wrong password, SCRAM", c.SecureBrokers(), server, login(scram.SHA512, "wrong"), true},
		{"no certificate", c.ClientAuthBrokers(), server, nil, true},
		{"other CA", c.SecureBrokers(), &tls.Config{}, login(scram.SHA512, kafkatest.Password), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			client := newClient(t, tt.brokers, tt.tls, tt.login)
			if tt.fails {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				if _, err := client.Metadata(ctx, &kafka.MetadataRequest{}); err == nil {
					t.Error("it was let in")
				}
				return
			}
			produce(t, client, "granted.orders", "1")
			r, err := client.Produce(t.Context(), record("other.orders", "1"))
			if err == nil {
				err = r.Error
			}
			if !errors.Is(err, kafka.TopicAuthorizationFailed) {
				t.Errorf("produced without a grant: %v, want %v", err, kafka.TopicAuthorizationFailed)
			}
		})
	}
}

func TestThreeNodes(t *testing.T) {
	t.Parallel()
	c := kafkatest.StartFor(t, kafkatest.Options{Nodes: 3})
	client := newClient(t, c.Brokers(), nil, nil)
	createTopic(t, client, "some.orders", 3)
	produce(t, client, "some.orders", "1")
	before, err := c.Leader(t.Context(), "some.orders", 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Kill(before); err != nil {
		t.Fatal(err)
	}
	after := before
	waitFor(t, "another leader", func() (err error) {
		if after, err = c.Leader(t.Context(), "some.orders", 0); after == before {
			err = fmt.Errorf("node %d still leads", before)
		}
		return err
	})
	produce(t, client, "some.orders", "2")
	if err := c.StartNode(t.Context(), before); err != nil {
		t.Fatal(err)
	}
	if got := fetch(t.Context(), t, client, "some.orders"); got != "1 2" {
		t.Errorf("fetched %q, want 1 2", got)
	}
}

func TestStartSaysWhatIsWrong(t *testing.T) {
	skipShort(t)
	t.Parallel()
	kafkatest.Require(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, tt := range []struct {
		o    kafkatest.Options
		want string
	}{
		{kafkatest.Options{Dir: t.TempDir(), Listen: taken.Addr().String()}, "address already in use"},
		{kafkatest.Options{Dir: t.TempDir(), Listen: ":9092"}, "write it like 127.0.0.1:9092"},
		{kafkatest.Options{}, "Dir is empty"},
		{kafkatest.Options{Dir: t.TempDir(), Nodes: 2}, "there can be 1 or 3"},
		{kafkatest.Options{Dir: t.TempDir(), Properties: map[string]string{"num.io.threads": "none"}},
			"num.io.threads"},
	} {
		if c, err := kafkatest.Start(t.Context(), tt.o); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Start(%+v): %v, %v, want %q", tt.o, c, err, tt.want)
		}
	}
}

func TestStartThatIsCancelledLeavesNothing(t *testing.T) {
	skipShort(t)
	t.Parallel()
	kafkatest.Require(t)
	ctx, cancel := context.WithCancel(t.Context())
	dir := t.TempDir()
	failed := make(chan error, 1)
	go func() {
		_, err := kafkatest.Start(ctx, kafkatest.Options{Dir: dir})
		failed <- err
	}()
	waitFor(t, "a JVM", func() error {
		_, err := os.Stat(filepath.Join(dir, "node-0", "broker.log"))
		return err
	})
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("Start: %v, want %v", err, context.Canceled)
	}
	if all, err := processesWith(dir); len(all) > 0 || err != nil {
		t.Errorf("still there: %v, %v", all, err)
	}
}

// processesWith finds the processes with text in their command line.
func processesWith(text string) (all []string, err error) {
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		line, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !strings.Contains(err.Error(), "no such process") {
			return nil, err
		}
		if strings.Contains(string(line), text) {
			all = append(all, path)
		}
	}
	return all, err
}

func newClient(t *testing.T, brokers []string, tls *tls.Config, login sasl.Mechanism) *kafka.Client {
	transport := &kafka.Transport{TLS: tls, SASL: login, MetadataTTL: 100 * time.Millisecond}
	t.Cleanup(transport.CloseIdleConnections)
	return &kafka.Client{Addr: kafka.TCP(brokers...), Transport: transport}
}

// createTopic waits while the controller fences the broker: it does so for a moment when heartbeats come late.
func createTopic(t *testing.T, client *kafka.Client, name string, replicas int) {
	t.Helper()
	topic := kafka.TopicConfig{Topic: name, NumPartitions: 1, ReplicationFactor: replicas}
	for {
		r, err := client.CreateTopics(t.Context(), &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{topic}})
		if err == nil {
			err = r.Errors[name]
		}
		switch {
		case err == nil || errors.Is(err, kafka.TopicAlreadyExists):
			return
		case !errors.Is(err, kafka.BrokerNotAvailable):
			t.Fatal(err)
		}
	}
}

// grant lets User do something with the topic.
func grant(t *testing.T, client *kafka.Client, topic string, operation kafka.ACLOperationType) {
	t.Helper()
	r, err := client.CreateACLs(t.Context(), &kafka.CreateACLsRequest{ACLs: []kafka.ACLEntry{{
		ResourceType: kafka.ResourceTypeTopic, ResourceName: topic, ResourcePatternType: kafka.PatternTypeLiteral,
		Principal: "User:" + kafkatest.User, Host: "*", Operation: operation,
		PermissionType: kafka.ACLPermissionTypeAllow,
	}}})
	if err == nil {
		err = errors.Join(r.Errors...)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func record(topic, value string) *kafka.ProduceRequest {
	return &kafka.ProduceRequest{
		Topic:        topic,
		RequiredAcks: kafka.RequireAll,
		Records: kafka.NewRecordReader(kafka.Record{
			Key: kafka.NewBytes([]byte("key")), Value: kafka.NewBytes([]byte(value)),
			Headers: []kafka.Header{{Key: "name", Value: []byte("value")}, {Key: "other", Value: []byte{}}},
		}),
	}
}

// produce publishes a record, again and again while nodes come and go.
func produce(t *testing.T, client *kafka.Client, topic, value string) {
	t.Helper()
	waitFor(t, "a record to be stored", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		r, err := client.Produce(ctx, record(topic, value))
		if err == nil {
			err = r.Error
		}
		return err
	})
}

// fetch returns the values of a topic, each once: produce may repeat one.
func fetch(ctx context.Context, t *testing.T, client *kafka.Client, topic string) string {
	t.Helper()
	var values []string
	for offset := int64(0); ; {
		r, err := client.Fetch(ctx, &kafka.FetchRequest{Topic: topic, Offset: offset, MinBytes: 1, MaxBytes: 1 << 20})
		if err == nil {
			err = r.Error
		}
		if err != nil {
			t.Fatal(err)
		}
		for {
			rec, err := r.Records.ReadRecord()
			if err != nil {
				break
			}
			value, err := kafka.ReadAll(rec.Value)
			if err != nil {
				t.Fatal(err)
			}
			values = append(values, string(value))
			offset = rec.Offset + 1
		}
		if offset >= r.HighWatermark {
			return strings.Join(slices.Compact(values), " ")
		}
	}
}

func waitFor(t *testing.T, what string, try func() error) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
