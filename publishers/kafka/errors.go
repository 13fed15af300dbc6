package kafka

import (
	"errors"
	"fmt"
	"strings"

	kafkago "github.com/segmentio/kafka-go"
)

// sayUnread warns, once for a topic, that we may not look at what it holds.
func (p *Publisher) sayUnread(t *topic, err error) {
	p.mu.Lock()
	said := t.unread
	t.unread = true
	p.mu.Unlock()
	if !said {
		p.log.Warn(
			"no permission to read what the topic holds: events may be stored twice after a crash; allow Read on it",
			"topic",
			t.name,
			"error",
			Plain(err),
		)
	}
}

// verdict is what an answer means for a batch.
type verdict int

const (
	again   verdict = iota // it is sent again as it is: whether it is stored is not known
	stored                 // it is
	refused                // the broker can never take it
	unsure                 // the broker knows other numbers than we do: look at what is stored
)

// judge decides what the error of a batch means. Whatever somebody can mend is no reason to refuse an event, but a
// limit of size is one: see deploy/README.md.
func judge(err error) verdict {
	var code kafkago.Error
	switch {
	case err == nil:
		return stored
	case !errors.As(err, &code):
		return again
	}
	switch code {
	case kafkago.MessageSizeTooLarge, kafkago.RecordListTooLarge, kafkago.InvalidRecord:
		return refused
	case kafkago.OutOfOrderSequenceNumber,
		kafkago.DuplicateSequenceNumber,
		kafkago.InvalidProducerEpoch,
		kafkago.UnknownProducerId:
		return unsure
	default:
		return again
	}
}

// fromBroker reports whether the error is an answer, not the lack of one.
func fromBroker(err error) bool {
	var code kafkago.Error
	return errors.As(err, &code)
}

// explain says what to do about an error, where that is known.
func explain(err error) error {
	var code kafkago.Error
	if !errors.As(err, &code) {
		return Plain(err)
	}
	if remedy := remedy(code); remedy != "" {
		return fmt.Errorf("%s: %w", remedy, Plain(err))
	}
	return Plain(err)
}

// remedy says what to do about an error of a broker; empty if that is not known.
func remedy(code kafkago.Error) string {
	switch code {
	case kafkago.TopicAuthorizationFailed:
		return "no permission; allow Write, Describe and Read on the topic"
	case kafkago.ClusterAuthorizationFailed:
		return "no permission to publish as an idempotent producer; allow Write on the topic"
	case kafkago.NotEnoughReplicas, kafkago.NotEnoughReplicasAfterAppend:
		return "fewer replicas are in sync than min.insync.replicas; bring back the topic's Kafka brokers"
	case kafkago.InvalidTimestamp:
		return "the topic does not take the time at which records are sent; synchronize the clocks of this machine " +
			"and of the Kafka brokers, or raise message.timestamp.before.max.ms and " +
			"message.timestamp.after.max.ms on the topic (before Kafka 3.6, message.timestamp.difference.max.ms)"
	case kafkago.MessageSizeTooLarge:
		return "the event is larger than the topic takes; raise its max.message.bytes"
	case kafkago.RecordListTooLarge:
		return "the event is larger than a segment of the topic; raise its segment.bytes"
	case kafkago.InvalidRecord:
		return "the Kafka broker does not take the record as valid; turn off schema validation on the topic, " +
			"or see the broker's log"
	case kafkago.PolicyViolation:
		return "a policy of the Kafka cluster forbids it; have its operator allow it (create.topic.policy.class.name)"
	case kafkago.InvalidConfiguration:
		return "the Kafka cluster does not take the topic's settings; create the topic yourself"
	case kafkago.KafkaStorageError:
		return "a Kafka broker cannot use its disk; see its log for the log directory that failed"
	case kafkago.ThrottlingQuotaExceeded:
		return "the quota of this Kafka user is used up; raise it, or wait"
	case kafkago.UnsupportedCompressionType:
		return "the Kafka broker does not take lz4; have it allow that"
	case kafkago.UnsupportedForMessageFormat:
		return "the topic has an old message format; raise its message.format.version to 0.11 or later"
	case kafkago.InvalidTopic:
		return "Kafka does not take the name of the topic; change POSTBRIDGE_KAFKA_PREFIX"
	default:
		return ""
	}
}

// Plain takes off the name of the function that the library puts before each error.
func Plain(err error) error {
	if strings.HasPrefix(err.Error(), "kafka.(*Client)") {
		if cause := errors.Unwrap(err); cause != nil {
			return cause
		}
	}
	return err
}
