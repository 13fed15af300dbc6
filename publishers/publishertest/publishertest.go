// Package publishertest is the contract of bridge.Publisher as a suite of tests that runs against any bus.
//
// What it holds a publisher to: every event is stored in all its destinations, once, in the order of its key, and done
// is called once for it; whatever the bus and the network do. What the bus can never take is refused; what it will not
// take now holds up nothing but its own key.
package publishertest

import (
	"testing"

	"github.com/postbridge/postbridge/bridge"
)

// Bus is a bus under test, and what can happen to it. Its methods fail the test they were given if they cannot do what
// they say.
type Bus interface {
	// Open opens a publisher on the bus. The bus may be down.
	Open(t *testing.T, o bridge.Opening) bridge.Publisher
	// Stored returns all messages of a destination, in the order stored per key.
	Stored(t *testing.T, dest bridge.Destination) []Message

	// Cut cuts the publisher's connections. It may connect again at once.
	Cut()
	// LoseAnswers says whether what the bus answers to the publisher is lost. What the publisher sends arrives.
	LoseAnswers(lose bool)

	// Stop stops the bus, and Start starts it again with what it had stored.
	Stop(t *testing.T)
	Start(t *testing.T)

	// MakeAnew removes a destination with all that it holds, and makes it again.
	MakeAnew(t *testing.T, dest bridge.Destination)
	// SetFull says whether the destination takes no more.
	SetFull(t *testing.T, dest bridge.Destination, full bool)
	// SetMaxMessage limits the size of a message.
	SetMaxMessage(t *testing.T, bytes int)
}

// Denier is a Bus that can deny to publish events of one key.
type Denier interface {
	SetDenied(t *testing.T, key string, denied bool)
}

// ByDestination is a Bus on which each destination keeps the order by itself: an event does not wait for the one before
// it to be stored in another.
type ByDestination interface {
	ByDestination()
}

// Restorer is a Bus that can come back with an older copy of what it had stored.
type Restorer interface {
	// Save keeps what the bus has stored now, and Restore puts that in place of what it has stored since. The bus is
	// stopped at both, and is started afterwards.
	Save(t *testing.T)
	Restore(t *testing.T)
}

// Cluster is a Bus of several nodes.
type Cluster interface {
	// KillLeader stops the node that leads the destination, and starts it again once another does.
	KillLeader(t *testing.T, dest bridge.Destination)
}

// Message is one message as the bus holds it.
type Message struct {
	// Key is the event's key: what the message is ordered by.
	Key string
	// Attributes are the CloudEvents attributes, names without prefix, values decoded; and traceparent.
	Attributes map[string]string
	// ContentType is the datacontenttype.
	ContentType string
	Data        []byte
}

// Run runs the whole suite. Each test gets a bus of its own from start. With -short there are fewer events and rounds.
func Run(t *testing.T, start func(t *testing.T) Bus) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, bus Bus)
	}{
		{"Stored", testStored},
		{"ConnectionCut", testConnectionCut},
		{"AnswersLostThenCut", testAnswersLostThenCut},
		{"AnswersLost", testAnswersLost},
		{"DownAtStart", testDownAtStart},
		{"RestartedUnderLoad", testRestartedUnderLoad},
		{"Denied", testDenied},
		{"TooLarge", testTooLarge},
		{"OrdersFull", testOrdersFull},
		{"RejectsFull", testRejectsFull},
		{"OfferedAgain", testOfferedAgain},
		{"Killed", testKilled},
		{"OlderCopy", testOlderCopy},
		{"OlderCopyOutgrown", testOlderCopyOutgrown},
		{"MadeAnew", testMadeAnew},
		{"MadeAnewBetweenRuns", testMadeAnewBetweenRuns},
		{"ContextEnded", testContextEnded},
		{"CloseWhileDown", testCloseWhileDown},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t, start(t))
		})
	}
}

// RunCluster runs the tests in which the nodes of a cluster make a difference.
func RunCluster(t *testing.T, start func(t *testing.T) Bus) {
	bus := start(t)
	t.Run("LeaderKilled", func(t *testing.T) { testLeaderKilled(t, bus) })
}
