package spool_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/postbridge/postbridge/bridge/spool"
	"github.com/postbridge/postbridge/bridge/spool/crashfs"
)

func inspect(t testing.TB, fs spool.FS) *spool.View {
	t.Helper()
	v, err := spool.Inspect(fs)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// seen is what a view shows: records as 1:a, what gives none as its error.
func seen(v *spool.View) string {
	var all []string
	for r, err := range v.Records() {
		var d *spool.Damage
		switch {
		case err == nil:
			all = append(all, fmt.Sprintf("%d:%s", r.Sequence, r.Payload))
		case errors.As(err, &d) && d.From <= d.To:
			all = append(all, fmt.Sprintf("%d-%d %v", d.From, d.To, d.Err))
		default:
			all = append(all, fmt.Sprint(errors.Unwrap(err)))
		}
	}
	return strings.Join(all, ", ")
}

func wantSeen(t testing.TB, fs spool.FS, want string) *spool.View {
	t.Helper()
	v := inspect(t, fs)
	if got := seen(v); got != want {
		t.Errorf("seen is\n%s\nwant\n%s", got, want)
	}
	return v
}

const allNine = "1:a, 2:b, 3:c, 4:d, 5:e, 6:f, 7:g, 8:h, 9:i"

func TestInspect(t *testing.T) {
	fs := threeSegments(t)
	fs.WriteFile("cursor-nats", cursorFile(1, testID, 5, "state"))
	before := fs.Names()
	v := wantSeen(t, fs, allNine)
	if v.ID != "5b001dea" || v.InUse || len(v.Faults) != 0 {
		t.Errorf("the view is %+v", v)
	}
	if last := v.Segments[2]; last.First != 7 || last.Last != 9 || v.Segments[0].Last != 3 {
		t.Errorf("the segments are %+v", v.Segments)
	}
	if len(v.Cursors) != 1 || v.Cursors[0].Bus != "nats" || v.Cursors[0].Committed != 5 || v.Next != 10 {
		t.Errorf("the cursors are %+v, and the next number is %d", v.Cursors, v.Next)
	}
	if after := fs.Names(); !slices.Equal(after, before) || fs.Count(crashfs.Write) > 0 {
		t.Errorf("looking has changed %v to %v", before, after)
	}
}

// staleSizes lists files with sizes that are half of what they are when they are opened.
type staleSizes struct{ spool.FS }

func (s staleSizes) List() ([]spool.FileInfo, error) {
	files, err := s.FS.List()
	for i := range files {
		if strings.HasPrefix(files[i].Name, "cursor-") || files[i].Name == "id" {
			files[i].Size /= 2
		}
	}
	return files, err
}

// TestInspectReplaced reads a cursor that a longer one replaced after the files were listed.
func TestInspectReplaced(t *testing.T) {
	fs := threeSegments(t)
	fs.WriteFile("cursor-nats", cursorFile(1, testID, 5, "state"))
	v, err := spool.Inspect(staleSizes{fs})
	if err != nil || len(v.Faults) != 0 || len(v.Cursors) != 1 || v.Cursors[0].Committed != 5 {
		t.Errorf("%+v, %v", v, err)
	}
}

func TestInspectDamage(t *testing.T) {
	flip := func(at int) func(b []byte) []byte {
		return func(b []byte) []byte { b[at] ^= 1; return b }
	}
	first := len(segmentFile(1, "a"))
	for name, c := range map[string]struct {
		damage func(fs *crashfs.FS)
		want   string
		faults string
	}{
		"in the middle": {damage: func(fs *crashfs.FS) {
			change(fs, segmentName(4), flip(first+5))
		}, want: "1:a, 2:b, 3:c, 4:d, 5-5 damaged, 6:f, 7:g, 8:h, 9:i"},
		"at its end": {damage: func(fs *crashfs.FS) {
			change(fs, segmentName(4), flip(first+recordHeaderLen+1))
		}, want: "1:a, 2:b, 3:c, 4:d, 5:e, 6-6 damaged, 7:g, 8:h, 9:i"},
		"a whole one": {damage: func(fs *crashfs.FS) {
			change(fs, segmentName(4), func(b []byte) []byte { return make([]byte, len(b)) })
		}, want: "1:a, 2:b, 3:c, 4-6 damaged, 7:g, 8:h, 9:i", faults: segmentName(4)},
		"the last": {damage: func(fs *crashfs.FS) {
			change(fs, segmentName(7), flip(len(segmentFile(7, "g", "h", "i"))-1))
		}, want: "1:a, 2:b, 3:c, 4:d, 5:e, 6:f, 7:g, 8:h, 9-9 damaged"},
		"unfinished": {damage: func(fs *crashfs.FS) {
			change(fs, segmentName(7), func(b []byte) []byte { return b[:len(b)-1] })
		}, want: "1:a, 2:b, 3:c, 4:d, 5:e, 6:f, 7:g, 8:h"},
		"one is missing": {damage: func(fs *crashfs.FS) {
			fs.RemoveFile(segmentName(4))
		}, want: "1:a, 2:b, 3:c, 4-6 damaged, 7:g, 8:h, 9:i"},
		"an unused preallocated one": {damage: func(fs *crashfs.FS) {
			fs.RemoveFile(segmentName(1))
			fs.WriteFile(segmentName(2), nil)
		}, want: "4:d, 5:e, 6:f, 7:g, 8:h, 9:i"},
		"foreign": {damage: func(fs *crashfs.FS) {
			change(fs, segmentName(4), func([]byte) []byte { return segmentHeader(1, 7, 4) })
		}, want: "1:a, 2:b, 3:c, 4-6 belongs to another spool (00000007), 7:g, 8:h, 9:i", faults: segmentName(4)},
		"newer": {damage: func(fs *crashfs.FS) {
			change(fs, segmentName(4), func([]byte) []byte { return segmentHeader(3, testID, 4) })
		},
			want:   "1:a, 2:b, 3:c, 4-6 format version 3: " + spool.ErrNewer.Error() + ", 7:g, 8:h, 9:i",
			faults: segmentName(4)},
		"no id": {damage: func(fs *crashfs.FS) { fs.RemoveFile("spool") }, want: allNine, faults: "spool"},
		"another id": {damage: func(fs *crashfs.FS) {
			fs.WriteFile("spool", idFile(1, 7))
		}, want: allNine, faults: "spool"},
		"a cursor": {damage: func(fs *crashfs.FS) {
			fs.WriteFile("cursor-nats", []byte("?"))
		}, want: allNine, faults: "cursor-nats"},
		"another cursor": {damage: func(fs *crashfs.FS) {
			fs.WriteFile("cursor-nats", cursorSlots(cursorSlot(2, 7, 1, 3, 3, ""), nil))
		}, want: allNine, faults: "cursor-nats"},
	} {
		t.Run(name, func(t *testing.T) {
			fs := threeSegments(t)
			c.damage(fs)
			if name == "one is missing" {
				c.want = "1:a, 2:b, 3:c, 4-6 " + spool.ErrGap.Error() + ", 7:g, 8:h, 9:i"
			}
			v := wantSeen(t, fs, c.want)
			var faults []string
			for _, f := range v.Faults {
				faults = append(faults, f.File)
			}
			if got := strings.Join(faults, " "); got != c.faults {
				t.Errorf("faults are of %q, want %q", got, c.faults)
			}
		})
	}
}

// TestInspectBesideALiveProcess: Inspect does not return records appended after it, an unfinished write is not damage,
// and a segment removed meanwhile is not a loss.
func TestInspectBesideALiveProcess(t *testing.T) {
	fs := threeSegments(t)
	s := open(t, fs, options())
	v := inspect(t, fs)
	if !v.InUse {
		t.Error("the view does not say that a process has the spool open")
	}
	appendAll(t, s, "j", "k")
	if got := seen(v); got != allNine {
		t.Errorf("seen is %s", got)
	}
	v = wantSeen(t, fs, allNine+", 10:j, 11:k")
	closeSpool(t, s)

	fs.RemoveFile(segmentName(1))
	var all []uint64
	for r, err := range v.Records() {
		if err != nil {
			t.Fatal(err)
		}
		fs.RemoveFile(segmentName(4)) // while it is read
		all = append(all, r.Sequence)
	}
	if !slices.Equal(all, []uint64{4, 5, 6, 7, 8, 9, 10, 11}) {
		t.Errorf("seen is %v", all)
	}

	lock, err := fs.Lock("lock")
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	change(fs, segmentName(7), func(b []byte) []byte { return b[:len(b)-3] })
	wantSeen(t, fs, "7:g, 8:h, 9:i, 10:j")
	flip(fs, segmentName(7), at(3)+recordHeaderLen)
	wantSeen(t, fs, "7:g, 8:h, 9:i")
}

// TestInspectReadsOnly: a directory and files that can only be read are enough.
func TestInspectReadsOnly(t *testing.T) {
	dir := t.TempDir()
	disk, err := spool.OSDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, disk, options())
	appendAll(t, s, "a", "b")
	fs, err := spool.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if v := wantSeen(t, fs, "1:a, 2:b"); !v.InUse {
		t.Error("the view does not say that the spool is open")
	}
	closeSpool(t, s)
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, f := range files {
		if err := os.Chmod(f, 0o400); err != nil {
			t.Fatal(err)
		}
	}
	if v := wantSeen(t, fs, "1:a, 2:b"); v.InUse {
		t.Error("the view says that the closed spool is open")
	}
	if _, err := spool.ReadDir(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("looking at no directory: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "none")); err == nil {
		t.Error("looking has made the directory")
	}
}

// TestReadingTakesTheSameMemoryForAnySpool: none of the records stays.
func TestReadingTakesTheSameMemoryForAnySpool(t *testing.T) {
	const records, inASegment = 200_000, 20_000
	dir := t.TempDir()
	writeMillion(t, dir, records, inASegment)
	fs, err := spool.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	v := inspect(t, fs)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	n := 0
	for _, err := range v.Records() {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	runtime.ReadMemStats(&after)
	if n != records {
		t.Errorf("read %d records of %d", n, records)
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > 2<<20 {
		t.Errorf("reading %d records took %d bytes of memory in all", n, took)
	}
}

// TestNumbersOfWhatIsQuarantined: a bus may have seen the sequences of a quarantined segment, or may see them later, so
// they are not used again, even if the repair dies before it has moved anything.
func TestNumbersOfWhatIsQuarantined(t *testing.T) {
	newer := append(segmentHeader(3, testID, 7), segmentFile(7, "g", "h", "i")[32:]...)
	mayHold := 7 + uint64(len(newer))/24
	for name, c := range map[string]struct {
		damage func(fs *crashfs.FS)
		want   uint64 // the next number
	}{
		"as many as there may be": {func(fs *crashfs.FS) { fs.WriteFile(segmentName(7), newer) }, mayHold},
		"however few were offered": {func(fs *crashfs.FS) {
			fs.WriteFile(segmentName(7), newer)
			fs.WriteFile("cursor-bus", cursorSlots(cursorSlot(2, testID, 1, 0, 8, ""), nil))
		}, mayHold},
		"whose name is taken": {func(fs *crashfs.FS) {
			fs.WriteFile(segmentName(7), newer)
			fs.WriteFile(segmentName(11), append(segmentHeader(1, 7, 11), record(7, 11, "k")...))
		}, 12},
		"of two segments": {func(fs *crashfs.FS) {
			fs.WriteFile(segmentName(4), newer)
			fs.WriteFile(segmentName(7), newer)
		}, mayHold},
		"of one that is empty but for its header": {func(fs *crashfs.FS) {
			fs.WriteFile(segmentName(7), segmentHeader(3, testID, 7))
		}, 8},
		"in the middle":   {func(fs *crashfs.FS) { fs.WriteFile(segmentName(4), segmentHeader(3, testID, 4)) }, 10},
		"another spool's": {func(fs *crashfs.FS) { fs.WriteFile(segmentName(7), segmentHeader(1, 7, 7)) }, 7},
		"nothing":         {func(*crashfs.FS) {}, 10},
	} {
		t.Run(name, func(t *testing.T) {
			fs := threeSegments(t)
			c.damage(fs)
			before := segments(fs)
			died := errors.New("died")
			_, err := spool.Repair(fs, func(spool.Fault) error {
				if _, err := spool.Repair(fs, nil); !errors.Is(err, spool.ErrLocked) {
					t.Errorf("the spool is repaired twice: %v", err)
				}
				return died
			})
			if !errors.Is(err, died) && name != "nothing" {
				t.Fatalf("a repair that dies: %v", err)
			}
			fenced := segments(fs)
			if !strings.HasPrefix(fenced, before) {
				t.Errorf("going on from there has changed the segments to\n%s", fenced)
			}
			fs = fs.CrashClone(nil, 0)
			v, err := spool.Repair(fs, func(f spool.Fault) error {
				if now := segments(fs); now != fenced {
					t.Errorf("done once, the log goes on elsewhere:\n%s\n%s", fenced, now)
				}
				fs.RemoveFile(f.File)
				fenced = segments(fs)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if v.Next != c.want || slices.ContainsFunc(v.Faults, spool.Fault.Refused) {
				t.Errorf("the repaired spool goes on with %d: %+v", v.Next, v.Faults)
			}
			s := open(t, fs, options())
			if got := appendAll(t, s, "new"); got != c.want {
				t.Errorf("the next number is %d, want %d", got, c.want)
			}
			closeSpool(t, s)
		})
	}
}

// TestOpenRefusesWhatRepairQuarantines: what Open refuses is refused before anything is changed, and names the file.
func TestOpenRefusesWhatRepairQuarantines(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(fs *crashfs.FS)
		want   string // what is quarantined
	}{
		"newer": {func(fs *crashfs.FS) {
			fs.WriteFile("spool", idFile(3, testID))
			fs.WriteFile(segmentName(4), segmentHeader(3, testID, 4))
			fs.WriteFile("cursor-bus", []byte("postbridge-cursor 3 in a way not known\n"))
			fs.WriteFile("cursor-old", []byte("postbridge-cursor 13 in a way not known\n"))
		}, "spool " + segmentName(4) + " cursor-bus cursor-old"},
		"another id": {func(fs *crashfs.FS) { fs.WriteFile("spool", idFile(1, 7)) }, "spool"},
		"lost id": {func(fs *crashfs.FS) {
			fs.RemoveFile("spool")
			for _, first := range []uint64{1, 4, 7} {
				flip(fs, segmentName(first), 3)
			}
		}, segmentName(1) + " " + segmentName(4) + " " + segmentName(7)},
		"a disk that gives nothing": {func(fs *crashfs.FS) {
			fs.Inject(crashfs.Fault{Op: crashfs.Read, Nth: 1, Outcome: crashfs.Failed}) // for Open
			fs.Inject(crashfs.Fault{Op: crashfs.Read, Nth: 7, Outcome: crashfs.Failed}) // for Repair
		}, segmentName(1)},
		"what Open repairs": {func(fs *crashfs.FS) {
			flip(fs, "spool", 22)
			flip(fs, segmentName(4), 3)
			fs.WriteFile("cursor-bus", []byte("?"))
			fs.WriteFile("spool.tmp", []byte("half"))
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			fs := threeSegments(t)
			c.damage(fs)
			before := contents(fs)
			if c.want != "" {
				first, _, _ := strings.Cut(c.want, " ")
				_, err := spool.Open(fs, options())
				if err == nil || !strings.Contains(err.Error(), first+": ") {
					t.Errorf("Open: %v", err)
				}
			}
			var quarantined []string
			_, err := spool.Repair(fs, func(f spool.Fault) error {
				quarantined = append(quarantined, f.File)
				if len(quarantined) == 1 && contents(fs) != before {
					t.Error("a spool that is refused was changed")
				}
				fs.RemoveFile(f.File)
				return nil
			})
			if got := strings.Join(quarantined, " "); got != c.want || err != nil {
				t.Errorf("quarantined are %q, want %q, %v", got, c.want, err)
			}
			closeSpool(t, open(t, fs, options()))
		})
	}
}
