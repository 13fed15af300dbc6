package spool_test

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/postbridge/postbridge/bridge/spool"
	"github.com/postbridge/postbridge/bridge/spool/crashfs"
)

// An independent implementation of the format, from the byte maps in DESIGN.md.

const testID = 0x5b001dea

func crc(parts ...[]byte) uint32 {
	return crc32.Checksum(bytes.Join(parts, nil), crc32.MakeTable(crc32.Castagnoli))
}

func le32(n uint32) []byte { return binary.LittleEndian.AppendUint32(nil, n) }
func le64(n uint64) []byte { return binary.LittleEndian.AppendUint64(nil, n) }

func segmentHeader(version, id uint32, first uint64) []byte {
	b := slices.Concat([]byte("PBSPOOL\xff"), le32(version), le32(id), le64(first), le32(0))
	return append(b, le32(crc(b))...)
}

const recordHeaderLen = 24

func record(id uint32, sequence uint64, payload string) []byte {
	start := slices.Concat([]byte("\xfepb\xff"), le32(uint32(len(payload))), le64(sequence))
	header, whole := crc(le32(id), start), crc(le32(id), start, []byte(payload))
	return slices.Concat(start, le32(header), le32(whole), []byte(payload))
}

func segmentFile(first uint64, payloads ...string) []byte {
	b := segmentHeader(2, testID, first)
	for i, p := range payloads {
		b = append(b, record(testID, first+uint64(i), p)...)
	}
	return b
}

func endMark(next uint64) []byte {
	start := slices.Concat([]byte("\xfepb\xff\xff\xff\xff\xff"), le64(next))
	return slices.Concat(start, le32(crc(le32(testID), start)), le32(crc(le32(testID), start)))
}

func cursorFile(version int, id uint32, sequence uint64, state string) []byte {
	sum := crc(le32(id), fmt.Append(nil, sequence), []byte(state))
	return fmt.Appendf(nil, "postbridge-cursor %d %08x %d %08x\n%s", version, id, sequence, sum, state)
}

// cursorSlot is a slot of a cursor file of version 2.
func cursorSlot(version int, id uint32, generation, sequence, mark uint64, state string) []byte {
	line := fmt.Appendf(nil, "postbridge-cursor %d %08x 4096 %d %d %d %d ",
		version, id, generation, sequence, mark, len(state))
	return fmt.Appendf(line, "%08x\n%s", crc(le32(id), line, []byte(state)), state)
}

// cursorSlots is a cursor file of version 2, with the second slot empty or not.
func cursorSlots(first, second []byte) []byte {
	b := make([]byte, 8192)
	copy(b, first)
	copy(b[4096:], second)
	return b
}

// savedPosition returns the committed sequence in the newest slot of the cursor of bus.
func savedPosition(fs *crashfs.FS) (committed uint64) {
	var newest uint64
	for line := range strings.Lines(strings.ReplaceAll(string(fs.ReadFile("cursor-bus")), "\x00", "\n")) {
		var id string
		var second, generation, sequence uint64
		_, err := fmt.Sscanf(line, "postbridge-cursor 2 %s %d %d %d", &id, &second, &generation, &sequence)
		if err == nil && generation > newest {
			newest, committed = generation, sequence
		}
	}
	return committed
}

func idFile(version int, id uint32) []byte {
	return fmt.Appendf(nil, "postbridge-spool %d %08x %08x\n", version, id, crc(le32(id)))
}

func segmentName(first uint64) string { return fmt.Sprintf("%020d.seg", first) }

// threeSegments creates a spool with the records 1:a to 9:i, three per segment, none of them committed. The last
// segment is preallocated.
func threeSegments(t testing.TB) *crashfs.FS {
	fs := crashfs.New(t)
	fs.WriteFile("spool", idFile(1, testID))
	fs.WriteFile(segmentName(1), segmentFile(1, "a", "b", "c"))
	fs.WriteFile(segmentName(4), segmentFile(4, "d", "e", "f"))
	fs.WriteFile(segmentName(7), over(ghi, filled(8192)))
	return fs
}

// ghi is the last segment of threeSegments.
var ghi = append(segmentFile(7, "g", "h", "i"), endMark(10)...)

// filled is a preallocated segment.
func filled(size int) []byte { return make([]byte, size) }

// used is a preallocated segment that was one of the log before. Some of its records have the same size as those of
// threeSegments.
func used() []byte {
	b := segmentFile(1, "a", "b", "c", strings.Repeat("stale ", 600), strings.Repeat("stale ", 600))
	return over(filled(32), over(slices.Concat(b, endMark(6)), filled(8192)))
}

// over returns what is in a file after b was written over its beginning.
func over(b, before []byte) []byte { return slices.Concat(b, before[min(len(b), len(before)):]) }

// version1 names the kind of segments that have no end marks.
const version1 = "of version 1"

