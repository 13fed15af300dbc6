package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/postbridge/postbridge/bridge"
)

// canary reports on one generated order, for people and as JSON.
type canary struct {
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
func (p *process) sendCanary(ctx context.Context, o *sender) error {
	now := time.Now().UTC()
	c := &canary{
		OrderID: fmt.Sprintf("canary-%s-%08x", now.Format("20060102T150405"), rand.Uint32()),
		Buses:   make(map[string]float64),
	}
	filter := busFilter{broker: o.broker, user: o.user, order: c.OrderID, destination: string(bridge.Orders)}
	w, err := p.watchBuses(ctx, filter, o.timeout)
	if err != nil {
		return err
	}
	defer w.close()
	// No consumer can act on the order: it is cancelled, and its user and its symbol do not exist.
	order := &order{
		id: c.OrderID, user: o.user, symbol: "CANARY", side: o.profile.sides[0], tag: "canary", quantity: 1, paise: 100,
		placed: now, states: []state{{step: cancelled, cancelled: 1}},
	}
	began := time.Now()
	if err = c.answered(o.target.post(o.route, order.body(o.sendOptions, 0), o.timeout), began); err == nil {
		w.sent(postback{order: c.OrderID}, c.EventID)
		err = c.checkBuses(w.await(ctx), began)
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

// answered records the answer.
func (c *canary) answered(a answer, began time.Time) error {
	if c.Status, c.EventID = a.status, a.id; a.status == 0 {
		return a.err
	}
	c.Answer = milliseconds(time.Since(began))
	switch {
	case a.status >= 500:
		return fmt.Errorf("not accepted: %w", a.err)
	case a.status != 200:
		return fmt.Errorf("refused: %w", a.err)
	}
	return a.err
}

// checkBuses records the time until the event was on each bus. The error names the buses without it.
func (c *canary) checkBuses(r *worstReport, began time.Time) error {
	var missing []string
	for name, b := range r.Buses {
		switch {
		case b.Unread != "":
			missing = append(missing, fmt.Sprintf("%s cannot be read: %s", name, b.Unread))
		case b.Missing > 0:
			waited := milliseconds(time.Since(began))
			missing = append(missing, fmt.Sprintf("not on %s after %.0fms (%s)", name, waited, b.status))
		default:
			c.Buses[name] = milliseconds(b.last.Sub(began))
		}
	}
	if missing == nil {
		return nil
	}
	slices.Sort(missing)
	return fmt.Errorf("answered 200 in %.1fms, but %s", c.Answer, strings.Join(missing, "; "))
}

func (c *canary) text() string {
	text := fmt.Sprintf("canary %s: answered %d in %.1fms", c.OrderID, c.Status, c.Answer)
	for _, name := range slices.Sorted(maps.Keys(c.Buses)) {
		text += fmt.Sprintf(", on %s in %.1fms", name, c.Buses[name])
	}
	return text + "\n"
}
