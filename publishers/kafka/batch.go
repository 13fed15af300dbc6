package kafka

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"strconv"
	"time"

	"github.com/segmentio/kafka-go/protocol"

	"github.com/postbridge/postbridge/bridge"
)

// Headers, in the binary mode of CloudEvents for Kafka.
const (
	headerPrefix      = "ce_"
	headerContentType = "content-type"
	headerTraceParent = "traceparent"
	headerSpool       = headerPrefix + "spool"
	headerSequence    = headerPrefix + "sequence"
)

// batch encodes events as a record batch, format 2 of Kafka, compressed with lz4.
type batch struct {
	records []protocol.Record
	encoded bytes.Buffer
}

// Where the fields of an idempotent producer are in an encoded record set: behind the size that the library puts first,
// counted from the batch.
const (
	setSize      = 4
	atChecksum   = setSize + 17
	atAttributes = setSize + 21 // what the checksum covers begins here
	atProducer   = setSize + 43
	atEpoch      = setSize + 51
	atSequence   = setSize + 53
	atCount      = setSize + 57
)

// encode writes the events as one batch of the producer at that position. The result is valid until the next call. The
// records' time is now: how long the bus keeps an event counts from when it got it.
func (b *batch) encode(events []*entry, at position) ([]byte, error) {
	now := time.Now()
	b.records = b.records[:0]
	for _, e := range events {
		b.records = append(b.records, record(e.delivery, now))
	}
	set := protocol.RecordSet{Version: 2, Attributes: protocol.Lz4, Records: protocol.NewRecordReader(b.records...)}
	clear(b.records)
	b.encoded.Reset()
	if _, err := set.WriteTo(&b.encoded); err != nil {
		return nil, fmt.Errorf("%w: cannot encode a batch: %w", bridge.ErrRejected, err)
	}
	encoded := b.encoded.Bytes()
	binary.BigEndian.PutUint64(encoded[atProducer:], uint64(at.producer.id))
	binary.BigEndian.PutUint16(encoded[atEpoch:], uint16(at.producer.epoch))
	binary.BigEndian.PutUint32(encoded[atSequence:], uint32(at.next))
	sum := crc32.Checksum(encoded[atAttributes:], crc32.MakeTable(crc32.Castagnoli))
	binary.BigEndian.PutUint32(encoded[atChecksum:], sum)
	return encoded, nil
}

func newReader(set []byte) io.Reader { return bytes.NewReader(set) }

// record is the event as Kafka stores it.
func record(d *bridge.Delivery, now time.Time) protocol.Record {
	attributes := d.Attributes()
	headers := make([]protocol.Header, 0, len(attributes)+2)
	for _, a := range attributes {
		headers = append(headers, protocol.Header{Key: headerPrefix + a[0], Value: []byte(a[1])})
	}
	headers = append(headers,
		protocol.Header{Key: headerContentType, Value: []byte(bridge.ContentType)},
		protocol.Header{Key: headerTraceParent, Value: []byte(d.TraceParent)})
	return protocol.Record{
		Time:    now,
		Key:     protocol.NewBytes([]byte(d.Key())),
		Value:   protocol.NewBytes(d.Data),
		Headers: headers,
	}
}

// recordBytes is about how large an event is on the bus.
func recordBytes(d *bridge.Delivery) int { return len(d.Data) + 512 }

// ours reports whether a record is of our spool, and its number there.
func ours(headers []protocol.Header, spool string) (number uint64, ok bool) {
	var from, sequence string
	for _, h := range headers {
		switch h.Key {
		case headerSpool:
			from = string(h.Value)
		case headerSequence:
			sequence = string(h.Value)
		}
	}
	if from != spool {
		return 0, false
	}
	number, err := strconv.ParseUint(sequence, 10, 64)
	return number, err == nil
}

// after is the number behind n records that begin with a number. They wrap around to 0.
func after(first int32, n int) int32 { return int32((int64(first) + int64(n)) & math.MaxInt32) }

// rejection is why the bus can never take an event.
func rejection(topic string, err error) error {
	return fmt.Errorf("%w: topic %s: %w", bridge.ErrRejected, topic, plain(err))
}
