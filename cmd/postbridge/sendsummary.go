package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strings"
	"time"
)

// summary is what came of the postbacks sent.
type summary struct {
	statuses  map[int]int64
	lost      map[string]int64 // sent, but never answered
	refused   int64            // connections
	latencies histogram
	elapsed   time.Duration

	worst    *worstReport  // of --worst
	replayed *replayReport // of --replay
}

func newSummary() *summary {
	return &summary{statuses: make(map[int]int64), lost: make(map[string]int64)}
}

// count takes one postback in.
func (s *summary) count(status int, err error, latency time.Duration) {
	if err != nil {
		s.lost[lossOf(err)]++
		return
	}
	s.statuses[status]++
	s.latencies.record(latency)
}

// add takes another summary in.
func (s *summary) add(t *summary) {
	for status, n := range t.statuses {
		s.statuses[status] += n
	}
	for why, n := range t.lost {
		s.lost[why] += n
	}
	s.refused += t.refused
	s.latencies.add(&t.latencies)
}

// report is a summary as people and programs read it.
type report struct {
	Sent         int64            `json:"sent"`
	OK           int64            `json:"ok"`
	Statuses     map[int]int64    `json:"statuses"`
	Lost         map[string]int64 `json:"lost"`
	Refused      int64            `json:"refused_connections"`
	Seconds      float64          `json:"seconds"`
	Rate         float64          `json:"rate"`
	Milliseconds latencies        `json:"milliseconds"`
	Worst        *worstReport     `json:"worst,omitempty"`
	Replayed     *replayReport    `json:"replayed,omitempty"`
}

type latencies struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

func (s *summary) report() report {
	r := report{
		OK: s.statuses[200], Statuses: s.statuses, Lost: s.lost, Refused: s.refused, Seconds: s.elapsed.Seconds(),
		Worst: s.worst, Replayed: s.replayed,
		Milliseconds: latencies{
			milliseconds(s.latencies.quantile(0.50)), milliseconds(s.latencies.quantile(0.99)), milliseconds(s.latencies.max),
		},
	}
	for _, n := range s.statuses {
		r.Sent += n
	}
	for _, n := range s.lost {
		r.Sent += n
	}
	r.Rate = float64(r.OK) / max(r.Seconds, 1e-9)
	return r
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func (s *summary) text(asJSON bool) string {
	r := s.report()
	if asJSON {
		text, _ := json.Marshal(r) // of numbers and words
		return string(text) + "\n"
	}
	var b strings.Builder
	some := s.latencies.n >= 2 // one answer says nothing about rate and latency
	fmt.Fprintf(&b, "sent %s in %.2fs, %d acknowledged", postbacks(r.Sent), r.Seconds, r.OK)
	if some {
		fmt.Fprintf(&b, ", %.0f/s", r.Rate)
	}
	b.WriteString("\n")
	for _, status := range slices.Sorted(maps.Keys(r.Statuses)) {
		fmt.Fprintf(&b, "  status %d: %d\n", status, r.Statuses[status])
	}
	for _, why := range slices.Sorted(maps.Keys(r.Lost)) {
		fmt.Fprintf(&b, "  no answer, %s: %d\n", why, r.Lost[why])
	}
	if r.Refused > 0 {
		fmt.Fprintf(&b, "  connections refused: %d\n", r.Refused)
	}
	if some {
		fmt.Fprintf(&b, "latency p50 %.2fms, p99 %.2fms, max %.2fms\n", r.Milliseconds.P50, r.Milliseconds.P99, r.Milliseconds.Max)
	}
	if s.replayed != nil {
		b.WriteString(s.replayed.text())
	}
	if s.worst != nil {
		b.WriteString(s.worst.text())
	}
	return b.String()
}

func postbacks(n int64) string {
	if n == 1 {
		return "1 postback"
	}
	return fmt.Sprintf("%d postbacks", n)
}

// histogram counts latencies in buckets that are 3% wide, so that a run of any length takes little room.
type histogram struct {
	buckets [64 * 32]int64
	n       int64
	max     time.Duration
}

func bucketOf(d time.Duration) int {
	v := uint64(max(d, 32))
	e := bits.Len64(v) - 6 // v>>e is 32 to 63
	return e*32 + int(v>>e) - 32
}

func (h *histogram) record(d time.Duration) {
	h.buckets[bucketOf(d)]++
	h.n++
	h.max = max(h.max, d)
}

func (h *histogram) add(o *histogram) {
	for i, n := range o.buckets {
		h.buckets[i] += n
	}
	h.n += o.n
	h.max = max(h.max, o.max)
}

// quantile is the upper end of the bucket that the quantile is in.
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
