package kafka

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/metadata"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers"
)

const (
	// shortRetention is how long a topic should keep events at least: consumers may be away for a night.
	shortRetention = 24 * time.Hour
	// goodReplicas is how many a topic needs to lose a broker without losing events or a pause.
	goodReplicas = 3
)

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

// Check checks what the bus of a valid configuration promises for events of up to maxEvent bytes. It changes nothing.
func Check(ctx context.Context, cfg Config, maxEvent int64) []publishers.CheckResult {
	client, end := NewClient(cfg)
	defer end()
	x := &checker{cfg: cfg, maxEvent: maxEvent, client: client}
	for _, dest := range []bridge.Destination{bridge.Orders, bridge.Rejects, bridge.Deadletters} {
		x.names = append(x.names, topicName(cfg.Prefix, dest))
	}
	bus := publishers.Checks{Area: "kafka", What: "the bus at " + strings.Join(cfg.Brokers, ",")}
	topics, err := x.topics(ctx)
	if err != nil { // it names the broker, and the setting that may be to blame
		bus.Fail("cannot be reached: "+err.Error(),
			"start it, or check POSTBRIDGE_KAFKA_BROKERS, the network and the login")
		return bus.Results
	}
	bus.OK("can be reached")
	all, settings := bus.Results, x.settings(ctx)
	for _, name := range x.names {
		all = append(all, x.topic(topicOf(topics, name), settings[name])...)
	}
	return all
}

// topics asks for the topics, and what we may do with those.
func (x *checker) topics(ctx context.Context) ([]metadata.ResponseTopic, error) {
	request := &metadata.Request{TopicNames: x.names, IncludeTopicAuthorizedOperations: true}
	ask := func(ctx context.Context, broker string) ([]metadata.ResponseTopic, error) {
		answer, err := x.client.Transport.RoundTrip(ctx, kafkago.TCP(broker), request)
		if err != nil {
			return nil, err
		}
		m, ok := answer.(*metadata.Response)
		if !ok {
			return nil, fmt.Errorf("unexpected answer to Metadata: %T", answer)
		}
		x.broker = broker
		return m.Topics, nil
	}
	return firstAnswer(ctx, x.cfg.Brokers, ask)
}

// topicOf returns one of the topics that the cluster described. One that it left out is missing.
func topicOf(topics []metadata.ResponseTopic, name string) *metadata.ResponseTopic {
	for i := range topics {
		if topics[i].Name == name {
			return &topics[i]
		}
	}
	return &metadata.ResponseTopic{Name: name, ErrorCode: int16(kafkago.UnknownTopicOrPartition)}
}

// settings are the configuration of a topic; nil if we may not see it.
type settings map[string]string

// number returns a setting, or fallback if it is not known.
func (s settings) number(name string, fallback int64) int64 {
	if n, err := strconv.ParseInt(s[name], 10, 64); err == nil {
		return n
	}
	return fallback
}

// settings asks for the configuration of all topics.
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
		for _, e := range r.ConfigEntries {
			if all[r.ResourceName] == nil {
				all[r.ResourceName] = make(settings)
			}
			all[r.ResourceName][e.ConfigName] = e.ConfigValue
		}
	}
	return all
}

// topic checks one of our topics.
func (x *checker) topic(t *metadata.ResponseTopic, s settings) []publishers.CheckResult {
	c := publishers.Checks{Area: "kafka", What: "topic " + t.Name}
	switch code := kafkago.Error(t.ErrorCode); {
	case code == kafkago.UnknownTopicOrPartition && x.cfg.CreateTopics:
		c.Info("is missing", "start 'postbridge serve', which creates it")
		return c.Results
	case code == kafkago.UnknownTopicOrPartition:
		c.Fail("is missing", createTopicRemedy)
		return c.Results
	case code != 0:
		c.Fail("cannot be used: "+explain(code).Error(),
			"see the Kafka brokers' logs; deploy/kafka/acls.sh grants all rights")
		return c.Results
	}
	checkReplicas(&c, t, s)
	checkRights(&c, t.TopicAuthorizedOperations)
	if s == nil {
		c.Info("does not show its settings", "allow DescribeConfigs on it; it should have min.insync.replicas=2, "+
			"and neither be compacted nor elect unclean leaders")
	} else {
		x.checkSettings(&c, t.Name, s)
	}
	c.OK(fmt.Sprintf("has %d partitions with all their replicas", len(t.Partitions)))
	return c.Results
}