// kinds are what the segments may be.
var kinds = map[string]func(*crashfs.FS){
	"preallocated": func(*crashfs.FS) {},
	"growing":      func(fs *crashfs.FS) { fs.WriteFile(segmentName(7), ghi) },
	"used before":  func(fs *crashfs.FS) { fs.WriteFile(segmentName(7), over(ghi, used())) },
	"not truncated": func(fs *crashfs.FS) {
		fs.WriteFile(segmentName(4), over(append(fs.ReadFile(segmentName(4)), endMark(7)...), filled(8192)))
	},
	version1: func(fs *crashfs.FS) {
		for first, payloads := range map[uint64]string{1: "abc", 4: "def", 7: "ghi"} {
			b := segmentFile(first, strings.Split(payloads, "")...)
			fs.WriteFile(segmentName(first), append(segmentHeader(1, testID, first), b[32:]...))
		}
	},
}

const (
	all        = "1:a 2:b 3:c 4:d 5:e 6:f 7:g 8:h 9:i"
	recordSize = recordHeaderLen + 1 // of these
)

// at returns the offset of the nth record of a segment, from 0.
func at(nth int) int { return 32 + nth*recordSize }

// change changes the header and the records of a file. If they get longer or shorter, that is a write that was not
// finished: it has no end mark, and behind it is what was there before.
func change(fs *crashfs.FS, name string, f func([]byte) []byte) {
	b := fs.ReadFile(name)
	end := bytes.Index(b, []byte("\xfepb\xff\xff\xff\xff\xff"))
	if end < 0 {
		fs.WriteFile(name, f(b))
		return
	}
	before := b
	written := f(bytes.Clone(b[:end]))
	switch {
	case len(written) == end:
	case bytes.Contains(b, []byte("stale")):
		before = used()
	case len(b) >= 8192:
		before = filled(len(b))
	default:
		before = nil
	}
	fs.WriteFile(name, over(written, before))
}

func flip(fs *crashfs.FS, name string, offset int) {
	b := fs.ReadFile(name)
	b[offset] ^= 0x10
	fs.WriteFile(name, b)
}

func cut(fs *crashfs.FS, name string, size int) {
	if name != segmentName(7) {
		fs.WriteFile(name, fs.ReadFile(name)[:size])
		return
	}
	change(fs, name, func(b []byte) []byte { return b[:size] })
}

