package kafka_test

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers/kafka"
	"github.com/postbridge/postbridge/publishers/publishertest"
)

// opened keeps the publisher that a trial opens.
type opened struct {
	*testBus
	publisher *kafka.Publisher
}

func (o *opened) Open(t *testing.T, opening bridge.Opening) bridge.Publisher {
	t.Helper()
	o.publisher = o.testBus.Open(t, opening).(*kafka.Publisher)
	return o.publisher
}

// looksUpCheckpoint reports whether a fetch asks for one record only.
func (r request) looksUpCheckpoint(t *testing.T) bool {
	t.Helper()
	if r.version > 11 { // the publisher's are not newer
		return false
	}
	fetch := kmsg.NewPtrFetchRequest()
	fetch.SetVersion(r.version)
	if err := fetch.ReadFrom(r.frame[14+int(binary.BigEndian.Uint16(r.frame[12:])):]); err != nil {
		t.Errorf("a request to fetch: %v", err)
	}
	return fetch.MaxBytes == 1
}

// TestRecoveryIsBounded offers again what a partition holds, after the cursor was lost: whatever that is, no more of it
// is held in memory than is in flight, and reading it costs no more than reading the partition three times.
func TestRecoveryIsBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("run by make test-long: more events than the index holds")
	}
	t.Parallel()
	const size, inFlight = 3 * kafka.MaxIndexed, 2000
	bus := &opened{testBus: startBus(t, 1)}
	bus.config.Partitions = 1
	var stored, fetched atomic.Int64
	bus.setTap(tap{
		request: func(r request) []byte {
			if r.key == int16(kmsg.Produce) {
				stored.Add(int64(len(r.frame)))
			}
			return r.frame
		},
		answer: func(r request, frame []byte) []byte {
			if r.key == int16(kmsg.Fetch) && !r.looksUpCheckpoint(t) {
				fetched.Add(int64(len(frame)))
			}
			return frame
		},
	})
	r := publishertest.Open(t, bus)
	all := ordersOnly(publishertest.Events(1, size, 500))
	random := randomOf(t)
	for _, d := range all { // what cannot be compressed, so that one fetch does not get most of it
		d.Data = fmt.Appendf(nil, `{"raw":"%016x%016x%016x%016x"}`,
			random.Uint64(), random.Uint64(), random.Uint64(), random.Uint64())
	}
	offer := func(each func()) {
		t.Helper()
		for some := range slices.Chunk(all, inFlight) {
			r.Publish(some...)
			r.WaitDone(some...)
			each()
		}
	}
	offer(func() {})
	r.Close()
	was, before := stored.Load(), fetched.Load()

	r = r.ReopenWith("")
	offer(func() {
		if n := kafka.Indexed(bus.publisher); n > kafka.MaxIndexed {
			t.Errorf("%d events are held in memory, want %d at most", n, kafka.MaxIndexed)
		}
	})
	read := fetched.Load() - before
	if t.Logf("read %d bytes of a partition of %d", read, was); read > 3*was {
		t.Error("want three times at most")
	}
	if stored.Load() != was {
		t.Error("something is sent again that is stored")
	}
	more := ordersOnly(publishertest.Events(size+1, 10, 5))
	r.Publish(more...)
	r.WaitDone(more...)
	wantOnce(t, bus.testBus, orders, append(all, more...))
}

// TestRecoveryInterrupted fails many fetches of a recovery: an event that was not read then is not stored twice.
func TestRecoveryInterrupted(t *testing.T) {
	if testing.Short() {
		t.Skip("run by make test-long: more events than the index holds")
	}
	t.Parallel()
	const size, inFlight = kafka.MaxIndexed + 4000, 2000
	bus := startBus(t, 1)
	bus.config.Partitions = 1
	r := publishertest.Open(t, bus)
	all := ordersOnly(publishertest.Events(1, size, 500))
	random := randomOf(t)
	for _, d := range all {
		d.Data = fmt.Appendf(nil, `{"raw":"%016x%016x%016x%016x"}`,
			random.Uint64(), random.Uint64(), random.Uint64(), random.Uint64())
	}
	offer := func() {
		for some := range slices.Chunk(all, inFlight) {
			r.Publish(some...)
			r.WaitDone(some...)
		}
	}
	offer()
	r.Close()
	var fetches atomic.Int64
	bus.setTap(tap{answer: func(req request, frame []byte) []byte {
		if req.key == int16(kmsg.Fetch) && !req.looksUpCheckpoint(t) && fetches.Add(1)%3 == 0 {
			bus.Cut()
			return nil
		}
		return frame
	}})
	r = r.ReopenWith("")
	offer()
	wantOnce(t, bus, orders, all)
}
