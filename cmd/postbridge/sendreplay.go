package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"strconv"
	"strings"
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

// recording reads a file of events and hands each postback to a worker when it is due. A worker has all of an order.
type recording struct {
	*sendOptions
	file     io.ReadCloser
	size     int64              // in bytes; 0 if it is not known
	progress io.Writer          // for people
	targets  map[string]*target // by broker
	pace     *pace
	workers  []chan postback
	report   *replayReport

	first, latest time.Time // when the lines up to here were received
}

// replayReport compares what was sent with the recording. Behind and OtherIDs belong to the workers, the rest to read.
type replayReport struct {
	Lines    int     `json:"lines"`
	Recorded float64 `json:"recorded_seconds"` // from the first to the last
	// Early counts lines that are older than one before them, so that their gap is lost.
	Early int `json:"early_lines"`
	// Behind is the longest time by which a postback was sent later than it was due.
	Behind float64 `json:"behind_seconds"`
	// OtherIDs counts postbacks whose event has another id than the recorded one.
	OtherIDs int64 `json:"other_ids"`
}

func (r *replayReport) text() string {
	seconds := func(s float64) time.Duration {
		return time.Duration(s * float64(time.Second)).Round(10 * time.Millisecond)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d lines that were recorded in %v\n", r.Lines, seconds(r.Recorded))
	if r.Early > 0 {
		fmt.Fprintf(&b, "  older than a line before them, so sent without their gap: %d; sort the file by received_at\n",
			r.Early)
	}
	if r.Behind > 1 {
		fmt.Fprintf(&b, "  late by up to %v: set more --connections, or less --speed\n", seconds(r.Behind))
	}
	if r.OtherIDs > 0 {
		fmt.Fprintf(&b, "  events with another id than the recorded one: %d\n", r.OtherIDs)
	}
	return b.String()
}

// openRecording opens the file of --replay; - is stdin.
func (p *process) openRecording(o *sendOptions, targets map[string]*target, pace *pace) (*recording, error) {
	r := &recording{
		sendOptions: o, targets: targets, pace: pace, progress: io.Discard, report: new(replayReport),
		file: io.NopCloser(p.stdin),
	}
	for range o.connections {
		r.workers = append(r.workers, make(chan postback, 64))
	}
	if isTerminal(p.stderr) {
		r.progress = p.stderr
	}
	if o.replay == "-" {
		return r, nil
	}
	f, err := os.Open(o.replay)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	r.file, r.size = f, info.Size()
	return r, nil
}

// source returns the postbacks of a worker.
func (r *recording) source(worker <-chan postback) source {
	return func(ctx context.Context) (postback, bool) {
		pb, ok := <-worker
		return pb, ok && ctx.Err() == nil && !r.pace.over(time.Now())
	}
}

// longestLine is more than the event of the largest body that postbridge accepts.
const longestLine = 64 << 20

// read reads the file to its end, or to a line that is wrong. What was read before that line is sent.
func (r *recording) read(ctx context.Context) error {
	defer r.file.Close()
	for _, w := range r.workers {
		defer close(w)
	}
	lines := bufio.NewScanner(r.file)
	lines.Buffer(make([]byte, 64<<10), longestLine)
	number, size, shown, seed := 0, int64(0), time.Now(), maphash.MakeSeed()
	for (r.count == 0 || int64(r.report.Lines) < r.count) && lines.Scan() {
		number++
		size += int64(len(lines.Bytes())) + 1
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		pb, err := r.postback(lines.Bytes(), number)
		if err != nil {
			return fmt.Errorf("%s, line %d: %w", r.replay, number, err)
		}
		if wait := time.Until(pb.due); wait > time.Second || time.Since(shown) > time.Second {
			shown = time.Now()
			fmt.Fprintf(r.progress, "\r%s\033[K", r.position(size, wait))
		}
		if !r.pace.wait(ctx, pb.due) {
			return nil
		}
		select {
		case r.workers[maphash.String(seed, pb.order)%uint64(len(r.workers))] <- pb:
		case <-ctx.Done():
			return nil
		}
	}
	fmt.Fprint(r.progress, "\r\033[K")
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%s, line %d: %w", r.replay, number+1, err)
	}
	return nil
}

// position describes how much has been read, for people.
func (r *recording) position(size int64, wait time.Duration) string {
	text := fmt.Sprintf("%d lines", r.report.Lines)
	if r.size > 0 {
		text += fmt.Sprintf(", %d%%", 100*size/r.size)
	}
	text += ", recorded at " + r.latest.Local().Format(time.DateTime)
	if wait > time.Second {
		text += fmt.Sprintf(", the next in %v", wait.Round(time.Second))
	}
	return text
}

// postback makes a postback of a line.
func (r *recording) postback(line []byte, number int) (pb postback, err error) {
	event, err := parseRecorded(line)
	if err != nil {
		return pb, err
	}
	body, broker := event.body(), cmp.Or(event.Broker, r.broker)
	to := r.targets[broker]
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
		target: to, body: body, order: cmp.Or(event.OrderID, orderIn(body)), due: r.due(event.ReceivedAt),
		n: number, line: number, id: event.ID,
	}, nil
}

// longestWait stands for all that is longer, and can be added to a time.
const longestWait = 100 * 365 * 24 * time.Hour

// due returns when to send a postback that was received then; zero for as soon as possible.
func (r *recording) due(received time.Time) time.Time {
	if r.first.IsZero() {
		r.first, r.latest = received, received
	}
	if received.Before(r.latest.Add(-time.Second)) {
		r.report.Early++
	}
	if received.After(r.latest) {
		r.latest = received
	}
	recorded := r.latest.Sub(r.first)
	r.report.Recorded = recorded.Seconds()
	if r.speed == 0 {
		return time.Time{}
	}
	return r.pace.start.Add(time.Duration(min(float64(recorded)/r.speed, float64(longestWait))))
}
