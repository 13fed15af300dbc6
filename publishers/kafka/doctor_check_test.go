package kafka

import (
	"context"
	"net"
	"strings"
	"testing"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/createtopics"
	"github.com/segmentio/kafka-go/protocol/metadata"

	"github.com/postbridge/postbridge/bridge"
)

// creates is a cluster that would create any topic.
type creates struct{}

func (creates) RoundTrip(context.Context, net.Addr, kafkago.Request) (kafkago.Response, error) {
	return &createtopics.Response{}, nil
}

// TestGrades grades topics as an operator may have made them, and clusters as they may be.
func TestGrades(t *testing.T) {
	t.Parallel()
	good := func() (*metadata.Response, settings) {
		m := &metadata.Response{
			Brokers: []metadata.ResponseBroker{{NodeID: 1, Host: "a", Port: 1}, {NodeID: 2, Host: "b", Port: 1}, {NodeID: 3, Host: "c", Port: 1}},
			Topics: []metadata.ResponseTopic{{Name: "orders", TopicAuthorizedOperations: mayRead | mayWrite | mayDescribe, Partitions: []metadata.ResponsePartition{
				{LeaderID: 1, ReplicaNodes: []int32{1, 2, 3}, IsrNodes: []int32{1, 2, 3}},
				{LeaderID: 2, PartitionIndex: 1, ReplicaNodes: []int32{1, 2, 3}, IsrNodes: []int32{1, 2, 3}},
			}}},
		}
		return m, settings{
			"min.insync.replicas": "2", "unclean.leader.election.enable": "false", "max.message.bytes": "1048588",
			"retention.ms": "604800000", "retention.bytes": "-1", "cleanup.policy": "delete",
		}
	}
	replicas := func(m *metadata.Response, all, inSync int) {
		for i := range m.Topics[0].Partitions {
			p := &m.Topics[0].Partitions[i]
			p.ReplicaNodes, p.IsrNodes = p.ReplicaNodes[:all], p.IsrNodes[:inSync]
		}
	}
	for name, c := range map[string]struct {
		change func(*metadata.Response, settings)
		grade  bridge.Grade
		words  string // "" for nothing worse than ok
	}{
		"good":           {func(*metadata.Response, settings) {}, bridge.OK, ""},
		"for ever":       {func(_ *metadata.Response, s settings) { s["retention.ms"] = "-1" }, bridge.OK, ""},
		"very long":      {func(_ *metadata.Response, s settings) { s["retention.ms"] = "9223372036854775807" }, bridge.OK, ""},
		"min.insync 1":   {func(_ *metadata.Response, s settings) { s["min.insync.replicas"] = "1" }, bridge.Warn, "min.insync.replicas=1: an event may be acknowledged that is on one broker only: set min.insync.replicas=2"},
		"min.insync 3":   {func(_ *metadata.Response, s settings) { s["min.insync.replicas"] = "3" }, bridge.Warn, "with one broker away it takes nothing"},
		"one replica":    {func(m *metadata.Response, s settings) { replicas(m, 1, 1); s["min.insync.replicas"] = "1" }, bridge.Warn, "has 1 of the 3 replicas"},
		"one is away":    {func(m *metadata.Response, _ settings) { replicas(m, 3, 2) }, bridge.Warn, "has 2 of 3 replicas in sync"},
		"two are away":   {func(m *metadata.Response, _ settings) { replicas(m, 3, 1) }, bridge.Fail, "has 1 replicas in sync and needs 2"},
		"no leader":      {func(m *metadata.Response, _ settings) { m.Topics[0].Partitions[1].LeaderID = -1 }, bridge.Fail, "has no leader for 1 of its 2 partitions"},
		"few partitions": {func(m *metadata.Response, _ settings) { m.Topics[0].Partitions = m.Topics[0].Partitions[:1] }, bridge.Warn, "has 1 partitions, and POSTBRIDGE_KAFKA_PARTITIONS is 2"},
		"unclean":        {func(_ *metadata.Response, s settings) { s["unclean.leader.election.enable"] = "true" }, bridge.Warn, "unclean.leader.election.enable"},
		"small":          {func(_ *metadata.Response, s settings) { s["max.message.bytes"] = "65536" }, bridge.Warn, "raise its max.message.bytes"},
		"tiny":           {func(_ *metadata.Response, s settings) { s["max.message.bytes"] = "1000" }, bridge.Fail, "refuses nearly every event"},
		"short":          {func(_ *metadata.Response, s settings) { s["retention.ms"] = "3600000" }, bridge.Warn, "keeps events for 1h"},
		"bounded":        {func(_ *metadata.Response, s settings) { s["retention.bytes"] = "1073741824" }, bridge.Info, "has 1GiB (retention.bytes)"},
		"compacted":      {func(_ *metadata.Response, s settings) { s["cleanup.policy"] = "compact,delete" }, bridge.Fail, "is compacted"},
		"clocks before": {func(_ *metadata.Response, s settings) {
			s["message.timestamp.before.max.ms"] = "1000"
		}, bridge.Warn, "differ by more than 1s (message.timestamp.before.max.ms)"},
		"clocks after": {func(_ *metadata.Response, s settings) {
			s["message.timestamp.after.max.ms"] = "1000"
		}, bridge.Warn, "differ by more than 1s (message.timestamp.after.max.ms)"},
		"clocks, old": {func(_ *metadata.Response, s settings) {
			s["message.timestamp.difference.max.ms"] = "1000"
		}, bridge.Warn, "(message.timestamp.difference.max.ms)"},
		"clocks, enough": {func(_ *metadata.Response, s settings) {
			s["message.timestamp.after.max.ms"] = "3600000"
		}, bridge.OK, ""},
		"brokers' clock": {func(_ *metadata.Response, s settings) {
			s["message.timestamp.type"], s["message.timestamp.after.max.ms"] = "LogAppendTime", "0"
		}, bridge.OK, ""},
		"schemas": {func(_ *metadata.Response, s settings) {
			s["confluent.value.schema.validation"] = "true"
		}, bridge.Fail, "refuses every event: it validates schemas"},
		"no schemas": {func(_ *metadata.Response, s settings) {
			s["confluent.value.schema.validation"] = "false"
		}, bridge.OK, ""},
		"no write":    {func(m *metadata.Response, _ settings) { m.Topics[0].TopicAuthorizedOperations &^= mayWrite }, bridge.Fail, "may not be written to"},
		"no read":     {func(m *metadata.Response, _ settings) { m.Topics[0].TopicAuthorizedOperations &^= mayRead }, bridge.Warn, "stored twice"},
		"old cluster": {func(m *metadata.Response, _ settings) { m.Topics[0].TopicAuthorizedOperations = -1 << 31 }, bridge.Info, "does not tell who may"},
		"denied": {func(m *metadata.Response, _ settings) {
			m.Topics[0].ErrorCode = int16(kafkago.TopicAuthorizationFailed)
		}, bridge.Fail, "may not be described"},
		"missing":     {func(m *metadata.Response, _ settings) { m.Topics = nil }, bridge.Warn, "POSTBRIDGE_KAFKA_REPLICATION=3"},
		"two brokers": {func(m *metadata.Response, _ settings) { m.Brokers = m.Brokers[:2] }, bridge.Info, "2 of the 3 brokers"},
	} {
		m, s := good()
		c.change(m, s)
		x := &examiner{cfg: Config{CreateTopics: true, Partitions: 2, Replication: 1}, o: bridge.Examination{MaxEvent: 128 << 10}}
		x.address, x.client = kafkago.TCP("a:1"), &kafkago.Client{Transport: creates{}}
		x.cluster(m)
		x.topic(t.Context(), bridge.Orders, m, s)
		var said []string
		for _, f := range x.All {
			if f.Grade > bridge.OK {
				said = append(said, f.Grade.String()+" "+f.String())
			}
			if (f.Do == "") != (f.Grade == bridge.OK) {
				t.Errorf("%s: what to do about %q: %q", name, f.Text, f.Do)
			}
		}
		if c.words == "" && len(said) == 0 {
			continue
		}
		if len(said) != 1 || c.words == "" || !strings.HasPrefix(said[0], c.grade.String()+" ") || !strings.Contains(said[0], c.words) {
			t.Errorf("%s: %q, want %v %q", name, said, c.grade, c.words)
		}
	}
}
