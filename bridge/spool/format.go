package spool

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

const (
	// formatVersion is the newest version that this build reads, and the one it writes. A release that raises it
	// writes the old one still, so that one step back works.
	formatVersion = 1

	badSuffix     = ".bad"
	tmpSuffix     = ".tmp"
	cursorPrefix  = "cursor-"
	highWaterPrefix = "offered-"
	idName        = "spool"
	lockName      = "lock"
)

// ErrNewer means that a file was written by a newer version of postbridge, in a format that this one does not know.
var ErrNewer = errors.New("written by a newer version of postbridge; run that version")

// errDamaged means that bytes do not check; what to do about it depends on where they are.
var errDamaged = errors.New("damaged")

// A cursor file is one line of text and then the state:
//
//	postbridge-cursor 1 <spool id> <sequence> <CRC32C in hex over spool id, sequence in decimal and state>
const cursorKeyword = "postbridge-cursor"

func (id spoolID) formatCursor(sequence uint64, state []byte) []byte {
	sum := id.checksum(strconv.AppendUint(nil, sequence, 10), state)
	return append(fmt.Appendf(nil, "%s %d %v %d %08x\n", cursorKeyword, formatVersion, id, sequence, sum), state...)
}

func (id spoolID) parseCursor(b []byte) (sequence uint64, state []byte, err error) {
	line, state, _ := bytes.Cut(b, []byte("\n"))
	words, err := versionedLine(line, cursorKeyword)
	if err != nil {
		return 0, nil, err
	}
	if len(words) == 3 {
		sequence, _ = strconv.ParseUint(words[1], 10, 64) // what is wrong is found below
	}
	if !bytes.Equal(b, id.formatCursor(sequence, state)) {
		return 0, nil, errDamaged
	}
	return sequence, state, nil
}

// What a bus was offered is one line of text, in a file of its own, because a cursor's may have to stay behind:
//
//	postbridge-offered 1 <spool id> <sequence> <CRC32C in hex over spool id and sequence in decimal>
const highWaterKeyword = "postbridge-offered"

func (id spoolID) formatHighWater(sequence uint64) []byte {
	sum := id.checksum(strconv.AppendUint(nil, sequence, 10))
	return fmt.Appendf(nil, "%s %d %v %d %08x\n", highWaterKeyword, formatVersion, id, sequence, sum)
}

func (id spoolID) parseHighWater(b []byte) (sequence uint64, err error) {
	words, err := versionedLine(bytes.TrimSuffix(b, []byte("\n")), highWaterKeyword)
	if err != nil {
		return 0, err
	}
	if len(words) == 3 {
		sequence, _ = strconv.ParseUint(words[1], 10, 64) // what is wrong is found below
	}
	if !bytes.Equal(b, id.formatHighWater(sequence)) {
		return 0, errDamaged
	}
	return sequence, nil
}

// versionedLine returns the words behind the first one, which says what the file is, and its format version.
func versionedLine(line []byte, first string) ([]string, error) {
	words := strings.Fields(string(line))
	if len(words) < 2 || words[0] != first {
		return nil, errDamaged
	}
	if v, err := strconv.Atoi(words[1]); err != nil {
		return nil, errDamaged
	} else if v > formatVersion {
		return nil, fmt.Errorf("format version %d: %w", v, ErrNewer)
	}
	return words[2:], nil
}

// The id file is one line of text: postbridge-spool <format version> <spool id> <CRC32C in hex over spool id>
const idKeyword = "postbridge-spool"

func (id spoolID) formatID() []byte {
	return fmt.Appendf(nil, "%s %d %v %08x\n", idKeyword, formatVersion, id, id.checksum())
}

func parseID(b []byte) (id spoolID, err error) {
	words, err := versionedLine(b, idKeyword)
	if err != nil {
		return 0, err
	}
	if len(words) == 2 {
		n, _ := strconv.ParseUint(words[0], 16, 32) // what is wrong is found below
		id = spoolID(n)
	}
	if !bytes.Equal(b, id.formatID()) {
		return 0, errDamaged
	}
	return id, nil
}
