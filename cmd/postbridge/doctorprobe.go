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
	// probeType is the CloudEvents type of a probe, which is no event.
	probeType = "postbridge.probe.v1"
	// probeBroker stands for the broker, in subject and key.
	probeBroker = "doctor"
	// probeTimeout is how long a bus may take to store a probe.
	probeTimeout = 10 * time.Second
)

// probe publishes a dead letter to each bus with a publisher like that of serve. It creates no stream or topic.
func (d *doctor) probe(ctx context.Context) (all []publishers.CheckResult) {
	c := *d.config
	c.NATSURL, c.NATSCreateStreams, c.KafkaCreateTopics = c.natsAddress(), false, false
	for _, bus := range c.buses(d.credentials, slog.New(slog.DiscardHandler)) {
		probe := publishers.Checks{Area: bus.Name, What: "the probe"}
		began := time.Now()
		if err := publishProbe(ctx, bus); err != nil {
			probe.Fail("is not stored: "+err.Error(), "repair that")
		}
		probe.OK(fmt.Sprintf("is stored as a dead letter, in %v", time.Since(began).Round(time.Millisecond)))
		all = append(all, probe.Results...)
	}
	return all
}

// publishProbe returns once the bus stores a probe, or what keeps it from that. The probe is the only event of a spool
// of its own, or else a stream would take the next one for a repeat.
func publishProbe(ctx context.Context, bus bridge.Bus) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	id, now := rand.Text(), time.Now().UTC()
	var mu sync.Mutex
	conditions := make(map[string]string) // that hold; guarded by mu
	p, err := bus.Open(bridge.Opening{
		Spool: id, SaveState: func() error { return nil }, Rewound: func(uint64, error) {},
		Report: func(condition string, err error) {
			mu.Lock()
			defer mu.Unlock()
			delete(conditions, condition)
			if err != nil {
				conditions[condition] = condition + ": " + err.Error()
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
		return fmt.Errorf("no acknowledgement within %v: %s", probeTimeout, why)
	}
}
