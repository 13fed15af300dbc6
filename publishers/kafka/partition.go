package kafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers"
)

// A small batch whose events were received more than late ago waits for linger, so that more events join it.
const (
	late   = time.Second
	linger = 3 * time.Millisecond
)

var errNoLeader = errors.New("has no leader")

// writerState is a state of a partition writer; see the table in the package comment.
type writerState string

const (
	stateStarting    writerState = "starting"
	stateLocating    writerState = "locating"
	stateRegistering writerState = "registering"
	stateScanning    writerState = "scanning"
	stateIdle        writerState = "idle"
	stateBatching    writerState = "batching"
	stateSending     writerState = "sending"
	stateResending   writerState = "resending"
	stateProbing     writerState = "probing"
	stateVerifying   writerState = "verifying"
	stateSettling    writerState = "settling"
	stateRejecting   writerState = "rejecting"
	stateRenewing    writerState = "renewing"
	stateEnded       writerState = "ended"
)

// writerEvent is the outcome of the work of a state.
type writerEvent string

const (
	eventDone       writerEvent = "done"
	eventFailed     writerEvent = "failed"
	eventStopped    writerEvent = "stopped"
	eventSaved      writerEvent = "saved"
	eventUnsaved    writerEvent = "unsaved"
	eventFresh      writerEvent = "fresh"
	eventTruncated  writerEvent = "truncated"
	eventDenied     writerEvent = "denied"
	eventMoved      writerEvent = "moved"
	eventBatched    writerEvent = "batched"
	eventUnfenced   writerEvent = "unfenced"
	eventAcked      writerEvent = "acked"
	eventRefused    writerEvent = "refused"
	eventMismatched writerEvent = "mismatched"
	eventUnanswered writerEvent = "unanswered"
	eventForgotten  writerEvent = "forgotten"
)

// transitions maps a state and an event to the next state. The transitions that every state has are in next.
type transitions map[writerState]map[writerEvent]writerState

func newTransitions() transitions {
	return transitions{
		stateStarting: {eventDone: stateLocating},
		stateLocating: {
			eventDone: stateStarting, eventSaved: stateScanning,
			eventUnsaved: stateRegistering, eventFresh: stateRenewing,
		},
		stateRegistering: {eventDone: stateScanning},
		stateScanning:    {eventDone: stateIdle, eventTruncated: stateRegistering, eventDenied: stateRenewing},
		stateIdle:        {eventDone: stateBatching},
		stateBatching: {
			eventBatched: stateSending, eventUnfenced: stateProbing, eventDone: stateIdle, eventMoved: stateStarting,
		},
		stateSending: {
			eventAcked: stateSettling, eventRefused: stateRejecting,
			eventMismatched: stateVerifying, eventUnanswered: stateResending,
		},
		stateResending: {
			eventAcked: stateSettling, eventRefused: stateVerifying,
			eventMismatched: stateVerifying, eventUnanswered: stateResending,
		},
		stateProbing: {
			eventAcked: stateVerifying, eventRefused: stateVerifying,
			eventMismatched: stateVerifying, eventUnanswered: stateProbing,
		},
		stateVerifying: {
			eventDone: stateIdle, eventRefused: stateRejecting, eventForgotten: stateRenewing,
			eventTruncated: stateRegistering, eventDenied: stateRenewing,
		},
		stateSettling:  {eventDone: stateIdle},
		stateRejecting: {eventDone: stateIdle},
		stateRenewing:  {eventDone: stateIdle},
	}
}

// next returns the next state. It panics at an event that the state cannot have.
func (t transitions) next(s writerState, e writerEvent) writerState {
	to := t[s][e]
	switch {
	case to != "":
		return to
	case s != stateEnded && e == eventFailed:
		return s
	case s != stateEnded && e == eventStopped:
		return stateEnded
	}
	panic(fmt.Sprintf("partition writer: event %s in state %s", e, s))
}

// partitionWriter writes one partition: first in, first out, one batch in flight. The table in the package comment
// is its state machine. Its fields belong to the goroutine of run, except the queue.
type partitionWriter struct {
	p         *Publisher
	topic     *topic
	partition int
	wake      chan struct{} // wakes the goroutine, as something changed; capacity 1

	queue []*entry // guarded by Publisher.mu

	state   writerState
	pending []*entry                    // taken off the queue and not completed
	retry   *backoff.ExponentialBackOff // of the attempts at the leader; nil if the last one succeeded
	cluster string                      // the cluster that at and index belong to
	at      position
	index   *index // the events that the partition is known to hold

	// unfenced: a batch that this writer or an earlier run has sent may still land, and the broker would acknowledge
	// the next one with its sequence numbers as a repeat. So every answer is verified by a recovery scan.
	unfenced bool

	encoder encoder
	sent    sentBatch
	limit   int                         // records in a batch
	invalid int                         // events rejected as invalid since the last acknowledgement
	pace    *backoff.ExponentialBackOff // of retries of an event that is refused as invalid
	// throttled is until when the broker does not read what we send; mismatched is since when it refuses our sequence
	// numbers, zero if it does not.
	throttled, mismatched time.Time

	// Of the checkpoints; see checkIfDue.
	visit   visit
	stream  *publishers.Stream // to check in this visit
	checkAt time.Time          // when the next check is due; zero for now
}

