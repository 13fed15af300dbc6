package spool_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/postbridge/postbridge/bridge/spool"
	"github.com/postbridge/postbridge/bridge/spool/crashfs"
)

// numbered returns the payload for a sequence in the fuzz tests.
func numbered(n uint64) string { return fmt.Sprintf("the payload of %d", n) }

// FuzzSegment opens a spool with fuzzed bytes as a segment, as the last one and before another.
func FuzzSegment(f *testing.F) {
	whole := segmentFile(1, numbered(1), numbered(2), numbered(3), numbered(4))
	f.Add(whole, false)
	f.Add(whole, true)
	f.Add(whole[:len(whole)-3], true)
	f.Add(append(bytes.Clone(whole), make([]byte, 100)...), true)
	ended := append(bytes.Clone(whole), endMark(5)...)
	f.Add(over(ended, filled(1000)), true)
	f.Add(over(ended, filled(1000)), false)
	f.Add(over(whole[:len(whole)-3], filled(1000)), true)
	f.Add(over(filled(32), over(whole, filled(1000))), true)
	f.Add(append(bytes.Clone(whole), whole[32:]...), true)
	f.Add(append(bytes.Clone(whole), record(testID, 9, numbered(9))...), false)
	f.Add([]byte{}, true)
	f.Fuzz(func(t *testing.T, b []byte, last bool) {
		if len(b) == 0 && !last {
			return // a preallocated segment of version 1: it has no sequences
		}
		fs := crashfs.New(t)
		fs.WriteFile("spool", idFile(1, testID))
		fs.WriteFile(segmentName(1), b)
		if !last {
			fs.WriteFile(segmentName(5), segmentFile(5, numbered(5), numbered(6)))
		}
		o := options()
		o.MaxBytes += 10 * int64(len(b))
		s, err := spool.Open(fs, o)
		if err != nil {
			return // of another spool or a newer format
		}
		appended := appendNumbered(t, s)
		records := drain(t, s.Cursor("bus"))
		wantNumbered(t, records, appended)
		closeSpool(t, s)

		s = open(t, fs.CrashClone(nil, 0), o)
		if again := describe(drain(t, s.Cursor("bus"))); again != describe(records) {
			t.Errorf("opened again, it has %q, and before %q", again, describe(records))
		}
		closeSpool(t, s)
	})
}

// appendNumbered appends a record with the payload for its sequence.
func appendNumbered(t *testing.T, s *spool.Spool) uint64 {
	next := s.Stats().Last + 1
	if n := appendAll(t, s, numbered(next)); n != next {
		t.Errorf("the record behind %d has number %d", next-1, n)
	}
	return next
}

func wantNumbered(t *testing.T, records []spool.Record, last uint64) {
	after := uint64(0)
	for _, r := range records {
		if r.Sequence-r.Lost != after+1 {
			t.Errorf("after %d comes %d with %d lost", after, r.Sequence, r.Lost)
		}
		if after = r.Sequence; r.Payload != nil && string(r.Payload) != numbered(r.Sequence) {
			t.Errorf("%d is %q", r.Sequence, r.Payload)
		}
	}
	if after != last {
		t.Errorf("the bus comes to %d of %d", after, last)
	}
}

// FuzzCursor opens a spool with fuzzed bytes as a cursor: invalid files are recognized and kept.
func FuzzCursor(f *testing.F) {
	f.Add(cursorFile(1, testID, 4, "state"))
	f.Add(cursorFile(1, testID, 12, ""))
	f.Add(cursorSlots(cursorSlot(2, testID, 1, 4, 9, "state"), nil))
	f.Add(cursorSlots(cursorSlot(2, testID, 3, 4, 9, ""), cursorSlot(2, testID, 2, 3, 9, "state")))
	f.Add(cursorSlots([]byte("postbridge-cursor 2"), cursorSlot(2, testID, 2, 3, 9, "state")))
	f.Add(cursorFile(1, testID+1, 4, "state"))
	f.Add([]byte("postbridge-cursor 1"))
	f.Add([]byte("\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		fs := threeSegments(t)
		fs.WriteFile("cursor-bus", b)
		s, err := spool.Open(fs, options())
		if errors.Is(err, spool.ErrNewer) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		committed, state := s.Cursor("bus").Committed()
		kept := fs.ReadFile("cursor-bus.bad")
		isCursor := bytes.Equal(b, cursorFile(1, testID, committed, string(state)))
		for at := 0; at < len(b); at += 4096 { // or one of its slots has what Committed returns
			var id, sum string
			var second, generation, sequence, mark, length uint64
			_, err := fmt.Sscanf(string(b[at:]), "postbridge-cursor 2 %s %d %d %d %d %d %s\n",
				&id, &second, &generation, &sequence, &mark, &length, &sum)
			slot := fmt.Appendf(nil, "postbridge-cursor 2 %08x %d %d %d %d %d ",
				testID, second, generation, committed, mark, len(state))
			slot = fmt.Appendf(slot, "%08x\n%s", crc(le32(testID), slot, state), state)
			isCursor = isCursor || err == nil && sequence == committed && bytes.HasPrefix(b[at:], slot)
		}
		if isCursor == (kept != nil) {
			t.Errorf("the bus stands at %d with %q, and kept is %q", committed, state, kept)
		}
		if kept != nil && (committed != 0 || !bytes.Equal(kept, b)) {
			t.Errorf("the bus stands at %d after a damaged cursor, and kept is %q", committed, kept)
		}
		closeSpool(t, s)
	})
}
