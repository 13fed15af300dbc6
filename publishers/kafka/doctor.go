package kafka

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/metadata"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers"
)

// goodReplicas is how many replicas a topic needs to lose a broker without a loss of events or an outage.
const goodReplicas = 3

// Bits of TopicAuthorizedOperations, by the codes of AclOperation in Kafka.
const (
	mayRead     = 1 << 3
	mayWrite    = 1 << 4
	mayDescribe = 1 << 8
)

// checker checks one cluster over connections of its own.
type checker struct {
	cfg      Config
	maxEvent int64 // bytes
	client   *kafkago.Client
	names    []string // of our topics
	broker   string   // the one that answered
}

// Check checks what the bus of a valid configuration guarantees for events of up to maxEvent bytes. It changes nothing.
func Check(ctx context.Context, cfg Config, maxEvent int64) []publishers.CheckResult {
	client, end := NewClient(cfg)
	defer end()
	x := &checker{cfg: cfg, maxEvent: maxEvent, client: client}
	for _, dest := range []bridge.Destination{bridge.Orders, bridge.Rejects, bridge.Deadletters} {
		x.names = append(x.names, topicName(cfg.Prefix, dest))
	}
	bus := publishers.Checks{Area: "kafka", What: "the bus at " + strings.Join(cfg.Brokers, ",")}
	topics, err := x.topics(ctx)
	bus.Fail(err != nil, fmt.Sprintf("cannot be reached: %v", err), // err names the broker and the setting
		connectionRemedy(err))
	bus.OK("can be reached")
	if err != nil {
		return bus.Results
	}
	all, settings := bus.Results, x.settings(ctx)
	for _, name := range x.names {
		all = append(all, x.topic(topicOf(topics, name), settings[name])...)
	}
	return all
}

// topics requests the metadata of our topics with our rights on them.
func (x *checker) topics(ctx context.Context) ([]metadata.ResponseTopic, error) {
	request := &metadata.Request{TopicNames: x.names, IncludeTopicAuthorizedOperations: true}
	ask := func(ctx context.Context, broker string) ([]metadata.ResponseTopic, error) {
		answer, err := x.client.Transport.RoundTrip(ctx, kafkago.TCP(broker), request)
		if err != nil {
			return nil, err
		}
		x.broker = broker
		return answer.(*metadata.Response).Topics, nil // the type of the answer to a metadata.Request
	}
	return firstAnswer(ctx, x.cfg.Brokers, ask)
}

// topicOf returns the metadata of a topic. One that the cluster left out is missing.
func topicOf(topics []metadata.ResponseTopic, name string) *metadata.ResponseTopic {
	isNamed := func(t metadata.ResponseTopic) bool { return t.Name == name }
	if i := slices.IndexFunc(topics, isNamed); i >= 0 {
		return &topics[i]
	}
	return &metadata.ResponseTopic{Name: name, ErrorCode: int16(kafkago.UnknownTopicOrPartition)}
}

// settings holds the configuration of a topic; nil without the right to read it.
type settings map[string]string

// number returns a setting, or fallback if it is not known.
func (s settings) number(name string, fallback int64) int64 {
	if n, err := strconv.ParseInt(s[name], 10, 64); err == nil {
		return n
	}
	return fallback
}

// settings requests the configuration of all topics.
func (x *checker) settings(ctx context.Context) map[string]settings {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	request := &kafkago.DescribeConfigsRequest{Addr: kafkago.TCP(x.broker)}
	for _, name := range x.names {
		request.Resources = append(request.Resources, kafkago.DescribeConfigRequestResource{
			ResourceType: kafkago.ResourceTypeTopic, ResourceName: name,
		})
	}
	resp, err := x.client.DescribeConfigs(ctx, request)
	if err != nil {
		return nil
	}
	all := make(map[string]settings)
	for _, r := range resp.Resources {
		s := make(settings)
		for _, e := range r.ConfigEntries {
			s[e.ConfigName] = e.ConfigValue
		}
		if r.Error == nil {
			all[r.ResourceName] = s
		}
	}
	return all
}

// topic checks one of our topics.
func (x *checker) topic(t *metadata.ResponseTopic, s settings) []publishers.CheckResult {
	c := &publishers.Checks{Area: "kafka", What: "topic " + t.Name}
	if code := kafkago.Error(t.ErrorCode); code != 0 {
		missing := code == kafkago.UnknownTopicOrPartition
		c.Info(missing && x.cfg.CreateTopics, "is missing", "start 'postbridge serve', which creates it")
		c.Fail(missing && !x.cfg.CreateTopics, "is missing", createTopicRemedy)
		c.Fail(!missing, "cannot be used: "+code.Error(), topicRemedy)
		return c.Results
	}
	checkReplicas(c, t, s)
	checkRights(c, t.TopicAuthorizedOperations)
	c.Info(s == nil, "does not show its settings", "allow DescribeConfigs on it; it should have "+
		"min.insync.replicas=2, and neither be compacted nor elect unclean leaders")
	x.checkSettings(c, t.Name, s)
	c.OK(fmt.Sprintf("has %d partitions with all their replicas", len(t.Partitions)))
	return c.Results
}

