package kafka

import (
	"context"
	"errors"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/listoffsets"
)

// NoOffset is the offset of a time that no record is as new as.
const NoOffset = -1

// OffsetAt asks the leader of a partition for the offset of the first record of that time, in milliseconds, or newer; or
// for that of kafkago.FirstOffset or kafkago.LastOffset. kafkago.Client.ListOffsets takes the first offset for the
// last: it tells them apart by a time that the broker does not repeat.
func OffsetAt(ctx context.Context, client *kafkago.Client, leader, topic string, partition int, at int64) (int64, error) {
	answer, err := client.Transport.RoundTrip(ctx, kafkago.TCP(leader), &listoffsets.Request{
		ReplicaID: -1,
		Topics: []listoffsets.RequestTopic{{
			Topic:      topic,
			Partitions: []listoffsets.RequestPartition{{Partition: int32(partition), CurrentLeaderEpoch: -1, Timestamp: at}},
		}},
	})
	if err != nil {
		return NoOffset, err
	}
	offsets, ok := answer.(*listoffsets.Response)
	if !ok || len(offsets.Topics) != 1 || len(offsets.Topics[0].Partitions) != 1 {
		return NoOffset, errors.New("the broker says nothing of the offset it was asked for")
	}
	of := offsets.Topics[0].Partitions[0]
	if of.ErrorCode != 0 {
		return NoOffset, kafkago.Error(of.ErrorCode)
	}
	return of.Offset, nil
}
