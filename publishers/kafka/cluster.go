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
	"github.com/postbridge/postbridge/publishers"
)

const (
	// metadataInterval is the interval of metadata requests while nothing fails; metadataPause is the shortest one when
	// something does.
	metadataInterval = time.Second
	metadataPause    = 100 * time.Millisecond
	// minInSync is set on a topic that we create with three replicas or more: an event that is acknowledged is on two.
	minInSync = 2
)

// watch refreshes the metadata until the publisher closes: the brokers, the topics and the leaders of their partitions.
func (p *Publisher) watch() {
	pace := bridge.RetryForever(firstRetry)
	for p.ctx.Err() == nil {
		wait := metadataInterval
		if p.update() {
			pace.Reset()
		} else {
			wait = min(pace.NextBackOff(), dialRetry)
		}
		p.wait(metadataPause, nil)
		p.wait(wait, p.refresh)
	}
}

// wait waits for d, or until it is woken or the publisher closes. It reports whether it was woken.
func (p *Publisher) wait(d time.Duration, wake <-chan struct{}) (woken bool) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-wake:
		return true
	case <-timer.C:
	case <-p.ctx.Done():
	}
	return false
}

// signal wakes the goroutine that waits for a channel of capacity 1.
func signal(wake chan<- struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}

// update requests the metadata and updates the topics. It reports whether the cluster answered.
func (p *Publisher) update() bool {
	if p.transport.certificatesChanged() {
		p.log.Info("renewing the connections: the TLS files changed")
		p.transport.renew()
	}
	m, err := p.metadata()
	if p.ctx.Err() != nil {
		return false
	}
	if err == nil && m.ClusterID != "" && !p.saved.setCluster(m.ClusterID) {
		p.log.Warn(
			"the Kafka cluster has changed, and does not hold the events stored before; only unpublished events go to "+
				"it. To publish all events in the spool again, stop postbridge, remove spool/cursor-kafka and start it",
			"cluster", m.ClusterID)
		p.checkpoints.Forget()
	}
	controller := p.connected(m, err)
	if err != nil {
		return false
	}
	for _, t := range p.topics {
		p.updateTopic(t, m, controller)
	}
	return true
}

// connected records whether the cluster answers, and its brokers. It returns the one that creates topics.
func (p *Publisher) connected(m *kafkago.MetadataResponse, err error) (controller string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.report("connection", publishers.WithRemedy(err, connectionRemedy(err)))
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
	if back { // end every wait for a retry
		p.session++
		for _, t := range p.topics {
			for _, w := range t.writers {
				signal(w.wake)
			}
		}
	}
	return cmp.Or(HostPort(m.Controller), p.brokers[0])
}

// metadata requests the metadata of our topics from one broker after the other.
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
			err = &brokerError{broker, "Metadata", errors.New("it knows no brokers yet")}
		}
		return m, err
	})
}

// firstAnswer asks one broker after the other until one answers or ctx ends. It returns the first error, or that of
// the first broker that was reached.
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
		if e := new(brokerError); failed == nil || errors.As(failed, &e) && e.op == opDial {
			failed = Plain(err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	return none, failed
}

// updateTopic updates the leaders of a topic's partitions, or creates the topic if it is missing.
func (p *Publisher) updateTopic(t *topic, m *kafkago.MetadataResponse, controller string) {
	i := slices.IndexFunc(m.Topics, func(found kafkago.Topic) bool { return found.Name == t.name })
	var err error
	switch {
	case i < 0 || errors.Is(m.Topics[i].Error, kafkago.UnknownTopicOrPartition):
		err = p.createTopic(t, controller)
	case m.Topics[i].Error != nil:
		err = publishers.WithRemedy(m.Topics[i].Error, topicRemedy)
	case len(m.Topics[i].Partitions) > 0:
		t.checkPartitions(m.Topics[i])
	}
	if p.ctx.Err() == nil {
		p.report("topic "+t.name, err)
	}
}

// createTopicRemedy is the remedy for a missing topic that we do not create.
const createTopicRemedy = "create it, or set POSTBRIDGE_KAFKA_CREATE_TOPICS=true"

// createTopic creates a missing topic. The next metadata has it.
func (p *Publisher) createTopic(t *topic, controller string) error {
	if !p.cfg.CreateTopics {
		return errors.New("it is missing: " + createTopicRemedy)
	}
	c := kafkago.TopicConfig{Topic: t.name, NumPartitions: p.cfg.Partitions, ReplicationFactor: p.cfg.Replication}
	if p.cfg.Replication > minInSync {
		c.ConfigEntries = []kafkago.ConfigEntry{
			{ConfigName: "min.insync.replicas", ConfigValue: strconv.Itoa(minInSync)},
		}
	}
	t.sending.Lock() // every batch sent before is answered, so that the new topic does not take it unchecked
	p.mu.Lock()
	t.made++
	p.mu.Unlock()
	t.sending.Unlock()
	err := p.requestTopic(controller, c)
	refused := errors.Is(err, kafkago.InvalidConfiguration) || errors.Is(err, kafkago.PolicyViolation)
	if refused && c.ConfigEntries != nil {
		// Some services do not let their clients set it.
		p.log.Warn("the topic is created without min.insync.replicas, which the cluster refused: see that its default is "+
			"2 or more, or one broker alone may acknowledge events", "topic", t.name, "error", err)
		c.ConfigEntries = nil
		err = p.requestTopic(controller, c)
	}
	switch {
	case err == nil:
		p.log.Info("created topic", "topic", t.name, "partitions", c.NumPartitions, "replication", c.ReplicationFactor)
	case !errors.Is(err, kafkago.TopicAlreadyExists):
		return fmt.Errorf("cannot create it: %w", advised(Plain(err), createAdvice()))
	}
	signal(p.refresh)
	return nil
}

// requestTopic asks a broker to create a topic.
func (p *Publisher) requestTopic(controller string, c kafkago.TopicConfig) error {
	ctx, cancel := context.WithTimeout(p.ctx, requestTimeout)
	defer cancel()
	request := &kafkago.CreateTopicsRequest{Addr: kafkago.TCP(controller), Topics: []kafkago.TopicConfig{c}}
	resp, err := p.client.CreateTopics(ctx, request)
	if err != nil {
		return err
	}
	return resp.Errors[c.Topic]
}

// HostPort returns the address of a broker; "" if it has none.
func HostPort(b kafkago.Broker) string {
	if b.Host == "" {
		return ""
	}
	return net.JoinHostPort(b.Host, strconv.Itoa(b.Port))
}
