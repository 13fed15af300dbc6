package kafka_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postbridge/postbridge/publishers"
	"github.com/postbridge/postbridge/publishers/kafka"
	"github.com/postbridge/postbridge/publishers/kafka/kafkatest"
)

func checkBus(t *testing.T, cfg kafka.Config) []publishers.CheckResult {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	defer func() {
		if ctx.Err() != nil {
			t.Errorf("it does not end by itself within %v", patience)
		}
	}()
	return kafka.Check(ctx, cfg, 128<<10)
}

// wantResult wants one of the severity with these words in it.
func wantResult(t *testing.T, results []publishers.CheckResult, severity publishers.Severity, words ...string) {
	t.Helper()
	var all strings.Builder
	for _, f := range results {
		if f.Severity == severity && containsAll(f.String(), words...) {
			return
		}
		fmt.Fprintln(&all, f.Severity, f)
	}
	t.Errorf("no %v with %q in\n%s", severity, words, all.String())
}

// createTopics creates our topics with these settings of orders.
func createTopics(t *testing.T, b *testBus, replicas int16, configs map[string]string) {
	t.Helper()
	req := kmsg.NewCreateTopicsRequest()
	for _, name := range []string{"orders", "rejects", "deadletters"} {
		topic := kmsg.NewCreateTopicsRequestTopic()
		topic.Topic, topic.NumPartitions, topic.ReplicationFactor = name, 6, replicas
		if b.config.Prefix != "" {
			topic.Topic = b.config.Prefix + "." + name
		}
		for key, value := range configs {
			if name == "orders" {
				topic.Configs = append(
					topic.Configs,
					kmsg.CreateTopicsRequestTopicConfig{Name: key, Value: kmsg.StringPtr(value)},
				)
			}
		}
		req.Topics = append(req.Topics, topic)
	}
	resp, err := req.RequestWith(t.Context(), b.client(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, topic := range resp.Topics {
		if topic.ErrorCode != 0 {
			t.Fatalf("%s: %d", topic.Topic, topic.ErrorCode)
		}
	}
}

// TestCheck checks a cluster of three with a topic of everything that is wrong.
func TestCheck(t *testing.T) {
	t.Parallel()
	b := startBus(t, 3)
	results := checkBus(t, b.config)
	wantResult(t, results, publishers.OK, "the bus at", "can be reached")
	wantResult(t, results, publishers.Info, "topic orders is missing: start 'postbridge serve'")
	b.config.CreateTopics = false
	wantResult(t, checkBus(t, b.config), publishers.Fail, "topic orders is missing: create it")
	if b.cluster.TopicInfo(orders) != nil {
		t.Error("the doctor created it")
	}

	createTopics(t, b, 3, map[string]string{
		"min.insync.replicas": "1", "cleanup.policy": "compact", "retention.ms": "1000", "max.message.bytes": "1000",
	})
	results = checkBus(t, b.config)
	wantResult(t, results, publishers.Warn, "topic orders", "min.insync.replicas=1")
	wantResult(t, results, publishers.Fail, "topic orders is compacted")
	wantResult(t, results, publishers.Warn, "topic orders keeps events for 1s")
	wantResult(t, results, publishers.Warn, "topic orders accepts messages up to 1000B", "max.message.bytes")
	for _, topic := range []string{orders, "rejects", "deadletters"} {
		if all := b.records(t, topic); len(all) > 0 {
			t.Errorf("%d records in %s", len(all), topic)
		}
	}
}

// TestCheckUnreachable is that whatever keeps the doctor out is a failure, soon.
func TestCheckUnreachable(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	locked := startBus(t, 1, kfake.EnableSASL(), kfake.Superuser("PLAIN", "edge", "right-secret"))
	locked.config.SASLMechanism, locked.config.User = "PLAIN", "edge"
	locked.config.Password = func() string { return "wrong-secret" }
	for _, c := range []struct {
		cfg   kafka.Config
		words []string
	}{
		{
			kafka.Config{Brokers: []string{"127.0.0.1:1"}},
			[]string{"cannot be reached", "connection refused", "POSTBRIDGE_KAFKA_BROKERS"},
		},
		{
			kafka.Config{Brokers: []string{silent.Addr().String(), silent.Addr().String()}},
			[]string{"cannot be reached", "no answer in time"},
		},
		{locked.config, []string{"cannot be reached", "login of user"}},
	} {
		results := checkBus(t, c.cfg)
		wantResult(t, results, publishers.Fail, c.words...)
		if len(results) != 1 || strings.Contains(results[0].String(), "secret") {
			t.Errorf("%+v", results)
		}
	}
}

// TestCheckRights reports what a user is denied.
func TestCheckRights(t *testing.T) {
	t.Parallel()
	rights := map[string][]kmsg.ACLOperation{
		"orders":      {kmsg.ACLOperationWrite, kmsg.ACLOperationDescribe},
		"rejects":     {kmsg.ACLOperationRead, kmsg.ACLOperationDescribe, kmsg.ACLOperationDescribeConfigs},
		"deadletters": {},
	}
	var acls []kfake.ACL
	for topic, operations := range rights {
		for _, op := range operations {
			acls = append(acls, kfake.ACL{
				Resource: kmsg.ACLResourceTypeTopic, Name: topic, Pattern: kmsg.ACLResourcePatternTypeLiteral, Operation: op, Allow: true,
			})
		}
	}
	b := startBus(t, 1, kfake.EnableSASL(), kfake.EnableACLs(), kfake.SeedTopics(6, "orders", "rejects", "deadletters"),
		kfake.Superuser("PLAIN", "admin", "admin"), kfake.User("PLAIN", "edge", "secret", acls...))
	b.config.SASLMechanism, b.config.User, b.config.Password = "PLAIN", "edge", func() string { return "secret" }
	results := checkBus(t, b.config)
	wantResult(t, results, publishers.Warn, "topic orders may not be read", "allow Read on it")
	wantResult(t, results, publishers.Info, "topic orders does not show its settings", "DescribeConfigs")
	wantResult(t, results, publishers.Fail, "topic rejects may not be written to", "allow Write on it")
	wantResult(t, results, publishers.Fail, "topic deadletters cannot be used", "Topic Authorization Failed")
}

// TestRealCheck is that a real Kafka shows what is checked.
func TestRealCheck(t *testing.T) {
	t.Parallel()
	kafkatest.Require(t)
	b := newBus(t)
	b.config.Brokers, b.config.Prefix = kafkatest.Plain(t), fmt.Sprintf("doctor-%08x", randomOf(t).Uint32())
	for _, broker := range b.config.Brokers {
		b.bypass[broker] = broker
	}
	createTopics(t, b, 1, map[string]string{
		"unclean.leader.election.enable": "true", "cleanup.policy": "compact", "retention.ms": "3600000", "retention.bytes": "1048576",
	})
	what := "topic " + b.config.Prefix + ".orders"
	var results []publishers.CheckResult
	eventually(t, "metadata of the topics in all brokers", func() bool {
		results = checkBus(t, b.config)
		return !slices.ContainsFunc(results, func(r publishers.CheckResult) bool { return r.Text == "is missing" })
	})
	wantResult(t, results, publishers.Warn, what+" may elect a leader that lacks acknowledged events")
	wantResult(t, results, publishers.Fail, what+" is compacted")
	wantResult(t, results, publishers.Warn, what+" keeps events for 1h")
	wantResult(t, results, publishers.Info, what, "1MiB (retention.bytes)")
	wantResult(t, results, publishers.Warn, what+" has 1 of the 3 replicas")
}
