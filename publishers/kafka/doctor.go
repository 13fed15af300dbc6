package kafka

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/metadata"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers/tlsfiles"
)

const (
	// examineDial is how long the doctor asks one broker after the other, examineRequest how long it waits for any other
	// answer.
	examineDial    = 10 * time.Second
	examineRequest = 4 * time.Second
	// shortRetention is how long a topic should keep events at least: consumers may be away for a night.
	shortRetention = 24 * time.Hour
	// shortDifference is what clocks may differ by, at least, before a topic refuses events.
	shortDifference = time.Minute
	// goodReplicas is how many a topic needs to lose a broker without losing events or a pause.
	goodReplicas = 3
	// ordinaryEvent is a size that most events have; those of the largest postbacks are much larger.
	ordinaryEvent = 2 << 10
)

// Bits of TopicAuthorizedOperations, by the codes of AclOperation in Kafka.
const (
	mayRead     = 1 << 3
	mayWrite    = 1 << 4
	mayDescribe = 1 << 8
)

// examiner grades what one cluster promises, over connections of its own.
type examiner struct {
	bridge.Findings
	cfg       Config
	o         bridge.Examination
	transport *transport
	client    *kafkago.Client
	address   net.Addr         // of the broker that answered
	brokers   map[int32]string // their addresses by id
}

// Examine grades what the bus of a valid configuration promises. It needs no Publisher, ends within seconds and, but for
// a probe, changes nothing.
func Examine(ctx context.Context, cfg Config, o bridge.Examination) []bridge.Finding {
	files := tlsfiles.New(cfg.TLSCAFile, cfg.TLSCertFile, cfg.TLSKeyFile, func(error) {})
	x := &examiner{Findings: bridge.Findings{Area: "kafka"}, cfg: cfg, o: o, transport: newTransport(cfg, files)}
	defer x.transport.close()
	x.client = &kafkago.Client{Transport: x.transport}
	m, err := x.metadata(ctx)
	if err != nil {
		x.unreachable(err)
		return x.All
	}
	x.cluster(m)
	x.producer(ctx)
	configs := x.configs(ctx)
	for _, dest := range destinations() {
		x.topic(ctx, dest, m, configs[x.topicName(dest)])
	}
	if o.Probe {
		x.probe(ctx, m)
	}
	return x.All
}

func destinations() []bridge.Destination {
	return []bridge.Destination{bridge.Orders, bridge.Rejects, bridge.Deadletters}
}

func (x *examiner) topicName(dest bridge.Destination) string {
	if x.cfg.Prefix != "" {
		return x.cfg.Prefix + "." + string(dest)
	}
	return string(dest)
}

// metadata asks one broker after the other, and also what we may do with the topics.
func (x *examiner) metadata(ctx context.Context) (*metadata.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, examineDial)
	defer cancel()
	request := &metadata.Request{IncludeTopicAuthorizedOperations: true}
	for _, dest := range destinations() {
		request.TopicNames = append(request.TopicNames, x.topicName(dest))
	}
	var failed error
	for _, broker := range x.cfg.Brokers {
		one, end := context.WithTimeout(ctx, examineRequest)
		answer, err := x.transport.RoundTrip(one, kafkago.TCP(broker), request)
		end()
		if m, ok := answer.(*metadata.Response); ok && err == nil {
			x.address = kafkago.TCP(broker)
			return m, nil
		}
		// The one that matters most is that we are not let in.
		if failed == nil || loginError(err) && !loginError(failed) {
			failed = err
		}
	}
	return nil, failed
}

// unreachable says why there is no answer. The error names the broker, and the setting if one may be to blame.
func (x *examiner) unreachable(err error) {
	what := "the bus at " + strings.Join(x.cfg.Brokers, ",")
	if loginError(err) {
		x.Add(bridge.Fail, what, "does not let us in: "+err.Error(), "mend the login or the certificate")
		return
	}
	x.Add(bridge.Fail, what, "cannot be reached: "+err.Error(), "start it, or check POSTBRIDGE_KAFKA_BROKERS and the network")
}

