package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/postbridge/postbridge/bridge/event"
)

// printer prints events, until it has printed --count or fails.
type printer struct {
	*tailOptions
	w      io.Writer
	format func(*message) ([]byte, error)
	stop   func() // ends following

	mu  sync.Mutex
	n   int   // printed; guarded by mu
	err error // guarded by mu
}

func (p *printer) print(m *message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil || p.n == p.count && p.count > 0 {
		return
	}
	line, err := p.format(m)
	if err == nil && line == nil {
		return
	}
	if err == nil {
		_, err = p.w.Write(line)
	}
	p.err = err
	if p.n++; p.err != nil || p.n == p.count {
		p.stop()
	}
}

// format returns the function that formats a message as a line; nil if it has none. The functions are for one goroutine
// at a time.
func (o *tailOptions) format(terminal, colours bool) func(*message) ([]byte, error) {
	human := terminal && !o.json
	line := func(m *message) []byte { return append(m.data, '\n') }
	if human {
		line = func(m *message) []byte { return humanLine(m.data, time.Local) }
	}
	if o.headers {
		return func(m *message) ([]byte, error) { return headersLine(m), nil }
	}
	format := func(m *message) ([]byte, error) { return line(m), nil }
	if o.fills || o.late {
		orders := event.Tracker{MaxOrders: 1_000_000} // about 400 MB
		format = (&trackerView{orders: orders, fills: o.fills, line: line, json: !human, zone: time.Local}).format
	}
	if !human || !colours {
		return format
	}
	return func(m *message) ([]byte, error) {
		line, err := format(m)
		return coloured(line, m.status), err
	}
}

// headersLine formats position, headers and event as one JSON object; the event keeps its bytes.
func headersLine(m *message) []byte {
	position, _ := json.Marshal(m.position) // strings and numbers
	headers, _ := json.Marshal(m.headers)
	return fmt.Appendf(nil, "%s,\"headers\":%s,\"event\":%s}\n",
		bytes.TrimSuffix(position, []byte("}")), headers, m.data)
}

// humanLine formats an event for people. One of the order book is marked.
func humanLine(data []byte, zone *time.Location) []byte {
	var e event.Event
	if err := json.Unmarshal(data, &e); err != nil || e.Broker == "" { // such as a probe of the doctor
		return []byte(printable(string(data)) + "\n")
	}
	received, _ := time.Parse(time.RFC3339Nano, e.ReceivedAt) // year 1 for an event of another program
	mark := ""
	if e.Source == event.SourceOrderBook {
		mark = "[" + e.Source + "] "
	}
	text := fmt.Sprintf("%s %-6s %-10s %-19s %-16s %-4s %9s %s %s",
		received.In(zone).Format("15:04:05.000"), e.Broker, cmp.Or(e.UserID, "-"), cmp.Or(e.OrderID, "-"), e.Status,
		e.Side, quantities(&e.Order), mark+symbolAndPrice(&e.Order), remark(&e))
	return []byte(strings.TrimRight(printable(text), " ") + "\n")
}

// quantities returns filled/ordered.
func quantities(o *event.Order) string {
	filled, _ := o.FilledQuantity.Get()
	quantity, known := o.Quantity.Get()
	if !known {
		return ""
	}
	return fmt.Sprintf("%d/%d", filled, quantity)
}

// symbolAndPrice returns the symbol with the average price of the fills, or before the first fill the order's price.
func symbolAndPrice(o *event.Order) string {
	price := o.Price
	if filled, _ := o.FilledQuantity.Get(); filled > 0 && o.AveragePrice != "" {
		price = o.AveragePrice
	}
	symbol := cmp.Or(o.Symbol, o.InstrumentID)
	if price == "" {
		return symbol
	}
	return symbol + " @ " + price
}

// remark returns the broker's reason, or for a dead letter the beginning of its body.
func remark(e *event.Event) string {
	if e.OrderID != "" {
		return e.Reason
	}
	body := cmp.Or(string(e.Raw), e.RawText)
	if len(body) > 80 {
		body = body[:80] + "…"
	}
	if e.Other != "" {
		return "not an order: " + e.Other + " " + body
	}
	return "not understood: " + body
}
