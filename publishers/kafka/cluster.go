package kafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/postbridge/postbridge/bridge"
)

const (
	// metadataInterval is how often the cluster is asked for its leaders, if nothing fails; metadataPause is how soon
	// after the last time it is, when something does.
	metadataInterval = time.Second
	metadataPause    = 100 * time.Millisecond
	// minInSync is set on a topic that we create with three replicas or more: an event that is acknowledged is on two.
	minInSync = 2
)

// watch keeps up with the cluster: where its brokers are, who leads each partition, and whether it takes us at all.
func (p *Publisher) watch() {
	pace := bridge.RetryForever(firstRetry)
	for p.ctx.Err() == nil {
		wait := metadataInterval
		if p.learn() {
			pace.Reset()
		} else {
			wait = min(pace.NextBackOff(), dialRetry)
		}
		p.pause(metadataPause)
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-p.refresh:
		case <-p.ctx.Done():
		}
		timer.Stop()
	}
}

func (p *Publisher) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.ctx.Done():
	}
}

// wantMetadata asks for fresh metadata: a leader that does not take a batch may be one no more.
func (p *Publisher) wantMetadata() {
	select {
	case p.refresh <- struct{}{}:
	default:
	}
}

// learn asks the cluster, and reports whether it answered.
func (p *Publisher) learn() bool {
	if p.certificates != nil && p.certificates.Changed() {
		p.log.Info("renewing the connections: the TLS files changed")
		p.transport.renew()
	}
	m, err := p.metadata()
	if p.ctx.Err() != nil {
		return false
	}
	if err == nil && m.ClusterID != "" && !p.saved.setCluster(m.ClusterID) {
		p.log.Warn(
			"the Kafka cluster has changed, and does not hold the events stored before; only unpublished events go to it. "+
				"To publish all events in the spool again, stop postbridge, remove spool/cursor-kafka and start it",
			"cluster", m.ClusterID,
		)
		p.checkpoints.Forget()
	}
	controller := p.connected(m, err)
	if err != nil {
		return false
	}
	for _, t := range p.topics {
		p.learnTopic(t, m, controller)
	}
	return true
}

// connected takes whether the cluster answers and, if so, who its brokers are. It returns the one that creates topics.
func (p *Publisher) connected(m *kafkago.MetadataResponse, err error) (controller string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.report("connection", err)
	back := err == nil && !p.up
	p.up = err == nil
	if err != nil {
		return ""
	}
	p.brokers = p.brokers[:0:0]
	for _, b := range m.Brokers {
		p.brokers = append(p.brokers, HostPort(b))
	}
	for _, b := range p.cfg.Brokers {
		if !slices.Contains(p.brokers, b) {
			p.brokers = append(p.brokers, b)
		}
	}
	if back {
		p.session++
		p.pokeAll()
	}
	return cmp.Or(HostPort(m.Controller), p.brokers[0])
}

// pokeAll ends every wait for a retry. Guarded by mu.
func (p *Publisher) pokeAll() {
	for _, t := range p.topics {
		for _, l := range t.writers {
			l.poke()
		}
	}
}

// metadata asks one broker after the other.
func (p *Publisher) metadata() (*kafkago.MetadataResponse, error) {
	p.mu.Lock()
	brokers := p.brokers
	p.mu.Unlock()
	var names []string
	for _, t := range p.topics {
		names = append(names, t.name)
	}
	return firstAnswer(p.ctx, brokers, func(ctx context.Context, broker string) (*kafkago.MetadataResponse, error) {
		m, err := p.client.Metadata(ctx, &kafkago.MetadataRequest{Addr: kafkago.TCP(broker), Topics: names})
		if err == nil && len(m.Brokers) == 0 {
			err = &brokerError{broker: broker, op: "Metadata", cause: errors.New("it knows no brokers yet")}
		}
		return m, err
	})
}

