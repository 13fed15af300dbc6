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
	ID         string          `json:"id"`
	Broker     string          `json:"broker"`
	OrderID    string          `json:"order_id"`
	ReceivedAt time.Time       `json:"received_at"`
	Raw        json.RawMessage `json:"raw"`
	RawText    string          `json:"raw_text"`
	RawBase64  []byte          `json:"raw_base64"`
	Event      json.RawMessage `json:"event"` // of tail --headers
}

// parseRecorded parses a line.
func parseRecorded(line []byte) (r recorded, err error) {
	err = json.Unmarshal(line, &r)
	if event := r.Event; err == nil && event != nil {
		r = recorded{}
		err = json.Unmarshal(event, &r)
	}
	switch {
	case err != nil:
		return r, fmt.Errorf("is not an event: %w", err)
	case r.ReceivedAt.IsZero():
		return r, errors.New("has no received_at")
	case r.body() == nil && (r.ID == "" || r.OrderID != ""): // the event of an empty body has no raw and no order
		return r, errors.New("has no raw, the body that the broker sent")
	}
	return r, nil
}

func (r *recorded) body() []byte {
	switch {
	case r.Raw != nil:
		return r.Raw
	case r.RawText != "":
		return []byte(r.RawText)
	default:
		return r.RawBase64
	}
}

// longestLine is more than the event of the largest body that postbridge accepts.
const longestLine = 64 << 20

// recording is the source of --replay. It reads the file while it is sent.
type recording struct {
	*sendOptions
	lines         *bufio.Scanner
	number        int               // of the current line
	routes        map[string]*route // by broker
	start         time.Time         // of the replay
	first, latest time.Time         // received_at of the first line, and the latest so far
	report        *replayReport
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
	seconds := func(s float64) time.Duration { return time.Duration(s * 1e9).Round(10 * time.Millisecond) }
	text := fmt.Sprintf("%d lines recorded in %v\n", r.Lines, seconds(r.Recorded))
	if r.Behind > 1 {
		text += fmt.Sprintf("  late by up to %v: raise --connections or lower --speed\n", seconds(r.Behind))
	}
	if r.OtherIDs > 0 {
		text += fmt.Sprintf("  events with another id than in the recording: %d\n", r.OtherIDs)
	}
	return text
}

func newRecording(o *sendOptions, file io.Reader, routes map[string]*route, start time.Time) *recording {
	lines := bufio.NewScanner(file)
	lines.Buffer(make([]byte, 64<<10), longestLine)
	return &recording{sendOptions: o, lines: lines, routes: routes, start: start, report: new(replayReport)}
}

// next is a source.
func (r *recording) next(int) (postback, error) {
	for r.lines.Scan() {
		r.number++
		if len(bytes.TrimSpace(r.lines.Bytes())) == 0 {
			continue
		}
		pb, err := r.postback(r.lines.Bytes())
		if err != nil {
			return pb, fmt.Errorf("%s, line %d: %w", r.replay, r.number, err)
		}
		return pb, nil
	}
	if err := r.lines.Err(); err != nil {
		return postback{}, fmt.Errorf("%s, line %d: %w", r.replay, r.number+1, err)
	}
	return postback{}, io.EOF
}

// postback converts a line to a postback.
func (r *recording) postback(line []byte) (pb postback, err error) {
	event, err := parseRecorded(line)
	if err != nil {
		return pb, err
	}
	body, broker := event.body(), cmp.Or(event.Broker, r.broker)
	to := r.routes[broker]
	switch {
	case to == nil && broker == "dhan":
		return pb, errors.New("the route of Dhan needs a path token; set POSTBRIDGE_DHAN_TOKENS")
	case to == nil:
		return pb, fmt.Errorf("unknown broker %q", broker)
	case broker == "kite" && event.Raw != nil && len(r.apps) > 0:
		signed, err := sign(body, r.apps)
		if err != nil {
			return pb, err
		}
		if bodyAppID(signed) != bodyAppID(body) {
			event.ID = "" // the app id is part of the event id
		}
		body = signed
	}
	r.report.Lines++
	return postback{
		route: to, body: body, order: cmp.Or(event.OrderID, bodyOrderID(body)), n: r.number,
		due: r.due(event.ReceivedAt), recorded: event.ID,
	}, nil
}

// longestWait caps the delay of a postback, so that the sum with a time does not overflow.
const longestWait = 100 * 365 * 24 * time.Hour

// due returns when to send a postback received at that time, never before the lines above it; zero for as soon as
// possible.
func (r *recording) due(received time.Time) time.Time {
	if r.first.IsZero() {
		r.first, r.latest = received, received
	}
	if received.After(r.latest) {
		r.latest = received
	}
	recorded := r.latest.Sub(r.first)
	r.report.Recorded = recorded.Seconds()
	if r.speed == 0 {
		return time.Time{}
	}
	return r.start.Add(time.Duration(min(float64(recorded)/r.speed, float64(longestWait))))
}
