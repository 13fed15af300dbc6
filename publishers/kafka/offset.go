package kafka

import (
	"context"
	"errors"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/listoffsets"
)

// NoOffset is the result of OffsetAt for a time after that of every record, and with an error.
const NoOffset = -1

// OffsetAt asks the leader of a partition for the offset of the first record at or after a time, in milliseconds
// since 1970; or for kafkago.FirstOffset or kafkago.LastOffset. kafkago.Client.ListOffsets confuses these two, as it
// expects the broker to repeat the time.
func OffsetAt(
	ctx context.Context, client *kafkago.Client, leader, topic string, partition int, at int64,
) (int64, error) {
	answer, err := client.Transport.RoundTrip(ctx, kafkago.TCP(leader), &listoffsets.Request{
		ReplicaID: -1,
		Topics: []listoffsets.RequestTopic{{
			Topic: topic,
			Partitions: []listoffsets.RequestPartition{
				{Partition: int32(partition), CurrentLeaderEpoch: -1, Timestamp: at},
			},
		}},
	})
	if err != nil {
		return NoOffset, err
	}
	offsets, ok := answer.(*listoffsets.Response)
	if !ok || len(offsets.Topics) != 1 || len(offsets.Topics[0].Partitions) != 1 {
		return NoOffset, errors.New("the answer of the Kafka broker lacks the offset that was asked for")
	}
	of := offsets.Topics[0].Partitions[0]
	if of.ErrorCode != 0 {
		return NoOffset, kafkago.Error(of.ErrorCode)
	}
	return of.Offset, nil
}
