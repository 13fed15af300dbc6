package nats_test

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/publishers"
	"github.com/postbridge/postbridge/publishers/nats"
	"github.com/postbridge/postbridge/publishers/publishertest"
)

func TestStreamsCreated(t *testing.T) {
	t.Parallel()
	n := startServer(t, nil)
	js := n.admin(t)
	e := openEdge(t, nats.Config{
		URL: n.url(), Prefix: "de.desk1", CreateStreams: true, Replicas: 1, MaxAge: time.Hour, MaxBytes: 1 << 20,
	})
	dead := order(1).AsDeadletter()
	rejected := order(2)
	rejected.Status = event.StatusRejected
	e.publish(dead, rejected)
	wantStored(t, js, "DE_DESK1_DEADLETTERS", 1)
	wantStored(t, js, "DE_DESK1_ORDERS", 2)
	wantStored(t, js, "DE_DESK1_REJECTS", 2)

	c := streamConfig(t, js, "DE_DESK1_ORDERS")
	if !slices.Equal(c.Subjects, []string{"de.desk1.orders.>"}) || c.Storage != jetstream.FileStorage ||
		c.Retention != jetstream.LimitsPolicy || c.Discard != jetstream.DiscardNew || !c.AllowDirect ||
		c.Duplicates != 2*time.Minute || c.Replicas != 1 || c.MaxAge != time.Hour || c.MaxBytes != 1<<20 {
		t.Errorf("created as %+v", c)
	}
}

func TestStreamsCreatedDiscardOld(t *testing.T) {
	t.Parallel()
	n := startServer(t, nil)
	e := openEdge(t, nats.Config{URL: n.url(), CreateStreams: true, DiscardOld: true, MaxAge: time.Minute})
	e.publish(order(1))
	c := streamConfig(t, n.admin(t), "ORDERS")
	// The server takes no duplicate window that is longer than the age.
	if c.Discard != jetstream.DiscardOld || c.Duplicates != time.Minute || c.MaxBytes != -1 {
		t.Errorf("created as %+v", c)
	}
}

func TestExistingStreamUntouched(t *testing.T) {
	t.Parallel()
	n := startServer(t, nil)
	js := n.admin(t)
	before := createStream(t, js, jetstream.StreamConfig{
		Name: "ORDERS", Subjects: []string{"orders.*.*.*", "other"}, Description: "somebody's", MaxMsgs: 1000,
		Duplicates: time.Second, Compression: jetstream.S2Compression,
	})
	e := openEdge(t, nats.Config{URL: n.url(), CreateStreams: true, Replicas: 1, MaxAge: time.Hour})
	e.publish(order(1), order(2))
	if after := streamConfig(t, js, "ORDERS"); !reflect.DeepEqual(before, after) {
		t.Errorf("changed from %+v to %+v", before, after)
	}
}

// A stream that does not fit holds up its own events only, and no longer than it does not fit.
func TestStreamDoesNotFit(t *testing.T) {
	t.Parallel()
	n := startServer(t, nil)
	js := n.admin(t)
	before := createStream(
		t,
		js,
		jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}, Storage: jetstream.MemoryStorage},
	)
	e := openEdge(t, nats.Config{URL: n.url(), CreateStreams: true})
	held := e.offer(order(1))
	e.waitCause("stream ORDERS", "memory")
	e.publish(order(2).AsDeadletter())
	undone(t, held)
	if after := streamConfig(t, js, "ORDERS"); !reflect.DeepEqual(before, after) {
		t.Errorf("changed from %+v to %+v", before, after)
	}
	if err := js.DeleteStream(t.Context(), "ORDERS"); err != nil {
		t.Fatal(err)
	}
	if err := e.wait(held); err != nil {
		t.Error(err)
	}
	e.waitNoCauses()
	wantStored(t, js, "ORDERS", 1)
}

func TestStreamsNotCreated(t *testing.T) {
	t.Parallel()
	n := startServer(t, nil)
	js := n.admin(t)
	e := openEdge(t, nats.Config{URL: n.url()})
	held := e.offer(order(1))
	e.waitCause("stream ORDERS", "create it with subjects orders.>")
	for _, name := range []string{"orders", "rejects", "deadletters"} {
		createStream(t, js, jetstream.StreamConfig{Name: strings.ToUpper(name), Subjects: []string{name + ".>"}})
	}
	if err := e.wait(held); err != nil {
		t.Error(err)
	}
	e.waitNoCauses()
}