func TestRecovery(t *testing.T) {
	first, second, last := segmentName(1), segmentName(4), segmentName(7)
	tests := []struct {
		name    string
		corrupt func(*crashfs.FS)
		want    string // records that the bus reads, and the sequence of the next record
		bad     string // quarantined files
	}{
		{"nothing", func(*crashfs.FS) {}, all + " 10:new", ""},
		{"flip in the end mark", func(fs *crashfs.FS) {
			if b := fs.ReadFile(last); len(b) > at(3) { // version 1 has none
				flip(fs, last, at(3)+8)
			}
		}, all + " 10:new", ""},
		{"preallocated segment that was used before", func(fs *crashfs.FS) { fs.WriteFile("next.tmp", used()) },
			all + " 10:new", ""},
		{"header of a segment with records is erased", func(fs *crashfs.FS) {
			fs.WriteFile(last, over(filled(32), fs.ReadFile(last)))
		}, all + " 10:new", ""},
		{"header of a segment with one record is erased", func(fs *crashfs.FS) {
			fs.WriteFile(segmentName(10), slices.Concat(filled(32), record(testID, 10, "j")))
		}, all + " 10:j 11:new", ""},
		{"zero-filled tail", func(fs *crashfs.FS) {
			change(fs, last, func(b []byte) []byte { return append(b, make([]byte, 5000)...) })
		}, all + " 10:new", ""},
		{"tail of another time", func(fs *crashfs.FS) {
			change(fs, last, func(b []byte) []byte { return append(b, record(testID, 2, "b")...) })
		}, all + " 10:new", ""},
		{"records of another time in the middle", func(fs *crashfs.FS) {
			change(fs, last, func(b []byte) []byte {
				return slices.Concat(b[:at(1)], record(testID, 6, "f"), record(testID, 7, "g"), b[at(1):])
			})
		}, all + " 10:new", "00000000000000000007-57.bad"},
		{"torn tail of several records", func(fs *crashfs.FS) {
			change(fs, last, func(b []byte) []byte {
				torn := slices.Concat(record(testID, 10, "j"), record(testID, 11, "k"), record(testID, 12, "l"))
				torn[recordHeaderLen] ^= 1
				torn[recordSize+recordHeaderLen] ^= 1
				return slices.Concat(b, torn[:3*recordSize-1])
			})
		}, all + " 10:new", ""},
		{"end of a write behind what is preallocated", func(fs *crashfs.FS) {
			fs.WriteFile(last, append(over(ghi, filled(8192)), record(testID, 12, "l")[:20]...))
		}, all + " 10:new", ""},
		{"a record without a payload behind what is preallocated", func(fs *crashfs.FS) {
			fs.WriteFile(last, append(over(ghi, filled(8192)), record(testID, 12, "l")[:24]...))
		}, all + " 10:new", ""},
		{"a record behind what is preallocated", func(fs *crashfs.FS) {
			fs.WriteFile(last, append(over(ghi, filled(200)), record(testID, 12, "l")...))
		}, all + " lost(10-11) 12:l 13:new", "00000000000000000007-107.bad"},
		{"an end mark behind what is preallocated", func(fs *crashfs.FS) {
			fs.WriteFile(last, append(over(ghi, filled(200)), endMark(12)...))
		}, all + " lost(10-11) 12:new", ""},
		{"hole before the end of a torn write", func(fs *crashfs.FS) {
			change(fs, last, func(b []byte) []byte {
				return slices.Concat(b, make([]byte, 2*recordSize), record(testID, 12, "l"))
			})
		}, all + " lost(10-11) 12:l 13:new", "00000000000000000007-107.bad"},
		{"flip in the first segment", func(fs *crashfs.FS) { flip(fs, first, at(1)+recordHeaderLen) },
			"1:a lost(2-2) 3:c 4:d 5:e 6:f 7:g 8:h 9:i 10:new", "00000000000000000001-57.bad"},
		{"flip at the end of the first segment", func(fs *crashfs.FS) { flip(fs, first, at(2)+recordHeaderLen) },
			"1:a 2:b lost(3-3) 4:d 5:e 6:f 7:g 8:h 9:i 10:new", "00000000000000000001-82.bad"},
		{"flip in the last segment", func(fs *crashfs.FS) { flip(fs, last, at(0)+recordHeaderLen) },
			"1:a 2:b 3:c 4:d 5:e 6:f lost(7-7) 8:h 9:i 10:new", "00000000000000000007-32.bad"},
		{"flip in two neighbours", func(fs *crashfs.FS) {
			flip(fs, last, at(0)+recordHeaderLen)
			flip(fs, last, at(1)+recordHeaderLen)
		}, "1:a 2:b 3:c 4:d 5:e 6:f lost(7-8) 9:i 10:new", "00000000000000000007-32.bad"},
		{"flip in two that are not", func(fs *crashfs.FS) {
			flip(fs, second, at(0)+recordHeaderLen)
			flip(fs, second, at(2)+recordHeaderLen)
		}, "1:a 2:b 3:c lost(4-4) 5:e lost(6-6) 7:g 8:h 9:i 10:new",
			"00000000000000000004-32.bad 00000000000000000004-82.bad"},
		{"flip in the very last record", func(fs *crashfs.FS) { flip(fs, last, at(2)+recordHeaderLen) },
			"1:a 2:b 3:c 4:d 5:e 6:f 7:g 8:h lost(9-9) 10:new", ""},
		{"flip in the magic of the very last record", func(fs *crashfs.FS) { flip(fs, last, at(2)) },
			"1:a 2:b 3:c 4:d 5:e 6:f 7:g 8:h lost(9-9) 10:new", ""},
		{"flip in the number of the very last record", func(fs *crashfs.FS) { flip(fs, last, at(2)+8) },
			"1:a 2:b 3:c 4:d 5:e 6:f 7:g 8:h lost(9-9) 10:new", ""},
		{"flip in the magic of a record", func(fs *crashfs.FS) { flip(fs, second, at(1)) },
			"1:a 2:b 3:c 4:d lost(5-5) 6:f 7:g 8:h 9:i 10:new", "00000000000000000004-57.bad"},
		{"flip in the number of a record", func(fs *crashfs.FS) { flip(fs, second, at(1)+8) },
			"1:a 2:b 3:c 4:d lost(5-5) 6:f 7:g 8:h 9:i 10:new", "00000000000000000004-57.bad"},
		{"length a little longer", func(fs *crashfs.FS) { flip(fs, second, at(1)+4) },
			"1:a 2:b 3:c 4:d lost(5-5) 6:f 7:g 8:h 9:i 10:new", "00000000000000000004-57.bad"},
		{"length of gigabytes", func(fs *crashfs.FS) { flip(fs, last, at(1)+7) },
			"1:a 2:b 3:c 4:d 5:e 6:f 7:g lost(8-8) 9:i 10:new", "00000000000000000007-57.bad"},
		{"header of the first segment", func(fs *crashfs.FS) { flip(fs, first, 3) }, all + " 10:new", ""},
		{"header of the last segment", func(fs *crashfs.FS) { flip(fs, last, 17) }, all + " 10:new", ""},
		{"a segment cut in its header", func(fs *crashfs.FS) { cut(fs, second, 31) },
			"1:a 2:b 3:c lost(4-6) 7:g 8:h 9:i 10:new", ""},
		{"the last segment cut in its header", func(fs *crashfs.FS) { cut(fs, last, 31) },
			"1:a 2:b 3:c 4:d 5:e 6:f 7:new", ""},
		{"a segment cut in a record", func(fs *crashfs.FS) { cut(fs, second, at(1)+5) },
			"1:a 2:b 3:c 4:d lost(5-6) 7:g 8:h 9:i 10:new", "00000000000000000004-57.bad"},
		{"a segment cut between records", func(fs *crashfs.FS) { cut(fs, second, at(1)) },
			"1:a 2:b 3:c 4:d lost(5-6) 7:g 8:h 9:i 10:new", ""},
		{"missing segment", func(fs *crashfs.FS) { fs.RemoveFile(second) },
			"1:a 2:b 3:c lost(4-6) 7:g 8:h 9:i 10:new", ""},
		{"missing first segment", func(fs *crashfs.FS) { fs.RemoveFile(first) },
			"4:d 5:e 6:f 7:g 8:h 9:i 10:new", ""},
		{"segment that a crash left without content", func(fs *crashfs.FS) { fs.WriteFile(segmentName(10), nil) },
			all + " 10:new", ""},
		{"preallocated segment", func(fs *crashfs.FS) { fs.WriteFile(segmentName(15), nil) }, all + " 10:new", ""},
		{"preallocated segment behind a write that was not finished", func(fs *crashfs.FS) {
			change(fs, last, func(b []byte) []byte { return append(b, record(testID, 10, "j")[:recordSize-1]...) })
			fs.WriteFile(segmentName(15), nil)
		}, all + " 10:new", ""},
		{"preallocated segment that came back", func(fs *crashfs.FS) {
			fs.WriteFile(segmentName(5), nil)
		}, all + " 10:new", ""},
		{"segment without records", func(fs *crashfs.FS) {
			fs.WriteFile(segmentName(10), segmentHeader(1, testID, 10))
		}, all + " 10:new", ""},
		{"torn first record of a segment", func(fs *crashfs.FS) {
			fs.WriteFile(segmentName(10), append(
				segmentHeader(1, testID, 10), record(testID, 10, "j")[:recordSize-1]...))
		}, all + " 10:new", ""},
		{"lost id file", func(fs *crashfs.FS) { fs.RemoveFile("spool") }, all + " 10:new", ""},
		{"flip in the id file", func(fs *crashfs.FS) { flip(fs, "spool", 22) }, all + " 10:new", ""},
		{"lost id file and a damaged header", func(fs *crashfs.FS) { fs.RemoveFile("spool"); flip(fs, first, 3) },
			all + " 10:new", ""},
		{"unfinished files", func(fs *crashfs.FS) {
			for _, name := range []string{"spool.tmp", "cursor-bus.tmp", "00000000000000000001-57.bad.tmp"} {
				fs.WriteFile(name, []byte("half"))
			}
		}, all + " 10:new", ""},
		{"files of somebody else", func(fs *crashfs.FS) {
			for _, name := range []string{
				"lost+found", "1.seg", "0000000000000000000x.seg", "00000000000000000000.seg",
			} {
				fs.WriteFile(name, []byte("not ours"))
			}
		}, all + " 10:new", ""},
		{"cursor", func(fs *crashfs.FS) { fs.WriteFile("cursor-bus", cursorFile(1, testID, 4, "")) },
			"5:e 6:f 7:g 8:h 9:i 10:new", ""},
		{"cursor at the end", func(fs *crashfs.FS) { fs.WriteFile("cursor-bus", cursorFile(1, testID, 9, "")) },
			"10:new", ""},
		{"unused preallocated segment", func(fs *crashfs.FS) {
			fs.RemoveFile(first)
			fs.WriteFile(segmentName(2), nil)
		}, "4:d 5:e 6:f 7:g 8:h 9:i 10:new", ""},
		{"cursor before the oldest", func(fs *crashfs.FS) {
			fs.RemoveFile(first)
			fs.WriteFile("cursor-bus", cursorFile(1, testID, 1, ""))
		}, "lost(2-3) 4:d 5:e 6:f 7:g 8:h 9:i 10:new", ""},
		{"cursor ahead of the log", func(fs *crashfs.FS) { fs.WriteFile("cursor-bus", cursorFile(1, testID, 20, "")) },
			"21:new", ""},
		{"another bus ahead of the log", func(fs *crashfs.FS) {
			fs.WriteFile("cursor-old", cursorFile(1, testID, 20, ""))
		}, all + " lost(10-20) 21:new", ""},
		{"cursor ahead of an empty segment", func(fs *crashfs.FS) {
			fs.WriteFile(segmentName(10), segmentHeader(1, testID, 10))
			fs.WriteFile("cursor-old", cursorFile(1, testID, 20, ""))
		}, all + " lost(10-20) 21:new", ""},
		{"cursor in the newer slot", func(fs *crashfs.FS) {
			fs.WriteFile("cursor-bus", cursorSlots(
				cursorSlot(2, testID, 1, 2, 9, "old"), cursorSlot(2, testID, 2, 4, 9, "new")))
		}, "5:e 6:f 7:g 8:h 9:i 10:new", ""},
		{"cursor whose newer slot was not written in full", func(fs *crashfs.FS) {
			fs.WriteFile("cursor-bus", cursorSlots(
				cursorSlot(2, testID, 3, 4, 9, "state"), cursorSlot(2, testID, 4, 6, 9, "state")[:40]))
		}, "5:e 6:f 7:g 8:h 9:i 10:new", ""},
		{"cursor that a longer one preceded", func(fs *crashfs.FS) {
			fs.WriteFile("cursor-bus", cursorSlots(append(
				cursorSlot(2, testID, 3, 4, 9, "state"), "of earlier"...), cursorSlot(2, testID, 2, 2, 9, "state")))
		}, "5:e 6:f 7:g 8:h 9:i 10:new", ""},
		{"cursor with two damaged slots", func(fs *crashfs.FS) {
			fs.WriteFile("cursor-bus", cursorSlots(
				cursorSlot(2, testID, 3, 4, 9, "state")[1:], cursorSlot(2, testID, 4, 6, 9, "state")[1:]))
		}, all + " 10:new", "cursor-bus.bad"},
		{"high-water mark of version 1", func(fs *crashfs.FS) { fs.WriteFile("offered-bus", []byte("?")) },
			all + " 10:new", ""},
		{"damaged cursor", func(fs *crashfs.FS) {
			fs.WriteFile("cursor-bus", cursorFile(1, testID, 4, "state"))
			flip(fs, "cursor-bus", len(cursorFile(1, testID, 4, ""))-3)
		}, all + " 10:new", "cursor-bus.bad"},
		{"damaged state", func(fs *crashfs.FS) {
			fs.WriteFile("cursor-bus", cursorFile(1, testID, 4, "state"))
			flip(fs, "cursor-bus", len(cursorFile(1, testID, 4, "")))
		}, all + " 10:new", "cursor-bus.bad"},
		{"empty cursor", func(fs *crashfs.FS) { fs.WriteFile("cursor-bus", nil) }, all + " 10:new", "cursor-bus.bad"},
		{"damaged cursor of another bus", func(fs *crashfs.FS) { fs.WriteFile("cursor-old", []byte("?\n")) },
			all + " 10:new", ""},
		{"cursor of another spool", func(fs *crashfs.FS) { fs.WriteFile("cursor-bus", cursorFile(1, testID+1, 4, "")) },
			all + " 10:new", "cursor-bus.bad"},
	}
	// Without end marks an unfinished write may be damage.
	unmarked := map[string]string{
		"zero-filled tail":             all + " lost(10-10) 11:new",
		"tail of another time":         all + " lost(10-10) 11:new",
		"torn tail of several records": all + " lost(10-11) 12:new",
	}
	for _, tt := range tests {
		for kind, make := range kinds {
			t.Run(tt.name+", "+kind, func(t *testing.T) {
				fs := threeSegments(t)
				make(fs)
				tt.corrupt(fs)
				want := tt.want
				if kind == version1 {
					want = cmp.Or(unmarked[tt.name], want)
				}
				wantRecovered(t, fs, want, tt.bad)
			})
		}
	}
}

