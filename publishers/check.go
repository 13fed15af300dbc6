package publishers

import "strconv"

// Severity is how much the result of a check matters, in rising order.
type Severity int

// Info is nothing wrong, but good to know.
const (
	OK Severity = iota
	Info
	Warn
	Fail
)

// String is the severity as people and programs read it.
func (s Severity) String() string { return [...]string{"ok", "info", "warn", "fail"}[s] }

// MarshalText writes the severity in JSON.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// CheckResult is the result of a check of a bus, or of something else that events depend on. It shows no secret.
type CheckResult struct {
	// Area is nats, kafka, disk, clock, routes or secrets.
	Area     string   `json:"area"`
	What     string   `json:"what"`
	Severity Severity `json:"grade"`
	Text     string   `json:"text"`         // the sentence that What begins
	Do       string   `json:"do,omitempty"` // the remedy; empty if nothing is wrong
}

// String is the result without area and severity, in one line.
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

// Checks collects the results of all checks of one thing.
type Checks struct {
	Area, What string
	Results    []CheckResult
}

func (c *Checks) add(s Severity, text, do string) {
	c.Results = append(c.Results, CheckResult{c.Area, c.What, s, text, do})
}

// Fail adds a failure, with text and remedy as in CheckResult.
func (c *Checks) Fail(text, do string) { c.add(Fail, text, do) }

// Warn adds a warning.
func (c *Checks) Warn(text, do string) { c.add(Warn, text, do) }

// Info adds what is good to know.
func (c *Checks) Info(text, do string) { c.add(Info, text, do) }

// OK adds that nothing is wrong, unless there is a warning or a failure.
func (c *Checks) OK(text string) {
	if Worst(c.Results) < Warn {
		c.add(OK, text, "")
	}
}

// SizeText is a number of bytes for people: 64KiB, 1.4MiB.
func SizeText(bytes int64) string {
	value, units := float64(bytes), []string{"B", "KiB", "MiB", "GiB", "TiB"}
	for value >= 1024 && len(units) > 1 {
		value, units = value/1024, units[1:]
	}
	return strconv.FormatFloat(float64(int64(value*10))/10, 'f', -1, 64) + units[0]
}
