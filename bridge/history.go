package bridge

import (
	"context"
	"math"
	"sync"
	"time"
)

// The history has a point a second for two minutes, and one each 15 s for an hour.
const (
	historyStep  = time.Second
	finePoints   = 120 + 1 // each bar of a chart is between two points
	coarseStep   = 15      // fine points
	coarsePoints = 240 + 1

	// growthSpan is the span over which the growth of the backlog is computed, leastGrowth the shortest one that tells.
	growthSpan  = time.Minute
	leastGrowth = 5 * time.Second
)

// history holds the recent course of some counters: for the charts of the page, and for the growth of the backlog.
type history struct {
	mu           sync.Mutex
	fine, coarse []historyPoint // oldest first
	added        int            // fine points so far
}

// historyPoint is the state at one moment; in the coarse history, of the buses the worst since the point before it.
type historyPoint struct {
	Seconds   float64             `json:"seconds"`   // since start
	Postbacks [numFates]uint64    `json:"postbacks"` // of all brokers by fate, since start
	Buses     map[string]busPoint `json:"buses"`

	waitingBytes int64
}

// busPoint is the state of a bus at one moment.
type busPoint struct {
	Waiting uint64 `json:"waiting"` // 0 while the oldest is younger than a second: it is in flight
	Up      bool   `json:"up"`
}

// keepHistory adds a point each second until end is called.
func (b *Bridge) keepHistory() (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var keeping sync.WaitGroup
	keeping.Go(func() {
		for tick := time.Tick(historyStep); ctx.Err() == nil; {
			b.history.add(b.historyPoint())
			select {
			case <-tick:
			case <-ctx.Done():
			}
		}
	})
	return func() {
		cancel()
		keeping.Wait()
	}
}

// historyPoint returns the state now.
func (b *Bridge) historyPoint() historyPoint {
	p := historyPoint{
		Seconds: time.Since(b.started).Round(time.Millisecond).Seconds(), Buses: make(map[string]busPoint),
	}
	for _, m := range b.metrics.brokers {
		for f := range numFates {
			p.Postbacks[f] += m.fates[f].Load()
		}
	}
	st := b.status()
	for name, bus := range st.Buses {
		if bus.OldestWaitingSeconds < historyStep.Seconds() {
			bus.Waiting = 0
		}
		p.Buses[name] = busPoint{bus.Waiting, bus.Up}
	}
	p.waitingBytes = st.Spool.WaitingBytes
	return p
}

// add adds a point to the fine history, and each 15th, with what the buses were meanwhile, to the coarse one.
func (h *history) add(p historyPoint) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fine = appendLast(h.fine, p, finePoints)
	h.added++
	if h.added%coarseStep == 1 {
		p.Buses = worst(h.fine[max(0, len(h.fine)-coarseStep):])
		h.coarse = appendLast(h.coarse, p, coarsePoints)
	}
}

// worst returns, for each bus of the last point, whether it was up at all points and how many events waited at most.
func worst(points []historyPoint) map[string]busPoint {
	all := make(map[string]busPoint)
	for name, bus := range points[len(points)-1].Buses {
		for _, p := range points {
			if at, ok := p.Buses[name]; ok {
				bus = busPoint{max(bus.Waiting, at.Waiting), bus.Up && at.Up}
			}
		}
		all[name] = bus
	}
	return all
}

// historyAfter is the history after a moment, oldest first.
type historyAfter struct {
	Fine   []historyPoint `json:"fine"`
	Coarse []historyPoint `json:"coarse"`
}

// after returns the points after a moment, in seconds since start.
func (h *history) after(seconds float64) historyAfter {
	h.mu.Lock()
	defer h.mu.Unlock()
	newer := func(points []historyPoint) []historyPoint {
		i := len(points)
		for i > 0 && points[i-1].Seconds > seconds {
			i--
		}
		return append([]historyPoint{}, points[i:]...) // not null
	}
	return historyAfter{newer(h.fine), newer(h.coarse)}
}

// secondsToFill returns how many seconds it takes until the backlog, now of so many bytes, has grown by the bytes left,
// as fast as it did since it was smallest within the last minute. It is 0 if the backlog does not grow, has not grown
// for long enough to tell, or has no space left.
func (h *history) secondsToFill(now time.Duration, waiting, left int64) float64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	least, since := waiting, now.Seconds()
	for i := len(h.fine) - 1; i >= 0 && h.fine[i].Seconds >= (now-growthSpan).Seconds(); i-- {
		if h.fine[i].waitingBytes < least {
			least, since = h.fine[i].waitingBytes, h.fine[i].Seconds
		}
	}
	span := now.Seconds() - since
	if span < leastGrowth.Seconds() || left <= 0 {
		return 0
	}
	return math.Ceil(float64(left) / float64(waiting-least) * span)
}
