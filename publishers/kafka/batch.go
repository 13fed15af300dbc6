package kafka

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"hash/crc32"
	"io"
	"math"
	"strconv"
	"time"

	"github.com/pierrec/lz4/v4"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/postbridge/postbridge/bridge"
)

// Headers, in the binary mode of CloudEvents for Kafka.
const (
	headerPrefix      = "ce_"
	headerContentType = "content-type"
	headerTraceParent = "traceparent"
	headerID          = headerPrefix + "id"
	headerSpool       = headerPrefix + "spool"
	headerSequence    = headerPrefix + "sequence"
)

// encoder encodes events as a record batch: format 2 of Kafka, compressed. kafka-go does that with two dozen
// allocations for each event, which would be most of the cost of publishing.
type encoder struct {
	record     []byte // the last one
	encoded    bytes.Buffer
	attributes protocol.Attributes // of the batch: its compression
	compressor compressor          // nil for none
}

// compressor compresses what is written to it up to Close. Reset begins anew.
type compressor interface {
	io.WriteCloser
	Reset(io.Writer)
}

// newEncoder returns an encoder with a compression of Config. It writes lz4 blocks of 64 KiB, as Java clients do, and
// no lz4 checksum, since a record batch has its own.
func newEncoder(compression string) encoder {
	switch compression {
	case compressionNone:
		return encoder{}
	case compressionGzip:
		return encoder{attributes: protocol.Gzip, compressor: gzip.NewWriter(nil)}
	}
	w := lz4.NewWriter(nil)
	_ = w.Apply(lz4.BlockSizeOption(lz4.Block64Kb), lz4.ChecksumOption(false)) // fails only for unknown options
	return encoder{attributes: protocol.Lz4, compressor: w}
}

// Offsets in a record set, which is the size of the batch and then the batch.
const (
	setSize      = 4
	atLength     = setSize + 8 // of the bytes behind it
	atChecksum   = setSize + 17
	atAttributes = setSize + 21 // the first byte that the checksum covers
	atFirstTime  = setSize + 27
	atLatestTime = setSize + 35
	atProducer   = setSize + 43
	atRecords    = setSize + 61
)

// encode returns the record set of a batch of these events, by the producer at that position and without what stamp
// sets. It is valid until the next call.
func (b *encoder) encode(events []*entry, at position) []byte {
	b.encoded.Reset()
	b.encoded.Write(make([]byte, atRecords))
	if b.compressor == nil {
		b.writeRecords(&b.encoded, events)
	} else {
		b.compressor.Reset(&b.encoded)
		b.writeRecords(b.compressor, events)
		_ = b.compressor.Close() // in memory nothing fails
	}
	set := b.encoded.Bytes()
	appendHead(set[:0], len(set), len(events), b.attributes, at)
	return set
}

// writeRecords writes the records one by one, so that they are compressed while they are in the processor's cache.
func (b *encoder) writeRecords(w io.Writer, events []*entry) {
	var size [binary.MaxVarintLen64]byte
	for i, e := range events {
		b.record = appendRecord(b.record[:0], i, e)
		_, _ = w.Write(binary.AppendVarint(size[:0], int64(len(b.record))))
		_, _ = w.Write(b.record)
	}
}

// stamp sets the time of the records and the checksum, each time that the batch is sent: Kafka counts the retention
// of an event from this time, and may refuse an old one. Brokers recognize a repeat by its sequence numbers alone.
func stamp(set []byte, now time.Time) {
	for _, field := range []int{atFirstTime, atLatestTime} {
		binary.BigEndian.PutUint64(set[field:], uint64(now.UnixMilli()))
	}
	sum := crc32.Checksum(set[atAttributes:], crc32.MakeTable(crc32.Castagnoli))
	binary.BigEndian.PutUint32(set[atChecksum:], sum)
}

// appendHead appends the header of a record set, without what stamp sets.
func appendHead(b []byte, size, records int, attributes protocol.Attributes, at position) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(size-setSize))
	b = binary.BigEndian.AppendUint64(b, 0) // base offset: set by the broker
	b = binary.BigEndian.AppendUint32(b, uint32(size-atLength-4))
	b = binary.BigEndian.AppendUint32(b, math.MaxUint32) // leader epoch: likewise
	b = append(b, 2)                                     // format
	b = binary.BigEndian.AppendUint32(b, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(attributes))
	b = binary.BigEndian.AppendUint32(b, uint32(records-1)) // offset delta of the last record
	b = append(b, make([]byte, atProducer-atFirstTime)...)  // stamp
	b = binary.BigEndian.AppendUint64(b, uint64(at.producer.id))
	b = binary.BigEndian.AppendUint16(b, uint16(at.producer.epoch))
	b = binary.BigEndian.AppendUint32(b, uint32(at.next))
	return binary.BigEndian.AppendUint32(b, uint32(records))
}

// appendRecord appends an event as the i-th record of a batch.
func appendRecord(b []byte, i int, e *entry) []byte {
	d := e.delivery
	attributes := d.Attributes()
	b = append(b, 0, 0) // no attributes, and the time of the first record
	b = binary.AppendVarint(b, int64(i))
	b = appendBytes(b, e.key)
	b = appendBytes(b, d.Data)
	b = binary.AppendVarint(b, int64(len(attributes)+2))
	for _, a := range attributes {
		b = binary.AppendVarint(b, int64(len(headerPrefix)+len(a[0])))
		b = append(append(b, headerPrefix...), a[0]...)
		b = appendBytes(b, a[1])
	}
	b = appendBytes(appendBytes(b, headerContentType), bridge.ContentType)
	return appendBytes(appendBytes(b, headerTraceParent), d.TraceParent)
}

// appendBytes appends the length of a text, and the text.
func appendBytes[T string | []byte](b []byte, text T) []byte {
	return append(binary.AppendVarint(b, int64(len(text))), text...)
}

// recordBytes estimates the size of a record, without compression.
func recordBytes(d *bridge.Delivery) int { return len(d.Data) + 512 }

// ownEvent returns the sequence and the id of the event in a record; ok is false if it is not of the spool.
func ownEvent(headers []protocol.Header, spool string) (sequence uint64, id string, ok bool) {
	var from, number string
	for _, h := range headers {
		switch h.Key {
		case headerSpool:
			from = string(h.Value)
		case headerSequence:
			number = string(h.Value)
		case headerID:
			id = string(h.Value)
		}
	}
	if from != spool {
		return 0, "", false
	}
	sequence, err := strconv.ParseUint(number, 10, 64)
	return sequence, id, err == nil
}

// after returns the sequence number that follows n records from first on. It wraps around to 0.
func after(first int32, n int) int32 { return int32((int64(first) + int64(n)) & math.MaxInt32) }