// cluster grades what holds for all topics.
func (x *examiner) cluster(m *metadata.Response) {
	x.brokers = make(map[int32]string)
	for _, b := range m.Brokers {
		x.brokers[b.NodeID] = net.JoinHostPort(b.Host, strconv.Itoa(int(b.Port)))
	}
	what := "the cluster"
	if n := len(m.Brokers); n < goodReplicas {
		x.Add(bridge.Info, what, fmt.Sprintf("has %d of the 3 brokers that survive the loss of one", n), "run three, each in a place of its own")
	} else {
		x.OK(what, fmt.Sprintf("has %d brokers", n))
	}
}

// producer asks for the producer id without which serve publishes nothing.
func (x *examiner) producer(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, examineRequest)
	defer cancel()
	resp, err := x.client.InitProducerID(ctx, &kafkago.InitProducerIDRequest{Addr: x.address, ProducerID: -1, ProducerEpoch: -1})
	if err == nil {
		err = resp.Error
	}
	if err != nil {
		x.Add(bridge.Fail, "the cluster", "gives no producer id, so that nothing can be published: "+Plain(err).Error(),
			"allow Write on the topics (IdempotentWrite on the cluster before Kafka 2.8); deploy/kafka/acls.sh does")
	}
}

// settings are the configuration of a topic; nil if it is not told.
type settings map[string]string

// configs asks for the configuration of all topics.
func (x *examiner) configs(ctx context.Context) map[string]settings {
	ctx, cancel := context.WithTimeout(ctx, examineRequest)
	defer cancel()
	request := &kafkago.DescribeConfigsRequest{Addr: x.address}
	for _, dest := range destinations() {
		request.Resources = append(request.Resources, kafkago.DescribeConfigRequestResource{
			ResourceType: kafkago.ResourceTypeTopic, ResourceName: x.topicName(dest),
		})
	}
	resp, err := x.client.DescribeConfigs(ctx, request)
	if err != nil {
		return nil
	}
	all := make(map[string]settings)
	for _, r := range resp.Resources {
		if r.Error != nil {
			continue
		}
		all[r.ResourceName] = make(settings)
		for _, e := range r.ConfigEntries {
			all[r.ResourceName][e.ConfigName] = e.ConfigValue
		}
	}
	return all
}

// number is a setting; false if it is not told.
func (s settings) number(name string) (int64, bool) {
	n, err := strconv.ParseInt(s[name], 10, 64)
	return n, err == nil
}

// topic grades one of our topics.
func (x *examiner) topic(ctx context.Context, dest bridge.Destination, m *metadata.Response, s settings) {
	what := "topic " + x.topicName(dest)
	i := slices.IndexFunc(m.Topics, func(t metadata.ResponseTopic) bool { return t.Name == x.topicName(dest) })
	if i < 0 || m.Topics[i].ErrorCode == int16(kafkago.UnknownTopicOrPartition) {
		x.missing(ctx, x.topicName(dest), m)
		return
	}
	t := &m.Topics[i]
	if code := kafkago.Error(t.ErrorCode); t.ErrorCode != 0 {
		if code == kafkago.TopicAuthorizationFailed {
			x.Add(bridge.Fail, what, "may not be described", "allow Write, Describe and Read on it; deploy/kafka/acls.sh does")
		} else {
			x.Add(bridge.Fail, what, "has trouble: "+code.Error(), "look at the brokers' logs")
		}
		return
	}
	x.replicas(what, t, s)
	x.partitions(what, t)
	x.rights(what, t)
	if s == nil {
		x.Add(bridge.Info, what, "does not tell its settings", "allow DescribeConfigs on it to see them here; it should have min.insync.replicas=2, and neither be compacted nor elect unclean leaders")
		return
	}
	x.settings(what, dest, s)
}

// missing grades a topic that is not there.
func (x *examiner) missing(ctx context.Context, topic string, m *metadata.Response) {
	what, brokers := "topic "+topic, len(m.Brokers)
	switch {
	case !x.cfg.CreateTopics:
		x.Add(bridge.Fail, what, "is missing", "create it, or set POSTBRIDGE_KAFKA_CREATE_TOPICS=true")
		return
	case x.cfg.Replication > brokers:
		x.Add(bridge.Fail, what, fmt.Sprintf("is missing, and cannot be created with %d replicas on %d brokers", x.cfg.Replication, brokers), "lower POSTBRIDGE_KAFKA_REPLICATION or add brokers")
		return
	}
	switch err := x.tryCreate(ctx, topic, m); {
	case errors.Is(err, kafkago.TopicAuthorizationFailed), errors.Is(err, kafkago.ClusterAuthorizationFailed):
		x.Add(bridge.Fail, what, "is missing, and may not be created", "allow Create on it, or create it; deploy/kafka/acls.sh does the first")
	case err != nil:
		x.Add(bridge.Fail, what, "is missing, and cannot be created: "+Plain(err).Error(), "create it, or mend that")
	case x.cfg.Replication < goodReplicas && brokers >= goodReplicas:
		x.Add(bridge.Warn, what, fmt.Sprintf("is missing; serve would create it with %d of %d possible replicas", x.cfg.Replication, brokers), "set POSTBRIDGE_KAFKA_REPLICATION=3 before that")
	default:
		x.Add(bridge.Info, what, "is missing", "start 'postbridge serve', which creates it")
	}
}

