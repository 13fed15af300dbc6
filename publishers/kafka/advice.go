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

// produceAdvice is for errors of batches.
func produceAdvice() advice {
	const compression = "set POSTBRIDGE_KAFKA_COMPRESSION to gzip or none, or to what else this Kafka accepts"
	return advice{
		kafkago.UnsupportedCompressionType:  compression,
		kafkago.UnsupportedForMessageFormat: compression + "; or the topic's message.format.version is below 0.11",
	}
}
