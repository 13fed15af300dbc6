package event_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"reflect"
	"testing"

	"github.com/postbridge/postbridge/bridge/event"
)

// vectors is deploy/samples/tracker.json, which the tracker in Python is tested with, too.
type vectors struct {
	Event map[string]any
	Cases []struct {
		Name      string
		MaxOrders int             `json:"max_orders"`
		Snapshot  json.RawMessage // to begin with
		Steps     []struct {
			MaxOrders int `json:"max_orders"` // from this step on
			Spool     string
			Sequence  uint64
			Event     map[string]any
			Want      outcome
		}
	}
}

// outcome is a Change as the vectors write it.
type outcome struct {
	Verdict      event.Verdict
	NewFill      int64        `json:"new_fill"`
	FillPrice    string       `json:"fill_price"`
	Corrected    int64        `json:"corrected"`
	Status       event.Status `json:"status"`
	Filled       int64        `json:"filled_quantity"`
	AveragePrice string       `json:"average_price"`
	Full         bool         // ErrFull
}

func outcomeOf(t *testing.T, tracker *event.Tracker, m *event.Message) outcome {
	t.Helper()
	c, err := tracker.Apply(m)
	if err != nil && (!errors.Is(err, event.ErrFull) || c != event.Change{}) {
		t.Errorf("%+v, %v", c, err)
	}
	return outcome{c.Verdict, c.NewFill, c.FillPrice, c.Corrected, c.State.Status, c.State.Filled, c.State.AveragePrice,
		err != nil}
}

func apply(t *testing.T, tracker *event.Tracker, m *event.Message) event.Change {
	t.Helper()
	c, err := tracker.Apply(m)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const vectorsFile = "../../deploy/samples/tracker.json"

func readVectors(t *testing.T) (v vectors) {
	t.Helper()
	text, err := os.ReadFile(vectorsFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &v); err != nil || len(v.Cases) == 0 {
		t.Fatal(len(v.Cases), err)
	}
	return v
}

// TestTrackerVectors also restarts before each event.
func TestTrackerVectors(t *testing.T) {
	v := readVectors(t)
	for _, c := range v.Cases {
		tracker, restarted := restored(t, c.MaxOrders, c.Snapshot), restored(t, c.MaxOrders, c.Snapshot)
		for i, step := range c.Steps {
			m := message(t, v.Event, step.Event)
			m.Spool, m.Sequence = step.Spool, step.Sequence
			tracker.MaxOrders = cmp.Or(step.MaxOrders, tracker.MaxOrders)
			before := snapshotOf(t, &tracker)
			if got := outcomeOf(t, &tracker, m); got != step.Want {
				t.Errorf("%s: event %d:\ngot  %+v\nwant %+v", c.Name, i+1, got, step.Want)
			}
			if after := snapshotOf(t, &tracker); step.Want.Full && !bytes.Equal(after, before) {
				t.Errorf("%s: event %d was refused, and changed\n%s to\n%s", c.Name, i+1, before, after)
			}
			restarted.MaxOrders = tracker.MaxOrders
			restart(t, &restarted)
			if got := outcomeOf(t, &restarted, m); got != step.Want {
				t.Errorf("%s: event %d, after a restart:\ngot  %+v\nwant %+v", c.Name, i+1, got, step.Want)
			}
		}
	}
}

// message returns the event with the members of both; null removes one.
func message(t *testing.T, base, of map[string]any) *event.Message {
	t.Helper()
	members := maps.Clone(base)
	maps.Copy(members, of)
	maps.DeleteFunc(members, func(_ string, v any) bool { return v == nil })
	text, err := json.Marshal(members)
	if err != nil {
		t.Fatal(err)
	}
	m, err := event.Decode(text, func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	return &m
}

// restart makes the tracker what its snapshot says, which must say the same then.
func restart(t *testing.T, tracker *event.Tracker) {
	t.Helper()
	before := snapshotOf(t, tracker)
	*tracker = restored(t, tracker.MaxOrders, before)
	if after := snapshotOf(t, tracker); !bytes.Equal(after, before) {
		t.Errorf("restored %s\nfrom %s", after, before)
	}
}

func restored(t *testing.T, maxOrders int, snapshot []byte) event.Tracker {
	t.Helper()
	tracker := event.Tracker{MaxOrders: maxOrders}
	if snapshot != nil {
		if err := json.Unmarshal(snapshot, &tracker); err != nil {
			t.Fatal(err)
		}
	}
	return tracker
}

func snapshotOf(t *testing.T, tracker *event.Tracker) []byte {
	t.Helper()
	text, err := json.Marshal(tracker)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// python applies the vectors, with a restart before each event: an outcome a line, and the snapshot after each case.
const python = `
import json, sys
from tracker import Full, Tracker, decode

vectors = json.load(open(sys.argv[1], encoding="utf-8"))
for case in vectors["cases"]:
    snapshot, limit = case.get("snapshot"), case.get("max_orders", 100_000)
    for step in case["steps"]:
        event = {name: v for name, v in {**vectors["event"], **step["event"]}.items() if v is not None}
        headers = {"ce-type": "postbridge.order.v1", "ce-spool": step["spool"], "ce-sequence": f"{step['sequence']:020}"}
        message = decode(json.dumps(event), headers)
        limit = step.get("max_orders", limit)
        tracker = Tracker(snapshot, limit)
        try:
            c = tracker.apply(message)
            print(json.dumps(dict(c.state, verdict=c.verdict, new_fill=c.new_fill, fill_price=c.fill_price,
                                  corrected=c.corrected)))
        except Full:
            print(json.dumps({"full": True}))
        snapshot = json.loads(json.dumps(tracker.snapshot()))
    print(json.dumps(snapshot))
`

// TestTrackerInPython compares the results of deploy/examples/tracker.py with the vectors, and its snapshots with Go's.
func TestTrackerInPython(t *testing.T) {
	if _, err := exec.LookPath("python3"); err != nil {
		if os.Getenv("PYTHON_TEST_REQUIRED") == "1" {
			t.Fatal(err)
		}
		t.Skip("no python3: deploy/examples/tracker.py is not compared with Go")
	}
	cmd := exec.CommandContext(t.Context(), "python3", "-B", "-c", python, vectorsFile)
	cmd.Env = append(os.Environ(), "PYTHONPATH=../../deploy/examples")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	lines := json.NewDecoder(bytes.NewReader(out))
	next := func(into any) {
		if err := lines.Decode(into); err != nil {
			t.Fatal(err)
		}
	}
	v := readVectors(t)
	for _, c := range v.Cases {
		tracker := restored(t, c.MaxOrders, c.Snapshot)
		for i, step := range c.Steps {
			var got outcome
			if next(&got); got != step.Want {
				t.Errorf("%s: event %d:\ngot  %+v\nwant %+v", c.Name, i+1, got, step.Want)
			}
			m := message(t, v.Event, step.Event)
			m.Spool, m.Sequence = step.Spool, step.Sequence
			tracker.MaxOrders = cmp.Or(step.MaxOrders, tracker.MaxOrders)
			outcomeOf(t, &tracker, m)
		}
		var fromGo, fromPython any
		next(&fromPython)
		if err := json.Unmarshal(snapshotOf(t, &tracker), &fromGo); err != nil || !reflect.DeepEqual(fromPython, fromGo) {
			t.Errorf("%s: the snapshot in Python is\n%v\nin Go\n%v, %v", c.Name, fromPython, fromGo, err)
		}
	}
}
