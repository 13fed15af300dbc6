package kafka_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers/kafka"
	"github.com/postbridge/postbridge/publishers/kafka/kafkatest"
)

func examine(t *testing.T, cfg kafka.Config, probe bool) []bridge.Finding {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	defer func() {
		if ctx.Err() != nil {
			t.Errorf("it does not end by itself within %v", patience)
		}
	}()
	return kafka.Examine(ctx, cfg, bridge.Examination{MaxEvent: 128 << 10, Probe: probe})
}

// wantFinding wants one of the grade with these words in it.
func wantFinding(t *testing.T, findings []bridge.Finding, grade bridge.Grade, words ...string) {
	t.Helper()
	var all strings.Builder
	for _, f := range findings {
		if f.Grade == grade && containsAll(f.String(), words...) {
			return
		}
		fmt.Fprintln(&all, f.Grade, f)
	}
	t.Errorf("no %v with %q in\n%s", grade, words, all.String())
}

// said reports whether one of the findings has this word in it.
func said(findings []bridge.Finding, word string) bool {
	return slices.ContainsFunc(findings, func(f bridge.Finding) bool { return strings.Contains(f.String(), word) })
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
				topic.Configs = append(topic.Configs, kmsg.CreateTopicsRequestTopicConfig{Name: key, Value: kmsg.StringPtr(value)})
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

// TestExamine grades a cluster of three with a topic of everything that is wrong.
func TestExamine(t *testing.T) {
	t.Parallel()
	b := startBus(t, 3)
	findings := examine(t, b.config, false)
	wantFinding(t, findings, bridge.OK, "the cluster has 3 brokers")
	wantFinding(t, findings, bridge.Warn, "topic orders is missing", "POSTBRIDGE_KAFKA_REPLICATION=3")
	b.config.CreateTopics = false
	wantFinding(t, examine(t, b.config, false), bridge.Fail, "topic orders is missing: create it")
	if b.cluster.TopicInfo(orders) != nil {
		t.Error("the doctor created it")
	}

	createTopics(t, b, 3, map[string]string{
		"min.insync.replicas": "1", "cleanup.policy": "compact", "retention.ms": "1000", "max.message.bytes": "1000",
	})
	findings = examine(t, b.config, false)
	wantFinding(t, findings, bridge.Warn, "topic orders", "min.insync.replicas=1")
	wantFinding(t, findings, bridge.Fail, "topic orders is compacted")
	wantFinding(t, findings, bridge.Warn, "topic orders keeps events for 1s")
	wantFinding(t, findings, bridge.Fail, "topic orders refuses nearly every event", "up to 1000B")
	wantFinding(t, findings, bridge.OK, "topic rejects has 6 partitions")
	wantFinding(t, findings, bridge.OK, "topic rejects keeps events for 168h")

	b.config.Partitions = 7
	wantFinding(t, examine(t, b.config, false), bridge.Warn, "topic rejects has 6 partitions", "POSTBRIDGE_KAFKA_PARTITIONS is 7")
	for _, topic := range []string{orders, "rejects", "deadletters"} {
		if all := b.records(t, topic); len(all) > 0 {
			t.Errorf("%d records in %s", len(all), topic)
		}
	}
	wantFinding(t, examine(t, b.config, true), bridge.OK, "the probe is stored in deadletters, partition", "read back")
	all := b.records(t, "deadletters")
	if len(all) != 1 || len(b.records(t, orders)) > 0 || !strings.HasPrefix(string(all[0].Key), "doctor.") || decode(all[0]).Attributes["type"] != bridge.ProbeType {
		t.Errorf("%+v", all)
	}
}

// TestExamineUnreachable is that whatever keeps the doctor out is a finding, soon.
func TestExamineUnreachable(t *testing.T) {
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
		{kafka.Config{Brokers: []string{"127.0.0.1:1"}}, []string{"cannot be reached", "connection refused", "POSTBRIDGE_KAFKA_BROKERS"}},
		{kafka.Config{Brokers: []string{silent.Addr().String(), silent.Addr().String()}}, []string{"cannot be reached", "no answer in time"}},
		{locked.config, []string{"does not let us in", "login of user", "POSTBRIDGE_KAFKA_PASSWORD"}},
	} {
		findings := examine(t, c.cfg, true)
		wantFinding(t, findings, bridge.Fail, c.words...)
		if len(findings) != 1 || strings.Contains(findings[0].String(), "secret") {
			t.Errorf("%+v", findings)
		}
	}
}

