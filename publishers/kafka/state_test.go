package kafka

import (
	"strings"
	"testing"
)

// at is a position that is as far as offset says.
func at(offset int64) position { return position{producer{7, 1}, int32(offset), offset} }

func newNotes(t *testing.T, lines ...string) *savedState {
	t.Helper()
	n := new(savedState)
	if err := n.parse([]byte(strings.Join(lines, "\n") + "\n")); err != nil {
		t.Fatal(err)
	}
	return n
}

func (n *savedState) want(t *testing.T, committed uint64, lines ...string) {
	t.Helper()
	want := ""
	for _, line := range lines {
		want += line + "\n"
	}
	if got := string(n.encode(committed)); got != want {
		t.Errorf("as of %d the note is %q, want %q", committed, got, want)
	}
}

// What is stored counts from when all up to it is done.
func TestNoteIsBehind(t *testing.T) {
	t.Parallel()
	n := newNotes(t, "cluster c")
	n.setProducer("orders/3", at(100))
	n.want(t, 0, "cluster c", "orders 3 7 1 100 100")
	n.advance("orders/3", 5, at(102))
	n.advance("orders/3", 9, at(104))
	n.advance("orders/3", 12, at(105))
	n.want(t, 4, "cluster c", "orders 3 7 1 100 100")
	n.want(t, 5, "cluster c", "orders 3 7 1 102 102")
	n.want(t, 8, "cluster c", "orders 3 7 1 102 102")
	n.want(t, 20, "cluster c", "orders 3 7 1 105 105")
	n.want(t, 20, "cluster c", "orders 3 7 1 105 105")
}

func TestNoteOfEachPartition(t *testing.T) {
	t.Parallel()
	n := newNotes(t, "cluster c")
	n.setProducer("orders/0", at(1))
	n.setProducer("orders/1", at(2))
	n.setProducer("rejects/0", at(3))
	n.advance("orders/1", 7, at(12))
	n.advance("rejects/0", 7, at(13))
	n.advance("orders/0", 8, at(11))
	n.want(t, 7, "cluster c", "orders 0 7 1 1 1", "orders 1 7 1 12 12", "rejects 0 7 1 13 13")
	n.want(t, 8, "cluster c", "orders 0 7 1 11 11", "orders 1 7 1 12 12", "rejects 0 7 1 13 13")
}

// Dead letters come in any order: a position counts when all that was stored before it is done.
func TestNoteOutOfOrder(t *testing.T) {
	t.Parallel()
	n := newNotes(t, "cluster c")
	n.setProducer("deadletters/0", at(0))
	n.advance("deadletters/0", 50, at(1))
	n.advance("deadletters/0", 3, at(2))
	n.want(t, 49, "cluster c", "deadletters 0 7 1 0 0")
	n.want(t, 50, "cluster c", "deadletters 0 7 1 2 2")
}

// A new producer counts at once; where to look from does not change with it.
func TestNoteOfNewProducer(t *testing.T) {
	t.Parallel()
	n := newNotes(t, "cluster c", "orders 3 7 1 10 100")
	n.advance("orders/3", 5, position{producer{7, 1}, 12, 102})
	n.advance("orders/3", 9, position{producer{7, 1}, 14, 104})
	n.setProducer("orders/3", position{producer{8, 0}, 0, 104})
	n.want(t, 4, "cluster c", "orders 3 8 0 0 100")
	n.want(t, 5, "cluster c", "orders 3 8 0 0 102")
	n.advance("orders/3", 15, position{producer{8, 0}, 6, 110})
	n.want(t, 14, "cluster c", "orders 3 8 0 0 104")
	n.want(t, 15, "cluster c", "orders 3 8 0 6 110")
}

func TestNoteReadAgain(t *testing.T) {
	t.Parallel()
	n := newNotes(t, "cluster some-cluster_ID")
	n.setProducer("prefix.orders/0", position{producer{1 << 40, 32767}, 1<<31 - 1, 1 << 50})
	n.setProducer("prefix.deadletters/11", at(2))
	n.advance("prefix.deadletters/11", 4, at(6))
	text := string(n.encode(4))
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	again := newNotes(t, lines...)
	again.want(t, 0, lines...)
	if got, ok := again.position("prefix.orders/0"); !ok ||
		got != (position{producer{1 << 40, 32767}, 1<<31 - 1, 1 << 50}) {
		t.Errorf("found %v, %t", got, ok)
	}
	if got, ok := again.position("prefix.orders/11"); ok {
		t.Errorf("found %v of a partition that is not noted", got)
	}
	if !again.setCluster("some-cluster_ID") || again.setCluster("other") {
		t.Error("the cluster is not that of the note")
	}
	if got, ok := again.position("prefix.orders/0"); ok {
		t.Errorf("found %v of another cluster", got)
	}
	again.advance("prefix.orders/0", 1, at(1)) // of a writer that does not know it yet
	again.want(t, 9, "cluster other")
}

// A run that has not yet heard from the cluster keeps what the one before noted.
func TestNoteUnchanged(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "cluster \n", "cluster c\norders 0 1 2 3 4\n", "cluster c\norders 0 1 2 3 4\nrejects 1 5 6 7 8\n"} {
		n := new(savedState)
		if err := n.parse([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if got := string(n.encode(0)); got != text && text != "" {
			t.Errorf("%q became %q", text, got)
		}
	}
}

func TestNoteUnreadable(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"cluster c\norders 0 1 2 3\n", "cluster c\norders zero 1 2 3 4\n", "cluster c\norders 0 1 2 3 4\n\n", "{}", "\x00",
		"cluster c\norders 0 1 99999 3 4\n", "cluster c\norders 0 1 2 99999999999 4\n", "cluster c\norders 0 1 2 3 4 5\n",
		"cluster c\norders 0 1 2 3 4", // cut off in the last number, perhaps
	} {
		n := new(savedState)
		if err := n.parse([]byte(text)); err == nil {
			t.Errorf("%q was read as %q", text, n.encode(0))
		}
		if got, ok := n.position("orders/0"); ok {
			t.Errorf("%q: found %v", text, got)
		}
	}
}
