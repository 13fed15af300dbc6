package kafka

import (
	"strings"
	"testing"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/metadata"

	"github.com/postbridge/postbridge/publishers"
)

// TestCheckTopic checks topics as an operator may have made them.
func TestCheckTopic(t *testing.T) {
	t.Parallel()
	good := func() (*metadata.Response, settings) {
		m := &metadata.Response{
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
		change   func(*metadata.Response, settings)
		severity publishers.Severity
		words    string // "" for nothing worse than ok
	}{
		"good":         {func(*metadata.Response, settings) {}, publishers.OK, ""},
		"for ever":     {func(_ *metadata.Response, s settings) { s["retention.ms"] = "-1" }, publishers.OK, ""},
		"very long":    {func(_ *metadata.Response, s settings) { s["retention.ms"] = "9223372036854775807" }, publishers.OK, ""},
		"min.insync 1": {func(_ *metadata.Response, s settings) { s["min.insync.replicas"] = "1" }, publishers.Warn, "min.insync.replicas=1: an event may be acknowledged that is on one broker only: set min.insync.replicas=2"},
		"min.insync 3": {func(_ *metadata.Response, s settings) { s["min.insync.replicas"] = "3" }, publishers.Warn, "with one broker away it takes nothing"},
		"one replica":  {func(m *metadata.Response, s settings) { replicas(m, 1, 1); s["min.insync.replicas"] = "1" }, publishers.Warn, "has 1 of the 3 replicas"},
		"one is away":  {func(m *metadata.Response, _ settings) { replicas(m, 3, 2) }, publishers.Warn, "has 2 of 3 replicas in sync"},
		"two are away": {func(m *metadata.Response, _ settings) { replicas(m, 3, 1) }, publishers.Fail, "has 1 replicas in sync and needs 2"},
		"no leader":    {func(m *metadata.Response, _ settings) { m.Topics[0].Partitions[1].LeaderID = -1 }, publishers.Fail, "has no leader for 1 of its 2 partitions"},
		"unclean":      {func(_ *metadata.Response, s settings) { s["unclean.leader.election.enable"] = "true" }, publishers.Warn, "unclean.leader.election.enable"},
		"small":        {func(_ *metadata.Response, s settings) { s["max.message.bytes"] = "65536" }, publishers.Warn, "raise its max.message.bytes"},
		"short":        {func(_ *metadata.Response, s settings) { s["retention.ms"] = "3600000" }, publishers.Warn, "keeps events for 1h"},
		"bounded":      {func(_ *metadata.Response, s settings) { s["retention.bytes"] = "1073741824" }, publishers.Info, "has 1GiB (retention.bytes)"},
		"compacted":    {func(_ *metadata.Response, s settings) { s["cleanup.policy"] = "compact,delete" }, publishers.Fail, "is compacted"},
		"no write":     {func(m *metadata.Response, _ settings) { m.Topics[0].TopicAuthorizedOperations &^= mayWrite }, publishers.Fail, "may not be written to"},
		"no read":      {func(m *metadata.Response, _ settings) { m.Topics[0].TopicAuthorizedOperations &^= mayRead }, publishers.Warn, "stored twice"},
		"old cluster":  {func(m *metadata.Response, _ settings) { m.Topics[0].TopicAuthorizedOperations = -1 << 31 }, publishers.Info, "does not show who may"},
		"denied": {func(m *metadata.Response, _ settings) {
			m.Topics[0].ErrorCode = int16(kafkago.TopicAuthorizationFailed)
		}, publishers.Fail, "cannot be used: no permission"},
		"missing": {func(m *metadata.Response, _ settings) {
			m.Topics[0].ErrorCode = int16(kafkago.UnknownTopicOrPartition)
		}, publishers.Info, "is missing: start 'postbridge serve'"},
	} {
		m, s := good()
		c.change(m, s)
		x := &checker{cfg: Config{CreateTopics: true}, maxEvent: 128 << 10}
		var said []string
		for _, f := range x.topic(&m.Topics[0], s) {
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
		if len(said) != 1 || c.words == "" || !strings.HasPrefix(said[0], c.severity.String()+" ") || !strings.Contains(said[0], c.words) {
			t.Errorf("%s: %q, want %v %q", name, said, c.severity, c.words)
		}
	}
}
