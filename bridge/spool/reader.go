package spool

import (
	"errors"
	"io"
	"math"
)

// segmentReader reads the records of one segment.
type segmentReader struct {
	id     spoolID
	file   File
	next   uint64               // the lowest sequence that may come: a lower one is in bytes that the disk held before
	offset int64                // where the next record starts
	buf    []byte               // bytes at offset; payloads share it, so it is not written while they are used
	buffer   func(n int64) []byte // gives a buffer for the bytes from offset on, and takes the one before back
}

// readAhead is how much is read at once, unless less is there: enough to make a drain cheap, and little enough that a
// record which waits for long keeps little else in memory.
const readAhead = 256 << 10

// reuse gives the same buffer again and again, to a reader whose payloads are not kept.
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

// record returns the record at offset and steps behind it. Nothing at or behind limit is read, and no record has a number
// above last. It returns errDamaged if the bytes there do not check.
func (r *segmentReader) record(limit int64, last uint64) (sequence uint64, payload []byte, err error) {
	if err := r.fill(recordHeaderLen, limit); err != nil {
		return 0, nil, err
	}
	n, ok := r.id.recordLen(r.buf)
	if !ok {
		return 0, nil, errDamaged
	}
	if err := r.fill(n, limit); err != nil {
		return 0, nil, err
	}
	if int64(len(r.buf)) < n {
		return 0, nil, errDamaged
	}
	b := r.buf[:n:n]
	payload, ok = parseRecord(b)
	sequence = recordSequence(b)
	if !ok || sequence < r.next || sequence > last {
		return 0, nil, errDamaged
	}
	r.buf, r.offset, r.next = r.buf[n:], r.offset+n, sequence+1
	return sequence, payload, nil
}

// fill has buf hold n bytes, or as many as there are before limit or the end of the file.
func (r *segmentReader) fill(n, limit int64) error {
	if int64(len(r.buf)) >= n || r.offset+int64(len(r.buf)) >= limit {
		return nil
	}
	r.buf = nil // what it reads from may be given back
	buf := r.buffer(min(max(n, readAhead), limit-r.offset))
	read, err := r.file.ReadAt(buf, r.offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	r.buf = buf[:read]
	return nil
}

// resync steps over bytes that do not check, to the next record or else to limit, and returns them.
func (r *segmentReader) resync(limit int64, last uint64) (damage []byte, found bool, err error) {
	if err := r.fill(limit-r.offset, limit); err != nil {
		return nil, false, err
	}
	at, found := r.id.findRecord(r.buf, r.next, last)
	if !found {
		damage, r.buf, r.offset = r.buf, nil, limit
		return damage, false, nil
	}
	damage, r.buf, r.offset = r.buf[:at], r.buf[at:], r.offset+int64(at)
	return damage, true, nil
}

// recovered is what a scan of the last segment found.
type recovered struct {
	end     int64  // behind the last record that checks
	last    uint64 // its sequence; first-1 if there is none
	tornBytes    int64  // bytes behind end
	highest uint64 // the highest number that was perhaps said to anybody, as far as the segment shows
}

// recoverSegment reads the last segment. Bytes that do not check but have a record behind them are damage, and stay for
// the cursors to find; those with none behind them are torn: most often the end of a write that nobody was told of.
func recoverSegment(id spoolID, f File, first uint64, size int64) (recovered, error) {
	r := segmentReader{id: id, file: f, next: first, offset: segmentHeaderLen, buffer: reuseBuffer()}
	found := recovered{end: segmentHeaderLen, last: first - 1, highest: first - 1}
	for r.offset < size {
		sequence, _, err := r.record(size, math.MaxUint64)
		if errors.Is(err, errDamaged) {
			damage, more, err := r.resync(size, math.MaxUint64)
			if err != nil {
				return found, err
			}
			if !more {
				found.tornBytes = size - found.end
				found.highest = id.highestSequence(damage, found.last)
			}
			continue
		}
		if err != nil {
			return found, err
		}
		found.end, found.last, found.highest = r.offset, sequence, sequence
	}
	return found, nil
}