// checkReplicas checks how many copies an acknowledgement guarantees.
func checkReplicas(c *publishers.Checks, t *metadata.ResponseTopic, s settings) {
	n, inSync, leaderless := math.MaxInt, math.MaxInt, 0
	for _, p := range t.Partitions {
		n, inSync = min(n, len(p.ReplicaNodes)), min(inSync, len(p.IsrNodes))
		if p.LeaderID < 0 {
			leaderless++
		}
	}
	least := int(s.number("min.insync.replicas", 0))
	const set = "set min.insync.replicas=2 on it"
	c.Warn(n < goodReplicas, fmt.Sprintf("has %d of the 3 replicas that survive the loss of a Kafka broker", n),
		"add replicas (kafka-reassign-partitions.sh), and "+set)
	c.Warn(n >= goodReplicas && s != nil && least < minInSync, fmt.Sprintf(
		"has min.insync.replicas=%d: an event may be acknowledged that is on one broker only", least), set)
	c.Warn(n >= goodReplicas && least >= n,
		fmt.Sprintf("has min.insync.replicas=%d: without one broker it accepts no events", least), set)
	c.Fail(leaderless > 0, fmt.Sprintf("has no leader for %d of its %d partitions: their events wait",
		leaderless, len(t.Partitions)), replicasRemedy)
	c.Fail(leaderless == 0 && inSync < least,
		fmt.Sprintf("has %d replicas in sync and needs %d: it accepts no events", inSync, least),
		replicasRemedy)
	c.Warn(leaderless == 0 && inSync >= least && inSync < n, fmt.Sprintf("has %d of %d replicas in sync", inSync, n),
		"bring back its brokers, or see their load and disks")
}

// checkRights checks our rights on a topic. Without the right to describe it the cluster does not send the others.
func checkRights(c *publishers.Checks, allowed int32) {
	known := allowed&mayDescribe != 0
	c.Info(!known, "does not show who may write and read it", "try it with --probe")
	c.Fail(known && allowed&mayWrite == 0, "may not be written to", writeRemedy)
	c.Warn(known && allowed&mayRead == 0, "may not be read, so that events may be stored twice after a crash",
		"allow Read on it; deploy/kafka/acls.sh does")
}

// schemaValidation returns the settings of Confluent and Redpanda with which a broker refuses records without the id of
// a registered schema.
func schemaValidation() []string {
	return []string{
		"confluent.key.schema.validation", "confluent.value.schema.validation",
		"redpanda.key.schema.id.validation", "redpanda.value.schema.id.validation",
	}
}

// checkSettings checks the settings that can cost events. Dead letters may be compacted: each has a key of its own.
func (x *checker) checkSettings(c *publishers.Checks, topic string, s settings) {
	c.Fail(strings.Contains(s["cleanup.policy"], "compact") && topic != topicName(x.cfg.Prefix, bridge.Deadletters),
		"is compacted (cleanup.policy): it keeps the last state of an order and loses those before",
		"set cleanup.policy=delete on it")
	c.Warn(s["unclean.leader.election.enable"] == "true",
		"may elect a leader that lacks acknowledged events (unclean.leader.election.enable)", "set it to false")
	var validated []string
	for _, name := range schemaValidation() {
		if s[name] == "true" {
			validated = append(validated, name)
		}
	}
	c.Fail(validated != nil, fmt.Sprintf("refuses every event of postbridge, which has no schema id (%s)",
		strings.Join(validated, ", ")), "set it to false on it")
	c.Info(s["write.caching"] == "true", "acknowledges before its fsync (write.caching): "+
		"a power failure of most of its brokers loses events", "set it to false on it")
	c.MessageSize(s.number("max.message.bytes", math.MaxInt64), x.maxEvent, "its max.message.bytes")
	const longest = math.MaxInt64 / int64(time.Millisecond)
	c.Retention(time.Duration(min(s.number("retention.ms", -1), longest))*time.Millisecond, "retention.ms")
	most := s.number("retention.bytes", -1)
	c.Info(most >= 0, fmt.Sprintf("drops the oldest events of a partition that has %s (retention.bytes), read or not",
		publishers.SizeText(most)), "set it above what arrives while a consumer may be away")
}
