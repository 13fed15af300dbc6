package spool

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
	"time"
)

// segment is one file of the log.
type segment struct {
	first uint64 // immutable
	base  int64  // immutable: bytes in the segments before it, since the spool was opened

	// Guarded by Spool.mu.
	size int64     // durable bytes, header included
	last uint64    // highest durable sequence; first-1 while there is none
	next *segment  // the one written after it; nil while this one is written
	publishedAt time.Time // when the files of the cursors said that every bus has it; zero before, and after a Rewind
	// going is set once it is being removed: no cursor is taken back to it.
	removing bool
}

func (g *segment) name() string { return segmentName(g.first) }

// A segment is a header and then records. All numbers are little-endian.
//
//	 0  8  magic "PBSPOOL" 0xFF
//	 8  4  format version
//	12  4  spool id
//	16  8  first sequence, as in the name
//	24  4  zero
//	28  4  CRC32C over bytes 0 to 28
const (
	segmentMagic     = "PBSPOOL\xff"
	segmentHeaderLen = 32
	segmentSuffix    = ".seg"
)

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