// checkReplicas checks what an acknowledgement of all replicas is worth.
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
	switch {
	case n < goodReplicas:
		c.Warn(fmt.Sprintf("has %d of the 3 replicas that survive the loss of a broker", n),
			"add replicas (kafka-reassign-partitions.sh), and "+set)
	case s != nil && least < minInSync:
		c.Warn(fmt.Sprintf(
			"has min.insync.replicas=%d: an event may be acknowledged that is on one broker only", least), set)
	case least >= n:
		c.Warn(fmt.Sprintf("has min.insync.replicas=%d: with one broker away it takes nothing", least), set)
	}
	switch {
	case leaderless > 0:
		c.Fail(fmt.Sprintf("has no leader for %d of its %d partitions: their events wait",
			leaderless, len(t.Partitions)), "bring back its brokers")
	case inSync < least:
		c.Fail(fmt.Sprintf("has %d replicas in sync and needs %d: it takes nothing", inSync, least),
			"bring back its brokers")
	case inSync < n:
		c.Warn(fmt.Sprintf("has %d of %d replicas in sync", inSync, n),
			"bring back its brokers, or see their load and disks")
	}
}

// checkRights checks what the cluster says that we may do with a topic.
func checkRights(c *publishers.Checks, allowed int32) {
	if allowed&mayDescribe == 0 { // without the right to describe it, it would seem missing: the cluster does not tell
		c.Info("does not show who may write and read it", "try it with --probe")
		return
	}
	if allowed&mayWrite == 0 {
		c.Fail("may not be written to", "allow Write on it; deploy/kafka/acls.sh does")
	}
	if allowed&mayRead == 0 {
		c.Warn("may not be read, so that events may be stored twice after a crash",
			"allow Read on it; deploy/kafka/acls.sh does")
	}
}

// checkSettings checks those settings that can cost events. No dead letter replaces another, so those may be compacted.
func (x *checker) checkSettings(c *publishers.Checks, topic string, s settings) {
	if strings.Contains(s["cleanup.policy"], "compact") && topic != topicName(x.cfg.Prefix, bridge.Deadletters) {
		c.Fail("is compacted (cleanup.policy): it keeps the last state of an order and loses those before",
			"set cleanup.policy=delete on it")
	}
	if s["unclean.leader.election.enable"] == "true" {
		c.Warn("may elect a leader that lacks acknowledged events (unclean.leader.election.enable)", "set it to false")
	}
	if most := s.number("max.message.bytes", math.MaxInt64); most < x.maxEvent {
		c.Warn(fmt.Sprintf("takes messages up to %s, but the event of the largest postback may have %s",
			publishers.SizeText(most), publishers.SizeText(x.maxEvent)),
			"raise its max.message.bytes, or lower POSTBRIDGE_MAX_BODY")
	}
	if age := s.number("retention.ms", -1); age >= 0 && age < shortRetention.Milliseconds() {
		c.Warn(fmt.Sprintf("keeps events for %s: a consumer that is away for longer misses them",
			time.Duration(age)*time.Millisecond),
			"raise its retention.ms to the longest time that a consumer may be away, a long weekend for one")
	}
	if most := s.number("retention.bytes", -1); most >= 0 {
		c.Info(fmt.Sprintf("drops the oldest events of a partition that has %s (retention.bytes), read or not",
			publishers.SizeText(most)), "see that this is more than comes in while a consumer may be away")
	}
}