// TestStreamDeleted: nothing goes into a stream made anew before it is known what the old one held.
func TestStreamDeleted(t *testing.T) {
	t.Parallel()
	n := startServer(t, nil)
	js := n.admin(t)
	e := openEdge(t, nats.Config{URL: n.url(), CreateStreams: true})
	e.publish(order(1))
	if err := js.DeleteStream(t.Context(), "ORDERS"); err != nil {
		t.Fatal(err)
	}
	var held []<-chan error
	eventually(t, "word of the loss", func() bool {
		for range 20 {
			d := order(uint64(len(held) + 2))
			d.OrderID = fmt.Sprint(len(held)) // waits for no other
			held = append(held, e.offer(d))
		}
		return e.rewound.Load() > 0
	}, func() any { return e.all() })
	for _, result := range held {
		undone(t, result)
	}
	wantStored(t, js, "ORDERS")
}

// TestStoredBySomebodyElse: another stream in the place of ours would keep events by rules that nobody checked, and
// keep a copy of each that is stored in ours later.
func TestStoredBySomebodyElse(t *testing.T) {
	t.Parallel()
	n := startServer(t, nil)
	js := n.admin(t)
	e := openEdge(t, nats.Config{URL: n.url(), CreateStreams: true})
	e.publish(order(1))
	if err := js.DeleteStream(t.Context(), "ORDERS"); err != nil {
		t.Fatal(err)
	}
	createStream(t, js, jetstream.StreamConfig{Name: "ALL", Subjects: []string{"orders.>"}})
	all := orders(301)[1:]
	held := e.offerAll(all)
	e.waitCause("publish orders", "reach another stream than ORDERS")
	e.waitCause("stream ORDERS", "cannot create")
	wantStored(t, js, "ALL")
	if err := js.DeleteStream(t.Context(), "ALL"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "word of the loss", func() bool { return e.rewound.Load() > 0 }, func() any { return e.all() })
	for _, result := range held {
		undone(t, result)
	}
	wantStored(t, js, "ORDERS")
}

// TestMappedAway: a subject mapping leads to another stream, or to none, though ours is as it should be.
func TestMappedAway(t *testing.T) {
	t.Parallel()
	n := startServer(t, nil)
	js := n.admin(t)
	createStream(t, js, jetstream.StreamConfig{Name: "OTHER", Subjects: []string{"other.>"}})
	e := openEdge(t, nats.Config{URL: n.url(), CreateStreams: true})
	n.addMapping(t, "orders.*.*.*", "other.$1.$2.$3")
	n.addMapping(t, "deadletters.*", "nowhere.$1")
	held := e.offerAll(append(orders(20), order(21).AsDeadletter()))
	e.waitCause("publish orders", "reach another stream than ORDERS")
	e.waitCause("publish deadletters", "no stream is bound to deadletters.>")
	n.server.GlobalAccount().RemoveMapping("orders.*.*.*")
	n.server.GlobalAccount().RemoveMapping("deadletters.*")
	e.waitAll(held)
	e.waitNoCauses()
	wantStored(t, js, "OTHER")
}

func TestNoJetStream(t *testing.T) {
	t.Parallel()
	n := startServer(t, func(o *server.Options) { o.JetStream = false })
	e := openEdge(t, nats.Config{URL: n.url(), CreateStreams: true})
	held := e.offer(order(1))
	e.waitCause("stream ORDERS", "JetStream")
	undone(t, held)
}

func TestTooLargeForServer(t *testing.T) {
	t.Parallel()
	n := startServer(t, func(o *server.Options) { o.MaxPayload = 4096 })
	e := openEdge(t, nats.Config{URL: n.url(), CreateStreams: true})
	large := order(1)
	large.Data = make([]byte, 5000)
	first, next := e.offer(large), e.offer(order(2))
	wantRejected(t, e.wait(first))
	wantRejected(t, e.wait(e.offer(large.AsDeadletter()))) // and so the bridge puts it into quarantine
	if err := e.wait(next); err != nil {
		t.Error(err)
	}
}

// TestLongIDs: ids of any length fit into the headers.
func TestLongIDs(t *testing.T) {
	t.Parallel()
	n := startServer(t, nil)
	e := openEdge(t, nats.Config{URL: n.url(), CreateStreams: true})
	long := order(1)
	long.UserID, long.OrderID, long.Redelivered = strings.Repeat("é", 30_000), strings.Repeat("/", 30_000), true
	e.publish(long, long.AsDeadletter())
	wantStored(t, n.admin(t), "ORDERS", 1)
	wantStored(t, n.admin(t), "DEADLETTERS", 1)
}

// Both copies of a rejected order are tried, whatever becomes of the other.
func TestOneCopyRefused(t *testing.T) {
	t.Parallel()
	n := startServer(t, nil)
	js := n.admin(t)
	createStream(t, js, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}, MaxMsgSize: 1000})
	e := openEdge(t, nats.Config{URL: n.url(), CreateStreams: true})
	d := order(1)
	d.Status, d.Data = event.StatusRejected, make([]byte, 2000)
	wantRejected(t, e.wait(e.offer(d)))
	wantStored(t, js, "ORDERS")
	wantStored(t, js, "REJECTS", 1)
}

