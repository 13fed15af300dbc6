package kafka

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/apiversions"
	"github.com/segmentio/kafka-go/protocol/createtopics"
	"github.com/segmentio/kafka-go/protocol/metadata"
	"github.com/segmentio/kafka-go/protocol/saslauthenticate"
	"github.com/segmentio/kafka-go/protocol/saslhandshake"
	"github.com/twmb/franz-go/pkg/kfake"
)

const patience = 20 * time.Second

// scripted is a broker that answers as a test says.
type scripted struct {
	addr     net.Addr
	accepted chan net.Conn // in the order they came
}

// startScripted starts a broker that asks answer first; it answers itself what that returns nil and true for, and
// closes the connection for nil and false.
func startScripted(t *testing.T, answer func(req protocol.Message) (protocol.Message, bool)) *scripted {
	t.Helper()
	return startRaw(t, func(conn net.Conn) {
		for {
			version, id, _, req, err := protocol.ReadRequest(conn)
			if err != nil {
				return
			}
			res, ok := answer(req)
			if !ok {
				return
			}
			if res == nil {
				res = usual(req)
			}
			if protocol.WriteResponse(conn, version, id, res) != nil {
				return
			}
		}
	})
}

// startRaw starts a server of one function for each connection.
func startRaw(t *testing.T, serve func(net.Conn)) *scripted {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &scripted{listener.Addr(), make(chan net.Conn, 100)}
	var running sync.WaitGroup
	t.Cleanup(func() {
		listener.Close()
		for len(s.accepted) > 0 {
			(<-s.accepted).Close()
		}
		running.Wait()
	})
	running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.accepted <- conn
			running.Go(func() {
				defer conn.Close()
				serve(conn)
			})
		}
	})
	return s
}

// usual is what a broker without a login, or with any, answers.
func usual(req protocol.Message) protocol.Message {
	switch req.(type) {
	case *apiversions.Request:
		res := new(apiversions.Response)
		for key := protocol.Produce; key <= protocol.AlterUserScramCredentials; key++ {
			res.ApiKeys = append(res.ApiKeys, apiversions.ApiKeyResponse{ApiKey: int16(key), MinVersion: key.MinVersion(), MaxVersion: key.MaxVersion()})
		}
		return res
	case *saslhandshake.Request:
		return new(saslhandshake.Response)
	case *saslauthenticate.Request:
		return new(saslauthenticate.Response)
	default:
		return new(metadata.Response)
	}
}

func asUsual(protocol.Message) (protocol.Message, bool) { return nil, true }

func openTransport(t *testing.T, cfg Config) *transport {
	t.Helper()
	tr := newTransport(cfg, func(error) {})
	t.Cleanup(tr.close)
	return tr
}

// ask sends a request. That its time is over is an error of its own: nothing may take so long.
func ask(ctx context.Context, tr *transport, addr net.Addr) error {
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, err := tr.RoundTrip(limited, addr, new(metadata.Request))
	if limited.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf(
			"not before %v: %v",
			patience,
			err, //nolint:errorlint // whatever error it is, it comes too late
		)
	}
	return err
}

func mustAsk(t *testing.T, tr *transport, addr net.Addr) {
	t.Helper()
	if err := ask(t.Context(), tr, addr); err != nil {
		t.Fatal(err)
	}
}

// fails checks the error of a request, that the next has the same text, and that it names a broker once at most.
func fails(t *testing.T, tr *transport, addr net.Addr, want ...string) error {
	t.Helper()
	err := ask(t.Context(), tr, addr)
	if err == nil {
		t.Fatal("no error")
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%v, want %q", err, w)
		}
	}
	if strings.Count(err.Error(), addr.String()) > 1 {
		t.Errorf("%v names the broker twice", err)
	}
	if again := ask(t.Context(), tr, addr); again == nil || again.Error() != err.Error() {
		t.Errorf("first: %v\nthen: %v", err, again)
	}
	return err
}

