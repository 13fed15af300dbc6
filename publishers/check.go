package publishers

import (
	"fmt"
	"strconv"
	"time"
)

// Severity ranks the result of a check. A higher one is worse.
type Severity int

// The severities. Info is worth knowing, but no fault.
const (
	OK Severity = iota
	Info
	Warn
	Fail
)

// String returns the severity as text and JSON have it.
func (s Severity) String() string { return [...]string{"ok", "info", "warn", "fail"}[s] }

// MarshalText returns the severity for JSON.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// CheckResult is the result of a check of a bus, or of something else that delivery depends on. It shows no secret.
type CheckResult struct {
	// Area is nats, kafka, disk, clock, routes or secrets.
	Area     string   `json:"area"`
	What     string   `json:"what"`
	Severity Severity `json:"grade"`
	Text     string   `json:"text"`         // the sentence that What begins
	Do       string   `json:"do,omitempty"` // the remedy; empty with OK
}

// String returns the result in one line, without area and severity.
func (r CheckResult) String() string {
	if r.Do == "" {
		return r.What + " " + r.Text
	}
	return r.What + " " + r.Text + ": " + r.Do
}

// Worst returns the highest severity.
func Worst(results []CheckResult) (worst Severity) {
	for _, r := range results {
		worst = max(worst, r.Severity)
	}
	return worst
}

// Checks collects the results of the checks of one thing. A check is one call of Fail, Warn or Info: its predicate, the
// text and the remedy as in CheckResult. It adds a result if the predicate is true.
type Checks struct {
	Area, What string
	Results    []CheckResult
}

// Fail checks for what breaks the promise.
func (c *Checks) Fail(found bool, text, do string) { c.add(found, Fail, text, do) }

// Warn checks for what may break the promise.
func (c *Checks) Warn(found bool, text, do string) { c.add(found, Warn, text, do) }

// Info checks for what is worth knowing.
func (c *Checks) Info(found bool, text, do string) { c.add(found, Info, text, do) }

// OK adds a result without a remedy, unless there is a warning or a failure.
func (c *Checks) OK(text string) { c.add(Worst(c.Results) < Warn, OK, text, "") }

func (c *Checks) add(found bool, s Severity, text, do string) {
	if found {
		c.Results = append(c.Results, CheckResult{c.Area, c.What, s, text, do})
	}
}

// shortRetention is the least time for which a bus should keep events: consumers may be away for a night.
const shortRetention = 24 * time.Hour

// Retention checks for how long a bus keeps events; negative is without limit. setting names the limit.
func (c *Checks) Retention(age time.Duration, setting string) {
	c.Warn(age >= 0 && age < shortRetention,
		fmt.Sprintf("keeps events for %s: a consumer that is away for longer misses them", age),
		"raise its "+setting+" to the longest time that a consumer may be away, such as a long weekend")
}

// MessageSize checks that a bus accepts the event of the largest postback. settings names the limits.
func (c *Checks) MessageSize(limit, maxEvent int64, settings string) {
	c.Warn(limit < maxEvent, fmt.Sprintf("accepts messages up to %s, but the event of the largest postback may have %s",
		SizeText(limit), SizeText(maxEvent)), "raise "+settings+", or lower POSTBRIDGE_MAX_BODY")
}

// SizeText formats a number of bytes: 64KiB, 1.4MiB.
func SizeText(bytes int64) string {
	value, units := float64(bytes), []string{"B", "KiB", "MiB", "GiB", "TiB"}
	for value >= 1024 && len(units) > 1 {
		value, units = value/1024, units[1:]
	}
	return strconv.FormatFloat(float64(int64(value*10))/10, 'f', -1, 64) + units[0]
}
