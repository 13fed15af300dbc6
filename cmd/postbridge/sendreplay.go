package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/postbridge/postbridge/brokers/kite"
)

// speed is how many times as fast as it was recorded; 0 is as fast as it is answered.
type speed float64

// UnmarshalText reads a number, or max.
func (s *speed) UnmarshalText(text []byte) error {
	if string(text) == "max" {
		*s = 0
		return nil
	}
	n, err := strconv.ParseFloat(string(text), 64)
	if err != nil || !(n >= 0 && n <= 1e9) {
		return errors.New("it is not a number; set it like 10, or to max")
	}
	*s = speed(n)
	return nil
}

// MarshalText writes the number.
func (s speed) MarshalText() ([]byte, error) {
	return strconv.AppendFloat(nil, float64(s), 'g', -1, 64), nil
}

// recorded is one line of a recording: an event as tail prints it, with --headers or without, or no more of it than when
// it was received and the body.
type recorded struct {
	ID         string          `json:"id"`
	Broker     string          `json:"broker"`
	OrderID    string          `json:"order_id"`
	ReceivedAt time.Time       `json:"received_at"`
	Raw        json.RawMessage `json:"raw"`
	RawText    string          `json:"raw_text"`
	RawBase64  []byte          `json:"raw_base64"`

	// Event is the event of a line of tail --headers.
	Event json.RawMessage `json:"event"`
}

// parseRecorded reads a line.
func parseRecorded(line []byte) (r recorded, err error) {
	if err := json.Unmarshal(line, &r); err != nil {
		return r, fmt.Errorf("is not an event: %w", err)
	}
	if r.Event != nil {
		event := r.Event
		r = recorded{}
		if err := json.Unmarshal(event, &r); err != nil {
			return r, fmt.Errorf("is not an event: %w", err)
		}
	}
	switch {
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

// replay sends a recording again. One goroutine reads it and waits until each postback is due; each lane sends those of
// its orders, one after the other.
type replay struct {
	*sending
	name    string
	file    io.Reader
	size    int64 // 0 if nobody knows
	speed   speed
	broker  string // of lines that name none
	apps    []kite.Secret
	targets map[string]*target // by broker; one that is missing has no path token
	lanes   []chan replayed
	seed    maphash.Seed

	count int64 // of the lines to send, 0 for all

	// Owned by the goroutine that reads.
	began         time.Time
	first, latest time.Time // of the recording, so far

	// The report belongs to that goroutine, too, but for what only lanes know, which mu guards.
	report replayReport
	mu     sync.Mutex
}

// replayed is a postback on its way to its lane.
type replayed struct {
	postback
	broker, id string
	due        time.Time
}

// replayReport is what there is to say of a recording.
type replayReport struct {
	Lines    int     `json:"lines"`
	Recorded float64 `json:"recorded_seconds"` // from the first to the last
	// Early are lines that are older than one before them, so that their gap is lost.
	Early int `json:"early_lines"`
	// Behind is how much later than it was due a postback was sent, at the worst.
	Behind float64 `json:"behind_seconds"`
	// OtherIDs are postbacks whose event has another id than the recorded one, though the app is the same.
	OtherIDs int64 `json:"other_ids"`
}

func (r *replayReport) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d lines that were recorded in %v\n", r.Lines, seconds(r.Recorded))
	if r.Early > 0 {
		fmt.Fprintf(&b, "  older than a line before them, so sent without their gap: %d; sort the file by received_at\n", r.Early)
	}
	if r.Behind > 1 {
		fmt.Fprintf(&b, "  late by %v at the worst: more --connections, or less --speed\n", seconds(r.Behind))
	}
	if r.OtherIDs > 0 {
		fmt.Fprintf(&b, "  events with another id than the recorded one: %d\n", r.OtherIDs)
	}
	return b.String()
}

func seconds(s float64) time.Duration {
	return time.Duration(s * float64(time.Second)).Round(10 * time.Millisecond)
}

func (p *process) sendReplay(ctx context.Context, o *sendOptions) error {
	r, err := p.newReplay(o)
	if err != nil {
		return err
	}
	file, size, err := p.openRecording(o.replay)
	if err != nil {
		return ofFile(err)
	}
	defer file.Close()
	r.file, r.size = file, size
	if r.acked, err = openAcked(o.acked); err != nil {
		return err
	}
	progress := io.Discard
	if isTerminal(p.stderr) {
		progress = p.stderr
	}
	if o.duration > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, o.duration)
		defer stop()
	}
	total, failure := r.run(ctx, progress)
	return errors.Join(failure, r.acked.close(), p.print(total.text(o.json)))
}

