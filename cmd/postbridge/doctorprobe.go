package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers"
)

const (
	// probeType is the CloudEvents type of a probe, which is no event of an order.
	probeType = "postbridge.probe.v1"
	// probeBroker takes the place of the broker in subject and key.
	probeBroker = "doctor"
	// probeTimeout is the time for a bus to store a probe, and conditionTimeout while it reports a condition.
	probeTimeout     = 10 * time.Second
	conditionTimeout = 2 * time.Second
)

// probe publishes a dead letter to each bus with the publisher of serve. It creates no stream or topic.
func (d *doctor) probe(ctx context.Context) []publishers.CheckResult {
	c := *d.config
	c.NATSURL, c.NATSCreateStreams, c.KafkaCreateTopics = c.natsAddress(), false, false
	buses := c.buses(d.credentials, slog.New(slog.DiscardHandler))
	results := make([][]publishers.CheckResult, len(buses))
	var probes sync.WaitGroup
	for i, bus := range buses {
		probes.Go(func() {
			probe := &publishers.Checks{Area: bus.Name, What: "the probe"}
			began := time.Now()
			err := publishProbe(ctx, bus)
			probe.Fail(err != nil, fmt.Sprintf("is not stored: %v", err), "remove that cause, and run the probe again")
			probe.OK(fmt.Sprintf("is stored as a dead letter, in %v", time.Since(began).Round(time.Millisecond)))
			results[i] = probe.Results
		})
	}
	probes.Wait()
	return slices.Concat(results...)
}

// publishProbe publishes a probe and returns once the bus has stored it. Its error has the conditions that prevent
// that. Each probe has a spool id of its own; otherwise a stream would drop the second one as a duplicate.
func publishProbe(ctx context.Context, bus bridge.Bus) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	id, now := rand.Text(), time.Now().UTC()
	blocked := time.AfterFunc(probeTimeout, cancel)
	var mu sync.Mutex
	conditions := make(map[string]string) // that hold; guarded by mu
	p, err := bus.Open(bridge.Opening{
		Spool: id, SaveState: func() error { return nil }, Rewound: func(uint64, error) {},
		Report: func(condition string, err error) {
			mu.Lock()
			defer mu.Unlock()
			before := len(conditions)
			delete(conditions, condition)
			if err != nil {
				conditions[condition] = condition + ": " + err.Error()
			}
			if len(conditions) == 0 {
				blocked.Stop()
			} else if before == 0 {
				blocked.Reset(conditionTimeout)
			}
		},
	})
	if err != nil {
		return err
	}
	defer func() { _ = p.Close() }() // it holds nothing
	done := make(chan error, 1)
	p.Publish(ctx, &bridge.Delivery{
		Spool: id, Sequence: 1, ID: id, Broker: probeBroker, Type: probeType, ReceivedAt: now, Deadletter: true,
		Data: fmt.Appendf(nil, `{"probe":%q,"sent_at":%q}`, id, now.Format(time.RFC3339Nano)),
	}, func(err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		mu.Lock()
		defer mu.Unlock()
		why := strings.Join(slices.Sorted(maps.Values(conditions)), "; ")
		return fmt.Errorf("no acknowledgement within %v: %s", time.Since(now).Round(time.Second), why)
	}
}
