package kafka

import (
	"go/parser"
	"go/token"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// writerTransition is a cell of the table in the package comment.
type writerTransition struct {
	state writerState
	event writerEvent
}

// writerTable returns the table in the package comment: the next state of each transition.
func writerTable(t *testing.T) (next map[writerTransition]writerState, states map[writerState]bool) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "kafka.go", nil, parser.ParseComments|parser.PackageClauseOnly)
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(file.Doc.Text(), "States of a partition writer\n")
	table, _, _ = strings.Cut(table, "Any other state has two more")
	row, cell := regexp.MustCompile(`^\t(\S+)`), regexp.MustCompile(`(\S+) → ([^\s,]+)`)
	next, states = make(map[writerTransition]writerState), make(map[writerState]bool)
	var state writerState
	for line := range strings.Lines(table) {
		if name := row.FindStringSubmatch(line); name != nil {
			state = writerState(name[1])
			states[state] = true
		}
		for _, c := range cell.FindAllStringSubmatch(line, -1) {
			next[writerTransition{state, writerEvent(c[1])}] = writerState(c[2])
		}
	}
	for state := range states {
		if state != stateEnded {
			next[writerTransition{state, eventFailed}] = state
			next[writerTransition{state, eventStopped}] = stateEnded
		}
	}
	return next, states
}

// TestNext compares the transition function with the table in the package comment: for each state and event, the next
// state, or a panic if the state cannot have the event.
func TestNext(t *testing.T) {
	t.Parallel()
	table, documented := writerTable(t)
	states := []writerState{
		stateStarting, stateLocating, stateRegistering, stateScanning, stateIdle, stateBatching, stateSending,
		stateResending, stateProbing, stateVerifying, stateSettling, stateRejecting, stateRenewing, stateEnded,
	}
	events := []writerEvent{
		eventDone, eventFailed, eventStopped, eventSaved, eventUnsaved, eventFresh, eventTruncated, eventDenied,
		eventMoved, eventBatched, eventUnfenced, eventAcked, eventRefused, eventMismatched,
		eventUnanswered, eventForgotten,
	}
	slices.Sort(states)
	if got := slices.Sorted(maps.Keys(documented)); !slices.Equal(got, states) {
		t.Errorf("documented states: %q, want %q", got, states)
	}
	transitions := newTransitions()
	nextOrPanic := func(s writerState, e writerEvent) (to writerState) {
		defer func() {
			if recover() != nil {
				to = ""
			}
		}()
		return transitions.next(s, e)
	}
	found := 0
	for _, s := range states {
		for _, e := range events {
			want, ok := table[writerTransition{s, e}]
			if ok {
				found++
			}
			if got := nextOrPanic(s, e); got != want {
				t.Errorf("%s while %s: %q, want %q", e, s, got, want)
			}
		}
	}
	if found != len(table) {
		t.Errorf("%d of %d documented transitions are of events that there are", found, len(table))
	}
}

// TestNextReaches: every state can be reached from the first one, and every state but the last can be left without a
// failure, so that no writer is stuck.
func TestNextReaches(t *testing.T) {
	t.Parallel()
	table, states := writerTable(t)
	reached := map[writerState]bool{newPartitionWriter(&topic{p: new(Publisher)}, 0).state: true}
	left := map[writerState]bool{stateEnded: true}
	for range states {
		for from, to := range table {
			if from.event == eventFailed || from.event == eventStopped {
				continue
			}
			reached[to] = reached[to] || reached[from.state]
			left[from.state] = true
		}
	}
	reached[stateEnded] = true // by eventStopped
	for s := range states {
		if !reached[s] || !left[s] {
			t.Errorf("%s: reached %t, left %t", s, reached[s], left[s])
		}
	}
}
