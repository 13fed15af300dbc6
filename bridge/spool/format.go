package spool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
)

// A segment is a header and then records. All numbers are little-endian.
//
//	segment header                            record
//	 0  8  magic "PBSPOOL" 0xFF                0  4  magic 0xFE 'p' 'b' 0xFF
//	 8  4  format version                      4  4  length of the payload
//	12  4  spool id                            8  8  sequence
//	16  8  first sequence, as in the name     16  4  CRC32C over spool id, bytes 4 to 16 and payload
//	24  4  zero                               20     payload
//	28  4  CRC32C over bytes 0 to 28
//
// 0xFE and 0xFF stand in no UTF-8 text, so no payload of text holds the magic of a record; and because the checksum
// starts from the spool's random id, nobody outside can write a payload that would pass for a record when the one
// around it is damaged.
const (
	segmentMagic = "PBSPOOL\xff"
	recordMagic  = "\xfepb\xff"

	segmentHeaderLen = 32
	recordHeaderLen  = 20

	// formatVersion is the newest version that this build reads, and the one it writes. A release that raises it
	// writes the old one still, so that one step back works.
	formatVersion = 1

	segmentSuffix = ".seg"
	badSuffix     = ".bad"
	tmpSuffix     = ".tmp"
	cursorPrefix  = "cursor-"
	idName        = "spool"
	lockName      = "lock"
)

// ErrNewer means that a file was written by a newer version of postbridge, in a format that this one does not know.
var ErrNewer = errors.New("written by a newer version of postbridge: run that version, or move the file away")

// errDamaged means that bytes do not check; what to do about it depends on where they are.
var errDamaged = errors.New("damaged")

// castagnoli is a table that never changes.
var castagnoli = crc32.MakeTable(crc32.Castagnoli) //nolint:gochecknoglobals // a constant

// spoolID names a spool. It is made with the spool, at random, and seeds every checksum in it.
type spoolID uint32

func (id spoolID) String() string { return fmt.Sprintf("%08x", uint32(id)) }

func (id spoolID) checksum(parts ...[]byte) uint32 {
	var seed [4]byte
	binary.LittleEndian.PutUint32(seed[:], uint32(id))
	sum := crc32.Checksum(seed[:], castagnoli)
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
	b = binary.LittleEndian.AppendUint32(b, id.checksum(b[start+4:start+16], payload))
	return append(b, payload...)
}

// recordLen returns the length of the record that b starts with, header included; false if it does not start with one
// that can be whole within limit bytes.
func recordLen(b []byte, limit int64) (int64, bool) {
	if len(b) < recordHeaderLen || string(b[:4]) != recordMagic {
		return 0, false
	}
	n := recordHeaderLen + int64(binary.LittleEndian.Uint32(b[4:]))
	return n, n <= limit
}

func recordSequence(b []byte) uint64 { return binary.LittleEndian.Uint64(b[8:]) }

// parseRecord checks b, one whole record, and returns its payload, which shares b.
func (id spoolID) parseRecord(b []byte) (payload []byte, ok bool) {
	payload = b[recordHeaderLen:]
	return payload, id.checksum(b[4:16], payload) == binary.LittleEndian.Uint32(b[16:])
}

// findRecord returns where in b the first whole record starts that checks and has a sequence from low to high.
func (id spoolID) findRecord(b []byte, low, high uint64) (offset int, ok bool) {
	for at := 0; ; at++ {
		i := bytes.Index(b[at:], []byte(recordMagic))
		if i < 0 {
			return 0, false
		}
		at += i
		n, whole := recordLen(b[at:], int64(len(b)-at))
		if !whole || recordSequence(b[at:]) < low || recordSequence(b[at:]) > high {
			continue
		}
		if _, ok := id.parseRecord(b[at : at+int(n)]); ok {
			return at, true
		}
	}
}

// highestNumber returns the highest sequence that was perhaps given to a record in b, behind the given one: what the
// headers claim that can still be read, of what b has room for, and one at least.
func highestNumber(b []byte, after uint64) uint64 {
	highest, room := after+1, uint64(len(b)/recordHeaderLen+1)
	for at := 0; ; at++ {
		i := bytes.Index(b[at:], []byte(recordMagic))
		if i < 0 || len(b)-at-i < 16 {
			return highest
		}
		at += i
		if n := recordSequence(b[at:]); n > highest && n <= after+room {
			highest = n
		}
	}
}

// A cursor file is one line of text and then the note:
//
//	postbridge-cursor 1 <spool id> <sequence> <CRC32C in hex over spool id, sequence in decimal and note>
const cursorWord = "postbridge-cursor"

func (id spoolID) formatCursor(sequence uint64, note []byte) []byte {
	sum := id.checksum(strconv.AppendUint(nil, sequence, 10), note)
	return append(fmt.Appendf(nil, "%s %d %v %d %08x\n", cursorWord, formatVersion, id, sequence, sum), note...)
}

func (id spoolID) parseCursor(b []byte) (sequence uint64, note []byte, err error) {
	line, note, _ := bytes.Cut(b, []byte("\n"))
	words, err := versionedLine(line, cursorWord)
	if err != nil {
		return 0, nil, err
	}
	if len(words) == 3 {
		sequence, _ = strconv.ParseUint(words[1], 10, 64) // what is wrong is found below
	}
	if !bytes.Equal(b, id.formatCursor(sequence, note)) {
		return 0, nil, errDamaged
	}
	return sequence, note, nil
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
