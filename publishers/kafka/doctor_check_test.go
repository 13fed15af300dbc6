package kafka

import (
	"context"
	"net"
	"strings"
	"testing"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/metadata"

	"github.com/postbridge/postbridge/publishers"
)

// sameAnswer is a cluster that gives one answer to everything.
type sameAnswer struct{ kafkago.Response }

func (a sameAnswer) RoundTrip(context.Context, net.Addr, kafkago.Request) (kafkago.Response, error) {
	return a.Response, nil
}

// TestCheckAnswer is that the broker that answered is used from then on.
func TestCheckAnswer(t *testing.T) {
	x := &checker{cfg: Config{Brokers: []string{"a:1", "b:1"}}}
	x.client = &kafkago.Client{Transport: sameAnswer{&metadata.Response{}}}
	if topics, err := x.topics(t.Context()); err != nil || len(topics) > 0 || x.broker != "a:1" {
		t.Errorf("%v, %v, %q", topics, err, x.broker)
	}
}

// TestCheckTopic checks topics as an operator may have made them.
func TestCheckTopic(t *testing.T) {
	t.Parallel()
	type change = func(*metadata.Response, settings)
	good := func() (*metadata.Response, settings) {
		topic := metadata.ResponseTopic{Name: "orders", TopicAuthorizedOperations: mayRead | mayWrite | mayDescribe}
		for i := range int32(2) {
			topic.Partitions = append(topic.Partitions, metadata.ResponsePartition{
				LeaderID: i + 1, PartitionIndex: i, ReplicaNodes: []int32{1, 2, 3}, IsrNodes: []int32{1, 2, 3},
			})
		}
		return &metadata.Response{Topics: []metadata.ResponseTopic{topic}}, settings{
			"min.insync.replicas": "2", "unclean.leader.election.enable": "false", "max.message.bytes": "1048588",
			"retention.ms": "604800000", "retention.bytes": "-1", "cleanup.policy": "delete",
		}
	}
	none := func(*metadata.Response, settings) {}
	set := func(name, value string) change { return func(_ *metadata.Response, s settings) { s[name] = value } }
	replicas := func(all, inSync int, least string) change {
		return func(m *metadata.Response, s settings) {
			for i := range m.Topics[0].Partitions {
				p := &m.Topics[0].Partitions[i]
				p.ReplicaNodes, p.IsrNodes = p.ReplicaNodes[:all], p.IsrNodes[:inSync]
			}
			s["min.insync.replicas"] = least
		}
	}
	topic := func(f func(t *metadata.ResponseTopic)) change {
		return func(m *metadata.Response, _ settings) { f(&m.Topics[0]) }
	}
	code := func(e kafkago.Error) change {
		return topic(func(t *metadata.ResponseTopic) { t.ErrorCode = int16(e) })
	}
	rights := func(allowed int32) change {
		return topic(func(t *metadata.ResponseTopic) { t.TopicAuthorizedOperations = allowed })
	}
	const ok, info, warn, fail = publishers.OK, publishers.Info, publishers.Warn, publishers.Fail
	for name, c := range map[string]struct {
		change   change
		severity publishers.Severity
		words    string // "" for nothing worse than ok
	}{
		"good":      {none, ok, ""},
		"for ever":  {set("retention.ms", "-1"), ok, ""},
		"very long": {set("retention.ms", "9223372036854775807"), ok, ""},
		"min.insync 1": {
			set("min.insync.replicas", "1"), warn,
			"min.insync.replicas=1: an event may be acknowledged that is on one broker only: set min.insync.replicas=2",
		},
		"min.insync 3": {set("min.insync.replicas", "3"), warn, "without one broker it accepts no events"},
		"one replica":  {replicas(1, 1, "1"), warn, "has 1 of the 3 replicas"},
		"one is away":  {replicas(3, 2, "2"), warn, "has 2 of 3 replicas in sync"},
		"two are away": {replicas(3, 1, "2"), fail, "has 1 replicas in sync and needs 2"},
		"no leader": {
			topic(func(t *metadata.ResponseTopic) { t.Partitions[1].LeaderID = -1 }), fail,
			"has no leader for 1 of its 2 partitions",
		},
		"unclean":   {set("unclean.leader.election.enable", "true"), warn, "unclean.leader.election.enable"},
		"small":     {set("max.message.bytes", "65536"), warn, "raise its max.message.bytes"},
		"short":     {set("retention.ms", "3600000"), warn, "keeps events for 1h"},
		"bounded":   {set("retention.bytes", "1073741824"), info, "has 1GiB (retention.bytes)"},
		"compacted": {set("cleanup.policy", "compact,delete"), fail, "is compacted"},
		"validated": {
			set("confluent.value.schema.validation", "true"), fail,
			"refuses every event of postbridge, which has no schema id (confluent.value.schema.validation): set it to false",
		},
		"validated key": {set("confluent.key.schema.validation", "true"), fail, "(confluent.key.schema.validation)"},
		"validated by Redpanda": {
			func(_ *metadata.Response, s settings) { // which shows both names
				s["redpanda.value.schema.id.validation"], s["confluent.value.schema.validation"] = "true", "true"
			}, fail, "(confluent.value.schema.validation, redpanda.value.schema.id.validation)",
		},
		"validated by Redpanda, key": {
			set("redpanda.key.schema.id.validation", "true"), fail, "(redpanda.key.schema.id.validation)",
		},
		"not validated": {set("redpanda.value.schema.id.validation", "false"), ok, ""},
		"write caching": {set("write.caching", "true"), info, "acknowledges before its fsync (write.caching)"},
		"no caching":    {set("write.caching", "false"), ok, ""},
		"no write":      {rights(mayRead | mayDescribe), fail, "may not be written to"},
		"no read":       {rights(mayWrite | mayDescribe), warn, "stored twice"},
		"old cluster":   {rights(-1 << 31), info, "does not show who may"},
		"denied":        {code(kafkago.TopicAuthorizationFailed), fail, "cannot be used: [29] Topic Authorization Failed"},
		"missing":       {code(kafkago.UnknownTopicOrPartition), info, "is missing: start 'postbridge serve'"},
		"left out":      {func(m *metadata.Response, _ settings) { m.Topics = nil }, info, "is missing: start"},
	} {
		m, s := good()
		c.change(m, s)
		x := &checker{cfg: Config{CreateTopics: true}, maxEvent: 128 << 10}
		var said []string
		for _, f := range x.topic(topicOf(m.Topics, "orders"), s) {
			if f.Severity > publishers.OK {
				said = append(said, f.Severity.String()+" "+f.String())
			}
			if (f.Do == "") != (f.Severity == publishers.OK) {
				t.Errorf("%s: what to do about %q: %q", name, f.Text, f.Do)
			}
		}
		if c.words == "" && len(said) == 0 {
			continue
		}
		if len(said) != 1 || c.words == "" || !strings.HasPrefix(said[0], c.severity.String()+" ") ||
			!strings.Contains(said[0], c.words) {
			t.Errorf("%s: %q, want %v %q", name, said, c.severity, c.words)
		}
	}
}
