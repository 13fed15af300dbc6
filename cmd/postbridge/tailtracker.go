package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/postbridge/postbridge/bridge/event"
)

// trackerView formats what a consumer with an event.Tracker makes of each message. It is for one goroutine at a time.
type trackerView struct {
	orders event.Tracker
	fills  bool // a line for each new fill and correction, none for other events
	line   func(m *message) []byte
	json   bool
	zone   *time.Location
}

// format returns the line of a message; nil if it has none.
func (v *trackerView) format(m *message) ([]byte, error) {
	e, err := event.Decode(m.data, func(name string) string { return m.headers[name] })
	if err != nil { // such as a probe of the doctor
		if v.fills {
			return nil, nil
		}
		return v.line(m), nil
	}
	c, err := v.orders.Apply(&e)
	if err != nil { // full
		return nil, fmt.Errorf("more than %d orders changed within a day, too many for --fills and --late; "+
			"select fewer with --broker, --user or --from", v.orders.MaxOrders)
	}
	if v.fills {
		return v.fill(&e, &c), nil
	}
	return v.verdict(m, &c), nil
}

func (v *trackerView) fill(e *event.Message, c *event.Change) []byte {
	switch {
	case c.NewFill == 0 && c.Corrected == 0:
		return nil
	case v.json:
		return jsonFill(e, c)
	}
	return humanFill(e, c, v.zone)
}

func (v *trackerView) verdict(m *message, c *event.Change) []byte {
	switch {
	case v.json:
		return fmt.Appendf(nil, "{\"verdict\":%q,\"event\":%s}\n", c.Verdict, m.data)
	case c.Verdict != event.VerdictNew:
		return fmt.Appendf(nil, "%-7s%s", c.Verdict, v.line(m))
	}
	return fmt.Appendf(nil, "%-7s%s", "", v.line(m))
}

// jsonFill formats a fill, or a correction, as a JSON object.
func jsonFill(e *event.Message, c *event.Change) []byte {
	line, _ := json.Marshal(struct { // strings and numbers
		ID        string       `json:"id"` // of the event
		Key       string       `json:"key"`
		Status    event.Status `json:"status"`
		Symbol    string       `json:"symbol,omitzero"`
		Side      string       `json:"side,omitzero"`
		NewFill   int64        `json:"new_fill"`
		FillPrice string       `json:"fill_price,omitzero"`
		Corrected int64        `json:"corrected,omitzero"`
		Filled    int64        `json:"filled_quantity"`
	}{e.ID, e.StateKey(), e.Status, e.Symbol, e.Side, c.NewFill, c.FillPrice, c.Corrected, c.State.Filled})
	return append(line, '\n')
}

// humanFill formats a fill, or a correction, for people.
func humanFill(e *event.Message, c *event.Change, zone *time.Location) []byte {
	received, _ := time.Parse(time.RFC3339Nano, e.ReceivedAt) // year 1 for an event of another program
	change := fmt.Sprintf("+%d", c.NewFill)
	if c.Corrected > 0 {
		change = fmt.Sprintf("-%d corrected", c.Corrected)
	}
	if c.FillPrice != "" {
		change += " @ " + c.FillPrice
	}
	text := fmt.Sprintf("%s %-6s %-10s %-19s %-4s %-20s %9s %-16s %s", received.In(zone).Format("15:04:05.000"),
		e.Broker, cmp.Or(e.UserID, "-"), e.OrderID, e.Side, change, quantities(&e.Order), e.Status,
		cmp.Or(e.Symbol, e.InstrumentID))
	return []byte(strings.TrimRight(printable(text), " ") + "\n")
}

// coloured colours a line by the status of its event, for a terminal.
func coloured(line []byte, status string) []byte {
	colour := map[string]string{
		string(event.StatusFilled): "32", string(event.StatusPartiallyFilled): "32", // green
		string(event.StatusRejected):  "31",                                    // red
		string(event.StatusCancelled): "33", string(event.StatusExpired): "33", // yellow
		string(event.StatusUnknown): "35", // magenta
	}[status]
	if colour == "" || line == nil {
		return line
	}
	return fmt.Appendf(nil, "\x1b[%sm%s\x1b[0m\n", colour, strings.TrimSuffix(string(line), "\n"))
}
