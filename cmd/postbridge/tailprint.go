package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/postbridge/postbridge/bridge/event"
)

// notes are what tail says of itself, on stderr; the same is said once.
type notes struct {
	mu    sync.Mutex
	w     io.Writer
	last  string
	ended bool
}

func (n *notes) say(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if text := fmt.Sprintf(format, args...); text != n.last && !n.ended {
		n.last = text
		fmt.Fprintln(n.w, "postbridge: tail:", text)
	}
}

// lastSaid is why nothing comes, if nothing does.
func (n *notes) lastSaid() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return orElse(n.last, "no answer from it")
}

// end is the last of it: the NATS library calls back even after its connection was closed.
func (n *notes) end() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ended = true
}

// line chooses how a message is written.
func (o *tailOptions) line(terminal bool) func(*message) []byte {
	switch {
	case o.headers:
		return wholeLine
	case terminal && !o.json:
		return func(m *message) []byte { return humanLine(m.data, time.Local) }
	default:
		return func(m *message) []byte { return append(m.data, '\n') }
	}
}

// wholeLine is all of a message; the event in it keeps its bytes.
func wholeLine(m *message) []byte {
	place, _ := json.Marshal(m.place) // of text and numbers
	headers, _ := json.Marshal(m.headers)
	return fmt.Appendf(nil, "%s,\"headers\":%s,\"event\":%s}\n", bytes.TrimSuffix(place, []byte("}")), headers, m.data)
}

// humanLine is an event for people.
func humanLine(data []byte, zone *time.Location) []byte {
	var e event.Event
	if err := json.Unmarshal(data, &e); err != nil || e.Broker == "" { // a probe of the doctor's, for one
		return []byte(printable(string(data)) + "\n")
	}
	arrived, _ := time.Parse(time.RFC3339Nano, e.ReceivedAt) // year one if it is another's event
	text := fmt.Sprintf("%s %-4s %-10s %-19s %-16s %-4s %9s %s %s",
		arrived.In(zone).Format("15:04:05.000"), e.Broker, orElse(e.UserID, "-"), orElse(e.OrderID, "-"), e.Status,
		e.Side, progress(&e.Order), what(&e.Order), remark(&e))
	return []byte(strings.TrimRight(printable(text), " ") + "\n")
}

// progress is filled/ordered.
func progress(o *event.Order) string {
	filled, _ := o.FilledQuantity.Get()
	quantity, known := o.Quantity.Get()
	if !known {
		return ""
	}
	return fmt.Sprintf("%d/%d", filled, quantity)
}

// what is the symbol and the price that counts: the one reached, else the one asked for.
func what(o *event.Order) string {
	price := o.Price
	if filled, _ := o.FilledQuantity.Get(); filled > 0 && o.AveragePrice != "" {
		price = o.AveragePrice
	}
	symbol := orElse(o.Symbol, o.InstrumentID)
	if price == "" {
		return symbol
	}
	return symbol + " @ " + price
}

// remark is why the broker or postbridge did not do what was asked.
func remark(e *event.Event) string {
	if e.OrderID != "" {
		return e.Reason
	}
	body := orElse(string(e.Raw), e.RawText)
	if len(body) > 80 {
		body = body[:80] + "…"
	}
	return "not understood: " + body
}

// printable keeps what a broker wrote from moving the cursor about.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '.'
	}, s)
}