// wantRecovered opens a spool three times: its content must stay the same, also over a crash, and no sequence may
// repeat.
func wantRecovered(t *testing.T, fs *crashfs.FS, want, bad string) {
	t.Helper()
	s := open(t, fs, options())
	if s.ID() != fmt.Sprintf("%08x", testID) {
		t.Errorf("the id is %s", s.ID())
	}
	// Without new records, skipped sequences are not reported again.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, fs.CrashClone(nil, 0), options())
	appendAll(t, s, "new")
	wantRecords(t, s.Cursor("bus"), want)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, fs, options())
	appendAll(t, s, "new")
	wantRecords(t, s.Cursor("bus"), want)
	if got := strings.Join(badFiles(fs), " "); got != bad {
		t.Errorf("kept is %q, want %q", got, bad)
	}
	closeSpool(t, s)
	s = open(t, fs, options())
	wantRecords(t, s.Cursor("bus"), want)
	if got := strings.Join(badFiles(fs), " "); got != bad {
		t.Errorf("kept is %q the second time, want %q", got, bad)
	}
	last := lastSegment(fs)
	if header := fs.ReadFile(segmentName(last))[:32]; !bytes.Equal(header, segmentHeader(1, testID, last)) &&
		!bytes.Equal(header, segmentHeader(2, testID, last)) {
		t.Errorf("the last segment begins with %q", header)
	}
	closeSpool(t, s)
	if names := fs.Names(); slices.ContainsFunc(names, func(n string) bool { return strings.HasSuffix(n, ".tmp") }) {
		t.Errorf("unfinished files are left: %q", names)
	}
}

