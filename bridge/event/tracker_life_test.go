package event_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/big"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/postbridge/postbridge/bridge/event"
)

// life is an order's life as its broker knows it, and all messages about it.
type life struct {
	states   []lifeState
	corrects bool // whether the exchange cancels trades in it
	priced   bool // whether postbacks have the price of the fills
	messages []event.Message
}

type lifeState struct {
	at      time.Time
	status  event.Status
	filled  int64
	average string
}

func (l *life) last() lifeState { return l.states[len(l.states)-1] }

// hasBook reports whether the order book was read after the last state.
func (l *life) hasBook() bool {
	return slices.ContainsFunc(l.messages, func(m event.Message) bool {
		return m.Source == event.SourceOrderBook && m.UpdatedTime == timeText(l.last().at) && m.Status == l.last().status
	})
}

// timeText is a broker's time: whole seconds.
func timeText(t time.Time) string {
	return t.In(time.FixedZone("IST", 19_800)).Format(time.RFC3339)
}

// morning is when the lives of most tests begin.
var morning = time.Date(2026, 1, 8, 4, 0, 0, 0, time.UTC)

// newLife makes a life that begins at a time. Its last state is newer than the others by the broker's own word; others
// may happen in one second.
func newLife(rng *rand.Rand, id string, at time.Time) *life {
	l := &life{corrects: rng.IntN(4) == 0, priced: rng.IntN(4) > 0}
	s := lifeState{status: event.StatusOpen}
	for range 1 + rng.IntN(8) {
		at = at.Add(time.Duration(rng.IntN(4000)) * time.Millisecond)
		s.at = at
		switch {
		case l.corrects && s.filled > 1 && rng.IntN(3) == 0:
			at = at.Add(time.Second)
			s.at, s.filled = at, 1+rng.Int64N(s.filled-1)
		case rng.IntN(3) > 0:
			s.filled += 1 + rng.Int64N(50)
		}
		if s.filled > 0 {
			s.status, s.average = event.StatusPartiallyFilled, fmt.Sprintf("%d.%02d", 100+s.filled, s.filled%100)
		}
		l.states = append(l.states, s)
	}
	s.at = at.Add(time.Second)
	if rng.IntN(4) > 0 {
		s.at = at // the same second perhaps, but terminal
		s.status = []event.Status{event.StatusFilled, event.StatusCancelled, event.StatusExpired}[rng.IntN(3)]
	}
	l.states = append(l.states, s)
	l.deliver(rng, id)
	return l
}

// deliver makes the messages of a life: each postback through one or more replicas, after a delay, and rows of the order
// book between them.
func (l *life) deliver(rng *rand.Rand, id string) {
	add := func(name, source string, s lifeState, received time.Time, spool string) {
		l.messages = append(l.messages, event.Message{
			Event: event.Event{ID: id + name, Broker: "kite", Source: source, Order: event.Order{
				UserID: "AB1234", OrderID: id, Status: s.status, FilledQuantity: event.QuantityOf(s.filled),
				AveragePrice: s.average, UpdatedTime: timeText(s.at), ExchangeTime: timeText(l.states[0].at),
			}, ReceivedAt: received.Format(event.TimeFormat)},
			Spool: spool, Sequence: uint64(len(l.messages)) + 1,
		})
	}
	for i, s := range l.states {
		if !l.priced {
			s.average = "0"
		}
		for range 1 + rng.IntN(2) {
			delay := time.Duration(rng.IntN(20_000)) * time.Millisecond
			add(fmt.Sprint("-", i), event.SourcePostback, s, s.at.Add(delay), []string{"a", "b"}[rng.IntN(2)])
		}
	}
	for i := range rng.IntN(4) {
		requested := l.states[0].at.Add(time.Duration(rng.IntN(40_000)) * time.Millisecond)
		row := l.states[0]
		for _, s := range l.states {
			if !s.at.After(requested) {
				row = s
			}
		}
		add(fmt.Sprint("-book-", i), event.SourceOrderBook, row, requested, "run")
	}
}

// totals are what a consumer adds up.
type totals struct {
	filled, corrected int64
	value             *big.Rat
	unpriced          bool
}

func (sum *totals) add(t *testing.T, c event.Change) {
	t.Helper()
	if c.NewFill < 0 || c.Corrected < 0 || c.NewFill > 0 && c.Corrected > 0 ||
		c.Verdict != event.VerdictNew && c.NewFill+c.Corrected > 0 {
		t.Errorf("%+v", c)
	}
	sum.filled += c.NewFill
	sum.corrected += c.Corrected
	price, ok := new(big.Rat).SetString(c.FillPrice)
	if sum.unpriced = sum.unpriced || c.NewFill > 0 && !ok; ok {
		sum.value.Add(sum.value, price.Mul(price, big.NewRat(c.NewFill, 1)))
	}
	if sum.filled-sum.corrected != c.State.Filled {
		t.Errorf("%d filled, %d corrected, and the order has %d", sum.filled, sum.corrected, c.State.Filled)
	}
}

