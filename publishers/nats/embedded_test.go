package nats_test

import (
	"log/slog"
	"net"
	"strings"
	"testing"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/publishers/nats"
)

func startEmbedded(t *testing.T, dir string) *nats.Embedded {
	t.Helper()
	s, err := nats.StartEmbedded(nats.EmbeddedConfig{Listen: "127.0.0.1:0", StoreDir: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// The publisher comes without a socket, everybody else by TCP; streams outlast the process.
func TestEmbedded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := startEmbedded(t, dir)
	// A limit far above the free disk, and then a smaller one.
	e := openEdge(t, nats.Config{Server: s, CreateStreams: true, MaxBytes: 1 << 50, DiscardOld: true})
	e.publish(order(1), order(2))
	e.Close()
	s.Shutdown()

	s = startEmbedded(t, dir)
	defer s.Shutdown()
	e = openEdge(t, nats.Config{Server: s, CreateStreams: true, MaxBytes: 1 << 30, DiscardOld: true})
	e.publish(order(3))
	nc, err := natsgo.Connect(s.ClientURL())
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

func TestEmbeddedAddressTaken(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = nats.StartEmbedded(nats.EmbeddedConfig{Listen: l.Addr().String(), StoreDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), l.Addr().String()) || !strings.Contains(err.Error(), "in use") {
		t.Errorf("%v", err)
	}
}

func TestEmbeddedStoreNotWritable(t *testing.T) {
	t.Parallel()
	_, err := nats.StartEmbedded(nats.EmbeddedConfig{Listen: "127.0.0.1:0", StoreDir: "/dev/null/store", Log: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), "/dev/null/store") {
		t.Errorf("%v", err)
	}
}

func TestEmbeddedListen(t *testing.T) {
	t.Parallel()
	for _, listen := range []string{"", "4222", "host:port", "host:70000"} {
		if _, err := nats.StartEmbedded(nats.EmbeddedConfig{Listen: listen, StoreDir: t.TempDir()}); err == nil {
			t.Errorf("%q: no error", listen)
		}
	}
}