func lastSegment(fs *crashfs.FS) (first uint64) {
	for _, name := range fs.Names() {
		n, err := strconv.ParseUint(strings.TrimSuffix(name, ".seg"), 10, 64)
		if err == nil && name == segmentName(n) {
			first = n
		}
	}
	return first
}

func badFiles(fs *crashfs.FS) (names []string) {
	for _, name := range fs.Names() {
		if strings.HasSuffix(name, ".bad") {
			names = append(names, name)
		}
	}
	return names
}

func TestDamageIsKeptAsItWas(t *testing.T) {
	fs := threeSegments(t)
	flip(fs, segmentName(4), at(1)+recordHeaderLen)
	want := fs.ReadFile(segmentName(4))[at(1):at(2)]
	o := options()
	o.Cursors = []string{"a", "b"}
	s := open(t, fs, o)
	before := s.Stats().Bytes
	drain(t, s.Cursor("a"))
	drain(t, s.Cursor("b"))
	if got := fs.ReadFile("00000000000000000004-57.bad"); !bytes.Equal(got, want) {
		t.Errorf("kept is %q, want %q", got, want)
	}
	if got := s.Stats().Bytes - before; got != recordSize {
		t.Errorf("two buses that found it count %d bytes, want %d", got, recordSize)
	}
	closeSpool(t, s)
	s = open(t, fs, o)
	if got := s.Stats().Bytes - before; got != recordSize {
		t.Errorf("opened again it counts %d bytes, want %d", got, recordSize)
	}
	closeSpool(t, s)
}

