package kafka

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers"
)

func testLane(pending ...*entry) *partitionWriter {
	l := newPartitionWriter(&topic{p: new(Publisher)}, 0)
	l.pending = pending
	return l
}

func TestFit(t *testing.T) {
	t.Parallel()
	some := func(n, bytes int) (all []*entry) {
		for i := range n {
			e := numbered(uint64(i + 1))
			e.delivery.Data = make([]byte, bytes)
			all = append(all, e)
		}
		return all
	}
	for name, c := range map[string]struct {
		pending []*entry
		limit   int
		found   []uint64
		want    int
	}{
		"All":           {some(20, 100), 500, nil, 20},
		"Limit":         {some(20, 100), 7, nil, 7},
		"LimitOne":      {some(20, 100), 1, nil, 1},
		"Exactly":       {some(500, 100), 500, nil, 500},
		"Many":          {some(501, 100), 500, nil, 500},
		"Bytes":         {some(20, 100<<10), 500, nil, 5},
		"OneTooLarge":   {some(3, 2<<20), 500, nil, 1},
		"UpToFound":     {some(20, 100), 500, []uint64{9, 4, 77}, 3},
		"FoundFarAhead": {some(20, 100), 2, []uint64{9}, 2},
	} {
		l := testLane(c.pending...)
		l.limit = c.limit
		for _, number := range c.found {
			l.index.add(number, numbered(number).delivery.ID, int64(number))
		}
		if got := l.fit(); got != c.want {
			t.Errorf("%s: %d events, want %d", name, got, c.want)
		}
	}
}

// What was found is done and nothing else is.
func TestSkipStored(t *testing.T) {
	t.Parallel()
	var done []uint64
	var all []*entry
	for number := range uint64(6) {
		e := numbered(number)
		e.copies, e.done = 1, func(err error) {
			if err != nil {
				t.Error(err)
			}
			done = append(done, number)
		}
		all = append(all, e)
	}
	l := testLane(all...)
	for _, number := range []uint64{0, 1, 3} {
		l.index.add(number, all[number].delivery.ID, int64(number))
	}
	l.index.add(2, "of another event", 4)
	if !l.skipStored() || fmt.Sprint(done) != "[0 1]" || len(l.pending) != 4 || !l.index.has(all[3].delivery) {
		t.Errorf("done are %v, %d are pending", done, len(l.pending))
	}
	if l.skipStored() || len(l.pending) != 4 {
		t.Errorf("done are %v, %d are pending", done, len(l.pending))
	}
}

// A batch ends before an event that the index cannot tell of.
func TestFitUncovered(t *testing.T) {
	t.Parallel()
	l := testLane(numbered(3), numbered(1), numbered(2))
	l.index.add(1, "of another event", 1)
	l.index.add(5, "of another event", 2)
	l.index.open(2, 3)
	if n := l.fit(); n != 1 {
		t.Errorf("%d events, want 1", n)
	}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		want writerEvent
	}{
		{nil, eventAcked},
		{errors.New("connection refused"), eventUnanswered},
		{fmt.Errorf("%w: told so", kafkago.MessageSizeTooLarge), eventRefused},
		{kafkago.RecordListTooLarge, eventRefused},
		{kafkago.InvalidRecord, eventRefused},
		{kafkago.OutOfOrderSequenceNumber, eventMismatched},
		{kafkago.DuplicateSequenceNumber, eventMismatched},
		{kafkago.InvalidProducerEpoch, eventMismatched},
		{kafkago.UnknownProducerId, eventMismatched},
		{kafkago.NotLeaderForPartition, eventUnanswered},
		{kafkago.TopicAuthorizationFailed, eventUnanswered},
		{kafkago.RequestTimedOut, eventUnanswered},
		{kafkago.InvalidMessage, eventUnanswered}, // what arrived is not what was sent
		{kafkago.InvalidTimestamp, eventUnanswered},
		{kafkago.PolicyViolation, eventUnanswered},
		{kafkago.NotEnoughReplicas, eventUnanswered},
		{kafkago.NotEnoughReplicasAfterAppend, eventUnanswered},
		{kafkago.KafkaStorageError, eventUnanswered},
		{kafkago.ThrottlingQuotaExceeded, eventUnanswered},
		{kafkago.UnsupportedCompressionType, eventUnanswered},
		{kafkago.UnsupportedForMessageFormat, eventUnanswered},
		{kafkago.InvalidTopic, eventUnanswered},
		{kafkago.InvalidRequiredAcks, eventUnanswered},
		{kafkago.Unknown, eventUnanswered},
	} {
		if got := judge(c.err); got != c.want {
			t.Errorf("%v: %s, want %s", c.err, got, c.want)
		}
	}
}

