package spool

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

const (
	// formatVersion is the format version that this build writes and the newest that it reads. It reads version 1,
	// which has no end marks, no preallocated segments, one slot in a cursor file and the high-water mark in a file of
	// its own.
	formatVersion = 2

	badSuffix    = ".bad" // evidence of damage; never read again, but counted in MaxBytes
	tmpSuffix    = ".tmp" // the next content of a file, before its rename
	cursorPrefix = "cursor-"
	markPrefix1  = "offered-" // of version 1; removed at Open
	idName       = "spool"
	lockName     = "lock"
	nextName     = "next" + tmpSuffix // the next segment, before the writer starts it
)

// ErrNewer means that a newer version of postbridge wrote a file, in a format that this one cannot read. Open then
// changes nothing.
var ErrNewer = errors.New("written by a newer version of postbridge; run that version")

// errDamaged means that a checksum or a format is invalid. Whether that is a torn tail or damage depends on the
// position.
var errDamaged = errors.New("damaged")

// A cursor file has two slots, written in turns: a write that a crash interrupts leaves the other slot in force. The
// first begins at 0, the second at a multiple of slotUnit, so that they share no sector of the disk; it is zeros until
// it is written. A slot is one line of text, followed by the state, which is opaque to this package:
//
//	postbridge-cursor 2 <spool id> <second slot> <generation> <sequence> <high-water mark> <bytes of state> <checksum>
//
// The checksum is the CRC32C, in hex, over spool id, the line up to its last space, and state.
const (
	cursorKeyword = "postbridge-cursor"
	slotUnit      = 4096
)

// position is the content of a slot. Version 1 had no generation, and the mark in a file of its own.
type position struct {
	second     int64  // offset of the second slot
	generation uint64 // of two slots, the one with the higher generation is in force; the first is 1
	committed  uint64
	highWater  uint64
	state      []byte
}

// formatSlot returns the content of a slot.
func (id spoolID) formatSlot(p position) []byte {
	b := fmt.Appendf(nil, "%s %d %v %d %d %d %d %d ", cursorKeyword, formatVersion, id,
		p.second, p.generation, p.committed, p.highWater, len(p.state))
	return append(fmt.Appendf(b, "%08x\n", id.checksum(b, p.state)), p.state...)
}

// parseSlot returns the slot at the start of b; false if there is no valid one.
func (id spoolID) parseSlot(b []byte) (p position, ok bool) {
	line, rest, _ := bytes.Cut(b, []byte("\n"))
	var keyword, foundID, sum string
	var version, length int
	_, err := fmt.Sscan(string(line), &keyword, &version, &foundID,
		&p.second, &p.generation, &p.committed, &p.highWater, &length, &sum)
	if err != nil || length < 0 || length > len(rest) {
		return p, false
	}
	if length > 0 {
		p.state = rest[:length:length]
	}
	return p, bytes.HasPrefix(b, id.formatSlot(p))
}

// parseCursor returns the position in a cursor file. intact reports that no later one may have been there, so that its
// high-water mark is valid. It returns ErrDamaged, also for the file of another spool, or wraps ErrNewer.
func (id spoolID) parseCursor(b []byte) (p position, intact bool, err error) {
	line, _, _ := bytes.Cut(b, []byte("\n"))
	words, err := versionedLine(line, cursorKeyword)
	if errors.Is(err, ErrNewer) {
		return p, false, err
	}
	if err == nil && len(words) == 3 {
		p, err = id.parseCursor1(b)
		return p, false, err
	}
	slots := 0
	for at := 0; at < len(b); at += slotUnit {
		if found, ok := id.parseSlot(b[at:]); ok {
			slots++
			if found.generation > p.generation {
				p = found
			}
		}
	}
	if slots == 0 {
		return position{}, false, errDamaged
	}
	neverWritten := p.generation == 1 && len(bytes.Trim(b[min(p.second, int64(len(b))):], "\x00")) == 0
	return p, slots == 2 || neverWritten, nil
}

// parseCursor1 returns the position in a cursor file of version 1, a line and the state. The high-water mark was in a
// file of its own, offered-<bus>, which is not read: after an upgrade every record may have been returned.
//
//	postbridge-cursor 1 <spool id> <sequence> <CRC32C in hex over spool id, sequence in decimal and state>
func (id spoolID) parseCursor1(b []byte) (p position, err error) {
	line, state, _ := bytes.Cut(b, []byte("\n"))
	_, _ = fmt.Sscanf(string(line), cursorKeyword+" 1 %s %d", new(string), &p.committed) // an error fails the comparison
	sum := id.checksum(strconv.AppendUint(nil, p.committed, 10), state)
	if string(line) != fmt.Sprintf("%s 1 %v %d %08x", cursorKeyword, id, p.committed, sum) {
		return position{}, errDamaged
	}
	p.state = state
	return p, nil
}

// versionedLine returns the words after the keyword and the format version. The version is the second word of every
// text file in every version, so that ErrNewer is reported whatever follows.
func versionedLine(line []byte, keyword string) ([]string, error) {
	words := strings.Fields(string(line))
	if len(words) < 2 || words[0] != keyword {
		return nil, errDamaged
	}
	if v, err := strconv.Atoi(words[1]); err != nil {
		return nil, errDamaged
	} else if v > formatVersion {
		return nil, fmt.Errorf("format version %d: %w", v, ErrNewer)
	}
	return words[2:], nil
}

// The id file is one line of text:
//
//	postbridge-spool 1 <spool id> <CRC32C in hex over spool id>
const idKeyword = "postbridge-spool"

// formatID returns the content of the id file.
func (id spoolID) formatID() []byte {
	return fmt.Appendf(nil, "%s 1 %v %08x\n", idKeyword, id, id.checksum())
}

// parseID returns the id in an id file. It returns ErrDamaged or wraps ErrNewer.
func parseID(b []byte) (id spoolID, err error) {
	words, err := versionedLine(b, idKeyword)
	if err != nil {
		return 0, err
	}
	if len(words) == 2 {
		n, _ := strconv.ParseUint(words[0], 16, 32) // a parse error fails the comparison below
		id = spoolID(n)
	}
	if !bytes.Equal(b, id.formatID()) {
		return 0, errDamaged
	}
	return id, nil
}