// TestDamageFoundByTwoAtOnce: damage that two cursors find is quarantined once and logged once.
func TestDamageFoundByTwoAtOnce(t *testing.T) {
	for range 100 {
		fs := threeSegments(t)
		flip(fs, segmentName(4), at(1)+recordHeaderLen)
		var log lines
		o := options()
		o.Log, o.Cursors = log.logger(), []string{"a", "b"}
		s := open(t, fs, o)
		before := s.Stats().Bytes
		fs.Before(func(crashfs.Op) { runtime.Gosched() })
		var both sync.WaitGroup
		for _, name := range o.Cursors {
			both.Go(func() { drain(t, s.Cursor(name)) })
		}
		both.Wait()
		if n := s.Stats().Bytes - before; n != recordSize || log.count() != 1 {
			t.Errorf("counted %d bytes and logged %d times", n, log.count())
		}
		closeSpool(t, s)
	}
}

// TestADamagedHeaderIsLogged in any segment.
func TestADamagedHeaderIsLogged(t *testing.T) {
	for _, first := range []uint64{1, 4, 7} {
		fs := threeSegments(t)
		flip(fs, segmentName(first), 17)
		var log lines
		o := options()
		o.Log = log.logger()
		s := open(t, fs, o)
		wantRecords(t, s.Cursor("bus"), all)
		if n := log.count(); n != 1 {
			t.Errorf("%d warnings of the header of %d", n, first)
		}
		closeSpool(t, s)
	}
}

// TestTornAtEveryByte cuts the last segment at every length: complete records stay, and the sequence of the torn record
// is used again.
func TestTornAtEveryByte(t *testing.T) {
	whole := segmentFile(7, "g", "h", "i")
	for size := range len(whole) {
		want, next := "1:a 2:b 3:c 4:d 5:e 6:f", 7
		for i, payload := range []string{"g", "h", "i"} {
			if size >= at(i+1) {
				want, next = fmt.Sprintf("%s %d:%s", want, 7+i, payload), 8+i
			}
		}
		for kind, make := range kinds {
			t.Run(fmt.Sprint(size, kind), func(t *testing.T) {
				fs := threeSegments(t)
				make(fs)
				cut(fs, segmentName(7), size)
				wantRecovered(t, fs, fmt.Sprintf("%s %d:new", want, next), "")
			})
		}
	}
}

// TestEndOfTheLog appends bytes to the last record. A torn write was neither acknowledged nor read: it skips no
// sequence and logs no warning. A damaged record may have been both.
func TestEndOfTheLog(t *testing.T) {
	const payload = "a payload that takes a while to write"
	batch := slices.Concat(record(testID, 10, "j"), record(testID, 11, payload))
	unfinished := func(sequence uint64) []byte { return record(testID, sequence, payload)[:recordHeaderLen+10] }
	flipped := func(b []byte, offset int) []byte {
		b = bytes.Clone(b)
		b[offset] ^= 0x10
		return b
	}
	type test struct {
		name string
		tail []byte
		want string
	}
	tests := []test{
		{"zeros where the payload should be", slices.Concat(unfinished(10), make([]byte, len(payload)-10)),
			"lost(10-10) 11:new"},
		{"a whole record with a flip", flipped(record(testID, 10, "j"), recordHeaderLen), "lost(10-10) 11:new"},
		{"damage, and a write that was not finished", slices.Concat(flipped(record(testID, 10, "j"), recordHeaderLen),
			unfinished(11)), "lost(10-10) 11:new"},
		{"damage, and less than a header", slices.Concat(flipped(record(testID, 10, "j"), recordHeaderLen),
			make([]byte, recordHeaderLen-1)), "lost(10-10) 11:new"},
		{"damage, and damage in a header", slices.Concat(flipped(record(testID, 10, "j"), recordHeaderLen),
			flipped(record(testID, 11, "k"), 4)), "lost(10-11) 12:new"},
		{"damage in a header, and damage", slices.Concat(flipped(record(testID, 10, "j"), 4),
			flipped(record(testID, 11, "k"), recordHeaderLen)), "lost(10-11) 12:new"},
		{"a hole, and a write that was not finished", slices.Concat(make([]byte, 2*recordSize), unfinished(12)),
			"lost(10-11) 12:new"},
		{"a header in a damaged payload",
			flipped(record(testID, 10, string(record(testID, 90, "k"))), recordSize+recordHeaderLen-1),
			"lost(10-10) 11:new"},
		{"the start of a record of another time", unfinished(9), "lost(10-10) 11:new"},
		{"the start of a record of another spool", record(testID+1, 10, payload)[:recordHeaderLen+10],
			"lost(10-10) 11:new"},
	}
	for size := range 2 * recordHeaderLen {
		want := "10:new"
		if size > recordHeaderLen {
			want = "lost(10-10) 11:new"
		}
		tests = append(tests, test{fmt.Sprintf("%d zeros", size), make([]byte, size), want})
	}
	for size := recordSize; size < len(batch); size++ {
		tests = append(tests, test{fmt.Sprintf("a batch cut at %d", size), batch[:size], "10:j 11:new"})
		for offset := recordSize; offset < recordSize+recordHeaderLen && size >= recordSize+recordHeaderLen; offset++ {
			want := "10:j lost(11-11) 12:new"
			if offset >= recordSize+20 || size == recordSize+recordHeaderLen {
				want = "10:j 11:new" // the checksum of a missing payload, or no byte of it
			}
			name := fmt.Sprintf("a batch cut at %d with a flip at %d", size, offset)
			tests = append(tests, test{name, flipped(batch[:size], offset), want})
		}
	}
	check := func(t *testing.T, kind string, tail []byte, want string) {
		fs := threeSegments(t)
		kinds[kind](fs)
		change(fs, segmentName(7), func(b []byte) []byte { return slices.Concat(b, tail) })
		var log lines
		o := options()
		o.Log = log.logger()
		closeSpool(t, open(t, fs.CrashClone(nil, 0), o))
		if n, lost := log.count(), strings.Count(want, "lost"); n != int64(lost) {
			t.Errorf("%s: there are %d warnings of %d losses", kind, n, lost)
		}
		wantRecovered(t, fs, all+" "+want, "")
	}
	marked := slices.DeleteFunc(slices.Sorted(maps.Keys(kinds)), func(kind string) bool { return kind == version1 })
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			check(t, version1, tt.tail, tt.want)
			var next uint64
			if _, err := fmt.Sscanf(tt.want[strings.LastIndex(tt.want, " ")+1:], "%d:new", &next); err != nil {
				t.Fatal(err)
			}
			valid := "10:new" // what remains of a write that was not finished
			if strings.HasPrefix(tt.want, "10:j") {
				valid = "10:j 11:new"
			}
			kind := marked[i%len(marked)]
			check(t, kind, slices.Concat(tt.tail, endMark(next)), tt.want)
			if len(tt.tail) > 0 {
				check(t, kind, tt.tail, valid)
			}
		})
	}
}

