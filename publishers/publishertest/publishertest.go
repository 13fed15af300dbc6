// Package publishertest is the contract suite for implementations of bridge.Publisher on any bus.
//
// A publisher must store every event once in each of its destinations, in order per key, and call done once for it,
// whatever the bus and the network do. An event that the bus can never store is rejected; one that it cannot store now
// blocks only its own key.
package publishertest

import (
	"testing"

	"github.com/postbridge/postbridge/bridge"
)

// Bus is a bus under test and its faults. A method that cannot do its work fails the test.
type Bus interface {
	// Open opens a publisher on the bus. The bus may be down.
	Open(t *testing.T, o bridge.Opening) bridge.Publisher
	// Stored returns all messages of a destination, in the order stored per key.
	Stored(t *testing.T, dest bridge.Destination) []Message

	// Cut cuts the publisher's connections. It may connect again at once.
	Cut()
	// LoseAnswers drops the responses of the bus to the publisher, or stops doing so. Requests still arrive.
	LoseAnswers(lose bool)

	// Stop stops the bus; Start starts it again with its data.
	Stop(t *testing.T)
	Start(t *testing.T)

	// Recreate deletes a destination with its data and creates it again.
	Recreate(t *testing.T, dest bridge.Destination)
	// SetFull makes the destination refuse events for lack of space, or accept them again.
	SetFull(t *testing.T, dest bridge.Destination, full bool)
	// SetMaxMessage limits the size of a message.
	SetMaxMessage(t *testing.T, bytes int)
}

// Denier is a Bus that can deny the right to publish events of one key.
type Denier interface {
	SetDenied(t *testing.T, key string, denied bool)
}

// ByDestination is a Bus with an order per destination: an event does not wait until the one before it is stored in
// another destination.
type ByDestination interface {
	ByDestination()
}

// Restorer is a Bus that can be restored from an older copy of its data.
type Restorer interface {
	// Save copies the data of the bus, and Restore replaces the data with that copy. The bus must be stopped.
	Save(t *testing.T)
	Restore(t *testing.T)
}

// Cluster is a Bus of several nodes.
type Cluster interface {
	// KillLeader stops the leader of the destination, and starts it again once another node leads.
	KillLeader(t *testing.T, dest bridge.Destination)
}

// Message is a stored message.
type Message struct {
	// Key is the key of the event, within which messages are ordered.
	Key string
	// Attributes are the CloudEvents attributes, names without prefix, values decoded; and traceparent.
	Attributes map[string]string
	// ContentType is the datacontenttype.
	ContentType string
	Data        []byte
}

// Run runs the suite, each test on a new bus from start. With -short there are fewer events and rounds.
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
		{"Recreated", testRecreated},
		{"RecreatedBetweenRuns", testRecreatedBetweenRuns},
		{"ContextEnded", testContextEnded},
		{"CloseWhileDown", testCloseWhileDown},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t, start(t))
		})
	}
}

// RunCluster runs the tests that need a bus of several nodes.
func RunCluster(t *testing.T, start func(t *testing.T) Bus) {
	bus := start(t)
	t.Run("LeaderKilled", func(t *testing.T) { testLeaderKilled(t, bus) })
}
