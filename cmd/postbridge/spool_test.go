package main

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postbridge/postbridge/bridge/spool"
)

// emptyRecord is the spool record of an event in which nothing is set.
const emptyRecord = "\x01\x00" + "\x00\x00\x00\x00\x00\x00\x00\x00" + "\x00\x00\x00\x00\x00\x00" + "{}"

// writeSpool makes a data directory with a spool of so many segments, two events in each, of which nats has had all.
func writeSpool(t *testing.T, segments int) (dataDir string) {
	t.Helper()
	dataDir = t.TempDir()
	s := openSpool(t, dataDir)
	record := []byte(emptyRecord + strings.Repeat(" ", 3000)) // two fill a segment
	for range 2 * segments {
		appendRecord(t, s, record)
	}
	cursor := s.Cursor("nats")
	for range 2 * segments {
		r, err := cursor.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		cursor.Commit(r)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return dataDir
}

func openSpool(t *testing.T, dataDir string) *spool.Spool {
	t.Helper()
	fs, err := spool.OSDir(filepath.Join(dataDir, "spool"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := spool.Open(fs, spool.Options{MaxBytes: 64 << 10, Keep: time.Hour, Cursors: []string{"nats"}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func appendRecord(t *testing.T, s *spool.Spool, record []byte) (sequence uint64) {
	t.Helper()
	ticket, err := s.Append(record)
	if err == nil {
		sequence, err = s.Wait(ticket)
	}
	if err != nil {
		t.Fatal(err)
	}
	return sequence
}

// segmentsOf are the paths of the segments, oldest first.
func segmentsOf(t *testing.T, dataDir string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dataDir, "spool", "*.seg"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("the segments are %q, %v", paths, err)
	}
	return paths
}

// makeNewer has a segment be of the next format version.
func makeNewer(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[8]++
	binary.LittleEndian.PutUint32(b[28:], crc32.Checksum(b[:28], crc32.MakeTable(crc32.Castagnoli)))
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestRepairThatDies: nothing but the segments that are moved says which numbers a bus has seen, so a repair that dies on the
// way must not have moved them before these are kept from being used again.
func TestRepairThatDies(t *testing.T) {
	dataDir := writeSpool(t, 3)
	makeNewer(t, segmentsOf(t, dataDir)[2])
	if err := os.Remove(filepath.Join(dataDir, "spool", "cursor-nats")); err != nil { // which says one of them
		t.Fatal(err)
	}
	fs, err := spool.OSDir(filepath.Join(dataDir, "spool"))
	if err != nil {
		t.Fatal(err)
	}
	died := errors.New("died")
	if _, err := spool.Repair(fs, func(spool.Fault) error { return died }); !errors.Is(err, died) {
		t.Fatalf("a repair that dies: %v", err)
	}
	got := runWith(t, environ("DATA_DIR="+dataDir), "spool", "repair")
	if got.code != 0 {
		t.Fatalf("repaired again: %d %s", got.code, got.stderr)
	}
	s := openSpool(t, dataDir)
	defer s.Close()
	if n := appendRecord(t, s, []byte(emptyRecord)); n <= 6 {
		t.Errorf("the number %d is used again", n)
	}
}

// TestRepairAsRoot: what root makes, the user of serve could not open.
func TestRepairAsRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a directory away")
	}
	dataDir := writeSpool(t, 1)
	before := segmentsOf(t, dataDir)
	makeNewer(t, before[0])
	if err := os.Chown(filepath.Join(dataDir, "spool"), 65534, 65534); err != nil {
		t.Fatal(err)
	}
	got := runWith(t, environ("DATA_DIR="+dataDir), "spool", "repair")
	want := "the spool belongs to user 65534, who cannot open files that root creates; run repair as that user"
	if got.code != 1 || !strings.Contains(got.stderr, want) {
		t.Errorf("exit code %d, %s", got.code, got.stderr)
	}
	if after := segmentsOf(t, dataDir); !slices.Equal(after, before) {
		t.Errorf("the segments are %q, before %q", after, before)
	}
}

// TestEmptyFilters: a filter with nothing in it, as a variable that is not set leaves it, does not stand for everything.
func TestEmptyFilters(t *testing.T) {
	settings := environ("DATA_DIR=" + writeSpool(t, 1))
	for _, name := range []string{"broker", "from", "to", "sequence"} {
		got := runWith(t, settings, "spool", "dump", "--"+name, "")
		if got.code != 2 || got.stdout != "" || !strings.Contains(got.stderr, `invalid value "" for flag -`+name) {
			t.Errorf("spool dump with an empty --%s: exit code %d, %s%s", name, got.code, got.stdout, got.stderr)
		}
	}
	got := runWith(t, settings, "spool", "dump", "--to", "2100-01-01T00:00:00Z")
	if got.code != 0 || strings.Count(got.stdout, "\n") != 2 {
		t.Errorf("exit code %d, %s%s", got.code, got.stdout, got.stderr)
	}
}

// TestListInADirectoryOfAnyName: the characters of a pattern in it are none.
func TestListInADirectoryOfAnyName(t *testing.T) {
	dataDir := filepath.Join(t.TempDir(), "[desk]*")
	if err := os.Rename(writeSpool(t, 1), dataDir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dataDir, "quarantine-nats.jsonl"), []byte("{}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := runWith(t, environ("DATA_DIR="+dataDir), "spool", "ls")
	if got.code != 0 || !strings.Contains(got.stdout, "quarantined: quarantine-nats.jsonl, 3 bytes\n") {
		t.Errorf("exit code %d, %s%s", got.code, got.stdout, got.stderr)
	}
}