func (p *process) newReplay(o *sendOptions) (*replay, error) {
	r := &replay{
		sending: &sending{pace: new(pace), tolerate: o.tolerate},
		name:    o.replay, speed: o.speed, broker: o.broker, count: o.count,
		targets: make(map[string]*target), lanes: make([]chan replayed, o.connections), seed: maphash.MakeSeed(),
	}
	entries, err := p.allOf("KITE_SECRETS")
	if err != nil {
		return nil, err
	}
	if o.secret != "" {
		entries = []string{o.secret}
	}
	for _, entry := range entries {
		if !strings.Contains(entry, "=") {
			return nil, misuse("send: an app to sign with has no secret; set --secret or POSTBRIDGE_KITE_SECRETS to app_id=api_secret")
		}
		r.apps = append(r.apps, parseApp(entry))
	}
	for _, name := range brokerNames() {
		of := sendOptions{broker: name}
		if of.token, err = p.firstOf(strings.ToUpper(name) + "_TOKENS"); err != nil {
			return nil, err
		}
		if name == o.broker {
			of.token = o.token
		}
		if name == "dhan" && of.token == "" {
			continue
		}
		if r.targets[name], err = o.target(of.route()); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// openRecording opens the file; - is stdin.
func (p *process) openRecording(name string) (io.ReadCloser, int64, error) {
	if name == "-" {
		return io.NopCloser(p.stdin), 0, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// run sends it all. The error is what ended it before its end.
func (r *replay) run(parent context.Context, progress io.Writer) (*summary, error) {
	ctx, fail := context.WithCancelCause(parent)
	defer fail(nil)
	totals := make([]*summary, len(r.lanes))
	var lanes sync.WaitGroup
	r.began = time.Now()
	for i := range r.lanes {
		r.lanes[i], totals[i] = make(chan replayed, 64), newSummary()
		lanes.Go(func() {
			if err := r.send(ctx, r.lanes[i], totals[i]); err != nil {
				fail(err)
			}
		})
	}
	wrong := r.readAll(ctx, progress)
	for _, lane := range r.lanes {
		close(lane) // what was read before a line that is wrong is sent
	}
	lanes.Wait()
	total := newSummary()
	for _, t := range totals {
		total.add(t)
	}
	total.elapsed, total.replayed = time.Since(r.began), &r.report
	switch {
	case parent.Err() != nil: // interrupted, or --for is over
		return total, nil
	case ctx.Err() != nil:
		return total, context.Cause(ctx)
	default:
		return total, wrong
	}
}

// send is one lane.
func (r *replay) send(ctx context.Context, lane <-chan replayed, total *summary) error {
	connections := make(map[string]*connection)
	defer func() {
		for _, c := range connections {
			c.close()
		}
	}()
	for pb := range lane {
		c := connections[pb.broker]
		if c == nil {
			c = &connection{target: r.targets[pb.broker]}
			connections[pb.broker] = c
		}
		if ctx.Err() != nil {
			return nil
		}
		if ok, err := r.connect(ctx, c, total); !ok {
			return err
		}
		if pb.due.IsZero() {
			pb.due = time.Now()
		}
		behind := time.Since(pb.due)
		id, err := r.deliver(c, pb.postback, pb.due, total)
		if err != nil {
			return err
		}
		r.note(behind, id != "" && pb.id != "" && id != pb.id)
	}
	return nil
}

// note takes one postback into the report.
func (r *replay) note(behind time.Duration, otherID bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.Behind = max(r.report.Behind, behind.Seconds())
	if otherID {
		r.report.OtherIDs++
	}
}

// longestLine is more than the event of any body that postbridge takes.
const longestLine = 64 << 20

// readAll reads the recording to its end, and hands over each postback when it is due.
func (r *replay) readAll(ctx context.Context, progress io.Writer) error {
	lines := bufio.NewScanner(r.file)
	lines.Buffer(make([]byte, 64<<10), longestLine)
	number, read, said := 0, int64(0), time.Now()
	for (r.count == 0 || int64(r.report.Lines) < r.count) && lines.Scan() {
		number++
		read += int64(len(lines.Bytes())) + 1
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		pb, err := r.next(lines.Bytes(), number)
		if err != nil {
			return fmt.Errorf("send: %s, line %d: %w", r.name, number, err)
		}
		if wait := time.Until(pb.due); wait > time.Second || time.Since(said) > time.Second {
			said = time.Now()
			fmt.Fprintf(progress, "\r%s\033[K", r.progress(read, wait))
		}
		if !pause(ctx, time.Until(pb.due)) {
			return nil
		}
		select {
		case r.lanes[maphash.String(r.seed, pb.order)%uint64(len(r.lanes))] <- pb:
		case <-ctx.Done():
			return nil
		}
	}
	fmt.Fprint(progress, "\r\033[K")
	if err := lines.Err(); err != nil {
		return fmt.Errorf("send: %s, line %d: %w", r.name, number+1, err)
	}
	return nil
}

// progress says how far it is, for people.
func (r *replay) progress(read int64, wait time.Duration) string {
	text := fmt.Sprintf("%d lines", r.report.Lines)
	if r.size > 0 {
		text += fmt.Sprintf(", %d%%", 100*read/r.size)
	}
	text += ", recorded at " + r.latest.Local().Format(time.DateTime)
	if wait > time.Second {
		text += fmt.Sprintf(", the next in %v", wait.Round(time.Second))
	}
	return text
}

// next makes a postback of a line.
func (r *replay) next(line []byte, number int) (replayed, error) {
	of, err := parseRecorded(line)
	if err != nil {
		return replayed{}, err
	}
	body, broker := of.body(), orElse(of.Broker, r.broker)
	if err := checkRecordedBroker(broker, r.targets); err != nil {
		return replayed{}, err
	}
	if broker == "kite" && of.Raw != nil && len(r.apps) > 0 {
		if body, err = sign(body, r.apps); err != nil {
			return replayed{}, err
		}
	}
	pb := replayed{broker: broker, id: of.ID, due: r.due(of.ReceivedAt)}
	pb.postback = postback{body: body, order: orElse(of.OrderID, orderIn(body)), n: number, line: number}
	r.report.Lines++
	return pb, nil
}

func checkRecordedBroker(name string, targets map[string]*target) error {
	switch {
	case targets[name] != nil:
		return nil
	case name == "dhan":
		return errors.New("is of Dhan, whose route needs a path token; set POSTBRIDGE_DHAN_TOKENS")
	default:
		return fmt.Errorf("is of broker %q, which is not known", name)
	}
}

// longestWait is as good as for ever, and not more than a time can be away.
const longestWait = 100 * 365 * 24 * time.Hour

// due is when a postback that was received then is to be sent; zero for as soon as it can be.
func (r *replay) due(received time.Time) time.Time {
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
	return r.began.Add(time.Duration(min(float64(recorded)/float64(r.speed), float64(longestWait))))
}
