//go:build linux

package main

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
)

// measurePieces runs Go benchmarks of package bridge: what a postback costs in the processor alone.
func (b *bench) measurePieces(ctx context.Context) ([]*finding, error) {
	if !b.wants("pieces") {
		return nil, nil
	}
	event := &finding{what: "verify, normalize, encode a Kite postback", baseline: "encoding/json alone", unit: "µs", goal: "1.0 times"}
	orders := &finding{what: "compare and append at 10,000,000 orders seen", baseline: "at 1,000", unit: "µs", goal: "1.1 times"}
	for _, f := range []struct {
		finding   *finding
		got, base string
	}{
		{event, "NewEvent", "Unmarshal"},
		{orders, "Seen/orders=10000000", "Seen/orders=1000"},
	} {
		for round := range b.rounds {
			for _, name := range []string{f.got, f.base} {
				took, err := benchmark(ctx, name)
				if err != nil {
					return nil, err
				}
				if name == f.got {
					f.finding.got = append(f.finding.got, took)
				} else {
					f.finding.base = append(f.finding.base, took)
				}
			}
			fmt.Fprintf(b.out, "round %d  %s\n", round+1, f.finding.last())
		}
	}
	return []*finding{event, orders}, nil
}

// benchmark runs one Go benchmark on one core, and returns µs for each operation.
func benchmark(ctx context.Context, name string) (float64, error) {
	pattern := "^Benchmark" + strings.ReplaceAll(name, "/", "$/^") + "$"
	said, err := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-cpu", "1", "-benchtime", "1s", "-bench", pattern, "./bridge").CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("go test: %w\n%s", err, said)
	}
	found := regexp.MustCompile(`(?m)^Benchmark\S+\s+\d+\s+([\d.]+) ns/op`).FindSubmatch(said)
	if found == nil {
		return 0, fmt.Errorf("no benchmark is called %s:\n%s", name, said)
	}
	ns, err := strconv.ParseFloat(string(found[1]), 64)
	return ns / 1000, err
}
