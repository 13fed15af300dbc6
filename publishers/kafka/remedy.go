package kafka

import (
	"errors"
	"strings"

	kafkago "github.com/segmentio/kafka-go"
)

const (
	// filesRemedy is the remedy for files that cannot be loaded.
	filesRemedy = "correct the file; POSTBRIDGE_KAFKA_TLS_CA_FILE, POSTBRIDGE_KAFKA_TLS_CERT_FILE and " +
		"POSTBRIDGE_KAFKA_TLS_KEY_FILE name PEM files"
	// topicRemedy is the remedy for a topic whose metadata has an error.
	topicRemedy = "see the Kafka brokers' logs; deploy/kafka/acls.sh grants all rights"
	// writeRemedy is the remedy for a topic that may not be written to.
	writeRemedy = "allow Write on it; deploy/kafka/acls.sh does"
	// replicasRemedy is the remedy for partitions without a leader, or with too few replicas in sync.
	replicasRemedy = "bring back its brokers"
)

// connectionRemedy returns the remedy for a cluster that does not answer, for conditions and for doctor.
func connectionRemedy(err error) string {
	var failed *brokerError
	if !errors.As(err, &failed) {
		failed = &brokerError{op: opDial}
	}
	switch {
	case strings.HasPrefix(failed.op, "login"):
		return "check POSTBRIDGE_KAFKA_SASL_MECHANISM, and POSTBRIDGE_KAFKA_USER and POSTBRIDGE_KAFKA_PASSWORD or, of " +
			"OAUTHBEARER, POSTBRIDGE_KAFKA_OAUTH_TOKEN_FILE and POSTBRIDGE_KAFKA_OAUTH_EXTENSIONS"
	case strings.HasPrefix(failed.op, "TLS"):
		return "check POSTBRIDGE_KAFKA_TLS, POSTBRIDGE_KAFKA_TLS_CA_FILE, POSTBRIDGE_KAFKA_TLS_CERT_FILE and " +
			"POSTBRIDGE_KAFKA_TLS_KEY_FILE"
	case failed.op == opDial:
		return "start it, or check POSTBRIDGE_KAFKA_BROKERS and the network"
	default:
		return "see its log, and check whether this port requires TLS (POSTBRIDGE_KAFKA_TLS) or a login " +
			"(POSTBRIDGE_KAFKA_SASL_MECHANISM)"
	}
}

// produceRemedy returns the remedy for an error that blocks a partition, or "" if only deploy/README.md has it.
func produceRemedy(err error) string {
	switch {
	case errors.Is(err, kafkago.TopicAuthorizationFailed):
		return writeRemedy
	case errors.Is(err, errNoLeader), errors.Is(err, kafkago.NotEnoughReplicas),
		errors.Is(err, kafkago.NotEnoughReplicasAfterAppend):
		return replicasRemedy
	}
	return ""
}