// tryCreate has the cluster check whether serve could create a topic. It creates nothing.
func (x *examiner) tryCreate(ctx context.Context, topic string, m *metadata.Response) error {
	ctx, cancel := context.WithTimeout(ctx, examineRequest)
	defer cancel()
	resp, err := x.client.CreateTopics(ctx, &kafkago.CreateTopicsRequest{
		Addr:         kafkago.TCP(cmp.Or(x.brokers[m.ControllerID], x.address.String())),
		Topics:       []kafkago.TopicConfig{{Topic: topic, NumPartitions: x.cfg.Partitions, ReplicationFactor: x.cfg.Replication}},
		ValidateOnly: true,
	})
	if err != nil {
		return err
	}
	return resp.Errors[topic]
}

// replicas grades what an acknowledgement of all replicas is worth.
func (x *examiner) replicas(what string, t *metadata.ResponseTopic, s settings) {
	n, inSync := math.MaxInt, math.MaxInt
	for _, p := range t.Partitions {
		n, inSync = min(n, len(p.ReplicaNodes)), min(inSync, len(p.IsrNodes))
	}
	least, told := s.number("min.insync.replicas")
	switch {
	case n < goodReplicas:
		x.Add(bridge.Warn, what, fmt.Sprintf("has %d of the 3 replicas that survive the loss of a broker", n), "add replicas (kafka-reassign-partitions.sh), and set min.insync.replicas=2")
	case told && least < minInSync:
		x.Add(bridge.Warn, what, fmt.Sprintf("has %d replicas but min.insync.replicas=%d: an event may be acknowledged that is on one broker only", n, least), "set min.insync.replicas=2 on it")
	case told && int(least) >= n:
		x.Add(bridge.Warn, what, fmt.Sprintf("has %d replicas and min.insync.replicas=%d: with one broker away it takes nothing", n, least), "set min.insync.replicas=2 on it")
	case told:
		x.OK(what, fmt.Sprintf("has %d replicas, of which %d have each event before it is acknowledged", n, least))
	default:
		x.OK(what, fmt.Sprintf("has %d replicas", n))
	}
	switch {
	case told && inSync < int(least):
		x.Add(bridge.Fail, what, fmt.Sprintf("has %d replicas in sync and needs %d: it takes nothing", inSync, least), "bring back its brokers")
	case inSync < n:
		x.Add(bridge.Warn, what, fmt.Sprintf("has %d of %d replicas in sync", inSync, n), "bring back its brokers, or look at their load and disks")
	}
}

func (x *examiner) partitions(what string, t *metadata.ResponseTopic) {
	headless := 0
	for _, p := range t.Partitions {
		if _, ok := x.brokers[p.LeaderID]; !ok || p.ErrorCode == int16(kafkago.LeaderNotAvailable) {
			headless++
		}
	}
	if headless > 0 {
		x.Add(bridge.Fail, what, fmt.Sprintf("has no leader for %d of its %d partitions: their events wait", headless, len(t.Partitions)), "bring back the brokers that have them")
	}
	if n := len(t.Partitions); n < x.cfg.Partitions {
		x.Add(bridge.Warn, what, fmt.Sprintf("has %d partitions, and POSTBRIDGE_KAFKA_PARTITIONS is %d", n, x.cfg.Partitions),
			"set POSTBRIDGE_KAFKA_PARTITIONS to what it has, or add partitions when no order is open: orders change their partition then")
	} else {
		x.OK(what, fmt.Sprintf("has %d partitions", n))
	}
}

