package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// summary counts the postbacks and their answers, for people and as JSON. Workers share it.
type summary struct {
	mu        sync.Mutex
	latencies []time.Duration

	Sent         int64            `json:"sent"`
	OK           int64            `json:"ok"`
	Statuses     map[int]int64    `json:"statuses"`
	Lost         map[string]int64 `json:"lost"` // sent but not answered, by reason
	Refused      int64            `json:"refused_connections"`
	Seconds      float64          `json:"seconds"`
	Rate         float64          `json:"rate"`
	Milliseconds struct {
		P50 float64 `json:"p50"`
		P99 float64 `json:"p99"`
		Max float64 `json:"max"`
	} `json:"milliseconds"`
	Worst    *worstReport  `json:"worst,omitempty"`
	Replayed *replayReport `json:"replayed,omitempty"`
}

func newSummary() *summary {
	return &summary{Statuses: make(map[int]int64), Lost: make(map[string]int64)}
}

// count adds a postback that was sent, and its answer.
func (s *summary) count(pb postback, sent time.Time, a answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Sent++
	var timeout net.Error
	switch {
	case a.status != 0:
		s.Statuses[a.status]++
		s.latencies = append(s.latencies, time.Since(pb.due))
	case errors.As(a.err, &timeout) && timeout.Timeout():
		s.Lost["timeout"]++
	default:
		s.Lost["connection closed"]++
	}
	if r := s.Replayed; r != nil {
		r.Behind = max(r.Behind, sent.Sub(pb.due).Seconds())
		if a.id != "" && pb.recorded != "" && a.id != pb.recorded {
			r.OtherIDs++
		}
	}
}

// refuse counts a failed attempt to connect.
func (s *summary) refuse() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Refused++
}

// finish computes rate and latencies after all workers have ended.
func (s *summary) finish(elapsed time.Duration) {
	s.OK, s.Seconds = s.Statuses[200], elapsed.Seconds()
	s.Rate = float64(s.OK) / max(s.Seconds, 1e-9)
	slices.Sort(s.latencies)
	if n := len(s.latencies); n > 0 {
		at := func(i int) float64 { return milliseconds(s.latencies[i]) }
		s.Milliseconds.P50, s.Milliseconds.P99, s.Milliseconds.Max = at(n/2), at(n*99/100), at(n-1)
	}
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func (s *summary) text(asJSON bool) string {
	if asJSON {
		text, _ := json.Marshal(s) // numbers and strings
		return string(text) + "\n"
	}
	var b strings.Builder
	noun := "postbacks"
	if s.Sent == 1 {
		noun = "postback"
	}
	fmt.Fprintf(&b, "sent %d %s in %.2fs, %d acknowledged, %.0f/s\n", s.Sent, noun, s.Seconds, s.OK, s.Rate)
	for _, status := range slices.Sorted(maps.Keys(s.Statuses)) {
		fmt.Fprintf(&b, "  status %d: %d\n", status, s.Statuses[status])
	}
	for _, reason := range slices.Sorted(maps.Keys(s.Lost)) {
		fmt.Fprintf(&b, "  no answer, %s: %d\n", reason, s.Lost[reason])
	}
	if s.Refused > 0 {
		fmt.Fprintf(&b, "  connections refused: %d\n", s.Refused)
	}
	if ms := s.Milliseconds; ms.Max > 0 {
		fmt.Fprintf(&b, "latency p50 %.2fms, p99 %.2fms, max %.2fms\n", ms.P50, ms.P99, ms.Max)
	}
	return b.String() + s.Replayed.text() + s.Worst.text()
}