// TestVersion1Continued kills this version in each byte of a write into a segment of version 1, which then has end
// marks.
func TestVersion1Continued(t *testing.T) {
	write := slices.Concat(record(testID, 10, "the next record"), endMark(11))
	for size := range write {
		fs := threeSegments(t)
		kinds[version1](fs)
		b := fs.ReadFile(segmentName(7))
		fs.WriteFile(segmentName(7), slices.Concat(b, over(write[:size], endMark(10))))
		want := all + " 10:new"
		if size >= len(write)-len(endMark(11)) {
			want = all + " 10:the next record 11:new"
		}
		wantRecovered(t, fs, want, "")
	}
}

// TestFlipOfEveryBit flips each bit of the last segment: at most one record is lost, and none is invented.
func TestFlipOfEveryBit(t *testing.T) {
	for bit := range 8 * len(segmentFile(7, "g", "h", "i")) {
		fs := threeSegments(t)
		change(fs, segmentName(7), func(b []byte) []byte { b[bit/8] ^= 1 << (bit % 8); return b })
		want := all
		if nth := (bit/8 - 32) / recordSize; bit/8 >= 32 {
			intact := fmt.Sprintf("%d:%c", 7+nth, 'g'+nth)
			want = strings.Replace(all, intact, fmt.Sprintf("lost(%d-%d)", 7+nth, 7+nth), 1)
		}
		s := open(t, fs, options())
		if got := describe(drain(t, s.Cursor("bus"))); got != want {
			t.Errorf("bit %d: got %q, want %q", bit, got, want)
		}
		closeSpool(t, s)
	}
}

func TestWhatIsNewerIsRefused(t *testing.T) {
	for name, content := range map[string][]byte{
		"spool":        idFile(3, testID),
		segmentName(1): append(segmentHeader(3, testID, 1), "in a way not known"...),
		segmentName(7): append(segmentHeader(3, testID, 7), "in a way not known"...),
		"cursor-bus":   []byte("postbridge-cursor 3 in a way not known\n"),
		"cursor-old":   []byte("postbridge-cursor 12 in a way not known\n"),
	} {
		fs := threeSegments(t)
		fs.WriteFile(name, content)
		before := contents(fs)
		_, err := spool.Open(fs, options())
		if !errors.Is(err, spool.ErrNewer) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s of a newer version: %v", name, err)
		}
		if after := contents(fs); after != before {
			t.Errorf("a spool with %s of a newer version was changed:\n%s\n%s", name, before, after)
		}
		if names := fs.OpenFiles(); names != nil {
			t.Errorf("left open: %q", names)
		}
	}
}

// contents describes all files except the lock.
func contents(fs *crashfs.FS) string {
	var b strings.Builder
	for _, name := range fs.Names() {
		fmt.Fprintf(&b, "%s %q\n", name, fs.ReadFile(name))
	}
	return b.String()
}