// TestExamineRights grades what a user is denied.
func TestExamineRights(t *testing.T) {
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
	findings := examine(t, b.config, true)
	wantFinding(t, findings, bridge.Warn, "topic orders may not be read", "allow Read on it")
	wantFinding(t, findings, bridge.Info, "topic orders does not tell its settings", "DescribeConfigs")
	wantFinding(t, findings, bridge.Fail, "topic rejects may not be written to", "allow Write on it")
	wantFinding(t, findings, bridge.OK, "topic rejects keeps events for 168h")
	wantFinding(t, findings, bridge.Fail, "topic deadletters may not be described")
	wantFinding(t, findings, bridge.Fail, "the probe has nowhere to go")
}

// TestExamineCreate grades missing topics by whether serve could create them.
func TestExamineCreate(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		may   []kmsg.ACLOperation
		grade bridge.Grade
		words []string
	}{
		"all":      {[]kmsg.ACLOperation{kmsg.ACLOperationCreate}, bridge.Info, []string{"topic orders is missing: start 'postbridge serve'"}},
		"no right": {nil, bridge.Fail, []string{"topic orders is missing, and may not be created: allow Create on it"}},
	} {
		var acls []kfake.ACL
		for _, op := range append(c.may, kmsg.ACLOperationWrite, kmsg.ACLOperationDescribe) {
			acls = append(acls, kfake.ACL{
				Resource: kmsg.ACLResourceTypeTopic, Name: "orders", Pattern: kmsg.ACLResourcePatternTypeLiteral, Operation: op, Allow: true,
			})
		}
		b := startBus(t, 1, kfake.EnableSASL(), kfake.EnableACLs(),
			kfake.Superuser("PLAIN", "admin", "admin"), kfake.User("PLAIN", "edge", "secret", acls...))
		b.config.SASLMechanism, b.config.User, b.config.Password = "PLAIN", "edge", func() string { return "secret" }
		wantFinding(t, examine(t, b.config, false), c.grade, c.words...)
		if b.cluster.TopicInfo(orders) != nil {
			t.Errorf("%s: the doctor created it", name)
		}
	}

	b := startBus(t, 1, kfake.EnableSASL(), kfake.EnableACLs(), kfake.SeedTopics(6, "orders", "rejects", "deadletters"),
		kfake.Superuser("PLAIN", "admin", "admin"), kfake.User("PLAIN", "edge", "secret"))
	b.config.SASLMechanism, b.config.User, b.config.Password = "PLAIN", "edge", func() string { return "secret" }
	wantFinding(t, examine(t, b.config, false), bridge.Fail, "the cluster gives no producer id", "allow Write")
}

// TestRealExamine is that a real Kafka tells what the doctor looks at.
func TestRealExamine(t *testing.T) {
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
	findings := examine(t, b.config, true)
	// The leader of a new partition may not know yet that it is.
	for deadline := time.Now().Add(patience); said(findings, "Not Leader") && time.Now().Before(deadline); {
		findings = examine(t, b.config, true)
	}
	what := "topic " + b.config.Prefix + ".orders"
	wantFinding(t, findings, bridge.Warn, what+" may elect a leader that lacks acknowledged events")
	wantFinding(t, findings, bridge.Fail, what+" is compacted")
	wantFinding(t, findings, bridge.Warn, what+" keeps events for 1h")
	wantFinding(t, findings, bridge.Info, what, "1MiB (retention.bytes)")
	wantFinding(t, findings, bridge.OK, what+" grants this user Write and Read")
	wantFinding(t, findings, bridge.Warn, what+" has 1 of the 3 replicas")
	wantFinding(t, findings, bridge.OK, "the probe is stored in "+b.config.Prefix+".deadletters", "read back")
}
