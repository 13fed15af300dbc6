package spool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"iter"
	"strconv"
	"strings"
)

// A segment is a header and then records. All numbers are little-endian.
//
//	segment header                            record
//	 0  8  magic "PBSPOOL" 0xFF                0  4  magic 0xFE 'p' 'b' 0xFF
//	 8  4  format version                      4  4  length of the payload
//	12  4  spool id                            8  8  sequence
//	16  8  first sequence, as in the name     16  4  CRC32C over spool id and bytes 0 to 16
//	24  4  zero                               20  4  CRC32C over spool id, bytes 0 to 16 and payload
//	28  4  CRC32C over bytes 0 to 28          24     payload
//
// A record's header has a checksum of its own, so that its length can be believed before the payload is there: only so
// is a record that was never finished told from one that was damaged later.
//
// 0xFE and 0xFF stand in no UTF-8 text, so no payload of text holds the magic of a record; and because the checksum
// starts from the spool's random id, nobody outside can write a payload that would pass for a record when the one
// around it is damaged.
const (
	segmentMagic = "PBSPOOL\xff"
	recordMagic  = "\xfepb\xff"

	segmentHeaderLen = 32
	recordHeaderLen  = 24

	// formatVersion is the newest version that this build reads, and the one it writes. A release that raises it
	// writes the old one still, so that one step back works.
	formatVersion = 1

	segmentSuffix = ".seg"
	badSuffix     = ".bad"
	tmpSuffix     = ".tmp"
	cursorPrefix  = "cursor-"
	offeredPrefix = "offered-"
	idName        = "spool"
	lockName      = "lock"
)

// ErrNewer means that a file was written by a newer version of postbridge, in a format that this one does not know.
var ErrNewer = errors.New("written by a newer version of postbridge; run that version")

// errDamaged means that bytes do not check; what to do about it depends on where they are.
var errDamaged = errors.New("damaged")

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

func segmentName(first uint64) string { return fmt.Sprintf("%020d%s", first, segmentSuffix) }

// parseSegmentName returns the first sequence in the name of a segment.
func parseSegmentName(name string) (first uint64, ok bool) {
	digits, found := strings.CutSuffix(name, segmentSuffix)
	if !found || len(digits) != 20 {
		return 0, false
	}
	first, err := strconv.ParseUint(digits, 10, 64)
	return first, err == nil && first > 0
}

func (id spoolID) appendSegmentHeader(b []byte, first uint64) []byte {
	start := len(b)
	b = append(b, segmentMagic...)
	b = binary.LittleEndian.AppendUint32(b, formatVersion)
	b = binary.LittleEndian.AppendUint32(b, uint32(id))
	b = binary.LittleEndian.AppendUint64(b, first)
	b = binary.LittleEndian.AppendUint32(b, 0)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// parseSegmentHeader returns the id of the spool that the segment belongs to. Every version keeps these 32 bytes as
// they are, so that a flipped bit is told from a newer version.
func parseSegmentHeader(b []byte) (spoolID, error) {
	if len(b) < segmentHeaderLen || !bytes.HasPrefix(b, []byte(segmentMagic)) ||
		crc32.Checksum(b[:28], castagnoli) != binary.LittleEndian.Uint32(b[28:]) {
		return 0, errDamaged
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v > formatVersion {
		return 0, fmt.Errorf("format version %d: %w", v, ErrNewer)
	}
	return spoolID(binary.LittleEndian.Uint32(b[12:])), nil
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
func (id spoolID) headers(b []byte) iter.Seq2[int, int64] {
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
	for at, n := range id.headers(b) {
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
func (id spoolID) highestNumber(b []byte, after uint64) uint64 {
	highest, end := after, int64(0) // where the record of the highest number ends
	for at, n := range id.headers(b) {
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

// A cursor file is one line of text and then the state:
//
//	postbridge-cursor 1 <spool id> <sequence> <CRC32C in hex over spool id, sequence in decimal and state>
const cursorWord = "postbridge-cursor"

func (id spoolID) formatCursor(sequence uint64, state []byte) []byte {
	sum := id.checksum(strconv.AppendUint(nil, sequence, 10), state)
	return append(fmt.Appendf(nil, "%s %d %v %d %08x\n", cursorWord, formatVersion, id, sequence, sum), state...)
}

func (id spoolID) parseCursor(b []byte) (sequence uint64, state []byte, err error) {
	line, state, _ := bytes.Cut(b, []byte("\n"))
	words, err := versionedLine(line, cursorWord)
	if err != nil {
		return 0, nil, err
	}
	if len(words) == 3 {
		sequence, _ = strconv.ParseUint(words[1], 10, 64) // what is wrong is found below
	}
	if !bytes.Equal(b, id.formatCursor(sequence, state)) {
		return 0, nil, errDamaged
	}
	return sequence, state, nil
}

// What a bus was offered is one line of text, in a file of its own, because a cursor's may have to stay behind:
//
//	postbridge-offered 1 <spool id> <sequence> <CRC32C in hex over spool id and sequence in decimal>
const offeredWord = "postbridge-offered"

func (id spoolID) formatOffered(sequence uint64) []byte {
	sum := id.checksum(strconv.AppendUint(nil, sequence, 10))
	return fmt.Appendf(nil, "%s %d %v %d %08x\n", offeredWord, formatVersion, id, sequence, sum)
}

func (id spoolID) parseOffered(b []byte) (sequence uint64, err error) {
	words, err := versionedLine(bytes.TrimSuffix(b, []byte("\n")), offeredWord)
	if err != nil {
		return 0, err
	}
	if len(words) == 3 {
		sequence, _ = strconv.ParseUint(words[1], 10, 64) // what is wrong is found below
	}
	if !bytes.Equal(b, id.formatOffered(sequence)) {
		return 0, errDamaged
	}
	return sequence, nil
}

// versionedLine returns the words behind the first one, which says what the file is, and its format version.
func versionedLine(line []byte, first string) ([]string, error) {
	words := strings.Fields(string(line))
	if len(words) < 2 || words[0] != first {
		return nil, errDamaged
	}
	if v, err := strconv.Atoi(words[1]); err != nil {
		return nil, errDamaged
	} else if v > formatVersion {
		return nil, fmt.Errorf("format version %d: %w", v, ErrNewer)
	}
	return words[2:], nil
}

// The id file is one line of text: postbridge-spool <format version> <spool id> <CRC32C in hex over spool id>
const idWord = "postbridge-spool"

func (id spoolID) formatID() []byte {
	return fmt.Appendf(nil, "%s %d %v %08x\n", idWord, formatVersion, id, id.checksum())
}

func parseID(b []byte) (id spoolID, err error) {
	words, err := versionedLine(b, idWord)
	if err != nil {
		return 0, err
	}
	if len(words) == 2 {
		n, _ := strconv.ParseUint(words[0], 16, 32) // what is wrong is found below
		id = spoolID(n)
	}
	if !bytes.Equal(b, id.formatID()) {
		return 0, errDamaged
	}
	return id, nil
}
