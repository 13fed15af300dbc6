package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/postbridge/postbridge/bridge"
)

// canary is what came of one generated order, for people and as JSON.
type canary struct {
	began time.Time // when it was sent

	OK      bool               `json:"ok"`
	OrderID string             `json:"order_id"`
	EventID string             `json:"event_id,omitempty"`
	Status  int                `json:"status,omitempty"` // of the answer
	Answer  float64            `json:"answer_milliseconds,omitempty"`
	Buses   map[string]float64 `json:"bus_milliseconds"`
	Error   string             `json:"error,omitempty"`
}

// sendCanary sends one postback and waits until its event is on each bus. It waits for at most three times the timeout:
// for the buses, for the answer and for the event.
func (p *process) sendCanary(ctx context.Context, o *sendOptions, t *target) error {
	now := time.Now().UTC()
	c := &canary{
		OrderID: fmt.Sprintf("canary-%s-%08x", now.Format("20060102T150405"), rand.Uint32()),
		Buses:   make(map[string]float64),
	}
	// The order cannot be acted on: it is cancelled, and its user and its symbol do not exist.
	of := &order{
		id: c.OrderID, user: o.user, symbol: "CANARY", side: "BUY", tag: "canary", quantity: 1, paise: 100, placed: now,
		states: []state{{step: cancelled, cancelled: 1}},
	}
	filter := &tailOptions{broker: o.broker, user: o.user, order: c.OrderID, destination: string(bridge.Orders)}
	w, err := p.watchBuses(ctx, filter)
	if err != nil {
		return err
	}
	defer w.close()
	w.awaitBegin(ctx, o.timeout)
	if err = c.send(ctx, t, of.body(o, 0), o.timeout); err == nil {
		w.sent(postback{order: c.OrderID}, c.EventID)
		err = c.onBuses(w.await(ctx, o.timeout))
	}
	if ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	if c.OK = err == nil; !c.OK {
		c.Error = err.Error()
		err = fmt.Errorf("canary: %w", err)
	}
	if o.json {
		text, _ := json.Marshal(c) // of numbers and words
		return errors.Join(err, p.print(string(text)+"\n"))
	}
	if !c.OK {
		return err
	}
	return p.print(c.text())
}

// send sends the postback. The timeout is for connecting and for the answer.
func (c *canary) send(ctx context.Context, t *target, body []byte, timeout time.Duration) (err error) {
	ctx, stop := context.WithTimeout(ctx, timeout)
	defer stop()
	c.began = time.Now()
	c.Status, c.EventID, err = t.post(ctx, body)
	if c.Status != 0 {
		c.Answer = milliseconds(time.Since(c.began))
	}
	switch {
	case c.Status >= 500:
		return fmt.Errorf("not accepted: %w", err)
	case c.Status != 0 && c.Status != 200:
		return fmt.Errorf("refused: %w", err)
	}
	return err
}

// onBuses records the time until the event was on each bus. The error names the buses without it.
func (c *canary) onBuses(r *worstReport) error {
	var missing []string
	for _, name := range busNames() {
		b := r.Buses[name]
		switch {
		case b == nil:
		case b.Unread != "":
			missing = append(missing, fmt.Sprintf("%s cannot be read: %s", name, b.Unread))
		case b.Missing > 0:
			waited := milliseconds(time.Since(c.began))
			missing = append(missing, fmt.Sprintf("not on %s after %.0fms (%s)", name, waited, b.note))
		default:
			c.Buses[name] = milliseconds(b.last.Sub(c.began))
		}
	}
	if missing != nil {
		return fmt.Errorf("answered 200 in %.1fms, but %s", c.Answer, strings.Join(missing, "; "))
	}
	return nil
}

func (c *canary) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "canary %s: answered %d in %.1fms", c.OrderID, c.Status, c.Answer)
	for _, name := range busNames() {
		if elapsed, ok := c.Buses[name]; ok {
			fmt.Fprintf(&b, ", on %s in %.1fms", name, elapsed)
		}
	}
	return b.String() + "\n"
}
