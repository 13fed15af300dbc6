package spool

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

const (
	// formatVersion is the format version that this build writes and the newest that it reads. A release that raises
	// it still writes the old version, so that a downgrade by one release works.
	formatVersion = 1

	badSuffix       = ".bad" // evidence of damage; never read again, but counted in MaxBytes
	tmpSuffix       = ".tmp" // the next content of a file, before its rename
	cursorPrefix    = "cursor-"
	highWaterPrefix = "offered-"
	idName          = "spool"
	lockName        = "lock"
)

// ErrNewer means that a newer version of postbridge wrote a file, in a format that this one cannot read. Open then
// changes nothing.
var ErrNewer = errors.New("written by a newer version of postbridge; run that version")

// errDamaged means that a checksum or a format is invalid. Whether that is a torn tail or damage depends on the
// position.
var errDamaged = errors.New("damaged")

// A cursor file is one line of text, followed by the state, which is opaque to this package:
//
//	postbridge-cursor 1 <spool id> <sequence> <CRC32C in hex over spool id, sequence in decimal and state>
const cursorKeyword = "postbridge-cursor"

// formatCursor returns the content of a cursor file.
func (id spoolID) formatCursor(sequence uint64, state []byte) []byte {
	sum := id.checksum(strconv.AppendUint(nil, sequence, 10), state)
	return append(fmt.Appendf(nil, "%s %d %v %d %08x\n", cursorKeyword, formatVersion, id, sequence, sum), state...)
}

// parseCursor returns the committed sequence and the state in a cursor file. It returns ErrDamaged, also for the file
// of another spool, or wraps ErrNewer.
func (id spoolID) parseCursor(b []byte) (sequence uint64, state []byte, err error) {
	line, state, _ := bytes.Cut(b, []byte("\n"))
	words, err := versionedLine(line, cursorKeyword)
	if err != nil {
		return 0, nil, err
	}
	if len(words) == 3 {
		sequence, _ = strconv.ParseUint(words[1], 10, 64) // a parse error fails the comparison below
	}
	if !bytes.Equal(b, id.formatCursor(sequence, state)) {
		return 0, nil, errDamaged
	}
	return sequence, state, nil
}

// The high-water mark of a bus is one line of text. It is not part of the cursor file because that may lag by
// Options.CursorDelay, and the high-water mark must never lag:
//
//	postbridge-offered 1 <spool id> <sequence> <CRC32C in hex over spool id and sequence in decimal>
const highWaterKeyword = "postbridge-offered"

// formatHighWater returns the content of a high-water mark file.
func (id spoolID) formatHighWater(sequence uint64) []byte {
	sum := id.checksum(strconv.AppendUint(nil, sequence, 10))
	return fmt.Appendf(nil, "%s %d %v %d %08x\n", highWaterKeyword, formatVersion, id, sequence, sum)
}

// parseHighWater returns the sequence in a high-water mark file. It returns the same errors as parseCursor.
func (id spoolID) parseHighWater(b []byte) (sequence uint64, err error) {
	words, err := versionedLine(bytes.TrimSuffix(b, []byte("\n")), highWaterKeyword)
	if err != nil {
		return 0, err
	}
	if len(words) == 3 {
		sequence, _ = strconv.ParseUint(words[1], 10, 64) // a parse error fails the comparison below
	}
	if !bytes.Equal(b, id.formatHighWater(sequence)) {
		return 0, errDamaged
	}
	return sequence, nil
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
//	postbridge-spool <format version> <spool id> <CRC32C in hex over spool id>
const idKeyword = "postbridge-spool"

// formatID returns the content of the id file.
func (id spoolID) formatID() []byte {
	return fmt.Appendf(nil, "%s %d %v %08x\n", idKeyword, formatVersion, id, id.checksum())
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