// TestTrackerOfLives is that whatever the sequence of the messages of several orders, their repeats, delays and the
// restarts between them, the fills and the final states are those of the brokers.
func TestTrackerOfLives(t *testing.T) {
	seeds := uint64(1000)
	if testing.Short() {
		seeds = 100
	}
	for seed := range seeds {
		rng := rand.New(rand.NewPCG(seed, 1))
		lives, sums := make(map[string]*life), make(map[string]*totals)
		var messages []event.Message
		for i := range 3 {
			id := fmt.Sprint(i)
			lives[id], sums[id] = newLife(rng, id, morning), &totals{value: new(big.Rat)}
			messages = append(messages, lives[id].messages...)
		}
		messages = append(messages, messages[:rng.IntN(len(messages))]...)
		rng.Shuffle(len(messages), func(i, j int) { messages[i], messages[j] = messages[j], messages[i] })
		messages = append(messages, messages[rng.IntN(len(messages)):]...) // read again after a restart

		var tracker event.Tracker
		states := make(map[string]event.State)
		for _, m := range messages {
			if rng.IntN(8) == 0 {
				restart(t, &tracker)
			}
			c := apply(t, &tracker, &m)
			sums[m.OrderID].add(t, c)
			states[m.OrderID] = c.State
		}
		for id, l := range lives {
			l.check(t, states[id], sums[id])
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func (l *life) check(t *testing.T, got event.State, sum *totals) {
	t.Helper()
	want := l.last()
	if got.Status != want.status || got.Filled != want.filled {
		t.Errorf("the order ended as %+v, want %+v", got, want)
	}
	if !l.corrects && sum.corrected > 0 {
		t.Errorf("%d are taken back; nothing was corrected", sum.corrected)
	}
	if (l.priced || l.hasBook()) && got.AveragePrice != want.average {
		t.Errorf("the average is %s, want %s", got.AveragePrice, want.average)
	}
	if !l.priced || l.corrects || want.filled == 0 {
		return
	}
	average, _ := new(big.Rat).SetString(want.average)
	off := average.Mul(average, big.NewRat(want.filled, 1)).Sub(average, sum.value)
	if rounding := big.NewRat(sum.filled, 1_000_000); sum.unpriced || off.Abs(off).Cmp(rounding) > 0 {
		t.Errorf("the prices of the fills differ from the average by %s in total", off.FloatString(8))
	}
}

// TestTrackerInSequence is that each fall of the filled quantity is reported when events come as they happened.
func TestTrackerInSequence(t *testing.T) {
	for seed := range uint64(100) {
		rng := rand.New(rand.NewPCG(seed, 2))
		l := newLife(rng, "1", morning)
		var tracker event.Tracker
		sum := &totals{value: new(big.Rat)}
		var before, filled, corrected int64
		for i, s := range l.states {
			filled, corrected = filled+max(s.filled-before, 0), corrected+max(before-s.filled, 0)
			before = s.filled
			for _, m := range l.messages {
				if m.ID == fmt.Sprint("1-", i) {
					sum.add(t, apply(t, &tracker, &m))
				}
			}
		}
		if sum.filled != filled || sum.corrected != corrected {
			t.Errorf("seed %d: %d filled and %d corrected, want %d and %d", seed, sum.filled, sum.corrected, filled,
				corrected)
		}
	}
}

// TestTrackerLimit checks that a Tracker refuses an event, or counts what one without a limit counts: some orders a day,
// messages that are hours late, restarts, and streams that are read again.
func TestTrackerLimit(t *testing.T) {
	seeds := 50
	if testing.Short() {
		seeds = 10
	}
	refused, forgot := 0, 0
	for seed := range uint64(seeds) {
		rng := rand.New(rand.NewPCG(seed, 3))
		messages := daysOfMessages(rng)
		var unlimited event.Tracker
		limited := event.Tracker{MaxOrders: 1 + rng.IntN(15)}
		again := 5
		for i := 0; i < len(messages); i++ {
			m := &messages[i]
			want := apply(t, &unlimited, m)
			got, err := limited.Apply(m)
			for ; errors.Is(err, event.ErrFull); got, err = limited.Apply(m) {
				refused++
				limited.MaxOrders++
			}
			if err != nil || got.NewFill != want.NewFill || got.Corrected != want.Corrected || got.FillPrice != want.FillPrice {
				t.Fatalf("seed %d: %+v is %+v, %v, want %+v", seed, *m, got, err, want)
			}
			if rng.IntN(20) == 0 {
				restart(t, &limited)
			}
			if rng.IntN(100) == 0 && again > 0 {
				again--
				i = rng.IntN(i+1) - 1
			}
		}
		if bytes.Contains(snapshotOf(t, &limited), []byte(`"forgotten"`)) {
			forgot++
		}
	}
	if refused < seeds || forgot < seeds/2 {
		t.Errorf("%d events were refused, and %d of the Trackers forgot an order: the test is too weak", refused, forgot)
	}
}

// daysOfMessages returns the messages of forty orders of five days, each up to twelve hours late.
func daysOfMessages(rng *rand.Rand) (all []event.Message) {
	arrives := make(map[*event.Message]time.Time)
	var messages []*event.Message
	for i := range 40 {
		begins := morning.Add(time.Duration(rng.Int64N(int64(5 * 24 * time.Hour))))
		for _, m := range newLife(rng, fmt.Sprint(i), begins).messages {
			received, _ := time.Parse(event.TimeFormat, m.ReceivedAt)
			arrives[&m] = received.Add(time.Duration(rng.Int64N(int64(12 * time.Hour))))
			messages = append(messages, &m)
		}
	}
	slices.SortFunc(messages, func(a, b *event.Message) int { return arrives[a].Compare(arrives[b]) })
	for _, m := range messages {
		all = append(all, *m)
	}
	return all
}