func newPartitionWriter(t *topic, partition int) *partitionWriter {
	return &partitionWriter{
		p: t.p, topic: t, partition: partition, wake: make(chan struct{}, 1), state: stateStarting,
		limit: batchRecords, pace: bridge.RetryForever(firstRetry), index: newIndex(),
		encoder: newEncoder(t.p.cfg.Compression),
	}
}

// push queues an event. Needs mu.
func (w *partitionWriter) push(e *entry) {
	w.queue = append(w.queue, e)
	if len(w.queue) == 1 {
		signal(w.wake)
	}
}

// run stores events until the publisher closes or the topic has another number of partitions.
func (w *partitionWriter) run() {
	for t := newTransitions(); w.state != stateEnded; {
		w.state = t.next(w.state, w.work())
	}
	w.unblock()
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	if w.p.ctx.Err() == nil {
		w.topic.end(append(w.pending, w.queue...))
	}
}

// work does the work of the state.
func (w *partitionWriter) work() writerEvent {
	switch w.state {
	case stateStarting, stateIdle:
		return w.collect()
	case stateLocating:
		return w.attempt(w.locate)
	case stateRegistering, stateRenewing:
		return w.attempt(w.register)
	case stateScanning:
		return w.attempt(w.scan)
	case stateBatching:
		return w.attempt(w.nextBatch)
	case stateSending, stateResending, stateProbing:
		w.p.wait(time.Until(w.throttled), nil)
		return w.attempt(w.send)
	case stateVerifying:
		return w.attempt(w.verify)
	case stateSettling:
		return w.settle()
	case stateRejecting:
		return w.reject()
	default:
		return eventStopped
	}
}

// collect waits until events are pending or the checkpoints are due. It stops once the topic has another number of
// partitions and nothing is pending; what is queued then goes to the next writers.
func (w *partitionWriter) collect() writerEvent {
	for lingered := false; ; {
		ending := w.dequeue()
		switch {
		case w.p.ctx.Err() != nil, ending && len(w.pending) == 0:
			return eventStopped
		case len(w.pending) > 0 && !ending && !lingered && w.canLinger():
			lingered = true
			w.p.wait(linger, nil)
		case len(w.pending) > 0, !time.Now().Before(w.checkAt):
			return eventDone
		default:
			w.unblock()
			w.p.wait(time.Until(w.checkAt), w.wake)
		}
	}
}

// dequeue moves the queue to pending, unless the topic has another number of partitions.
func (w *partitionWriter) dequeue() (ending bool) {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	if w.topic.wanted > 0 {
		return true
	}
	w.pending, w.queue = append(w.pending, w.queue...), nil
	return false
}

// action does the work of a state at the leader of the partition.
type action func(ctx context.Context, leader string) (writerEvent, error)

// attempt does the work of a state. If that fails it waits, with exponential backoff, before it returns the event.
func (w *partitionWriter) attempt(do action) writerEvent {
	leader, ending := w.leader()
	if ending {
		return eventStopped
	}
	event, err := eventFailed, errNoLeader
	if leader != "" {
		event, err = w.atLeader(leader, do)
	}
	switch {
	case w.p.ctx.Err() != nil:
		return eventStopped
	case err == nil:
		w.retry = nil
		return event
	case w.retry == nil:
		w.retry = bridge.RetryForever(firstRetry) // leaders move: one failure is not reported
	default:
		w.block(Plain(err))
	}
	signal(w.p.refresh)
	wait := w.retry.NextBackOff()
	if !fromBroker(err) {
		wait = min(wait, dialRetry)
	}
	if w.p.wait(wait, w.wake) {
		w.retry.Reset() // perhaps there is another leader
	}
	return event
}

// atLeader does the work of a state once the checkpoints are known to be stored.
func (w *partitionWriter) atLeader(leader string, do action) (writerEvent, error) {
	if err := w.checkIfDue(w.p.ctx, leader); err != nil {
		return eventFailed, err
	}
	return do(w.p.ctx, leader)
}

// leader returns the address of the partition's leader; empty if there is none. The writer is ending if the topic no
// longer has the partition, or if the topic has others, there is no leader, and no pending event may be stored here.
func (w *partitionWriter) leader() (addr string, ending bool) {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	if w.partition < len(w.topic.leaders) {
		addr = w.topic.leaders[w.partition]
	}
	wanted := w.topic.wanted
	uncertain := w.state == stateResending || w.state == stateProbing || w.state == stateVerifying
	return addr, w.p.ctx.Err() != nil || wanted > 0 && (w.partition >= wanted || addr == "" && !uncertain)
}

// block reports what blocks the partition. That no broker can be reached is one condition, reported by
// Publisher.watch.
func (w *partitionWriter) block(err error) {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	if w.p.up || fromBroker(err) {
		w.topic.failing.Block(w, fmt.Errorf("partition %d: %w", w.partition, advised(err, produceAdvice())))
	}
}

// unblock reports that the partition is not blocked any more, if it was.
func (w *partitionWriter) unblock() {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	w.topic.failing.Clear(w)
}