// However many events are held by one stream, those of another do not wait behind them.
func TestManyHeld(t *testing.T) {
	t.Parallel()
	n := startServer(t, nil)
	createStream(
		t,
		n.admin(t),
		jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}, Storage: jetstream.MemoryStorage},
	)
	proxy := publishertest.NewProxy(t, n.url()[len("nats://"):])
	e := openEdge(t, nats.Config{URL: "nats://" + proxy.Addr(), CreateStreams: true})
	e.waitCause("stream ORDERS", "memory")
	proxy.LoseAnswers(true)
	proxy.Cut()
	for i := range uint64(2000) {
		d := order(i + 1)
		d.OrderID = fmt.Sprint(i)
		e.offer(d)
	}
	dead := e.offer(order(3000).AsDeadletter())
	proxy.LoseAnswers(false)
	proxy.Cut()
	if err := e.wait(dead); err != nil {
		t.Error(err)
	}
}

// TestLimits: each limit that keeps a stream from being made, or from storing, says what to do about it.
func TestLimits(t *testing.T) {
	t.Parallel()
	unlimited := server.JetStreamAccountLimits{MaxMemory: -1, MaxStore: -1, MaxStreams: -1, MaxConsumers: -1}
	for name, c := range map[string]struct {
		limits      func(*server.JetStreamAccountLimits)
		tier        string
		cfg         nats.Config
		cause, want string
	}{
		"streams": {limits: func(l *server.JetStreamAccountLimits) { l.MaxStreams = 1 },
			cause: "stream ", want: "raise the account's limit of streams"},
		"size required": {limits: func(l *server.JetStreamAccountLimits) { l.MaxBytesRequired = true },
			cause: "stream ORDERS", want: "set POSTBRIDGE_NATS_MAX_BYTES"},
		"size": {limits: func(l *server.JetStreamAccountLimits) { l.StoreMaxStreamBytes = 1 << 20 },
			cfg:   nats.Config{MaxBytes: 1 << 30},
			cause: "stream ORDERS", want: "lower POSTBRIDGE_NATS_MAX_BYTES"},
		"replicas": {cfg: nats.Config{Replicas: 3},
			cause: "stream ORDERS", want: "set POSTBRIDGE_NATS_REPLICAS=1"},
		"no tier": {limits: func(*server.JetStreamAccountLimits) {}, tier: "R3",
			cause: "stream ORDERS", want: "set POSTBRIDGE_NATS_REPLICAS to one it has"},
		"storage": {limits: func(l *server.JetStreamAccountLimits) { l.MaxStore = 10 },
			cause: "publish orders", want: "raise the account's JetStream storage limit"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := startServer(t, nil)
			set := func(tier string, limits server.JetStreamAccountLimits) {
				all := map[string]server.JetStreamAccountLimits{tier: limits}
				if err := n.server.GlobalAccount().UpdateJetStreamLimits(all); err != nil {
					t.Fatal(err)
				}
			}
			if c.limits != nil {
				limits := unlimited
				c.limits(&limits)
				set(c.tier, limits)
			}
			c.cfg.URL, c.cfg.CreateStreams = n.url(), true
			if name == "streams" || name == "storage" {
				js := n.admin(t)
				createStream(t, js, jetstream.StreamConfig{Name: "USED", Subjects: []string{"used"}})
				if _, err := js.Publish(t.Context(), "used", nil); err != nil {
					t.Fatal(err)
				}
			}
			e := openEdge(t, c.cfg)
			held := e.offer(order(1))
			eventually(t, "condition", func() bool {
				return slices.ContainsFunc(e.all(), func(text string) bool {
					return strings.HasPrefix(text, c.cause) && strings.Contains(text, c.want)
				})
			}, func() any { return e.all() })
			undone(t, held)
			if c.limits == nil {
				return
			}
			set("", unlimited)
			if err := e.wait(held); err != nil {
				t.Error(err)
			}
			e.waitNoCauses()
		})
	}
}

// TestCounterStream: a stream of counters refuses every event.
func TestCounterStream(t *testing.T) {
	t.Parallel()
	n := startServer(t, nil)
	createStream(t, n.admin(t), jetstream.StreamConfig{
		Name: "ORDERS", Subjects: []string{"orders.>"}, AllowMsgCounter: true, AllowDirect: true,
	})
	cfg := nats.Config{URL: n.url(), CreateStreams: true}
	e := openEdge(t, cfg)
	held := e.offer(order(1))
	e.waitCause("stream ORDERS", "recreate it without")
	undone(t, held)
	wantResult(t, checkBus(t, cfg), publishers.Fail, "stream ORDERS accepts only counters", "recreate it without")
}
