package spool

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"iter"
)

// A record is a header and the payload. All numbers are little-endian.
//
//	 0  4  magic 0xFE 'p' 'b' 0xFF
//	 4  4  length of the payload
//	 8  8  sequence
//	16  4  CRC32C over spool id and bytes 0 to 16
//	20  4  CRC32C over spool id, bytes 0 to 16 and payload
//	24     payload
//
// A record's header has a checksum of its own, so that its length can be believed before the payload is there: only so
// is a record that was never finished told from one that was damaged later.
//
// 0xFE and 0xFF stand in no UTF-8 text, so no payload of text holds the magic of a record; and because the checksum
// starts from the spool's random id, nobody outside can write a payload that would pass for a record when the one
// around it is damaged.
const (
	recordMagic     = "\xfepb\xff"
	recordHeaderLen = 24
)

// castagnoli is a table that never changes.
var castagnoli = crc32.MakeTable(crc32.Castagnoli) //nolint:gochecknoglobals // a constant

// spoolID names a spool. It is made with the spool, at random, and seeds every checksum in it.
type spoolID uint32

func (id spoolID) String() string { return fmt.Sprintf("%08x", uint32(id)) }

func (id spoolID) checksum(parts ...[]byte) uint32 {
	sum := ^uint32(0) // by hand, as a slice of the id would be one more thing on the heap for each record
	for shift := 0; shift < 32; shift += 8 {
		sum = castagnoli[byte(sum)^byte(id>>shift)] ^ sum>>8
	}
	sum = ^sum
	for _, p := range parts {
		sum = crc32.Update(sum, castagnoli, p)
	}
	return sum
}

func (id spoolID) appendRecord(b []byte, sequence uint64, payload []byte) []byte {
	start := len(b)
	b = append(b, recordMagic...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	b = binary.LittleEndian.AppendUint64(b, sequence)
	header := id.checksum(b[start:])
	b = binary.LittleEndian.AppendUint32(b, header)
	b = binary.LittleEndian.AppendUint32(b, crc32.Update(header, castagnoli, payload))
	return append(b, payload...)
}

// recordLen returns the length of the record that b starts with, header included, of which b may lack the end; false if
// b does not start with a header that checks.
func (id spoolID) recordLen(b []byte) (int64, bool) {
	if len(b) < recordHeaderLen || id.checksum(b[:16]) != binary.LittleEndian.Uint32(b[16:]) {
		return 0, false
	}
	return recordHeaderLen + int64(binary.LittleEndian.Uint32(b[4:])), true
}

// recordSequence returns the number in a header that checks.
func recordSequence(b []byte) uint64 { return binary.LittleEndian.Uint64(b[8:]) }

// parseRecord checks b, a whole record whose header checks, and returns its payload, which shares b.
func parseRecord(b []byte) (payload []byte, ok bool) {
	payload = b[recordHeaderLen:]
	header := binary.LittleEndian.Uint32(b[16:]) // the sum goes on from there
	return payload, crc32.Update(header, castagnoli, payload) == binary.LittleEndian.Uint32(b[20:])
}

// headers yields where in b the headers start that check, and the length of the record of each.
func (id spoolID) validHeaders(b []byte) iter.Seq2[int, int64] {
	return func(yield func(int, int64) bool) {
		for at := 0; ; at++ {
			i := bytes.Index(b[at:], []byte(recordMagic))
			if i < 0 {
				return
			}
			at += i
			if n, ok := id.recordLen(b[at:]); ok && !yield(at, n) {
				return
			}
		}
	}
}

// findRecord returns where in b the first whole record starts that checks and has a sequence from low to high.
func (id spoolID) findRecord(b []byte, low, high uint64) (offset int, ok bool) {
	for at, n := range id.validHeaders(b) {
		if n > int64(len(b)-at) || recordSequence(b[at:]) < low || recordSequence(b[at:]) > high {
			continue
		}
		if _, ok := parseRecord(b[at : at+int(n)]); ok {
			return at, true
		}
	}
	return 0, false
}

// highestNumber returns the highest sequence that was perhaps told to anybody, of a log that goes as far as the given
// one and then ends with b, in which no record checks. A record that ends behind the end of the log was never finished,
// so nobody was told of it and no cursor has read it: its number is free.
func (id spoolID) highestSequence(b []byte, after uint64) uint64 {
	highest, end := after, int64(0) // where the record of the highest number ends
	for at, n := range id.validHeaders(b) {
		sequence := recordSequence(b[at:])
		if sequence <= highest || int64(at) < end {
			continue // of another time, or in a payload
		}
		if end = int64(at) + n; end > int64(len(b)) {
			return sequence - 1
		}
		highest = sequence
	}
	if int64(len(b))-end >= recordHeaderLen {
		highest++ // there was a header that does not check
	}
	return highest
}

// fitting returns the length of the records at the start of buf that fit into space and are before until, if that is
// not zero.
func (id spoolID) recordsFitting(buf []byte, space int64, until uint64) (fit int64) {
	if int64(len(buf)) <= space && until == 0 {
		return int64(len(buf))
	}
	for fit < int64(len(buf)) {
		n, _ := id.recordLen(buf[fit:])
		if fit+n > space || recordSequence(buf[fit:]) == until {
			break
		}
		fit += n
	}
	return fit
}
