package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/postbridge/postbridge/bridge/event"
)

// setSpeed parses --speed: a number, or max, which is 0.
func (o *sendOptions) setSpeed(text string) (err error) {
	if text == "max" {
		text = "0"
	}
	if o.speed, err = strconv.ParseFloat(text, 64); err != nil || !(o.speed >= 0 && o.speed <= 1e9) {
		return errors.New("it is not a number; set it like 10, or to max")
	}
	return nil
}

// recorded is one line of a recording: an event as tail prints it, with or without --headers, or only its received_at
// and raw.
type recorded struct {
	event.Event
	body     []byte
	received time.Time
}

// parseRecorded parses a line.
func parseRecorded(line []byte) (r recorded, err error) {
	var withHeaders struct {
		Event json.RawMessage `json:"event"`
	}
	if err = json.Unmarshal(line, &withHeaders); err == nil && withHeaders.Event != nil {
		line = withHeaders.Event
	}
	if err = json.Unmarshal(line, &r.Event); err != nil {
		return r, fmt.Errorf("is not an event: %w", err)
	}
	if r.received, err = time.Parse(time.RFC3339, r.ReceivedAt); err != nil {
		return r, errors.New("has no received_at")
	}
	switch {
	case r.Raw != nil:
		r.body = r.Raw
	case r.RawText != "":
		r.body = []byte(r.RawText)
	case r.RawBase64 != nil:
		r.body = r.RawBase64
	case r.ID == "" || r.OrderID != "": // the event of an empty body has no raw and no order
		return r, errors.New("has no raw, the body that the broker sent")
	}
	return r, nil
}

// replayReport compares the replay with the recording.
type replayReport struct {
	Lines    int     `json:"lines"`
	Recorded float64 `json:"recorded_seconds"` // from the first to the last received_at
	Behind   float64 `json:"behind_seconds"`   // longest delay of a postback after its due time
	OtherIDs int64   `json:"other_ids"`        // postbacks whose event id is not the recorded one
}

func (r *replayReport) text() string {
	if r == nil {
		return ""
	}
	text := fmt.Sprintf("%d lines recorded in %.2fs, sent up to %.2fs late\n", r.Lines, r.Recorded, r.Behind)
	if r.OtherIDs > 0 {
		text += fmt.Sprintf("  events with another id than in the recording: %d\n", r.OtherIDs)
	}
	return text
}

// longestLine limits a line, in bytes: more than the event of the largest body that postbridge accepts.
const longestLine = 64 << 20

// recording is the source of --replay. It reads the file while it is sent.
type recording struct {
	*sender
	lines         *bufio.Scanner
	number        int       // of the current line
	first, latest time.Time // received_at of the first line, and the latest so far
}

func newRecording(s *sender, file io.Reader) *recording {
	s.total.Replayed = new(replayReport)
	lines := bufio.NewScanner(file)
	lines.Buffer(make([]byte, 64<<10), longestLine)
	return &recording{sender: s, lines: lines}
}

// next implements source.
func (r *recording) next(int) (pb postback, err error) {
	for r.lines.Scan() {
		r.number++
		if len(bytes.TrimSpace(r.lines.Bytes())) == 0 {
			continue
		}
		if pb, err = r.postback(r.lines.Bytes()); err != nil {
			err = fmt.Errorf("%s, line %d: %w", r.replay, r.number, err)
		}
		return pb, err
	}
	if err := r.lines.Err(); err != nil {
		return pb, fmt.Errorf("%s, line %d: %w", r.replay, r.number+1, err)
	}
	return pb, io.EOF
}

// postback converts a line to a postback.
func (r *recording) postback(line []byte) (pb postback, err error) {
	event, err := parseRecorded(line)
	if err != nil {
		return pb, err
	}
	broker := cmp.Or(event.Broker, r.broker)
	pb = postback{
		body: event.body, order: cmp.Or(event.OrderID, bodyOrderID(event.body)), n: r.number, recorded: event.ID,
	}
	if pb.route, err = r.target.route(broker); err != nil {
		return pb, err
	}
	if profiles()[broker].signed && event.Raw != nil && len(r.apps) > 0 {
		var otherApp bool
		if pb.body, otherApp, err = sign(pb.body, r.apps); err != nil {
			return pb, err
		}
		if otherApp {
			pb.recorded = "" // the app id is part of the event id
		}
	}
	r.total.Replayed.Lines++
	pb.due = r.dueAt(event.received)
	return pb, nil
}

// longestWait caps the delay of a postback, so that the sum with a time does not overflow.
const longestWait = 100 * 365 * 24 * time.Hour

// dueAt returns when to send a postback received at that time, never before the lines above it; zero for as soon as
// possible.
func (r *recording) dueAt(received time.Time) time.Time {
	if r.first.IsZero() {
		r.first, r.latest = received, received
	}
	if received.After(r.latest) {
		r.latest = received
	}
	recorded := r.latest.Sub(r.first)
	r.total.Replayed.Recorded = recorded.Seconds()
	if r.speed == 0 {
		return time.Time{}
	}
	return r.start.Add(time.Duration(min(float64(recorded)/r.speed, float64(longestWait))))
}
