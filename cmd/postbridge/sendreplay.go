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

// setSpeed reads --speed: a number, or max, which is 0.
func (o *sendOptions) setSpeed(text string) (err error) {
	if text == "max" {
		text = "0"
	}
	if o.speed, err = strconv.ParseFloat(text, 64); err != nil || !(o.speed >= 0 && o.speed <= 1e9) {
		return errors.New("it is not a number; set it like 10, or to max")
	}
	return nil
}

// recorded is one line of a recording: an event as tail prints it, with --headers or without, or only the time at which
// it was received and the body.
type recorded struct {
	ID         string          `json:"id"`
	Broker     string          `json:"broker"`
	OrderID    string          `json:"order_id"`
	ReceivedAt time.Time       `json:"received_at"`
	Raw        json.RawMessage `json:"raw"`
	RawText    string          `json:"raw_text"`
	RawBase64  []byte          `json:"raw_base64"`

	// Event is the event in a line of tail --headers.
	Event json.RawMessage `json:"event"`
}

// parseRecorded reads a line.
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
	case r.body() == nil && (r.ID == "" || r.OrderID != ""): // the event of an empty body has none, and no order
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

// recording is the source of --replay: it reads the file as it is sent.
type recording struct {
	*sendOptions
	lines         *bufio.Scanner
	number        int // of the line
	routes        map[string]*route
	start         time.Time // of the replay
	first, latest time.Time // when the lines up to here were received
	report        *replayReport
}

// replayReport compares what was sent with the recording.
type replayReport struct {
	Lines    int     `json:"lines"`
	Recorded float64 `json:"recorded_seconds"` // from the first to the last
	// Behind is the longest time by which a postback was sent later than it was due.
	Behind float64 `json:"behind_seconds"`
	// OtherIDs counts postbacks whose event has another id than the recorded one.
	OtherIDs int64 `json:"other_ids"`
}

func (r *replayReport) text() string {
	if r == nil {
		return ""
	}
	seconds := func(s float64) time.Duration { return time.Duration(s * 1e9).Round(10 * time.Millisecond) }
	text := fmt.Sprintf("%d lines that were recorded in %v\n", r.Lines, seconds(r.Recorded))
	if r.Behind > 1 {
		text += fmt.Sprintf("  late by up to %v: set more --connections, or less --speed\n", seconds(r.Behind))
	}
	if r.OtherIDs > 0 {
		text += fmt.Sprintf("  events with another id than the recorded one: %d\n", r.OtherIDs)
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

// postback makes a postback of a line.
func (r *recording) postback(line []byte) (pb postback, err error) {
	event, err := parseRecorded(line)
	if err != nil {
		return pb, err
	}
	body, broker := event.body(), cmp.Or(event.Broker, r.broker)
	to := r.routes[broker]
	switch {
	case to == nil && broker == "dhan":
		return pb, errors.New("is of Dhan, whose route needs a path token; set POSTBRIDGE_DHAN_TOKENS")
	case to == nil:
		return pb, fmt.Errorf("is of broker %q, which is not known", broker)
	case broker == "kite" && event.Raw != nil && len(r.apps) > 0:
		signed, err := sign(body, r.apps)
		if err != nil {
			return pb, err
		}
		if appIn(signed) != appIn(body) {
			event.ID = "" // the app id is part of the event id
		}
		body = signed
	}
	r.report.Lines++
	return postback{
		route: to, body: body, order: cmp.Or(event.OrderID, orderIn(body)), n: r.number,
		due: r.due(event.ReceivedAt), recorded: event.ID,
	}, nil
}

// longestWait stands for all that is longer, and can be added to a time.
const longestWait = 100 * 365 * 24 * time.Hour

// due returns when to send a postback that was received then, not before those above it; zero for as soon as possible.
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
