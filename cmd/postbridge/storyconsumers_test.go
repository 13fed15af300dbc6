package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/postbridge/postbridge/bridge/event"
)

// cmdPython skips the story if Python or one of its packages is missing: python PACKAGE... PYTHON_TEST_REQUIRED=1 fails
// instead.
func cmdPython(ts *testscript.TestScript, _ bool, args []string) {
	err := exec.Command("python3", "-c", "import "+strings.Join(args, ", ")).Run()
	if err != nil && os.Getenv("PYTHON_TEST_REQUIRED") == "1" {
		ts.Fatalf("python3 with %s: %v", args, err)
	}
	if err != nil {
		kafkaOf(ts).t.Skipf("no python3 with %s: make python-packages", args)
	}
}

// cmdPlaced waits until the strategy engine has placed an order for each fill of a buy order in the stream of orders, and
// wants none of them twice: placed NATS_ADDRESS FILE. An order may be missing if the engine is unsure of it.
func cmdPlaced(ts *testscript.TestScript, _ bool, args []string) {
	eventually(ts, "an order for each fill", func() error {
		fills := make(map[string]string)
		err := withJetStream(args[0], func(ctx context.Context, js jetstream.JetStream) (err error) {
			fills, err = buyFills(ctx, js)
			return err
		})
		if err != nil {
			return err
		}
		placed, unsure := placedOrders(ts, args[1])
		for tag, quantity := range placed {
			if fills[tag] != quantity {
				ts.Fatalf("order %s has the quantity %s, its fill %q", tag, quantity, fills[tag])
			}
		}
		for tag := range fills {
			if placed[tag] == "" && !unsure[tag] {
				return fmt.Errorf("fill %s has no order; of %d fills, %d have", tag, len(fills), len(placed))
			}
		}
		ts.Logf("%d fills, %d orders, unsure of %d", len(fills), len(placed), len(unsure))
		return nil
	})
}

// buyFills returns the quantities of the fills of buy orders, by the tag of the order that follows.
func buyFills(ctx context.Context, js jetstream.JetStream) (map[string]string, error) {
	stream, err := js.Stream(ctx, "ORDERS")
	if err != nil {
		return nil, err
	}
	consumer, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return nil, err
	}
	var tracker event.Tracker
	fills := make(map[string]string)
	for range stream.CachedInfo().State.Msgs {
		m, err := consumer.Next()
		if err != nil {
			return nil, err
		}
		e, err := event.Decode(m.Data(), m.Headers().Get)
		if err != nil {
			return nil, err
		}
		c, err := tracker.Apply(&e)
		if err != nil {
			return nil, err
		}
		if c.NewFill > 0 && e.Side == "buy" {
			fills[e.ID[:20]] = fmt.Sprint(c.NewFill)
		}
	}
	return fills, nil
}

// placedOrders returns the quantities of the orders that the engine printed, by tag, and the tags of those it is unsure
// of.
func placedOrders(ts *testscript.TestScript, file string) (placed map[string]string, unsure map[string]bool) {
	placed, unsure = make(map[string]string), make(map[string]bool)
	for line := range strings.Lines(ts.ReadFile(file)) {
		var tag, quantity string
		if n, _ := fmt.Sscanf(line, "unsure %20s:", &tag); n == 1 {
			unsure[tag] = true
		}
		if n, _ := fmt.Sscanf(line, "place %20s: sell %s", &tag, &quantity); n != 2 {
			continue
		}
		if placed[tag] != "" {
			ts.Fatalf("order %s is placed twice", tag)
		}
		placed[tag] = quantity
	}
	return placed, unsure
}