// isClosed waits for the other side to close a connection that nobody else reads.
func isClosed(t *testing.T, conn net.Conn) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("was not closed")
	}
}

func (t *transport) idleTo(addr net.Addr) []*connection {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(t.idle), func(c *connection) bool { return c.address != addr.String() })
}

// held is a broker that answers metadata requests one by one when told to.
type held struct {
	*scripted
	asked  chan struct{}
	answer chan bool // false closes the connection
}

func startHeld(t *testing.T) *held {
	h := &held{asked: make(chan struct{}, 100), answer: make(chan bool)}
	h.scripted = startScripted(t, func(req protocol.Message) (protocol.Message, bool) {
		if _, ok := req.(*metadata.Request); !ok {
			return nil, true
		}
		h.asked <- struct{}{}
		select {
		case ok := <-h.answer:
			return nil, ok
		case <-t.Context().Done():
			return nil, false
		}
	})
	return h
}

// start begins n requests and returns their errors once the broker has them all.
func (h *held) start(ctx context.Context, tr *transport, n int) chan error {
	errs := make(chan error, n+1)
	for range n {
		go func() { errs <- ask(ctx, tr, h.addr) }()
	}
	for range n {
		<-h.asked
	}
	return errs
}

func TestConnectionReused(t *testing.T) {
	t.Parallel()
	h := startHeld(t)
	tr := openTransport(t, Config{})
	for range 3 {
		errs := h.start(t.Context(), tr, 2)
		for range 2 {
			h.answer <- true
			if err := <-errs; err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := len(h.accepted); n != 2 {
		t.Errorf("%d connections for two requests at a time", n)
	}
}

// A broker that was restarted leaves all connections dead; the first failure is the last of theirs.
func TestDeadConnectionsDropped(t *testing.T) {
	t.Parallel()
	h := startHeld(t)
	tr := openTransport(t, Config{})
	errs := h.start(t.Context(), tr, 3)
	for range 3 {
		h.answer <- true
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	other := startScripted(t, asUsual)
	mustAsk(t, tr, other.addr)
	idle := tr.idleTo(h.addr)
	if len(idle) != 3 {
		t.Fatalf("%d idle", len(idle))
	}
	for range 3 {
		(<-h.accepted).Close()
	}
	err := ask(t.Context(), tr, h.addr)
	if err == nil || !ended(err) ||
		err.Error() != "Kafka broker "+h.addr.String()+": Metadata: the broker closed the connection" {
		t.Errorf("%v", err)
	}
	if n := len(tr.idleTo(h.addr)); n != 0 {
		t.Errorf("%d kept", n)
	}
	for _, c := range idle {
		if _, err := c.conn.Write([]byte{0}); !errors.Is(err, net.ErrClosed) {
			t.Errorf("not closed: %v", err)
		}
	}
	if len(tr.idleTo(other.addr)) != 1 {
		t.Error("another broker's connection was dropped, too")
	}
	errs = h.start(t.Context(), tr, 1)
	h.answer <- true
	if err := <-errs; err != nil {
		t.Error(err)
	}
}

func TestIdleTooLong(t *testing.T) {
	t.Parallel()
	one, two := startScripted(t, asUsual), startScripted(t, asUsual)
	tr := openTransport(t, Config{})
	mustAsk(t, tr, one.addr)
	mustAsk(t, tr, two.addr)
	c := tr.idleTo(one.addr)[0]
	if left := time.Until(c.until); left > maxIdle || left < maxIdle-patience {
		t.Errorf("is kept for %v", left)
	}
	c.until = time.Now().Add(-time.Nanosecond)
	// Also if that broker is asked no more.
	mustAsk(t, tr, two.addr)
	if len(two.accepted) != 1 || len(tr.idleTo(one.addr)) != 0 {
		t.Error("kept what was idle for too long")
	}
	if _, err := c.conn.Write([]byte{0}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("not closed: %v", err)
	}
	mustAsk(t, tr, one.addr)
	if len(one.accepted) != 2 {
		t.Error("used what was idle for too long")
	}
}

func TestRenew(t *testing.T) {
	t.Parallel()
	h := startHeld(t)
	tr := openTransport(t, Config{})
	errs := h.start(t.Context(), tr, 2)
	h.answer <- true
	if err := <-errs; err != nil { // one is idle now, the other in use
		t.Fatal(err)
	}
	tr.renew()
	h.answer <- true
	if err := <-errs; err != nil {
		t.Errorf("a request under way: %v", err)
	}
	if n := len(tr.idleTo(h.addr)); n != 0 {
		t.Errorf("%d kept", n)
	}
	errs = h.start(t.Context(), tr, 1)
	h.answer <- true
	if err := <-errs; err != nil || len(h.accepted) != 3 {
		t.Errorf("%v, %d connections", err, len(h.accepted))
	}
}

func TestCancelled(t *testing.T) {
	t.Parallel()
	h := startHeld(t)
	tr := openTransport(t, Config{})
	ctx, cancel := context.WithCancel(t.Context())
	errs := h.start(ctx, tr, 1)
	cancel()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	isClosed(t, <-h.accepted)
	if len(tr.idleTo(h.addr)) != 0 {
		t.Error("kept the connection")
	}
}

func TestClosedUnderWay(t *testing.T) {
	t.Parallel()
	h := startHeld(t)
	silent := startRaw(t, func(conn net.Conn) { io.Copy(io.Discard, conn) })
	tr := openTransport(t, Config{})
	errs := h.start(t.Context(), tr, 2)
	go func() { errs <- ask(t.Context(), tr, silent.addr) }()
	conn := <-silent.accepted // in its handshake
	tr.close()
	for range 2 {
		if err := <-errs; !errors.Is(err, net.ErrClosed) {
			t.Errorf("%v", err)
		}
	}
	if err := <-errs; !errors.Is(err, net.ErrClosed) {
		t.Errorf("in the handshake: %v", err)
	}
	isClosed(t, <-h.accepted)
	isClosed(t, <-h.accepted)
	conn.Close()
	if err := ask(t.Context(), tr, h.addr); !errors.Is(err, net.ErrClosed) {
		t.Errorf("afterwards: %v", err)
	}
}

func TestRequestDeadline(t *testing.T) {
	t.Parallel()
	h := startHeld(t)
	tr := openTransport(t, Config{})
	// The connection is there before: its handshake may take longer.
	errs := h.start(t.Context(), tr, 1)
	h.answer <- true
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := tr.RoundTrip(ctx, h.addr, new(metadata.Request))
	if !errors.Is(err, context.DeadlineExceeded) ||
		err.Error() != "Kafka broker "+h.addr.String()+": Metadata: no answer in time" {
		t.Errorf("%v", err)
	}
}

// Whatever a broker does before it lets us in, it has handshakeTimeout for it, or less.
func TestHandshakeDeadline(t *testing.T) {
	t.Parallel()
	const password = "hunter2"
	login := Config{SASLMechanism: mechanismScram512, User: "edge", Password: constant(password)}
	stalls := func(at protocol.ApiKey) func(t *testing.T) *scripted {
		return func(t *testing.T) *scripted {
			return startScripted(t, func(req protocol.Message) (protocol.Message, bool) {
				if req.ApiKey() == at {
					<-t.Context().Done()
				}
				return nil, true
			})
		}
	}
	silent := func(t *testing.T) *scripted { return startRaw(t, func(conn net.Conn) { io.Copy(io.Discard, conn) }) }
	for name, test := range map[string]struct {
		broker  func(t *testing.T) *scripted
		config  Config
		timeout time.Duration // of the request
		want    string
	}{
		"says nothing":        {silent, Config{}, time.Second, "ApiVersions: no answer in time"},
		"says nothing to TLS": {silent, Config{TLS: true}, time.Second, "TLS handshake: no answer in time"},
		"no login handshake":  {stalls(protocol.SaslHandshake), login, time.Second, `login of user "edge" (SCRAM-SHA-512): no answer in time`},
		"no login":            {stalls(protocol.SaslAuthenticate), login, 0, `login of user "edge" (SCRAM-SHA-512): no answer in time`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := test.broker(t)
			tr := openTransport(t, test.config)
			limit := cmp.Or(test.timeout, patience)
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			early, cancelEarly := context.WithTimeout(t.Context(), min(limit, handshakeTimeout)/10*9)
			defer cancelEarly()
			_, err := tr.RoundTrip(ctx, b.addr, new(metadata.Request))
			if early.Err() == nil {
				t.Error("gave up early")
			}
			if own := ctx.Err() != nil; own != (test.timeout > 0) {
				t.Errorf("the time of the request was over: %v", own)
			}
			if !errors.Is(err, context.DeadlineExceeded) ||
				!strings.Contains(err.Error(), test.want) ||
				strings.Contains(err.Error(), password) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

func TestDialErrors(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	tr := openTransport(t, Config{})
	fails(t, tr, listener.Addr(), "Kafka broker "+listener.Addr().String()+": dial: connect: connection refused")
	fails(t, tr, kafkago.TCP("nobody.invalid:9092"), "Kafka broker nobody.invalid:9092: dial: lookup nobody.invalid: ")
}

// No answer takes the process down.
func TestBadAnswers(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ answer, want string }{
		"negative size":   {"\xff\xff\xff\xff\x00\x00\x00\x00", `the answer is not Kafka's: it starts with "\xff\xff\xff\xff"`},
		"smallest size":   {"\x80\x00\x00\x00\x00\x00\x00\x00", "the answer is not Kafka's"},
		"too short":       {"\x00\x00\x00\x02ab", "closed the connection"},
		"empty":           {"\x00\x00\x00\x00", "closed the connection"},
		"HTTP":            {"HTTP/1.1 400 Bad Request\r\n\r\n", `the answer is not Kafka's: it starts with "HTTP"`},
		"TLS alert":       {"\x15\x03\x03\x00\x02\x02\x46", `it starts with "\x15\x03\x03\x00"`},
		"other id":        {"\x00\x00\x00\x0a\x00\x00\x00\x63\x00\x00\x00\x00\x00\x00", "correlation id"},
		"version refused": {"\x00\x00\x00\x0a\x00\x00\x00\x01\x00\x23\x00\x00\x00\x00", "[35] Unsupported Version"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startRaw(t, func(conn net.Conn) {
				if _, _, _, _, err := protocol.ReadRequest(conn); err == nil {
					io.WriteString(conn, test.answer)
				}
			})
			fails(t, openTransport(t, Config{}), s.addr, "Kafka broker "+s.addr.String()+": ", test.want)
		})
	}
	t.Run("impossible length", func(t *testing.T) {
		t.Parallel()
		s := startRaw(t, func(conn net.Conn) {
			for {
				version, id, _, req, err := protocol.ReadRequest(conn)
				if err != nil {
					return
				}
				if req.ApiKey() != protocol.CreateTopics {
					protocol.WriteResponse(conn, version, id, usual(req))
					continue
				}
				answer := binary.BigEndian.AppendUint32(nil, 4+1+4+9)
				answer = binary.BigEndian.AppendUint32(answer, uint32(id))
				answer = append(answer, make([]byte, 5)...) // no tags, no throttling
				conn.Write(binary.AppendUvarint(answer, 1<<62))
			}
		})
		tr := openTransport(t, Config{})
		_, err := tr.RoundTrip(t.Context(), s.addr, new(createtopics.Request))
		if err == nil || !strings.Contains(err.Error(), "CreateTopics: the answer cannot be decoded") {
			t.Errorf("%v", err)
		}
		mustAsk(t, tr, s.addr)
	})
}

// A request that the broker is too new or too old for is told apart from a connection that was cut.
func TestVersions(t *testing.T) {
	t.Parallel()
	offer := apiversions.ApiKeyResponse{ApiKey: int16(protocol.Metadata), MinVersion: 20, MaxVersion: 30}
	s := startScripted(t, func(req protocol.Message) (protocol.Message, bool) {
		if _, ok := req.(*apiversions.Request); ok {
			return &apiversions.Response{ApiKeys: []apiversions.ApiKeyResponse{offer}}, true
		}
		return nil, true
	})
	tr := openTransport(t, Config{})
	err := fails(t, tr, s.addr, ": Metadata: [35] Unsupported Version")
	if !errors.Is(err, kafkago.UnsupportedVersion) {
		t.Errorf("%v", err)
	}
	if _, err := tr.RoundTrip(t.Context(), s.addr, new(createtopics.Request)); !errors.Is(
		err,
		kafkago.UnsupportedVersion,
	) ||
		!strings.Contains(err.Error(), ": CreateTopics: ") {
		t.Errorf("%v", err)
	}
	if len(s.accepted) != 1 {
		t.Error("connected again")
	}
}

func TestNewClient(t *testing.T) {
	t.Parallel()
	cluster := startKfake(t, kfake.NumBrokers(2), kfake.SeedTopics(3, "orders"))
	client, end := NewClient(Config{Brokers: cluster.ListenAddrs()})
	defer end()
	if got := client.Addr.String(); got != cluster.ListenAddrs()[0] {
		t.Errorf("asks %s", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	res, err := client.Metadata(ctx, &kafkago.MetadataRequest{Topics: []string{"orders"}})
	if err != nil || len(res.Brokers) != 2 || len(res.Topics) != 1 || len(res.Topics[0].Partitions) != 3 {
		t.Fatalf("%+v, %v", res, err)
	}
	for _, p := range res.Topics[0].Partitions {
		leader := kafkago.TCP(net.JoinHostPort(p.Leader.Host, strconv.Itoa(p.Leader.Port)))
		stored, err := client.Produce(ctx, &kafkago.ProduceRequest{
			Addr: leader, Topic: "orders", Partition: p.ID, RequiredAcks: kafkago.RequireAll,
			Records: kafkago.NewRecordReader(kafkago.Record{Value: kafkago.NewBytes([]byte("one"))}),
		})
		if err != nil || stored.Error != nil {
			t.Fatalf("%+v, %v", stored, err)
		}
		got, err := client.Fetch(
			ctx,
			&kafkago.FetchRequest{
				Addr:      leader,
				Topic:     "orders",
				Partition: p.ID,
				MinBytes:  1,
				MaxBytes:  1 << 20,
				MaxWait:   time.Second,
			},
		)
		if err != nil || got.Error != nil {
			t.Fatalf("%+v, %v", got, err)
		}
		record, err := got.Records.ReadRecord()
		if err != nil {
			t.Fatal(err)
		}
		if value, err := kafkago.ReadAll(record.Value); err != nil || string(value) != "one" {
			t.Errorf("%q, %v", value, err)
		}
	}
	end()
	if _, err := client.Metadata(ctx, &kafkago.MetadataRequest{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v", err)
	}
}

// Quotas of Kafka are by client id, and so are the zones of WarpStream.
func TestClientID(t *testing.T) {
	t.Parallel()
	for id, want := range map[string]string{"": "postbridge", "edge-1,ws_az=ap-south-1a": "edge-1,ws_az=ap-south-1a"} {
		seen := make(chan string, 10)
		s := startRaw(t, func(conn net.Conn) {
			for {
				version, correlation, client, req, err := protocol.ReadRequest(conn)
				if err != nil {
					return
				}
				seen <- client
				if protocol.WriteResponse(conn, version, correlation, usual(req)) != nil {
					return
				}
			}
		})
		mustAsk(t, openTransport(t, Config{ClientID: id}), s.addr)
		for range 2 { // ApiVersions, Metadata
			if got := <-seen; got != want {
				t.Errorf("%q, want %q", got, want)
			}
		}
	}
}
