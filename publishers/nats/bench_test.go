package nats_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers/nats"
)

// BenchmarkPublish measures events of 1 KiB on their way to the embedded server, connected in process, with 8192 of
// them un-acknowledged at most, as the pump would have it.
func BenchmarkPublish(b *testing.B) {
	for _, keys := range []int{1, 100, 10_000} {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) { benchmarkPublish(b, keys) })
	}
}

func benchmarkPublish(b *testing.B, keys int) {
	s, err := nats.StartEmbedded(nats.EmbeddedConfig{Listen: "127.0.0.1:0", StoreDir: b.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Shutdown()
	p, err := nats.Open(nats.Config{Server: s, CreateStreams: true}, func(string, error) {}, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()

	data := bytes.Repeat([]byte("x"), 1024)
	room := make(chan struct{}, 8192)
	var all sync.WaitGroup
	publish := func(i int) {
		room <- struct{}{}
		all.Add(1)
		p.Publish(context.Background(), &bridge.Delivery{
			Spool: "0badcafe", Sequence: uint64(i + 1), ID: "00112233445566778899aabbccddeeff", Broker: "kite",
			UserID: fmt.Sprint("AB", i%keys), OrderID: "220303000308932", Status: bridge.StatusOpen, ReceivedAt: time.Now(),
			TraceParent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", Data: data,
		}, func(err error) {
			if err != nil {
				b.Error(err)
			}
			<-room
			all.Done()
		})
	}
	publish(-1) // connected, streams made
	all.Wait()
	b.ReportAllocs()
	b.SetBytes(1024)
	for i := 0; b.Loop(); i++ {
		publish(i)
	}
	all.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}
