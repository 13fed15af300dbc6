package kafka

import (
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
	if err == nil && m.ClusterID != "" && !p.notes.of(m.ClusterID) {
		p.log.Warn("this is another Kafka cluster than before: what is still waiting goes there", "cluster", m.ClusterID)
	}
	p.mu.Lock()
	p.report("connection", err)
	back := err == nil && !p.up
	p.up = err == nil
	if err != nil {
		p.mu.Unlock()
		return false
	}
	p.brokers = p.brokers[:0:0]
	for _, b := range m.Brokers {
		p.brokers = append(p.brokers, hostPort(b))
	}
	for _, b := range p.cfg.Brokers {
		if !slices.Contains(p.brokers, b) {
			p.brokers = append(p.brokers, b)
		}
	}
	controller := hostPort(m.Controller)
	if controller == "" {
		controller = p.brokers[0]
	}
	if back {
		p.pokeAll()
	}
	p.mu.Unlock()
	for _, t := range p.topics {
		p.learnTopic(t, m, controller)
	}
	return true
}

// pokeAll ends every wait for a retry. Guarded by mu.
func (p *Publisher) pokeAll() {
	for _, t := range p.topics {
		for _, l := range t.lanes {
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
	var failed error
	for _, broker := range brokers {
		ctx, cancel := context.WithTimeout(p.ctx, requestTimeout)
		m, err := p.client.Metadata(ctx, &kafkago.MetadataRequest{Addr: address(broker), Topics: names})
		cancel()
		if err == nil && len(m.Brokers) > 0 {
			return m, nil
		}
		if err == nil {
			err = fmt.Errorf("broker %s knows no brokers yet", broker)
		}
		// The one that matters most is that we are not let in.
		if failed == nil || loginError(err) && !loginError(failed) {
			failed = plain(err)
		}
		if p.ctx.Err() != nil {
			break
		}
	}
	return nil, failed
}

// learnTopic takes what the cluster says of a topic, and creates it if need be.
func (p *Publisher) learnTopic(t *topic, m *kafkago.MetadataResponse, controller string) {
	i := slices.IndexFunc(m.Topics, func(found kafkago.Topic) bool { return found.Name == t.name })
	var err error
	switch {
	case i < 0 || errors.Is(m.Topics[i].Error, kafkago.UnknownTopicOrPartition):
		err = p.createTopic(t, controller, len(m.Brokers))
	case m.Topics[i].Error != nil:
		err = fmt.Errorf("cannot use topic %s: %w", t.name, explain(m.Topics[i].Error))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil || errors.Is(err, errNotYet) {
		return
	}
	p.report("topic "+t.name, err)
	if err == nil && i >= 0 && len(m.Topics[i].Partitions) > 0 {
		t.create = newRetryPace()
		t.learn(m.Topics[i])
		t.checkReplicas(m.Topics[i])
	}
}

// errNotYet is that there is nothing new to say of a topic that is missing.
var errNotYet = errors.New("not yet")

// createTopic creates a missing topic, or says why that cannot be.
func (p *Publisher) createTopic(t *topic, controller string, brokers int) error {
	if !p.cfg.CreateTopics {
		return fmt.Errorf("there is no topic %s: create it, or let postbridge do it (POSTBRIDGE_KAFKA_CREATE_TOPICS)", t.name)
	}
	if !t.create.due(time.Now()) {
		return errNotYet
	}
	c := kafkago.TopicConfig{Topic: t.name, NumPartitions: p.cfg.Partitions, ReplicationFactor: p.cfg.Replication}
	if p.cfg.Replication > minInSync {
		c.ConfigEntries = []kafkago.ConfigEntry{{ConfigName: "min.insync.replicas", ConfigValue: strconv.Itoa(minInSync)}}
	}
	ctx, cancel := context.WithTimeout(p.ctx, requestTimeout)
	defer cancel()
	resp, err := p.client.CreateTopics(ctx, &kafkago.CreateTopicsRequest{Addr: address(controller), Topics: []kafkago.TopicConfig{c}})
	if err == nil {
		err = resp.Errors[t.name]
	}
	switch {
	case err == nil:
		p.log.Info("created topic", "topic", t.name, "partitions", c.NumPartitions, "replication", c.ReplicationFactor)
		p.wantMetadata()
		return errNotYet
	case errors.Is(err, kafkago.TopicAlreadyExists):
		p.wantMetadata()
		return errNotYet
	case errors.Is(err, kafkago.InvalidReplicationFactor):
		return fmt.Errorf("cannot create topic %s with %d replicas in a cluster of %d brokers (POSTBRIDGE_KAFKA_REPLICATION): %w",
			t.name, c.ReplicationFactor, brokers, plain(err))
	case errors.Is(err, kafkago.TopicAuthorizationFailed), errors.Is(err, kafkago.ClusterAuthorizationFailed):
		return fmt.Errorf("there is no topic %s and no permission to create it: create it, or allow Create on it: %w", t.name, plain(err))
	default:
		return fmt.Errorf("cannot create topic %s: %w", t.name, plain(err))
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
		t.p.log.Warn("the topic has fewer replicas than POSTBRIDGE_KAFKA_REPLICATION; add some, or events may be lost with a broker",
			"topic", t.name, "replicas", least, "wanted", t.p.cfg.Replication)
	}
	t.warned = few
}

// hostPort is where a broker is; empty if there is none.
func hostPort(b kafkago.Broker) string {
	if b.Host == "" {
		return ""
	}
	return net.JoinHostPort(b.Host, strconv.Itoa(b.Port))
}
