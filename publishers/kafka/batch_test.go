package kafka

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
)

// TestFrame is what Java demands of lz4: independent blocks of 64 KiB at most, an end mark, and nothing behind it.
func TestFrame(t *testing.T) {
	t.Parallel()
	b, random := newEncoder(compressionLZ4), rand.NewChaCha8([32]byte{})
	for _, size := range []int{0, 1, 65_535, 65_536, 200_000, 3 << 20} {
		for _, compressible := range []bool{true, false} {
			e := numbered(1)
			e.delivery.Data = make([]byte, size)
			if !compressible {
				_, _ = random.Read(e.delivery.Data)
			}
			set := b.encode([]*entry{e}, position{})
			frame := set[atRecords:]
			if binary.LittleEndian.Uint32(frame) != 0x184D2204 || frame[4] != 0x60 || frame[5] != 0x40 {
				t.Fatalf("it begins with % x", frame[:7])
			}
			rest, n := frame[7:], uint32(1)
			for n > 0 {
				n = binary.LittleEndian.Uint32(rest) &^ (1 << 31)
				if rest = rest[4:]; n > 64<<10 {
					t.Fatalf("a block of %d bytes", n)
				}
				rest = rest[n:]
			}
			if len(rest) > 0 {
				t.Errorf("%d bytes behind the end", len(rest))
			}
			got, err := io.ReadAll(kafkago.Lz4.Codec().NewReader(bytes.NewReader(frame)))
			if want := appendBytes(nil, b.record); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes of %d are read again: %v", len(got), len(want), err)
			}
		}
	}
}

// numbered is the event with this number, of one order.
func numbered(sequence uint64) *entry {
	return newEntry(&bridge.Delivery{
		Spool: "0badcafe", Sequence: sequence, ID: fmt.Sprintf("%032x", sequence), Broker: "kite", UserID: "AB 1234",
		OrderID: "220303000308932", Status: event.StatusOpen, ReceivedAt: time.Now(), TraceParent: "00-1-2-01",
		Data: fmt.Appendf(nil, `{"sequence":%d}`, sequence),
	}, nil)
}

// TestEncode reads a batch with another library.
func TestEncode(t *testing.T) {
	t.Parallel()
	for compression, attributes := range map[string]int16{"": 3, "lz4": 3, "gzip": 1, "none": 0} {
		t.Run(compression, func(t *testing.T) { testEncode(t, newEncoder(compression), attributes) })
	}
}

func testEncode(t *testing.T, b encoder, attributes int16) {
	t.Helper()
	for _, n := range []int{1, 2, 300, 1} { // the same buffers, for fewer again
		var events []*entry
		for i := range n {
			events = append(events, numbered(uint64(1000+i)))
		}
		before := time.Now().UnixMilli()
		encoded := b.encode(events, position{producer{0x0123456789abcdef, 0x1234}, math.MaxInt32 - 1, 77})
		stamp(encoded, time.Now().Add(-time.Hour))
		stamp(encoded, time.Now())
		var got kmsg.RecordBatch
		if err := got.ReadFrom(encoded[setSize:]); err != nil {
			t.Fatal(err)
		}
		if got.ProducerID != 0x0123456789abcdef || got.ProducerEpoch != 0x1234 || got.FirstSequence != math.MaxInt32-1 {
			t.Errorf("producer %x, epoch %x, first number %d", got.ProducerID, got.ProducerEpoch, got.FirstSequence)
		}
		if int(got.NumRecords) != n || int(got.LastOffsetDelta) != n-1 || got.Magic != 2 || got.FirstOffset != 0 {
			t.Errorf(
				"%d records, last %d, magic %d, offset %d",
				got.NumRecords,
				got.LastOffsetDelta,
				got.Magic,
				got.FirstOffset,
			)
		}
		if got.Attributes != attributes {
			t.Errorf("attributes %#x, want %#x: the compression and nothing else", got.Attributes, attributes)
		}
		if now := time.Now().UnixMilli(); got.FirstTimestamp < before || got.MaxTimestamp > now ||
			got.FirstTimestamp != got.MaxTimestamp {
			t.Errorf("times %d to %d, now is %d", got.FirstTimestamp, got.MaxTimestamp, now)
		}
		records, err := kfake.BatchRecords(got)
		if err != nil || len(records) != n {
			t.Fatalf("%d records: %v", len(records), err)
		}
		for i, r := range records {
			checkRecord(t, r, events[i].delivery)
		}
	}
}