// firstAnswer asks one broker after the other until one answers or ctx ends.
func firstAnswer[T any](
	ctx context.Context, brokers []string, ask func(ctx context.Context, broker string) (T, error),
) (none T, failed error) {
	for _, broker := range brokers {
		one, cancel := context.WithTimeout(ctx, requestTimeout)
		answer, err := ask(one, broker)
		cancel()
		if err == nil {
			return answer, nil
		}
		if failed == nil || loginError(err) && !loginError(failed) { // a refused login says most
			failed = Plain(err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	return none, failed
}

// learnTopic takes what the cluster says of a topic, and creates it if need be.
func (p *Publisher) learnTopic(t *topic, m *kafkago.MetadataResponse, controller string) {
	i := slices.IndexFunc(m.Topics, func(found kafkago.Topic) bool { return found.Name == t.name })
	var err error
	switch {
	case i < 0 || errors.Is(m.Topics[i].Error, kafkago.UnknownTopicOrPartition):
		err = p.createTopic(t, controller, len(m.Brokers))
	case m.Topics[i].Error != nil:
		err = explain(m.Topics[i].Error)
	}
	if p.ctx.Err() != nil || errors.Is(err, errNothingNew) {
		return
	}
	p.report("topic "+t.name, err)
	if err == nil && i >= 0 && len(m.Topics[i].Partitions) > 0 {
		t.create = bridge.NewPacer(firstRetry)
		t.checkPartitions(m.Topics[i])
		t.checkReplicas(m.Topics[i])
	}
}

// createTopicRemedy is what to do about a missing topic that we do not create.
const createTopicRemedy = "create it, or set POSTBRIDGE_KAFKA_CREATE_TOPICS=true"

// errNothingNew is that there is no more to say of a topic that is missing than before.
var errNothingNew = errors.New("nothing new")

// createTopic creates a missing topic, or says why that cannot be.
func (p *Publisher) createTopic(t *topic, controller string, brokers int) error {
	if !p.cfg.CreateTopics {
		return errors.New("it is missing: " + createTopicRemedy)
	}
	if !t.create.Due(time.Now()) {
		return errNothingNew
	}
	c := kafkago.TopicConfig{Topic: t.name, NumPartitions: p.cfg.Partitions, ReplicationFactor: p.cfg.Replication}
	if p.cfg.Replication > minInSync {
		c.ConfigEntries = []kafkago.ConfigEntry{
			{ConfigName: "min.insync.replicas", ConfigValue: strconv.Itoa(minInSync)},
		}
	}
	t.sending.Lock() // what was sent before that look is answered, so that the new topic does not take it
	p.mu.Lock()
	t.made++
	p.mu.Unlock()
	t.sending.Unlock()
	ctx, cancel := context.WithTimeout(p.ctx, requestTimeout)
	defer cancel()
	resp, err := p.client.CreateTopics(
		ctx,
		&kafkago.CreateTopicsRequest{Addr: kafkago.TCP(controller), Topics: []kafkago.TopicConfig{c}},
	)
	if err == nil {
		err = resp.Errors[t.name]
	}
	switch {
	case err == nil:
		p.log.Info("created topic", "topic", t.name, "partitions", c.NumPartitions, "replication", c.ReplicationFactor)
		p.wantMetadata()
		return errNothingNew
	case errors.Is(err, kafkago.TopicAlreadyExists):
		p.wantMetadata()
		return errNothingNew
	case errors.Is(err, kafkago.InvalidReplicationFactor):
		return fmt.Errorf(
			"cannot create it with %d replicas: the cluster has %d Kafka brokers; "+
				"lower POSTBRIDGE_KAFKA_REPLICATION or add some",
			c.ReplicationFactor, brokers,
		)
	case errors.Is(err, kafkago.TopicAuthorizationFailed), errors.Is(err, kafkago.ClusterAuthorizationFailed):
		return fmt.Errorf(
			"it is missing, and there is no permission to create it: create it, or allow Create on it: %w",
			Plain(err),
		)
	default:
		return fmt.Errorf("cannot create it: %w", explain(err))
	}
}

// checkReplicas warns of a topic that is kept less safe than it should be. An existing topic is never changed.
func (t *topic) checkReplicas(m kafkago.Topic) {
	least := len(m.Partitions[0].Replicas)
	for _, part := range m.Partitions {
		least = min(least, len(part.Replicas))
	}
	few := least < t.p.cfg.Replication
	if few && !t.warned {
		t.p.log.Warn(
			"the topic has fewer replicas than POSTBRIDGE_KAFKA_REPLICATION; add some, or events may be lost with a broker",
			"topic", t.name,
			"replicas", least,
			"wanted", t.p.cfg.Replication,
		)
	}
	t.warned = few
}

// HostPort returns the address of a broker; empty if there is none.
func HostPort(b kafkago.Broker) string {
	if b.Host == "" {
		return ""
	}
	return net.JoinHostPort(b.Host, strconv.Itoa(b.Port))
}