// rights grades what the cluster says that we may do with a topic.
func (x *examiner) rights(what string, t *metadata.ResponseTopic) {
	allowed := t.TopicAuthorizedOperations
	if allowed&mayDescribe == 0 { // who may not describe it would not be told that it is there
		x.Add(bridge.Info, what, "does not tell who may write and read it", "try it with --probe")
		return
	}
	if allowed&mayWrite == 0 {
		x.Add(bridge.Fail, what, "may not be written to", "allow Write on it; deploy/kafka/acls.sh does")
	}
	if allowed&mayRead == 0 {
		x.Add(bridge.Warn, what, "may not be read, so that events may be stored twice after a crash", "allow Read on it; deploy/kafka/acls.sh does")
	}
	if allowed&mayWrite != 0 && allowed&mayRead != 0 {
		x.OK(what, "grants this user Write and Read")
	}
}

func (x *examiner) fetch(ctx context.Context, leader, topic string, partition int, offset int64) (*kafkago.FetchResponse, error) {
	resp, err := x.client.Fetch(ctx, &kafkago.FetchRequest{
		Addr: kafkago.TCP(leader), Topic: topic, Partition: partition, Offset: offset, MaxBytes: 1 << 20, MaxWait: 10 * time.Millisecond,
	})
	if err == nil {
		err = resp.Error
	}
	return resp, err
}

// settings grades those of a topic's settings that can cost events.
func (x *examiner) settings(what string, dest bridge.Destination, s settings) {
	switch compacted := strings.Contains(s["cleanup.policy"], "compact"); {
	case compacted && dest == bridge.Deadletters:
		x.Add(bridge.Warn, what, "is compacted (cleanup.policy), which dead letters do not need", "set cleanup.policy=delete on it")
	case compacted:
		x.Add(bridge.Fail, what, "is compacted (cleanup.policy): it keeps the last state of an order and loses those before", "set cleanup.policy=delete on it")
	}
	if s["unclean.leader.election.enable"] == "true" {
		x.Add(bridge.Warn, what, "may elect a leader that lacks acknowledged events (unclean.leader.election.enable)", "set it to false on the topic or the cluster")
	}
	x.refusals(what, s)
	if most, told := s.number("max.message.bytes"); told && most < ordinaryEvent {
		x.Add(bridge.Fail, what, "refuses nearly every event, since it takes messages up to "+bridge.SizeText(most)+" only", "raise its max.message.bytes")
	} else if told && most < x.o.MaxEvent {
		x.Add(bridge.Warn, what, fmt.Sprintf("takes messages up to %s, but an event of the largest postback (POSTBRIDGE_MAX_BODY) may have %s",
			bridge.SizeText(most), bridge.SizeText(x.o.MaxEvent)), "raise its max.message.bytes, or lower POSTBRIDGE_MAX_BODY")
	} else if told {
		x.OK(what, "takes messages up to "+bridge.SizeText(most))
	}
	x.retention(what, s)
}

