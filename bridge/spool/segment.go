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

// segment is one file of the log. The segments of a spool form a list in order of first; their ranges of sequences do
// not overlap, and sequences between them have no record.
type segment struct {
	first uint64 // immutable: lower bound of the sequences, and the file's name
	base  int64  // immutable: position in the log at which the segment starts, in bytes since the spool was opened
	// preallocated is the size of the file when it became the last segment, immutable; 0 if it grows with each record.
	preallocated int64

	// Guarded by Spool.mu. size and last change together, after the sync: every record below size is durable and none
	// has a sequence above last. Only the writer changes them, and not any more once next is set.
	size int64    // durable bytes, header included
	last uint64   // highest durable sequence; first-1 without records, next.first-1 once next is set
	next *segment // the following segment; nil for the last one, which the writer appends to
	// publishedAt is when the saved cursors of all buses were first seen to cover last: Options.Keep starts there. It
	// is zero before that, and again after a Rewind to a sequence before last.
	publishedAt time.Time
	// fillFailed is set if the segment after it could not be preallocated, which is not tried again.
	fillFailed bool
	// removing is set before the file is removed and never reset: no cursor is rewound to the segment.
	removing bool
}

// name returns the file name.
func (g *segment) name() string { return segmentName(g.first) }

// A segment is a 32-byte header and records, without gaps, and in the last segment an end mark. All numbers are
// little-endian.
//
//	 0  8  magic "PBSPOOL" 0xFF
//	 8  4  format version
//	12  4  spool id
//	16  8  first sequence, as in the name
//	24  4  zero
//	28  4  CRC32C over bytes 0 to 28, not seeded by the id
//
// What is behind the end mark of the last segment means nothing: it was preallocated, or is left of an earlier use of
// the file. Version 1 created the next segment as an empty file with its name.
const (
	segmentMagic     = "PBSPOOL\xff"
	segmentHeaderLen = 32
	segmentSuffix    = ".seg"
)

// segmentName returns the file name of a segment: first as 20 decimal digits, so that names sort like sequences.
func segmentName(first uint64) string { return fmt.Sprintf("%020d%s", first, segmentSuffix) }

// parseSegmentName returns the first sequence in a file name; ok is false if the name is not that of a segment.
func parseSegmentName(name string) (first uint64, ok bool) {
	digits, found := strings.CutSuffix(name, segmentSuffix)
	if !found || len(digits) != 20 {
		return 0, false
	}
	first, err := strconv.ParseUint(digits, 10, 64)
	return first, err == nil && first > 0
}

// appendSegmentHeader appends an encoded segment header to b.
func (id spoolID) appendSegmentHeader(b []byte, first uint64) []byte {
	start := len(b)
	b = append(b, segmentMagic...)
	b = binary.LittleEndian.AppendUint32(b, formatVersion)
	b = binary.LittleEndian.AppendUint32(b, uint32(id))
	b = binary.LittleEndian.AppendUint64(b, first)
	b = binary.LittleEndian.AppendUint32(b, 0)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// parseSegmentHeader returns the format version and the spool id in a segment header. It returns ErrDamaged if the
// header is invalid, and wraps ErrNewer if a newer version wrote it. The layout of these 32 bytes is the same in every
// version, so that a flipped bit is not mistaken for a newer version.
func parseSegmentHeader(b []byte) (version uint32, id spoolID, err error) {
	if len(b) < segmentHeaderLen || !bytes.HasPrefix(b, []byte(segmentMagic)) ||
		crc32.Checksum(b[:28], castagnoli) != binary.LittleEndian.Uint32(b[28:]) {
		return 0, 0, errDamaged
	}
	if version = binary.LittleEndian.Uint32(b[8:]); version > formatVersion {
		return 0, 0, fmt.Errorf("format version %d: %w", version, ErrNewer)
	}
	return version, spoolID(binary.LittleEndian.Uint32(b[12:])), nil
}
