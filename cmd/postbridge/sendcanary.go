package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/postbridge/postbridge/bridge"
)

// canary reports on one generated order, for people and as JSON.
type canary struct {
	began time.Time // when the order was sent

	OK      bool               `json:"ok"`
	OrderID string             `json:"order_id"`
	EventID string             `json:"event_id,omitempty"`
	Status  int                `json:"status,omitempty"` // of the answer
	Answer  float64            `json:"answer_milliseconds,omitempty"`
	Buses   map[string]float64 `json:"bus_milliseconds"`
	Error   string             `json:"error,omitempty"`
}

// sendCanary sends one postback and waits until its event is on each bus: at most --timeout for the buses to be
// followed, again for the answer and again for the event.
func (p *process) sendCanary(ctx context.Context, o *sendOptions, client *client, to *route) error {
	defer client.close()
	now := time.Now().UTC()
	c := &canary{
		OrderID: fmt.Sprintf("canary-%s-%08x", now.Format("20060102T150405"), rand.Uint32()),
		Buses:   make(map[string]float64),
	}
	filter := &tailOptions{broker: o.broker, user: o.user, order: c.OrderID, destination: string(bridge.Orders)}
	w, err := p.watchBuses(ctx, filter)
	if err != nil {
		return err
	}
	defer w.close()
	w.awaitReaders(ctx, o.timeout)
	// No consumer can act on the order: it is cancelled, and its user and its symbol do not exist.
	order := &order{
		id: c.OrderID, user: o.user, symbol: "CANARY", side: "BUY", tag: "canary", quantity: 1, paise: 100, placed: now,
		states: []state{{step: cancelled, cancelled: 1}},
	}
	if err = c.post(ctx, client, to, order.body(o, 0), o.timeout); err == nil {
		w.sent(postback{order: c.OrderID}, c.EventID)
		err = c.checkBuses(w.await(ctx, o.timeout))
	}
	if ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	text := c.text()
	if c.OK = err == nil; !c.OK {
		text, c.Error = "", err.Error()
		err = fmt.Errorf("canary: %w", err)
	}
	if o.json {
		object, _ := json.Marshal(c) // numbers and strings
		text = string(object) + "\n"
	}
	return errors.Join(err, p.print(text))
}

// post sends the postback. The timeout includes connecting.
func (c *canary) post(ctx context.Context, client *client, to *route, body []byte, timeout time.Duration) (err error) {
	ctx, stop := context.WithTimeout(ctx, timeout)
	defer stop()
	c.began = time.Now()
	if err = client.open(ctx); err == nil {
		c.Status, c.EventID, err = client.post(ctx, to, body)
	}
	switch {
	case c.Status == 0:
		return err
	case c.Status >= 500:
		err = fmt.Errorf("not accepted: %w", err)
	case c.Status != 200:
		err = fmt.Errorf("refused: %w", err)
	}
	c.Answer = milliseconds(time.Since(c.began))
	return err
}

// checkBuses records the time until the event was on each bus. The error names the buses without it.
func (c *canary) checkBuses(r *worstReport) error {
	var missing []string
	for name, b := range r.Buses {
		switch {
		case b.Unread != "":
			missing = append(missing, fmt.Sprintf("%s cannot be read: %s", name, b.Unread))
		case b.Missing > 0:
			waited := milliseconds(time.Since(c.began))
			missing = append(missing, fmt.Sprintf("not on %s after %.0fms (%s)", name, waited, b.status))
		default:
			c.Buses[name] = milliseconds(b.last.Sub(c.began))
		}
	}
	if missing != nil {
		slices.Sort(missing)
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
