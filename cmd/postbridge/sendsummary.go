package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strings"
	"sync"
	"time"
)

// summary is what came of the postbacks, for people and as JSON. Workers share it.
type summary struct {
	mu        sync.Mutex
	latencies histogram

	Sent         int64            `json:"sent"`
	OK           int64            `json:"ok"`
	Statuses     map[int]int64    `json:"statuses"`
	Lost         map[string]int64 `json:"lost"` // sent, but not answered; by reason
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

// count adds a postback with the status of its answer, or 0, and the id of its event, or nothing.
func (s *summary) count(pb postback, sent time.Time, status int, id string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Sent++
	if status == 0 {
		s.Lost[lossOf(err)]++
	} else {
		s.Statuses[status]++
		s.latencies.record(time.Since(pb.due))
	}
	if s.Replayed == nil {
		return
	}
	s.Replayed.Behind = max(s.Replayed.Behind, sent.Sub(pb.due).Seconds())
	if id != "" && pb.id != "" && id != pb.id {
		s.Replayed.OtherIDs++
	}
}

// refuse counts a connection that could not be opened.
func (s *summary) refuse() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Refused++
}

// finish computes what follows from the counts, when all workers have ended.
func (s *summary) finish(elapsed time.Duration) {
	s.OK, s.Seconds = s.Statuses[200], elapsed.Seconds()
	s.Rate = float64(s.OK) / max(s.Seconds, 1e-9)
	s.Milliseconds.P50 = milliseconds(s.latencies.quantile(0.50))
	s.Milliseconds.P99 = milliseconds(s.latencies.quantile(0.99))
	s.Milliseconds.Max = milliseconds(s.latencies.max)
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func (s *summary) text(asJSON bool) string {
	if asJSON {
		text, _ := json.Marshal(s) // of numbers and words
		return string(text) + "\n"
	}
	var b strings.Builder
	several := s.latencies.n >= 2 // one answer makes no rate and no quantiles
	plural := "s"
	if s.Sent == 1 {
		plural = ""
	}
	fmt.Fprintf(&b, "sent %d postback%s in %.2fs, %d acknowledged", s.Sent, plural, s.Seconds, s.OK)
	if several {
		fmt.Fprintf(&b, ", %.0f/s", s.Rate)
	}
	b.WriteString("\n")
	for _, status := range slices.Sorted(maps.Keys(s.Statuses)) {
		fmt.Fprintf(&b, "  status %d: %d\n", status, s.Statuses[status])
	}
	for _, reason := range slices.Sorted(maps.Keys(s.Lost)) {
		fmt.Fprintf(&b, "  no answer, %s: %d\n", reason, s.Lost[reason])
	}
	if s.Refused > 0 {
		fmt.Fprintf(&b, "  connections refused: %d\n", s.Refused)
	}
	if several {
		ms := s.Milliseconds
		fmt.Fprintf(&b, "latency p50 %.2fms, p99 %.2fms, max %.2fms\n", ms.P50, ms.P99, ms.Max)
	}
	if s.Replayed != nil {
		b.WriteString(s.Replayed.text())
	}
	if s.Worst != nil {
		b.WriteString(s.Worst.text())
	}
	return b.String()
}

// histogram counts latencies in buckets that are 3% wide, so that its size does not depend on how many there are.
type histogram struct {
	buckets [64 * 32]int64
	n       int64
	max     time.Duration
}

func (h *histogram) record(d time.Duration) {
	v := uint64(max(d, 32))
	e := bits.Len64(v) - 6 // v>>e is 32 to 63
	h.buckets[e*32+int(v>>e)-32]++
	h.n++
	h.max = max(h.max, d)
}

// quantile returns the upper end of the bucket in which the quantile is.
func (h *histogram) quantile(q float64) time.Duration {
	rank := int64(q * float64(h.n))
	for i, n := range h.buckets {
		rank -= n
		if rank < 0 {
			return min(h.max, time.Duration(i%32+33)<<(i/32))
		}
	}
	return h.max
}