// refusals grades the settings by which a topic may refuse every event, whoever sends it.
func (x *examiner) refusals(what string, s settings) {
	if s["message.timestamp.type"] != "LogAppendTime" {
		for _, name := range []string{
			"message.timestamp.before.max.ms", "message.timestamp.after.max.ms", "message.timestamp.difference.max.ms",
		} {
			if most, told := s.number(name); told && most < shortDifference.Milliseconds() {
				most := bridge.TimeText(time.Duration(most) * time.Millisecond)
				x.Add(bridge.Warn, what, fmt.Sprintf(
					"refuses every event while clocks here and at its brokers differ by more than %s (%s)", most, name),
					"raise it to an hour")
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s)) {
		validates := strings.HasSuffix(name, ".schema.validation") || strings.HasSuffix(name, ".schema.id.validation")
		if validates && s[name] == "true" {
			x.Add(bridge.Fail, what, "refuses every event: it validates schemas ("+name+"), and events have no schema id",
				"set it to false on the topic")
		}
	}
}

func (x *examiner) retention(what string, s settings) {
	milliseconds, told := s.number("retention.ms")
	// More of them than a duration has room for is for ever, too.
	forEver := milliseconds < 0 || milliseconds > math.MaxInt64/int64(time.Millisecond)
	age := time.Duration(milliseconds) * time.Millisecond
	switch {
	case !told:
	case forEver:
		x.OK(what, "keeps events for ever")
	case age < shortRetention:
		x.Add(bridge.Warn, what, fmt.Sprintf("keeps events for %s: a consumer that is away for longer misses them", bridge.TimeText(age)),
			"raise its retention.ms to the longest time that a consumer may be away, a long weekend for one")
	default:
		x.OK(what, "keeps events for "+bridge.TimeText(age))
	}
	if most, told := s.number("retention.bytes"); told && most >= 0 {
		x.Add(bridge.Info, what, fmt.Sprintf("drops the oldest events of a partition that has %s (retention.bytes), read or not", bridge.SizeText(most)),
			"see that this is more than comes in while a consumer may be away")
	}
}

// probe publishes a probe to the dead letters and reads it back.
func (x *examiner) probe(ctx context.Context, m *metadata.Response) {
	const what = "the probe"
	topic := x.topicName(bridge.Deadletters)
	i := slices.IndexFunc(m.Topics, func(t metadata.ResponseTopic) bool { return t.Name == topic && len(t.Partitions) > 0 })
	if i < 0 {
		x.Add(bridge.Fail, what, "has nowhere to go", "mend what is said of topic "+topic)
		return
	}
	p := bridge.NewProbe()
	partition := m.Topics[i].Partitions[0]
	leader := cmp.Or(x.brokers[partition.LeaderID], x.address.String())
	at := fmt.Sprintf("%s, partition %d", topic, partition.PartitionIndex)
	sent := time.Now()
	offset, err := x.produce(ctx, leader, topic, int(partition.PartitionIndex), p)
	if err != nil {
		x.Add(bridge.Fail, what, "is not stored in "+at+": "+explain(err).Error(), "mend what is said of topic "+topic)
		return
	}
	stored := time.Since(sent)
	err = x.readBack(ctx, leader, topic, int(partition.PartitionIndex), offset, p)
	if errors.Is(err, kafkago.TopicAuthorizationFailed) {
		x.Add(bridge.Info, what, fmt.Sprintf("is stored in %s, in %v, but may not be read back", at, stored.Round(10*time.Microsecond)), "allow Read on the topic")
		return
	}
	if err != nil {
		x.Add(bridge.Fail, what, "is stored, but cannot be read back: "+Plain(err).Error(), "look at the brokers' logs")
		return
	}
	x.OK(what, fmt.Sprintf("is stored in %s, in %v, and read back, in %v", at,
		stored.Round(10*time.Microsecond), (time.Since(sent)-stored).Round(10*time.Microsecond)))
}

func (x *examiner) produce(ctx context.Context, leader, topic string, partition int, p bridge.Probe) (offset int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, produceTimeout)
	defer cancel()
	headers := []kafkago.Header{{Key: "content-type", Value: []byte(bridge.ContentType)}}
	for _, a := range p.Attributes() {
		headers = append(headers, kafkago.Header{Key: "ce_" + a[0], Value: []byte(a[1])})
	}
	resp, err := x.client.Produce(ctx, &kafkago.ProduceRequest{
		Addr: kafkago.TCP(leader), Topic: topic, Partition: partition, RequiredAcks: kafkago.RequireAll,
		Records: kafkago.NewRecordReader(kafkago.Record{
			Key: protocol.NewBytes([]byte(bridge.ProbeBroker + "." + p.ID)), Value: protocol.NewBytes(p.Data()), Headers: headers, Time: p.At,
		}),
	})
	if err == nil {
		err = resp.Error
	}
	if err != nil {
		return 0, err
	}
	return resp.BaseOffset, nil
}

// readBack reads the probe. What is acknowledged may be fetched a moment later.
func (x *examiner) readBack(ctx context.Context, leader, topic string, partition int, offset int64, p bridge.Probe) error {
	ctx, cancel := context.WithTimeout(ctx, examineRequest)
	defer cancel()
	for {
		resp, err := x.fetch(ctx, leader, topic, partition, offset)
		if err != nil {
			return err
		}
		if found, err := holds(resp.Records, p); found || err != nil {
			return err
		}
	}
}

// holds reports whether the probe is among the records.
func holds(records kafkago.RecordReader, p bridge.Probe) (bool, error) {
	for {
		r, err := records.ReadRecord()
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if value, err := protocol.ReadAll(r.Value); err != nil || bytes.Equal(value, p.Data()) {
			return err == nil, err
		}
	}
}
