package kafka

import (
	"encoding/hex"
	"testing"

	kafkago "github.com/segmentio/kafka-go"
)

// vectors are those of UtilsTest.testMurmur2 in Kafka, as unsigned numbers.
func vectors() map[string]uint32 {
	signed := map[string]int32{
		"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536,
		"a-little-bit-longer-string": -1486304829, "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
		"abc": 479470107,
	}
	unsigned := make(map[string]uint32, len(signed))
	for key, hash := range signed {
		unsigned[key] = uint32(hash)
	}
	return unsigned
}

// TestPartitionOfKey is what the Java client does: toPositive(murmur2(key)) % partitions.
func TestPartitionOfKey(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 2, 3, 6, 7, 12, 100, 1023} {
		tp := &topic{p: new(Publisher)}
		for i := range n {
			tp.writers, tp.partitions = append(tp.writers, newPartitionWriter(tp, i)), append(tp.partitions, i)
		}
		for key, hash := range vectors() {
			if got, want := tp.writerOf(key).partition, int(hash&0x7fffffff)%n; got != want {
				t.Errorf("%s (%s): partition %d of %d, want %d", key, hex.EncodeToString([]byte(key)), got, n, want)
			}
		}
	}
}

// TestLeaders pokes a writer when it has another leader than before.
func TestLeaders(t *testing.T) {
	t.Parallel()
	tp := &topic{p: &Publisher{ctx: t.Context()}}
	tp.writers, tp.partitions = []*partitionWriter{newPartitionWriter(tp, 0), newPartitionWriter(tp, 1)}, []int{0, 1}
	tell := func(ports ...int) {
		var m kafkago.Topic
		for i, port := range ports {
			part := kafkago.Partition{ID: i}
			if port > 0 {
				part.Leader = kafkago.Broker{Host: "broker", Port: port}
			}
			m.Partitions = append([]kafkago.Partition{part}, m.Partitions...) // in any order
		}
		tp.update(m)
	}
	want := func(poked [2]bool, leaders ...string) {
		t.Helper()
		for i, l := range tp.writers {
			if got, _ := l.leader(); got != leaders[i] {
				t.Errorf("the leader of %d is %q, want %q", i, got, leaders[i])
			}
			if got := len(l.wake) > 0; got != poked[i] {
				t.Errorf("writer %d was poked: %t", i, got)
			}
			select {
			case <-l.wake:
			default:
			}
		}
	}
	tell(1, 2)
	want([2]bool{true, true}, "broker:1", "broker:2")
	tell(1, 2)
	want([2]bool{false, false}, "broker:1", "broker:2")
	tell(1, 3)
	want([2]bool{false, true}, "broker:1", "broker:3")
	tell(1, 0)
	want([2]bool{false, false}, "broker:1", "")
	tell(1, 3)
	want([2]bool{false, true}, "broker:1", "broker:3")
}
