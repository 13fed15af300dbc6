package nats_test

import (
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/bridge/scan"
	"github.com/postbridge/postbridge/publishers"
	"github.com/postbridge/postbridge/publishers/nats"
)

// The publisher comes without a socket, everybody else by TCP; streams outlast the process.
func TestEmbedded(t *testing.T) {
	t.Parallel()
	cfg := nats.Config{
		Embedded:      &nats.EmbeddedConfig{Listen: fmt.Sprint("127.0.0.1:", freePort(t)), StoreDir: t.TempDir()},
		CreateStreams: true, MaxBytes: 1 << 50, DiscardOld: true, // far above the free disk
	}
	e := openEdge(t, cfg)
	e.publish(order(1), order(2))
	e.Close()

	cfg.MaxBytes = 1 << 30
	e = openEdge(t, cfg)
	e.publish(order(3))
	nc, err := natsgo.Connect("nats://" + cfg.Embedded.Listen)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	wantStored(t, js, "ORDERS", 1, 2, 3)
	e.waitNoCauses()
}

// openEmbedded returns why the server cannot start.
func openEmbedded(t *testing.T, listen, dir string) error {
	t.Helper()
	cfg := nats.Config{Embedded: &nats.EmbeddedConfig{Listen: listen, StoreDir: dir}}
	p, err := nats.Open(
		cfg,
		bridge.Opening{Report: func(string, error) {}, SaveState: func() error { return nil }},
		slog.New(slog.DiscardHandler),
	)
	if err == nil {
		p.Close()
		t.Fatalf("listens on %q, stores in %s", listen, dir)
	}
	return err
}

func TestEmbeddedAddressTaken(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dir := filepath.Join(t.TempDir(), "store")
	want := fmt.Sprintf(
		"the embedded NATS server cannot listen on %s: address already in use; set POSTBRIDGE_NATS_LISTEN",
		l.Addr(),
	)
	if err := openEmbedded(t, l.Addr().String(), dir); err.Error() != want {
		t.Errorf("%v\nwant %s", err, want)
	}
}

func TestEmbeddedStoreNotWritable(t *testing.T) {
	t.Parallel()
	if err := openEmbedded(t, "127.0.0.1:0", "/dev/null/store"); !strings.Contains(err.Error(), "/dev/null/store") {
		t.Error(err)
	}
}

func TestEmbeddedListen(t *testing.T) {
	t.Parallel()
	for _, listen := range []string{"", "4222", "host:port", "host:70000"} {
		if err := openEmbedded(t, listen, t.TempDir()); !strings.Contains(err.Error(), "is not host:port") {
			t.Errorf("%q: %v", listen, err)
		}
	}
}

// textBroker takes any body, and reads of JSON the one member that there is as the reason.
type textBroker struct{}

func (textBroker) Name() string                            { return "kite" }
func (textBroker) Verify(*bridge.Postback) (string, error) { return "token", nil }
func (textBroker) Normalize(members []event.Member) (event.Order, error) {
	reason := scan.Unquote(members[0].Value)
	return event.Order{UserID: "AB1234", OrderID: "1", Status: event.StatusRejected, Reason: reason}, nil
}

func (textBroker) State(m event.Member) string { return m.Value }

// TestLargestEvents: whatever a verified postback of the largest size consists of, the embedded server stores its
// event.
func TestLargestEvents(t *testing.T) {
	t.Parallel()
	for _, maxBody := range []int{1 << 10, 64 << 10, 1 << 20} {
		t.Run(publishers.SizeText(int64(maxBody)), func(t *testing.T) {
			t.Parallel()
			most := bridge.MaxEventSize(int64(maxBody))
			e := openEdge(t, nats.Config{
				Embedded: &nats.EmbeddedConfig{
					Listen:     "127.0.0.1:0",
					StoreDir:   t.TempDir(),
					MaxPayload: int32(most),
				},
				CreateStreams: true,
			})
			bodies := []string{
				strings.Repeat("\x01", maxBody),
				`{"a":"` + strings.Repeat("\xff", maxBody-8) + `"}`,
				strings.Repeat("\xff", maxBody),
				strings.Repeat(`"`, maxBody),
				`{"a":"` + strings.Repeat("a", maxBody-8) + `"}`,
				`{"a":"` + strings.Repeat(`\u0001`, (maxBody-8)/6) + `"}`,
				strings.Repeat("[", maxBody),
			}
			if maxBody == 1<<20 {
				bodies = bodies[:2] // the worst
			}
			for i, body := range bodies {
				p := &bridge.Postback{Body: []byte(body)}
				got := bridge.Normalize(textBroker{}, p, "token", time.Now())
				d := order(uint64(i + 1))
				d.Data, d.Status, d.Deadletter = got.Append(nil), got.Status, !got.Understood()
				d.UserID = strings.Repeat("é", maxBody/2) // takes the most of headers
				if size := int64(len(d.Data)); size > most-64<<10 {
					t.Errorf(
						"body %d of %d bytes becomes an event of %d, more than %d",
						i,
						len(body),
						size,
						most-64<<10,
					)
				}
				e.publish(d)
			}
		})
	}
}