func TestForeignSegmentIsRefused(t *testing.T) {
	for _, first := range []uint64{1, 7} {
		fs := threeSegments(t)
		fs.WriteFile(segmentName(first), segmentHeader(1, testID+1, first))
		before := contents(fs)
		_, err := spool.Open(fs, options())
		if !errors.Is(err, spool.ErrForeign) ||
			!strings.Contains(err.Error(), segmentName(first)+": belongs to another spool (5b001deb)") {
			t.Errorf("a segment of another spool: %v", err)
		}
		if contents(fs) != before {
			t.Error("a spool with a segment of another one was changed")
		}
	}
}

// TestLostIDIsRefused: without the spool id no record can be verified, and a wrong id would truncate them all.
func TestLostIDIsRefused(t *testing.T) {
	fs := crashfs.New(t)
	fs.WriteFile(segmentName(1), segmentFile(1, "a"))
	flip(fs, segmentName(1), 12)
	before := contents(fs)
	if _, err := spool.Open(fs, options()); err == nil || !strings.Contains(err.Error(), "id is lost") {
		t.Errorf("a spool that lost its id: %v", err)
	}
	if contents(fs) != before {
		t.Error("a spool that lost its id was changed")
	}
}

// TestForgedRecord stores payloads that look like records: if the outer record is damaged, they are not read as
// records.
func TestForgedRecord(t *testing.T) {
	for name, forged := range map[string][]byte{
		"no id":      record(0, 3, "forged"),
		"another id": record(testID+1, 3, "forged"),
		"plain checksums": slices.Concat([]byte("\xfepb\xff"), le32(6), le64(3),
			le32(crc([]byte("\xfepb\xff"), le32(6), le64(3))),
			le32(crc([]byte("\xfepb\xff"), le32(6), le64(3), []byte("forged"))), []byte("forged")),
		"a header and all behind it": slices.Concat(
			[]byte("\xfepb\xff"), le32(200), le64(3), le64(0), make([]byte, 300)),
		"a segment": segmentHeader(1, testID, 3),
	} {
		fs := crashfs.New(t)
		fs.WriteFile("spool", idFile(1, testID))
		fs.WriteFile(segmentName(1), segmentFile(1, "a", "before "+string(forged)+" after", "c", "d"))
		for offset := range len(forged) + recordHeaderLen {
			clone := fs.CrashClone(nil, 0)
			flip(clone, segmentName(1), at(1)+offset)
			s := open(t, clone, options())
			if got := describe(drain(t, s.Cursor("bus"))); got != "1:a lost(2-2) 3:c 4:d" {
				t.Errorf("%s, damaged at %d: the bus gets %q", name, offset, got)
			}
			closeSpool(t, s)
		}
	}
}

var update = flag.Bool("update", false, "write testdata anew")

// TestGolden reads a spool of this version, and writes the same bytes.
func TestGolden(t *testing.T) {
	fs := crashfs.New(t)
	fs.WriteFile("spool", idFile(1, testID))
	s := open(t, fs, options())
	appendAll(t, s, `{"id":"1"}`, "", strings.Repeat("long ", 100))
	records := drain(t, s.Cursor("bus"))
	busOf(s.Cursor("bus")).commit(records[1], "note\n")
	closeSpool(t, s)

	for _, name := range []string{"spool", segmentName(1), "cursor-bus"} {
		path := filepath.Join("testdata", "v2", name)
		if *update {
			if err := os.WriteFile(path, fs.ReadFile(name), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := fs.ReadFile(name); !bytes.Equal(got, want) {
			t.Errorf("%s is now\n%q, and was\n%q", name, got, want)
		}
	}
	wantGolden(t, "v2")
}

// TestVersion1 reads a spool that the first release wrote, and continues it as version 2.
func TestVersion1(t *testing.T) {
	fs := wantGolden(t, "v1")
	if last := lastSegment(fs); last <= 3 {
		t.Errorf("the log goes on in segment %d, of version 1", last)
	}
	s := open(t, fs, options())
	closeSpool(t, s)
	if has(fs, "offered-bus") {
		t.Error("the high-water mark of version 1 is left")
	}
}

// wantGolden opens the spool in a directory of testdata and appends to it.
func wantGolden(t *testing.T, dir string) (fs *crashfs.FS) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		fs = crashfs.New(t)
		files, err := os.ReadDir(filepath.Join("testdata", dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(filepath.Join("testdata", dir, f.Name()))
			if err != nil {
				t.Fatal(err)
			}
			fs.WriteFile(f.Name(), b)
		}
		s := open(t, fs, options())
		synctest.Wait()
		wantCommitted(t, s.Cursor("bus"), 2, "note\n")
		appendAll(t, s, "new")
		records := wantRecords(t, s.Cursor("bus"), "3:"+strings.Repeat("long ", 100)+" 4:new")
		if n := redelivered(t, records); n != 1 {
			t.Errorf("%d may have been returned before, want 1", n)
		}
		s.Cursor("bus").Commit(records[1])
		closeSpool(t, s)
		again := open(t, fs.CrashClone(nil, 0), options())
		wantCommitted(t, again.Cursor("bus"), 4, "note\n")
		closeSpool(t, again)
	})
	return fs
}
