package spool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"math"
)

// A record is a 24-byte header and the payload. All numbers are little-endian.
//
//	 0  4  magic 0xFE 'p' 'b' 0xFF
//	 4  4  length of the payload
//	 8  8  sequence
//	16  4  CRC32C over spool id and bytes 0 to 16
//	20  4  CRC32C over spool id, bytes 0 to 16 and payload
//	24     payload
//
// The header has its own checksum, so that the length can be trusted when the payload is incomplete. This
// distinguishes, in version 1, a record that extends past the end of the file from damage to a complete one.
//
// Each write ends with an end mark: a header with the length 2^32-1 and the sequence that the next record will have,
// which the next write replaces. It proves that the write before it was finished, and that whatever is behind it is not
// of the log.
//
// UTF-8 text contains neither 0xFE nor 0xFF, so a text payload cannot contain the magic of a record. The checksum is
// seeded by the spool's random id, so an attacker who does not know the id cannot write a payload that passes for a
// record when the record around it is damaged.
const (
	recordMagic     = "\xfepb\xff"
	recordHeaderLen = 24
	endMarkLen      = recordHeaderLen
	endMarkLength   = math.MaxUint32 // in the place of the length
)

// castagnoli is the table of CRC32C.
var castagnoli = crc32.MakeTable(crc32.Castagnoli) //nolint:gochecknoglobals // a constant

// spoolID identifies a spool. It is random, created with the spool, and seeds every checksum except that of a segment
// header.
type spoolID uint32

// String formats the id as 8 hex digits, as in the id file and in spool ls.
func (id spoolID) String() string { return fmt.Sprintf("%08x", uint32(id)) }

// checksum returns the CRC32C of the id's four little-endian bytes followed by parts.
func (id spoolID) checksum(parts ...[]byte) uint32 {
	// The seed is computed inline: passing the id as a slice would allocate once for each record.
	sum := ^uint32(0)
	for shift := 0; shift < 32; shift += 8 {
		sum = castagnoli[byte(sum)^byte(id>>shift)] ^ sum>>8
	}
	sum = ^sum
	for _, p := range parts {
		sum = crc32.Update(sum, castagnoli, p)
	}
	return sum
}

// appendRecord appends an encoded record to b. The payload must be shorter than 4 GiB - 1.
func (id spoolID) appendRecord(b []byte, sequence uint64, payload []byte) []byte {
	return append(id.appendHeader(b, uint32(len(payload)), sequence, payload), payload...)
}

// appendEndMark appends an end mark to b; next is the sequence that the next record will have.
func (id spoolID) appendEndMark(b []byte, next uint64) []byte {
	return id.appendHeader(b, endMarkLength, next, nil)
}

// appendHeader appends an encoded record header to b.
func (id spoolID) appendHeader(b []byte, length uint32, sequence uint64, payload []byte) []byte {
	start := len(b)
	b = append(b, recordMagic...)
	b = binary.LittleEndian.AppendUint32(b, length)
	b = binary.LittleEndian.AppendUint64(b, sequence)
	// The second checksum continues the first, so the bytes of the header are summed only once.
	header := id.checksum(b[start:])
	b = binary.LittleEndian.AppendUint32(b, header)
	return binary.LittleEndian.AppendUint32(b, crc32.Update(header, castagnoli, payload))
}

// isEndMark reports whether an end mark with the sequence next is at the start of b.
func (id spoolID) isEndMark(b []byte, next uint64) bool {
	return bytes.HasPrefix(b, id.appendEndMark(nil, next))
}

// recordLen returns the length in bytes, header included, of the record at the start of b. b may end before the record
// does. It returns false if b does not start with a valid header.
func (id spoolID) recordLen(b []byte) (int64, bool) {
	if len(b) < recordHeaderLen || id.checksum(b[:16]) != binary.LittleEndian.Uint32(b[16:]) {
		return 0, false
	}
	return recordHeaderLen + int64(binary.LittleEndian.Uint32(b[4:])), true
}

