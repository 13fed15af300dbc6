package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/postbridge/postbridge/bridge"
)

// canary is one made-up order on its way, and what became of it.
type canary struct {
	order *order
	began time.Time

	// What people and programs read, filled in as far as it comes.
	OK      bool               `json:"ok"`
	OrderID string             `json:"order_id"`
	EventID string             `json:"event_id,omitempty"`
	Status  int                `json:"status,omitempty"` // of the answer
	Answer  float64            `json:"answer_milliseconds,omitempty"`
	Buses   map[string]float64 `json:"bus_milliseconds"`
	Error   string             `json:"error,omitempty"`
}

// sendCanary posts one postback and waits until its event is on each bus that is configured. It waits for the timeout three
// times at most: for the buses to be there, for the answer, and for the event.
func (p *process) sendCanary(ctx context.Context, o *sendOptions) error {
	c := newCanary(o)
	t, err := o.target(o.route())
	if err != nil {
		return err
	}
	buses, end, err := p.watchBuses(ctx, &tailOptions{broker: o.broker, user: o.user, order: c.OrderID, destination: string(bridge.Orders)})
	if err != nil {
		return err
	}
	defer end()
	buses.awaitBegin(ctx, o.timeout)

	err = c.post(ctx, t, o)
	if err == nil {
		err = c.await(ctx, buses, o.timeout)
	}
	if ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	if c.OK = err == nil; !c.OK {
		c.Error = err.Error()
		err = fmt.Errorf("send: canary: %w", err)
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

// newCanary makes an order that nobody could act on: it is cancelled, of a user and a symbol that do not exist.
func newCanary(o *sendOptions) *canary {
	now := time.Now()
	id := fmt.Sprintf("canary-%s-%08x", now.UTC().Format("20060102T150405"), rand.Uint32())
	return &canary{
		order: &order{
			id: id, user: o.user, symbol: "CANARY", side: "BUY", tag: "canary", quantity: 1, paise: 100, placed: now.UTC(),
			states: []state{{step: cancelled, cancelled: 1}},
		},
		OrderID: id, Buses: make(map[string]float64),
	}
}

// post sends it and takes the answer.
func (c *canary) post(ctx context.Context, t *target, o *sendOptions) error {
	conn := &connection{target: t}
	defer conn.close()
	c.began = time.Now()
	t.timeout = o.timeout
	if err := conn.open(ctx); err != nil {
		return fmt.Errorf("no connection: %w; is postbridge running?", err)
	}
	t.timeout -= time.Since(c.began) // connecting is part of it
	status, answer, err := conn.post(c.order.body(o, 0))
	if err != nil {
		return fmt.Errorf("not answered: %w", err)
	}
	c.Status, c.Answer = status, milliseconds(time.Since(c.began))
	switch {
	case status >= 500:
		return fmt.Errorf("not taken: answered %d: %s", status, answer)
	case status != 200:
		return fmt.Errorf("refused: answered %d: %s", status, answer)
	}
	id, ok := eventID(answer)
	if !ok {
		return errors.New("answered 200 without an event id: is this postbridge?")
	}
	c.EventID = id
	return nil
}

// await waits for the event on each bus.
func (c *canary) await(parent context.Context, buses watchedBuses, timeout time.Duration) error {
	ctx, stop := context.WithTimeout(parent, timeout)
	defer stop()
	missing := make([]error, len(buses))
	var mu sync.Mutex
	var waiting sync.WaitGroup
	for i, b := range buses {
		waiting.Go(func() {
			took, err := c.awaitOn(ctx, b)
			if err != nil {
				missing[i] = err
				return
			}
			mu.Lock()
			defer mu.Unlock()
			c.Buses[b.name] = milliseconds(took)
		})
	}
	waiting.Wait()
	if err := errors.Join(missing...); err != nil {
		return fmt.Errorf("answered 200 in %.1fms, but %s", c.Answer, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return nil
}

func (c *canary) awaitOn(ctx context.Context, b *watchedBus) (time.Duration, error) {
	if !b.hasBegun() {
		return 0, fmt.Errorf("%s cannot be read: %s", b.name, b.notes.lastSaid())
	}
	for {
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("not on %s after %.0fms (%s)", b.name, milliseconds(time.Since(c.began)), b.notes.lastSaid())
		case m := <-b.messages:
			if b.wants(m) && m.eventID() == c.EventID {
				return time.Since(c.began), nil
			}
		}
	}
}

func (c *canary) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "canary %s: answered %d in %.1fms", c.OrderID, c.Status, c.Answer)
	for _, name := range busNames() {
		if took, ok := c.Buses[name]; ok {
			fmt.Fprintf(&b, ", on %s in %.1fms", name, took)
		}
	}
	return b.String() + "\n"
}
