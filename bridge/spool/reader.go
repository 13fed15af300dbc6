package spool

import (
	"errors"
	"io"
	"math"
)

// segmentReader reads the records of one segment in order and verifies each. It belongs to one goroutine.
type segmentReader struct {
	id     spoolID
	file   File
	next   uint64               // lowest sequence accepted; a lower one is a stale record
	offset int64                // position in the file of the next record
	buf    []byte               // the bytes from offset on; payloads share it, so it is never written again
	buffer func(n int64) []byte // returns n bytes; the buffer returned before belongs to its provider again
}

// readAhead is how many bytes one read fetches, if there are as many: enough for a fast drain, and few enough that a
// long-lived payload retains little other memory.
const readAhead = 256 << 10

// reuseBuffer returns a buffer function that returns the same memory each time, for readers that do not retain
// payloads.
func reuseBuffer() (take func(n int64) []byte) {
	var buffer []byte
	return func(n int64) []byte {
		if n > readAhead {
			return make([]byte, n)
		}
		if buffer == nil {
			buffer = make([]byte, readAhead)
		}
		return buffer[:n]
	}
}

// record returns the record at offset and advances past it. It reads no byte at or after limit. It returns errDamaged,
// and does not advance, if the record is invalid, incomplete, or has a sequence below next or above last; or if there
// is an end mark.
func (r *segmentReader) record(limit int64, last uint64) (sequence uint64, payload []byte, err error) {
	if err := r.fill(recordHeaderLen, limit); err != nil {
		return 0, nil, err
	}
	// The header is verified before its length is used.
	n, ok := r.id.recordLen(r.buf)
	// The record extends past limit: incomplete, its header is stale, or it is an end mark.
	if !ok || n > limit-r.offset {
		return 0, nil, errDamaged
	}
	if err := r.fill(n, limit); err != nil {
		return 0, nil, err
	}
	if int64(len(r.buf)) < n {
		return 0, nil, errDamaged // the file is shorter than limit
	}
	b := r.buf[:n:n]
	payload, ok = parseRecord(b)
	sequence = recordSequence(b)
	if !ok || sequence < r.next || sequence > last {
		return 0, nil, errDamaged
	}
	// Advanced only for a valid record: on errDamaged the caller resyncs from its start.
	r.buf, r.offset, r.next = r.buf[n:], r.offset+n, sequence+1
	return sequence, payload, nil
}

// fill reads until buf holds n bytes, or all bytes before limit or the end of the file if those are fewer.
func (r *segmentReader) fill(n, limit int64) error {
	if int64(len(r.buf)) >= n || r.offset+int64(len(r.buf)) >= limit {
		return nil
	}
	r.buf = nil // the provider may reuse its memory from here on
	// Read again from offset, so that a record is contiguous in buf and payloads need no copy.
	buf := r.buffer(min(max(n, readAhead), limit-r.offset))
	read, err := r.file.ReadAt(buf, r.offset)
	// A file may be shorter than limit, if somebody has truncated it: what is missing is damage.
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	r.buf = buf[:read]
	return nil
}

// resync skips invalid bytes up to the next valid record, or to limit if there is none, and returns the skipped bytes.
// It holds the rest of the segment in memory: damage is rare, and a record may be as long as that.
func (r *segmentReader) resync(limit int64, last uint64) (damage []byte, found bool, err error) {
	if err := r.fill(limit-r.offset, limit); err != nil {
		return nil, false, err
	}
	// The range excludes stale records, whose checksums are valid, too.
	at, found := r.id.findRecord(r.buf, r.next, last)
	if !found {
		damage, r.buf, r.offset = r.buf, nil, limit
		return damage, false, nil
	}
	damage, r.buf, r.offset = r.buf[:at], r.buf[at:], r.offset+int64(at)
	return damage, true, nil
}

// recovered is the result of scanning the last segment. Always first-1 <= last <= highest; the log continues after
// highest, and cursors read up to last.
type recovered struct {
	end     int64  // position after the last valid record
	last    uint64 // sequence of that record; first-1 without records
	torn    int64  // bytes from end to the end of the file; 0 if the log ends with an end mark, or with the file
	highest uint64 // highest sequence that may have been acknowledged, as far as this segment shows
}

// recoverSegment scans the last segment and changes nothing. Invalid bytes before a valid record are damage and stay
// for the cursors to report. Without a valid record behind them they are a torn tail: a write that was not finished, or
// damage if an end mark shows that it was.
func recoverSegment(fs FS, id spoolID, g SegmentInfo) (recovered, error) {
	found := recovered{end: segmentHeaderLen, last: g.First - 1, highest: g.First - 1}
	f, err := fs.Open(g.Name)
	if err != nil {
		return found, err
	}
	defer f.Close()
	r := segmentReader{id: id, file: f, next: g.First, offset: segmentHeaderLen, buffer: reuseBuffer()}
	for r.offset < g.Bytes {
		// Sequences only increase in a segment, so there is no upper bound yet.
		sequence, _, err := r.record(g.Bytes, math.MaxUint64)
		if errors.Is(err, errDamaged) {
			headers, err := id.hasHeader(f, r.offset+1, g.Bytes, r.next)
			if err != nil {
				return found, err
			}
			// Everything before end is kept, damage included.
			found.torn = g.Bytes - found.end
			switch {
			// The usual cases, without all the rest in memory: behind the end is nothing, or an earlier use of the
			// file.
			case !headers && id.isEndMark(r.buf, r.next):
				found.torn = 0
				return found, nil
			case !headers && g.version > 1:
				return found, nil
			}
			damage, more, err := r.resync(g.Bytes, math.MaxUint64)
			if err != nil {
				return found, err
			}
			if !more && g.version == 1 {
				found.highest = id.highestSequence1(damage, found.last)
			} else if !more {
				found.highest = id.highestSequence(damage, found.last)
			}
			continue
		}
		if err != nil {
			return found, err
		}
		found = recovered{end: r.offset, last: sequence, highest: sequence}
	}
	return found, nil
}