// An event is done when the last of its copies is, and refused if one of them was.
func TestSettle(t *testing.T) {
	t.Parallel()
	why := fmt.Errorf("%w: because", bridge.ErrRejected)
	for _, refused := range [][2]error{{nil, nil}, {why, nil}, {nil, why}} {
		p, e, calls := new(Publisher), numbered(1), 0
		var result error
		e.copies, e.done = 2, func(err error) { result, calls = err, calls+1 }
		p.complete([]*entry{e}, refused[0])
		if calls != 0 {
			t.Error("done with a copy that is not")
		}
		p.complete([]*entry{e}, refused[1])
		if want := errors.Join(refused[0], refused[1]) != nil; calls != 1 ||
			errors.Is(result, bridge.ErrRejected) != want {
			t.Errorf("%v: done %d times, with %v", refused, calls, result)
		}
	}
}

// TestPaceOfRetries: while a broker cannot be reached, pauses stay short, however long that is. While it answers
// errors, they get longer.
func TestPaceOfRetries(t *testing.T) {
	t.Parallel()
	newPublisher := func(t *testing.T) *Publisher {
		p := &Publisher{report: func(string, error) {}, refresh: make(chan struct{}, 1), brokers: []string{"broker:1"}}
		p.transport = newTransport(Config{}, func(error) {})
		p.checkpoints, _ = publishers.LoadCheckpoints(nil, publishers.BlindFor, nil)
		p.ctx, p.stop = context.WithCancel(t.Context())
		return p
	}
	for name, c := range map[string]struct {
		err         error
		least, most time.Duration // of the longest pause
	}{
		"Unreachable": {errors.New("connection refused"), dialRetry, dialRetry},
		"Error":       {kafkago.NotEnoughReplicas, 10 * time.Second, 30 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := newPublisher(t)
				tp := newTopic(p, bridge.Orders)
				tp.leaders = []string{"broker:1"}
				pauses := newPauses(time.Hour)
				w, event := newPartitionWriter(tp, 0), eventFailed
				for event == eventFailed {
					event = w.attempt(func(context.Context, string) (writerEvent, error) {
						if pauses.over() {
							return eventDone, nil
						}
						return eventFailed, c.err
					})
				}
				if event != eventDone {
					t.Error("gave up")
				}
				if pauses.longest < c.least || pauses.longest > c.most {
					t.Errorf("the longest pause is %v, want %v to %v", pauses.longest, c.least, c.most)
				}
			})
		})
	}
	t.Run("Metadata", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			p := newPublisher(t)
			pauses := newPauses(time.Hour)
			p.client = &kafkago.Client{Transport: roundTripFunc(func() error {
				if pauses.over() {
					p.stop()
				}
				return errors.New("connection refused")
			})}
			p.watch()
			if pauses.longest > dialRetry+metadataPause {
				t.Errorf("the longest pause is %v", pauses.longest)
			}
		})
	})
}

// pauses measures the time between attempts.
type pauses struct {
	end, last time.Time
	longest   time.Duration
}

func newPauses(d time.Duration) *pauses { return &pauses{end: time.Now().Add(d), last: time.Now()} }

// over counts an attempt, and reports whether it is one of the last.
func (p *pauses) over() bool {
	now := time.Now()
	p.longest, p.last = max(p.longest, now.Sub(p.last)), now
	return now.After(p.end)
}

// roundTripFunc is a transport without a network.
type roundTripFunc func() error

func (f roundTripFunc) RoundTrip(context.Context, net.Addr, kafkago.Request) (kafkago.Response, error) {
	return nil, f()
}
