package nats_test

import (
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
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
	p, err := nats.Open(cfg, bridge.Opening{Report: func(string, error) {}, KeepNote: func() error { return nil }, TakeNote: func() {}}, slog.New(slog.DiscardHandler))
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
	want := fmt.Sprintf("the embedded NATS server cannot listen on %s: address already in use; set POSTBRIDGE_NATS_LISTEN", l.Addr())
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
