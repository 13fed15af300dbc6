package bridge

import (
	"crypto/rand"
	"fmt"
	"strconv"
	"time"

	"github.com/postbridge/postbridge/bridge/event"
)

// Grade is how much a finding of the doctor matters.
type Grade int

// The grades. Info is nothing wrong, but good to know.
const (
	OK Grade = iota
	Info
	Warn
	Fail
)

// String is the grade as people and programs read it.
func (g Grade) String() string { return [...]string{"ok", "info", "warn", "fail"}[g] }

// MarshalText writes the grade in JSON.
func (g Grade) MarshalText() ([]byte, error) { return []byte(g.String()), nil }

// Finding is one thing that the doctor looked at: What does Text, and to mend that, Do.
type Finding struct {
	// Area is nats, kafka, disk, clock, routes or secrets.
	Area  string `json:"area"`
	What  string `json:"what"`
	Grade Grade  `json:"grade"`
	// Text says what is so, as what follows the name of What in a sentence. It shows no secret.
	Text string `json:"text"`
	// Do says what to do about it; empty if nothing.
	Do string `json:"do,omitempty"`
}

// String is the finding without area and grade: one line.
func (f Finding) String() string {
	if f.Do == "" {
		return f.What + " " + f.Text
	}
	return f.What + " " + f.Text + ": " + f.Do
}

// Findings collects those of one area.
type Findings struct {
	Area string
	All  []Finding
}

// Add adds one, worded as Finding says.
func (f *Findings) Add(g Grade, what, text, do string) {
	f.All = append(f.All, Finding{f.Area, what, g, text, do})
}

// OK adds one that is as it should be.
func (f *Findings) OK(what, text string) { f.Add(OK, what, text, "") }

// Examination is what the doctor wants to know of a bus.
type Examination struct {
	// MaxEvent is the largest event there may be, in bytes.
	MaxEvent int64
	// Probe says to publish a Probe to the dead letters and to read it back. Without, nothing is changed on the bus.
	Probe bool
}

// ProbeType is the CloudEvents type of a Probe.
const ProbeType = "postbridge.probe.v1"

// Probe is what the doctor publishes to see that a bus stores: a dead letter of the broker ProbeBroker, which there is
// not, and of a type that is not an event's. It has no order, and never goes where orders go.
type Probe struct {
	ID string
	At time.Time
}

// NewProbe makes a probe that can be told from all others.
func NewProbe() Probe { return Probe{ID: rand.Text(), At: time.Now()} }

// ProbeBroker stands for the broker in a probe's subject and key.
const ProbeBroker = "doctor"

// Attributes are the CloudEvents attributes of the probe, as Delivery.Attributes are those of an event.
func (p Probe) Attributes() [5][2]string {
	return [5][2]string{
		{"id", p.ID},
		{"source", "/postbridge/" + ProbeBroker},
		{"specversion", "1.0"},
		{"type", ProbeType},
		{"time", p.At.UTC().Format(event.TimeFormat)},
	}
}

// Data is the probe: one line of JSON.
func (p Probe) Data() []byte {
	return fmt.Appendf(nil, `{"probe":%q,"sent_at":%q}`, p.ID, p.At.UTC().Format(event.TimeFormat))
}

// SizeText is a number of bytes for people: 64KiB, 1.4MiB.
func SizeText(bytes int64) string {
	value, unit := float64(bytes), "B"
	for _, next := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if value < 1024 {
			break
		}
		value, unit = value/1024, next
	}
	return strconv.FormatFloat(float64(int64(value*10))/10, 'f', -1, 64) + unit
}

// TimeText is a duration for people: 168h, 2m, 1.5s.
func TimeText(d time.Duration) string {
	switch {
	case d != 0 && d%time.Hour == 0:
		return strconv.FormatInt(int64(d/time.Hour), 10) + "h"
	case d != 0 && d%time.Minute == 0:
		return strconv.FormatInt(int64(d/time.Minute), 10) + "m"
	default:
		return d.String()
	}
}