// recordSequence returns the sequence in a valid header.
func recordSequence(b []byte) uint64 { return binary.LittleEndian.Uint64(b[8:]) }

// parseRecord verifies a whole record whose header is valid. The payload that it returns shares b.
func parseRecord(b []byte) (payload []byte, ok bool) {
	payload = b[recordHeaderLen:]
	header := binary.LittleEndian.Uint32(b[16:]) // valid, so it equals the checksum of the id and bytes 0 to 16
	return payload, crc32.Update(header, castagnoli, payload) == binary.LittleEndian.Uint32(b[20:])
}

// validHeaders yields the offset of each valid record header in b and the length of its record, which may extend past
// b. Offsets increase; a header may lie inside the record before it.
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

// findRecord returns the offset in b of the first complete and valid record with a sequence from low to high, both
// included. The range rejects stale records: older content of the file or of the disk.
func (id spoolID) findRecord(b []byte, low, high uint64) (offset int, ok bool) {
	for at, n := range id.validHeaders(b) {
		if n > int64(len(b)-at) || recordSequence(b[at:]) < low || recordSequence(b[at:]) > high {
			continue
		}
		// If the payload is invalid the search continues inside it: its header may be stale and overlap a valid
		// record.
		if _, ok := parseRecord(b[at : at+int(n)]); ok {
			return at, true
		}
	}
	return 0, false
}

// highestSequence returns the highest sequence that may have been acknowledged. The log has valid records up to the
// sequence after, then b, which contains no valid record. Each acknowledged write ended with an end mark: what is
// behind the last one was not acknowledged, so no cursor has read it, and its sequences are free.
func (id spoolID) highestSequence(b []byte, after uint64) uint64 {
	for at := range id.validHeaders(b) {
		if binary.LittleEndian.Uint32(b[at+4:]) == endMarkLength {
			after = max(after, recordSequence(b[at:])-1)
		}
	}
	return after
}

// highestSequence1 is highestSequence for a segment of version 1, which had no end marks. There a record that extends
// past the end of the file was not acknowledged, because a sync would have made the file long enough; everything else
// may be damage to an acknowledged record.
func (id spoolID) highestSequence1(b []byte, after uint64) uint64 {
	highest, end := after, int64(0) // end is where the record of highest ends in b
	for at, n := range id.validHeaders(b) {
		sequence := recordSequence(b[at:])
		if sequence <= highest || int64(at) < end {
			continue // stale, or inside a payload
		}
		if end = int64(at) + n; end > int64(len(b)) {
			// Unfinished, so never acknowledged; records before it in b may have been.
			return sequence - 1
		}
		highest = sequence
	}
	// Not if it is no longer than an end mark, which this version writes there, too: no event is empty.
	if int64(len(b))-end > recordHeaderLen {
		highest++ // space for at least one more record, whose header is invalid
	}
	return highest
}

// hasHeader reports whether a valid header with a sequence of at least low begins in a file, from an offset to size.
func (id spoolID) hasHeader(f File, from, size int64, low uint64) (bool, error) {
	buffer := make([]byte, readAhead)
	for ; from < size; from += readAhead - recordHeaderLen + 1 { // so that none is divided
		n, err := f.ReadAt(buffer[:min(readAhead, size-from)], from)
		if err != nil && !errors.Is(err, io.EOF) { // a file in use may have become shorter
			return false, err
		}
		for at := range id.validHeaders(buffer[:n]) {
			if recordSequence(buffer[at:]) >= low {
				return true, nil
			}
		}
	}
	return false, nil
}

// recordsFitting returns the total length of the leading records of buf that fit into space bytes.
func (id spoolID) recordsFitting(buf []byte, space int64) (fit int64) {
	// The usual case: the whole batch fits.
	if int64(len(buf)) <= space {
		return int64(len(buf))
	}
	for fit < int64(len(buf)) {
		n, _ := id.recordLen(buf[fit:])
		if fit+n > space {
			break
		}
		fit += n
	}
	return fit
}
