package kafka

import (
	"log/slog"
	"time"

	"github.com/postbridge/postbridge/bridge"
)

// Limits are what a test may want shorter.
type Limits = limits

// OpenWith opens a publisher whose limits a function, if there is one, changed.
func OpenWith(cfg Config, o bridge.Opening, log *slog.Logger, change func(*Limits)) (*Publisher, error) {
	l := defaultLimits()
	if change != nil {
		change(&l)
	}
	return open(cfg, o, log, l)
}

// UnsureFor is for OpenWith.
func UnsureFor(d time.Duration) func(*Limits) { return func(l *Limits) { l.unsureFor = d } }

// ShrinkAfter is for OpenWith.
func ShrinkAfter(d time.Duration) func(*Limits) { return func(l *Limits) { l.shrinkAfter = d } }

// BlindFor is for OpenWith.
func BlindFor(d time.Duration) func(*Limits) { return func(l *Limits) { l.blindFor = d } }

// CheckInterval is for OpenWith.
func CheckInterval(d time.Duration) func(*Limits) { return func(l *Limits) { l.checkInterval = d } }

// MaxIndexed is how many events Indexed returns at most for each partition.
const MaxIndexed = maxIndexed

// Indexed returns how many events of the partitions are held in memory. Nothing may be in flight.
func Indexed(p *Publisher) (events int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.topics {
		for _, l := range t.writers {
			events += len(l.index.window)
		}
	}
	return events
}