func checkRecord(t *testing.T, r kmsg.Record, d *bridge.Delivery) {
	t.Helper()
	if string(r.Key) != d.Key() || string(r.Value) != string(d.Data) {
		t.Errorf("event %d: key %q, data %q", d.Sequence, r.Key, r.Value)
	}
	want := map[string]string{"content-type": bridge.ContentType, "traceparent": d.TraceParent}
	for _, a := range d.Attributes() {
		want["ce_"+a[0]] = a[1]
	}
	got := make(map[string]string)
	for _, h := range r.Headers {
		got[h.Key] = string(h.Value)
	}
	if !maps.Equal(got, want) || len(r.Headers) != len(want) {
		t.Errorf("event %d: headers %q, want %q", d.Sequence, got, want)
	}
}

// The broker checks what a batch's checksum covers.
func TestEncodeIsTaken(t *testing.T) {
	t.Parallel()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "orders"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	client, end := NewClient(Config{Brokers: cluster.ListenAddrs()})
	t.Cleanup(end)
	b := newEncoder(compressionLZ4)
	produce := func(at position) error {
		encoded := b.encode([]*entry{numbered(1), numbered(2)}, at)
		stamp(encoded, time.Now())
		resp, err := client.RawProduce(t.Context(), &kafkago.RawProduceRequest{
			Topic: "orders", RequiredAcks: kafkago.RequireAll, RawRecords: protocol.RawRecordSet{Reader: bytes.NewReader(encoded)},
		})
		if err != nil {
			return err
		}
		return resp.Error
	}
	for _, c := range []struct {
		next int32
		want writerEvent
	}{
		{0, eventAcked}, {2, eventAcked}, {2, eventAcked}, {5, eventMismatched}, {3, eventMismatched}, {4, eventAcked},
	} {
		if err := produce(position{producer{9, 0}, c.next, 0}); judge(err) != c.want {
			t.Errorf("first number %d: %v", c.next, err)
		}
	}
	if got := cluster.PartitionInfo("orders", 0).HighWatermark; got != 6 {
		t.Errorf("%d records are stored, want 6", got)
	}
}

// Numbers are 31 bits.
func TestAfter(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		first int32
		n     int
		want  int32
	}{
		{0, 1, 1}, {5, 500, 505}, {math.MaxInt32 - 1, 1, math.MaxInt32}, {math.MaxInt32, 1, 0}, {math.MaxInt32 - 7, 20, 12},
		{math.MaxInt32, 500, 499},
	} {
		if got := after(c.first, c.n); got != c.want {
			t.Errorf("after(%d, %d) = %d, want %d", c.first, c.n, got, c.want)
		}
	}
}

func TestOurs(t *testing.T) {
	t.Parallel()
	header := func(name, value string) protocol.Header { return protocol.Header{Key: name, Value: []byte(value)} }
	for name, c := range map[string]struct {
		headers []protocol.Header
		want    uint64
		ok      bool
	}{
		"Ours":          {[]protocol.Header{header("ce_spool", "0badcafe"), header("ce_sequence", "00000000000000000042")}, 42, true},
		"OtherOrder":    {[]protocol.Header{header("ce_sequence", "00000000000000000042"), header("x", "y"), header("ce_spool", "0badcafe")}, 42, true},
		"OtherSpool":    {[]protocol.Header{header("ce_spool", "0badcaff"), header("ce_sequence", "00000000000000000042")}, 0, false},
		"NoSequence":    {[]protocol.Header{header("ce_spool", "0badcafe")}, 0, false},
		"SequenceTwice": {[]protocol.Header{header("ce_spool", "0badcafe"), header("ce_sequence", "many")}, 0, false},
		"None":          {nil, 0, false},
	} {
		if got, _, ok := ownEvent(c.headers, "0badcafe"); got != c.want || ok != c.ok {
			t.Errorf("%s: %d, %t", name, got, ok)
		}
	}
}

// What is as large as we take it to be does not get larger than a broker takes.
func TestRecordBytes(t *testing.T) {
	t.Parallel()
	e := numbered(math.MaxUint64)
	e.delivery.UserID, e.delivery.OrderID = strings.Repeat("u", 64), strings.Repeat("o", 64)
	e.delivery.TraceParent = strings.Repeat("t", 55)
	e.key = e.delivery.Key()
	e = newEntry(e.delivery, nil)
	size := len(appendRecord(nil, 0, e))
	if guess := recordBytes(e.delivery); size > guess+guess/2 {
		t.Errorf("a record of %d bytes counts as %d", size, guess)
	}
}

func BenchmarkEncode(b *testing.B) {
	data := []byte(strings.Repeat(`{"id":"0123456789abcdef","broker":"kite","user_id":"AB1234"}`, 24))
	var events []*entry
	for i := range 240 {
		e := numbered(uint64(1000 + i))
		e.delivery.Data = data
		events = append(events, e)
	}
	c := newEncoder(compressionLZ4)
	b.ReportAllocs()
	for b.Loop() {
		c.encode(events, position{})
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(events)), "ns/event")
}
