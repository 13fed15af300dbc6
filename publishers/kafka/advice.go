package kafka

import (
	"errors"
	"fmt"

	kafkago "github.com/segmentio/kafka-go"
)

// advice has the remedy for each error code of an operation that has one; more are in deploy/README.md.
type advice map[kafkago.Error]string

// advised adds the remedy to an error of a broker.
func advised(err error, remedies advice) error {
	var code kafkago.Error
	if errors.As(err, &code) && remedies[code] != "" {
		return fmt.Errorf("%w: %s", err, remedies[code])
	}
	return err
}

// createAdvice is for errors of the creation of a topic.
func createAdvice() advice {
	const create = "create it yourself"
	return advice{
		kafkago.InvalidReplicationFactor: "set POSTBRIDGE_KAFKA_REPLICATION to a number of replicas that the cluster " +
			"accepts: not more than its brokers, and for many services exactly 3, or -1 for its default",
		kafkago.UnsupportedVersion:   create,
		kafkago.InvalidConfiguration: create + ", with the settings that the cluster requires",
		kafkago.PolicyViolation: "set POSTBRIDGE_KAFKA_REPLICATION (3, or -1 for the cluster's default) and " +
			"POSTBRIDGE_KAFKA_PARTITIONS to what the cluster's policy allows, or " + create,
	}
}

// registerAdvice is for errors of InitProducerId, which gives a producer its id.
func registerAdvice() advice {
	return advice{
		kafkago.ClusterAuthorizationFailed: "allow Write on the topics; before Kafka 2.8, IdempotentWrite on the " +
			"cluster, too (Amazon MSK with IAM: WriteDataIdempotently)",
		kafkago.UnsupportedVersion: "this Kafka has no idempotent producers (InitProducerId), without which events " +
			"would be stored twice; publish to one that has them",
	}
}

// produceAdvice is for errors of batches.
func produceAdvice() advice {
	const compression = "set POSTBRIDGE_KAFKA_COMPRESSION to one of lz4, gzip and none that this Kafka accepts"
	return advice{
		kafkago.InvalidRecord:               "turn off schema validation on the topic, or see the broker's log",
		kafkago.UnsupportedCompressionType:  compression,
		kafkago.UnsupportedForMessageFormat: compression + "; or the topic's message.format.version is below 0.11",
	}
}
